"""An organisation with one of everything, made through the API, and everybody who may want something of it.

    world = World(database, stripe)
    answer = world.send(operation, world.owner, fresh=True)

`fresh` makes what the operation's path names anew, so that it can be done again and again.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from local.openapi import template
from local.openapi.examples import EXAMPLES
from tests.callers import ROOT, mint, send, sign_up, token
from tests.contract import Operation, resolved
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer, checkout_session, post_stripe, stripe_event
from tests.stripe_api import FakeStripe

from backplane.scopes import SCOPES_OF_KEY

QUERIES = {
    "/v1/projects/search": {"q": "basket"},
    "/v1/projects/{project_id}/files/content": {"path": "src/basket.ts"},
}


@dataclass(frozen=True)
class Caller:
    name: str
    credential: str | None
    names_organization: bool = False  # by X-Organization-Id


@dataclass(frozen=True)
class Made:
    """Rows of the world: what stands for the names of a path, and the fields that a request to it needs."""

    names: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


class World:
    def __init__(self, database: Database, stripe: FakeStripe) -> None:
        self.database = database
        self.as_owner = sign_up("user_owner").token
        made = send("POST", "/v1/organizations", self.as_owner, body={"name": "Acme"})
        self.organization_id = UUID(made.body["id"])
        self.people = [
            *(self._member(role) for role in ("viewer", "member", "editor", "admin")),
            Caller("owner", self.as_owner, names_organization=True),
        ]
        self.keys = {
            scope: Caller(f"key of {scope}", mint(database, self.organization_id, [scope]))
            for scope in sorted(SCOPES_OF_KEY["organization"])
        }
        everything = sorted(SCOPES_OF_KEY["service"])
        self.service = Caller("service key", mint(database, None, everything), names_organization=True)
        self.root = Caller("platform admin", token(ROOT), names_organization=True)
        eve = sign_up("user_eve")
        scopes = sorted(SCOPES_OF_KEY["organization"])
        self.strangers = [
            Caller("stranger", eve.token),
            Caller("stranger's key", mint(database, eve.organization_id, scopes)),
        ]
        self._kept: dict[str, Made] = {}
        self._furnish(stripe)

    def send(self, operation: Operation, caller: Caller, *, fresh: bool = False, **changed: Any) -> Answer:
        """The operation's example, about rows of this world. `changed` replaces what `callers.send` takes."""
        made = self.made(operation, fresh=fresh)
        request = {
            "body": self.body(operation, made),
            "query": QUERIES.get(operation.path),
            "key": str(uuid4()) if operation.method == "POST" else None,
            "organization": self.organization_id if caller.names_organization else None,
        }
        path = changed.pop("path", operation.path.format(**made.names))
        with self.acting_as(login(operation)):
            return send(operation.method, path, caller.credential, **request | changed)

    def body(self, operation: Operation, made: Made) -> dict[str, Any] | None:
        if operation.body_schema is None:
            return None
        method, _, route = operation.route.partition(" ")
        known = resolved(operation.body_schema).get("properties", {})
        return EXAMPLES[method, route] | {name: value for name, value in made.body.items() if name in known}

    def made(self, operation: Operation, *, fresh: bool = False) -> Made:
        path = operation.path
        places = (f"{operation.method} {path}", path, path[: path.rfind("}") + 1])
        place = next((each for each in places if each in MAKERS), None)
        if place is None:
            assert "{" not in path, f"MAKERS in tests/world.py must make what {path} names"
            return Made()
        if fresh or place not in self._kept:
            with self.acting_as("backplane_app"):
                self._kept[place] = MAKERS[place](self)
        return self._kept[place]

    def post(self, path: str, credential: str | None = None, **body: Any) -> Any:
        """What the owner gets when he posts this."""
        credential = credential or self.as_owner
        there = self.organization_id
        answer = send("POST", path, credential, body=body or None, key=str(uuid4()), organization=there)
        if answer.status == 402:
            self._give_credits()
            return self.post(path, credential, **body)
        assert 200 <= answer.status < 300, (path, answer.body)
        return answer.body

    def post_as_root(self, path: str, **body: Any) -> Any:
        with self.acting_as("backplane_system"):
            return self.post(path, self.root.credential, **body)

    def acting_as(self, role: str) -> AbstractContextManager[Any]:
        """The database as this login sees it; where that is so already, its connection is kept."""
        url = self.database.url(role)
        return nullcontext() if os.environ["DATABASE_URL"] == url else self.database.as_role(role)

    def _member(self, role: str) -> Caller:
        return Caller(role, self.join(role, role), names_organization=True)

    def join(self, name: str, role: str, organization_id: object = None) -> str:
        """Makes somebody a member of the world's organisation, or another. Answers his token."""
        member = sign_up(f"user_{name}")
        rows(
            self.database,
            """
            INSERT INTO tenancy.organization_members (organization_id, user_id, role)
            VALUES (%s, %s, %s)
            ON CONFLICT (organization_id, user_id) DO UPDATE SET role = EXCLUDED.role
            """,
            organization_id or self.organization_id,
            member.user_id,
            role,
        )
        return member.token

    def _furnish(self, stripe: FakeStripe) -> None:
        """What payments bring: a plan on which everything is allowed, credits, a customer of Stripe's."""
        stripe.add_price("price_pack_500", recurring=False)
        stripe.add_customer("cus_acme")
        values = {"organization_id": self.organization_id}
        for statement in (
            """
            INSERT INTO billing.customers (organization_id, provider, provider_customer_id)
            VALUES (%(organization_id)s, 'stripe', 'cus_acme')
            """,
            """
            INSERT INTO billing.subscriptions
                (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
            SELECT %(organization_id)s, 'clerk', 'sub_acme', id, 'active', '0.1'
            FROM billing.plans WHERE key = 'enterprise'
            """,
        ):
            with self.database.connect() as connection:
                connection.execute(statement, values)
        self._give_credits()

    def _give_credits(self) -> None:
        path = f"/v1/admin/credits/{self.organization_id}/adjustments"
        self.post(path, self.root.credential, amount=1_000_000_000, reason="To spend")


def _project(world: World) -> Made:
    return Made({"project_id": world.post("/v1/projects", title="A shop for tea")["id"]})


def _deleted_project(world: World) -> Made:
    made = _project(world)
    path = f"/v1/projects/{made.names['project_id']}"
    deleted = send("DELETE", path, world.as_owner, organization=world.organization_id)
    assert deleted.status == 204
    return made


def _share(world: World) -> Made:
    project = _project(world).names
    shared = world.post(f"/v1/projects/{project['project_id']}/shares", email="bob@example.com")
    return Made({**project, "share_id": shared["id"]}, {"token": shared["token"]})


def _version(world: World) -> Made:
    project = _project(world).names
    file = {"path": "src/basket.ts", "content": "export const basket = [];\n"}
    saved = world.post(f"/v1/projects/{project['project_id']}/files", files=[file])
    return Made({**project, "version": saved["version"]})


def _generation(world: World) -> Made:
    path = f"/v1/projects/{_project(world).names['project_id']}/generations"
    started = world.post(path, agent_type="backend", prompt="Add a basket", operation="ai_text_chat")
    return Made({"generation_id": started["id"]}, {"lock_token": started["lock_token"]})


def _object(world: World) -> Made:
    path = f"/v1/projects/{_project(world).names['project_id']}/uploads"
    return Made(
        {"object_id": world.post(path, name="a.png", content_type="image/png", bytes=100)["object_id"]}
    )


def _debit(world: World) -> Made:
    return Made({"debit_id": world.post("/v1/credits/debits", operation="ai_text_chat")["id"]})


def _hold(world: World) -> Made:
    return Made({"hold_id": world.post("/v1/credits/holds", operation="ai_text_chat", quantity=10)["id"]})


def _service_key(world: World) -> Made:
    return Made(
        {"key_id": world.post_as_root("/v1/admin/service-keys", name="Workers", scopes=["read"])["id"]}
    )


def _organization_key(world: World) -> Made:
    return Made({"key_id": world.post("/v1/api-keys", name="Nightly export")["id"]})


def _organization(world: World) -> Made:
    return Made({"organization_id": world.organization_id})


def _organization_to_end(world: World) -> Made:
    made = world.post("/v1/organizations", name="Acme to end")["id"]
    for role in ("viewer", "member", "editor", "admin"):
        world.join(role, role, made)
    return Made({"organization_id": made})


def _member(world: World) -> Made:
    """One who is there to be changed, removed or made the owner; the owner is the owner again."""
    world.join("owner", "owner")
    user_id = sign_up("user_spare").user_id
    world.join("spare", "viewer")
    return Made({"organization_id": world.organization_id, "user_id": user_id}, {"user_id": str(user_id)})


def _invitation(world: World) -> Made:
    path = f"/v1/organizations/{world.organization_id}/invitations"
    invitation = world.post(path, email="eve@example.com")["id"]
    return Made({"organization_id": world.organization_id, "invitation_id": invitation})


def _plan(world: World) -> Made:
    key = f"plan_{uuid4().hex}"
    world.post_as_root("/v1/admin/plans", key=key, tier="pro", name="Pro", credits=1)
    return Made({"plan_key": key}, {"key": f"plan_{uuid4().hex}"})


def _webhook(world: World) -> Made:
    event_id = f"evt_{uuid4().hex}"
    paid = checkout_session(mode="payment", client_reference_id="user_who_is_not_known_yet")
    with world.acting_as("backplane_system"):
        parked = post_stripe(stripe_event("checkout.session.completed", paid, event_id=event_id))
    assert parked.body["status"] == "parked"
    (row,) = rows(world.database, "SELECT id FROM platform.webhook_inbox WHERE event_id = %s", event_id)
    return Made({"webhook_id": row["id"]})


def _deployment(world: World) -> Made:
    path = f"/v1/projects/{_project(world).names['project_id']}/deployments"
    begun = world.post(path, type="eas-build", platform="all")
    return Made({"deployment_id": begun["id"]}, {"builds": [{"external_id": str(uuid4())}]})


def _ended_deployment(world: World) -> Made:
    made = _deployment(world)
    world.post(f"/v1/deployments/{made.names['deployment_id']}/cancel")
    return made


def _integration(world: World) -> Made:
    body = EXAMPLES["PUT", "/v1/integrations/<integration_type>"]
    there = world.organization_id
    answer = send("PUT", "/v1/integrations/expo", world.as_owner, body=body, organization=there)
    assert answer.status == 200, answer.body
    return Made({"integration_type": "expo"})


# What a path names, by the path up to its last name; by the whole path, or the operation, where that takes
# rows of its own.
MAKERS: dict[str, Callable[[World], Made]] = {
    "/v1/projects/{project_id}": _project,
    "/v1/projects/{project_id}/restore": _deleted_project,
    "/v1/projects/{project_id}/shares/{share_id}": _share,
    "/v1/projects/{project_id}/files/content": _version,
    "/v1/projects/{project_id}/versions/{version}": _version,
    "/v1/invitations/accept": _share,
    "/v1/generations/{generation_id}": _generation,
    "/v1/storage/{object_id}": _object,
    "/v1/integrations/{integration_type}": _integration,
    "/v1/deployments/{deployment_id}": _deployment,
    "DELETE /v1/deployments/{deployment_id}": _ended_deployment,
    "/v1/credits/debits/{debit_id}": _debit,
    "/v1/credits/holds/{hold_id}": _hold,
    "/v1/admin/credits/{organization_id}": lambda world: Made({"organization_id": world.organization_id}),
    "/v1/api-keys/{key_id}": _organization_key,
    "/v1/organizations/{organization_id}": _organization,
    "DELETE /v1/organizations/{organization_id}": _organization_to_end,
    "/v1/organizations/{organization_id}/transfer": _member,
    "/v1/organizations/{organization_id}/members/{user_id}": _member,
    "/v1/organizations/{organization_id}/invitations/{invitation_id}": _invitation,
    "/v1/admin/service-keys/{key_id}": _service_key,
    "/v1/admin/plans/{plan_key}": _plan,
    "/v1/admin/plans": lambda _: Made(body={"key": f"plan_{uuid4().hex}"}),
    "/v1/admin/webhooks/{webhook_id}": _webhook,
}


def login(operation: Operation) -> str:
    """The database login of the function that answers an operation."""
    name = next(given.login for given in template.routes() if given.leads(operation.method, operation.path))
    assert name is not None
    return name
