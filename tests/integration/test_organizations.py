"""Organisations that Backplane makes: who may do what in them, and what happens when two do it at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import organization_members
import organization_rows
import psycopg
import pytest
import sweeper
from tests.callers import ROOT, Customer, debit, mint, send, sign_up, token, trust_our_tokens
from tests.databases import Database, await_waiting
from tests.ledgers import give as give_credits
from tests.ledgers import rows
from tests.senders import Answer, clerk_user, invoke, post_clerk

from backplane import audits, auth, db, invitations
from backplane.problems import Problem
from backplane.scopes import SCOPES_OF_KEY

UNKNOWN = UUID(int=0)


@pytest.fixture
def ada(app_db: Database, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada", name="Ada Lovelace", email="ada@example.com")


@pytest.fixture
def bob(ada: Customer) -> Customer:
    return sign_up("user_bob")


@pytest.fixture
def acme(ada: Customer) -> str:
    """The path of an organisation that Ada made."""
    made = create(ada)
    assert made.status == 201, made.body
    return f"/v1/organizations/{made.body['id']}"


def create(customer: Customer | str, name: str = "Acme", **fields: Any) -> Answer:
    credential = customer if isinstance(customer, str) else customer.token
    return send("POST", "/v1/organizations", credential, body={"name": name} | fields)


def id_of(path: str) -> str:
    return path.split("/")[3]


def join(database: Database, path: str, customer: Customer, role: str) -> Customer:
    rows(
        database,
        "INSERT INTO tenancy.organization_members (organization_id, user_id, role) VALUES (%s, %s, %s)",
        id_of(path),
        customer.user_id,
        role,
    )
    return customer


def invite(customer: Customer, path: str, email: str = "bob@example.com", **fields: Any) -> Answer:
    return send("POST", f"{path}/invitations", customer.token, body={"email": email} | fields)


def accept(customer: Customer | str, secret: str) -> Answer:
    credential = customer if isinstance(customer, str) else customer.token
    return send("POST", "/v1/invitations/accept", credential, body={"token": secret})


def give(customer: Customer, path: str, other: Customer, role: str) -> Answer:
    return send("PATCH", f"{path}/members/{other.user_id}", customer.token, body={"role": role})


def remove(customer: Customer, path: str, other: Customer) -> Answer:
    return send("DELETE", f"{path}/members/{other.user_id}", customer.token)


def roles(customer: Customer, path: str) -> dict[str, str]:
    answer = send("GET", f"{path}/members", customer.token)
    assert answer.status == 200, answer.body
    return {member["user_id"]: member["role"] for member in answer.body["items"]}


def mine(customer: Customer) -> list[str]:
    return [item["id"] for item in send("GET", "/v1/organizations", customer.token).body["items"]]


def refusal(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.body["code"]


def events(database: Database, organization: str) -> list[tuple[str, Any]]:
    found = rows(
        database,
        "SELECT type, payload FROM platform.outbox WHERE organization_id = %s ORDER BY id",
        organization,
    )
    return [(row["type"], row["payload"]) for row in found]


Work = Callable[[db.Tx, auth.Caller], Any]


def at_once(database: Database, table: str, row_id: object, *works: tuple[auth.Caller, Work]) -> list[str]:
    """Each as a process of its own does it, let go when all of them wait for the same row. Answers what each
    was refused with, or "done".
    """

    def attempt(asked: tuple[auth.Caller, Work]) -> str:
        caller, work = asked
        with database.connect("backplane_app") as session:
            try:
                with session.transaction():
                    db.enter(session, caller.organization_id)
                    session.execute(f"SET LOCAL app.user_id = '{caller.user_id}'".encode())
                    work(session, caller)
            except Problem as problem:
                return problem.code
            return "done"

    with database.connect() as holder, database.connect() as watcher, ThreadPoolExecutor(len(works)) as pool:
        with holder.transaction():
            holder.execute(f"SELECT 1 FROM {table} WHERE id = %s FOR UPDATE".encode(), [row_id])
            attempts = [pool.submit(attempt, work) for work in works]
            await_waiting(watcher, len(works))
        return sorted(attempt.result(timeout=60) for attempt in attempts)


def caller_of_token(session: str) -> auth.Caller:
    return auth.authenticate({"authorization": f"Bearer {session}"})


def caller_of(customer: Customer, path: str) -> auth.Caller:
    headers = {"authorization": f"Bearer {customer.token}"}
    return auth.authenticate(headers, path_organization=id_of(path))


# ---- an organisation ----


def test_who_makes_an_organisation_owns_it_and_works_there_by_its_id(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    made = create(ada, "Acme & Söhne", description="We make things", logo_url="https://acme.example/logo.png")
    assert made.status == 201, made.body
    body = made.body
    assert body["slug"].startswith("acme-s-hne-")
    assert (body["role"], body["managed_by"], body["is_personal"]) == ("owner", "backplane", False)
    assert (body["members"], body["plan"]["tier"], body["timezone"]) == (1, "free", "UTC")
    assert body["description"] == "We make things"
    assert send("GET", f"/v1/organizations/{body['id']}", ada.token).body == body
    assert mine(ada) == [body["id"], str(ada.organization_id)]
    there = send("GET", "/v1/me", ada.token, organization=body["id"]).body
    assert (there["organization"]["name"], there["role"]) == ("Acme & Söhne", "owner")
    assert there["credits"]["available"] == 0  # only personal ones get sign-up credits
    project = send("POST", "/v1/projects", ada.token, body={"title": "Site"}, organization=body["id"])
    assert project.status == 201, project.body
    assert send("GET", "/v1/projects", ada.token).body["items"] == []
    assert mine(bob) == [str(bob.organization_id)]
    assert ("organization.created", {"organization_id": body["id"]}) in events(app_db, body["id"])
    assert audits.audit(UUID(body["id"])).ok


def test_an_organisation_is_changed_field_by_field(ada: Customer, acme: str) -> None:
    changed = send("PATCH", acme, ada.token, body={"name": "Acme Inc", "timezone": "Asia/Kathmandu"}).body
    assert (changed["name"], changed["timezone"]) == ("Acme Inc", "Asia/Kathmandu")
    assert send("PATCH", acme, ada.token, body={"description": "x", "slug": "acme"}).body["slug"] == "acme"
    assert send("PATCH", acme, ada.token, body={"description": None}).body["description"] is None
    assert send("GET", acme, ada.token).body["name"] == "Acme Inc"
    entries = send("GET", f"{acme}/audit-log", ada.token).body["items"]
    assert [entry["action"] for entry in entries] == ["organization.updated"] * 3 + ["organization.created"]
    assert entries[0]["details"] == {"fields": ["description"]}


def test_what_an_organisation_cannot_be_is_refused(ada: Customer, acme: str) -> None:
    before = send("GET", acme, ada.token).body
    for body in (
        {},
        {"name": ""},
        {"name": None},
        {"slug": None},
        {"slug": "Acme"},
        {"slug": "-acme"},
        {"slug": "a"},
        {"logo_url": "javascript:alert(1)"},
        {"timezone": "Mars/Olympus"},
        {"timezone": "posix/UTC"},
        {"owner": "me"},
    ):
        assert send("PATCH", acme, ada.token, body=body).status == 422, body
        if body not in ({}, {"slug": None}):
            sent = {"name": "Acme"} | body
            assert send("POST", "/v1/organizations", ada.token, body=sent).status == 422, body
    assert send("GET", acme, ada.token).body == before
    assert len(mine(ada)) == 2


def test_a_slug_is_one_organisations_until_that_is_deleted(ada: Customer, bob: Customer, acme: str) -> None:
    assert create(ada, slug="acme").status == 201
    taken = create(bob, slug="acme")
    assert refusal(taken) == (409, "conflict")
    assert "acme" in taken.body["detail"]
    assert refusal(send("PATCH", acme, ada.token, body={"slug": "acme"})) == (409, "conflict")
    holder = next(
        item for item in send("GET", "/v1/organizations", ada.token).body["items"] if item["slug"] == "acme"
    )
    assert send("DELETE", f"/v1/organizations/{holder['id']}", ada.token).status == 204
    assert create(bob, slug="acme").status == 201


def test_one_person_owns_a_bounded_number_of_organisations(
    app_db: Database, ada: Customer, bob: Customer, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organization_rows, "MOST_OWNED", 2)
    assert create(ada).status == 201
    refused = create(ada)
    assert refusal(refused) == (403, "plan_limit_reached")
    join(app_db, acme, bob, "admin")
    assert send("POST", f"{acme}/transfer", ada.token, body={"user_id": str(bob.user_id)}).status == 200
    assert create(ada).status == 201


def test_keys_make_no_organisation_and_see_their_own(app_db: Database, ada: Customer, acme: str) -> None:
    key = mint(app_db, UUID(id_of(acme)), sorted(SCOPES_OF_KEY["organization"]))
    assert create(key).status == 403
    assert [item["id"] for item in send("GET", "/v1/organizations", key).body["items"]] == [id_of(acme)]
    assert send("GET", acme, key).body["role"] is None
    assert send("GET", f"/v1/organizations/{ada.organization_id}", key).status == 404
    [member] = send("GET", f"{acme}/members", key).body["items"]
    assert (member["name"], member["email"]) == ("Ada Lovelace", None)
    assert send("GET", f"{acme}/members", ada.token).body["items"][0]["email"] == "ada@example.com"
    service = mint(app_db, None)
    assert send("GET", f"{acme}/members", service).status == 200
    assert send("GET", f"/v1/organizations/{UNKNOWN}", service).status == 404


# ---- who enters ----


def test_an_organisation_that_one_is_no_member_of_is_as_good_as_none(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    for named in (id_of(acme), str(UNKNOWN), "nonsense", ""):
        by_header = send("GET", "/v1/me", bob.token, organization=named)
        assert by_header.status == 403
        assert by_header.body["detail"] == send("GET", "/v1/me", bob.token, organization="x").body["detail"]
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "Mine"}),
        ("DELETE", "", None),
        ("GET", "/members", None),
        ("GET", "/invitations", None),
        ("POST", "/invitations", {"email": "eve@example.com"}),
        ("GET", "/audit-log", None),
        ("POST", "/transfer", {"user_id": str(bob.user_id)}),
        ("PATCH", f"/members/{ada.user_id}", {"role": "viewer"}),
        ("DELETE", f"/members/{ada.user_id}", None),
        ("DELETE", f"/members/{bob.user_id}", None),
    ):
        answers = [
            send(method, f"/v1/organizations/{named}{path}", bob.token, body=body)
            for named in (id_of(acme), UNKNOWN, "nonsense")
        ]
        assert [answer.status for answer in answers] == [404, 404, 404], (method, path)
        assert len({answer.body["detail"] for answer in answers}) == 1
    assert roles(ada, acme) == {str(ada.user_id): "owner"}


def test_a_member_works_where_the_header_says_and_leaves_no_trace_elsewhere(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    join(app_db, acme, bob, "viewer")
    there = id_of(acme)
    assert send("GET", "/v1/projects", bob.token, organization=there).status == 200
    refused = send("POST", "/v1/projects", bob.token, body={"title": "x"}, organization=there)
    assert (refused.status, "`projects:write`" in refused.body["detail"]) == (403, True)
    assert send("POST", "/v1/projects", bob.token, body={"title": "x"}).status == 201  # at home he owns
    home = send("GET", "/v1/me", bob.token, organization=bob.organization_id)
    assert (home.status, home.body["role"]) == (200, "owner")
    give(ada, acme, bob, "editor")
    assert send("POST", "/v1/projects", bob.token, body={"title": "x"}, organization=there).status == 201
    assert remove(ada, acme, bob).status == 204
    assert send("GET", "/v1/projects", bob.token, organization=there).status == 403
    assert debit(bob.token, key="k").body["available_after"] == 99


def test_clerks_organisations_are_entered_by_clerks_tokens_alone(app_db: Database, ada: Customer) -> None:
    inside = token("user_ada", org_id="org_acme", org_slug="acme", org_role="org:admin")
    there = sign_up("user_ada", org_id="org_acme", org_role="org:admin").organization_id
    assert str(there) in mine(ada)
    by_header = send("GET", "/v1/me", ada.token, organization=there)
    by_path = send("GET", f"/v1/organizations/{there}", ada.token)
    for refused in (by_header, by_path):
        assert (refused.status, "setActive" in refused.body["detail"]) == (403, True)
    shown = send("GET", f"/v1/organizations/{there}", inside).body
    assert (shown["managed_by"], shown["role"]) == ("clerk", "owner")
    assert send("GET", "/v1/me", inside, organization=there).status == 200


def test_clerk_keeps_what_is_its_own(app_db: Database, ada: Customer, bob: Customer) -> None:
    inside = token("user_ada", org_id="org_acme", org_role="org:admin")
    path = f"/v1/organizations/{sign_up('user_ada', org_id='org_acme', org_role='org:admin').organization_id}"
    sign_up("user_bob", org_id="org_acme", org_role="org:member")
    for method, where, body in (
        ("PATCH", path, {"name": "Mine"}),
        ("PATCH", path, {"description": "x", "slug": "mine"}),
        ("DELETE", path, None),
        ("POST", f"{path}/invitations", {"email": "eve@example.com"}),
        ("PATCH", f"{path}/members/{bob.user_id}", {"role": "admin"}),
        ("DELETE", f"{path}/members/{bob.user_id}", None),
        ("DELETE", f"{path}/members/{ada.user_id}", None),
        ("POST", f"{path}/transfer", {"user_id": str(bob.user_id)}),
    ):
        refused = send(method, where, inside, body=body)
        assert refusal(refused) == (409, "invalid_state"), (method, where)
        assert "Clerk" in refused.body["detail"]
    ours = send("PATCH", path, inside, body={"description": "ours", "timezone": "Europe/Berlin"}).body
    assert (ours["description"], ours["timezone"]) == ("ours", "Europe/Berlin")
    assert sorted(roles(Customer(ada.user_id, ada.organization_id, inside), path).values()) == [
        "member",
        "owner",
    ]


def test_a_personal_organisation_is_its_users_alone(ada: Customer, bob: Customer) -> None:
    path = f"/v1/organizations/{ada.organization_id}"
    for method, where, body in (
        ("DELETE", path, None),
        ("POST", f"{path}/invitations", {"email": "eve@example.com"}),
        ("DELETE", f"{path}/members/{ada.user_id}", None),
        ("PATCH", f"{path}/members/{ada.user_id}", {"role": "viewer"}),
        ("POST", f"{path}/transfer", {"user_id": str(bob.user_id)}),
    ):
        assert refusal(send(method, where, ada.token, body=body)) == (409, "invalid_state"), (method, where)
    assert send("PATCH", path, ada.token, body={"name": "Ada's own"}).body["is_personal"] is True


# ---- invitations ----


def test_an_invited_person_joins_once_in_the_role_he_was_given(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    made = invite(ada, acme, "Bob@Example.com", role="editor")
    assert (made.status, made.body["email"], made.body["state"]) == (201, "bob@example.com", "pending")
    secret = made.body["token"]
    assert secret.startswith("bpi_organization_")
    listed = send("GET", f"{acme}/invitations", ada.token).body["items"]
    assert listed == [{name: value for name, value in made.body.items() if name != "token"}]
    assert secret.rpartition("_")[2] not in str(rows(app_db, "SELECT * FROM tenancy.invitations"))
    for _ in range(2):
        accepted = accept(bob, secret)
        assert (accepted.status, accepted.body) == (
            200,
            {"kind": "organization", "organization_id": id_of(acme), "project_id": None, "role": "editor"},
        )
    assert roles(ada, acme) == {str(ada.user_id): "owner", str(bob.user_id): "editor"}
    assert accept(sign_up("user_eve"), secret).status == 404
    [shown] = send("GET", f"{acme}/invitations", ada.token).body["items"]
    assert (shown["state"], shown["user_id"]) == ("accepted", str(bob.user_id))
    assert refusal(invite(ada, acme)) == (409, "conflict")
    told = [
        (kind, payload.get("role"))
        for kind, payload in events(app_db, id_of(acme))
        if kind != "organization.created"
    ]
    assert told == [("invitation.created", "editor"), ("membership.created", "editor")]
    assert remove(ada, acme, bob).status == 204
    assert accept(bob, secret).status == 404  # it does not bring him back
    again = invite(ada, acme, role="viewer").body["token"]
    assert accept(bob, again).body["role"] == "viewer"


def test_an_invitation_is_for_the_address_that_was_invited(ada: Customer, acme: str) -> None:
    secret = invite(ada, acme, "bob@example.com").body["token"]
    eve = sign_up("user_eve", email="eve@example.com")
    refused = accept(eve, secret)
    assert (refused.status, "bob" in refused.body["detail"]) == (403, False)
    bob = sign_up("user_bob", email="BOB@example.com")
    assert accept(bob, secret).status == 200
    assert str(eve.user_id) not in roles(ada, acme)


def test_an_invitation_that_is_over_opens_nothing(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    expired = invite(ada, acme, "expired@example.com").body["token"]
    rows(app_db, "UPDATE tenancy.invitations SET expires_at = now()")
    replaced = invite(ada, acme).body["token"]
    renewed = invite(ada, acme, role="admin").body["token"]
    withdrawn = invite(ada, acme, "withdrawn@example.com").body
    for status in (204, 404):
        assert send("DELETE", f"{acme}/invitations/{withdrawn['id']}", ada.token).status == status
    assert refusal(accept(bob, expired)) == (409, "invalid_state")
    for secret in (
        replaced,
        withdrawn["token"],
        "bpi_organization_" + "0" * 43,
        renewed.replace("bpi_o", "bpi_p"),
    ):
        assert accept(bob, secret).status == 404
    assert accept(mint(app_db, ada.organization_id), renewed).status == 403
    assert accept(bob, renewed).body["role"] == "admin"
    left = invite(ada, acme, "late@example.com").body["token"]
    assert send("DELETE", acme, ada.token).status == 204
    assert accept(sign_up("user_late"), left).status == 404


def test_what_is_no_invitation_is_refused(ada: Customer, acme: str) -> None:
    for body in (
        {},
        {"email": "bob"},
        {"email": "bob@example.com", "role": "owner"},
        {"email": "bob@example.com", "expires_in": 0},
        {"email": "bob@example.com", "expires_in": 10**9},
    ):
        assert send("POST", f"{acme}/invitations", ada.token, body=body).status == 422, body
    assert send("GET", f"{acme}/invitations", ada.token).body["items"] == []


def test_a_plan_that_names_a_number_of_members_lets_no_more_in(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    rows(
        app_db,
        "INSERT INTO billing.plan_limits SELECT id, 'team.members', 2 FROM billing.plans WHERE key = 'free'",
    )
    first, second = (invite(ada, acme, f"{who}@example.com").body["token"] for who in ("bob", "eve"))
    assert accept(bob, first).status == 200
    full = accept(token("user_eve"), second)
    assert refusal(full) == (403, "plan_limit_reached")
    limit = send("GET", "/v1/me", ada.token, organization=id_of(acme)).body["limits"]["team.members"]
    assert limit == {"limit": 2, "used": 2, "resets_at": None}
    assert remove(ada, acme, bob).status == 204
    assert accept(token("user_eve"), second).status == 200


# ---- roles ----


def test_nobody_gives_a_role_above_his_own_or_touches_who_is_above_him(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    join(app_db, acme, bob, "admin")
    eve = join(app_db, acme, sign_up("user_eve"), "viewer")
    for refused in (
        give(bob, acme, eve, "owner"),
        give(bob, acme, bob, "owner"),
        give(bob, acme, ada, "admin"),
        remove(bob, acme, ada),
    ):
        assert refusal(refused) == (403, "forbidden")
    assert give(bob, acme, eve, "admin").status == 200
    assert give(bob, acme, eve, "member").body["role"] == "member"
    assert remove(eve, acme, bob).status == 403
    assert remove(eve, acme, eve).status == 204
    assert roles(ada, acme) == {str(ada.user_id): "owner", str(bob.user_id): "admin"}
    assert give(ada, acme, bob, "owner").status == 200
    assert give(bob, acme, ada, "editor").status == 200  # owners are equals
    assert refusal(remove(bob, acme, sign_up("user_late"))) == (404, "not_found")


def test_the_last_owner_neither_steps_down_nor_leaves(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    join(app_db, acme, bob, "admin")
    for refused in (give(ada, acme, ada, "admin"), remove(ada, acme, ada)):
        assert refusal(refused) == (409, "invalid_state")
        assert "transfer" in refused.body["detail"]
    handed = send("POST", f"{acme}/transfer", ada.token, body={"user_id": str(bob.user_id)})
    assert (handed.status, handed.body["role"]) == (200, "owner")
    assert roles(bob, acme) == {str(ada.user_id): "admin", str(bob.user_id): "owner"}
    assert send("POST", f"{acme}/transfer", ada.token, body={"user_id": str(ada.user_id)}).status == 403
    to_nobody = send("POST", f"{acme}/transfer", bob.token, body={"user_id": str(UNKNOWN)})
    to_himself = send("POST", f"{acme}/transfer", bob.token, body={"user_id": str(bob.user_id)})
    assert (to_nobody.status, to_himself.status) == (404, 409)
    assert remove(ada, acme, ada).status == 204
    told = [(kind, payload.get("role")) for kind, payload in events(app_db, id_of(acme))]
    assert told[-3:] == [
        ("membership.updated", "owner"),
        ("membership.updated", "admin"),
        ("membership.deleted", None),
    ]


def test_a_visiting_platform_admin_may_help(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    join(app_db, acme, bob, "admin")
    root = sign_up(ROOT)
    assert roles(root, acme) == {str(ada.user_id): "owner", str(bob.user_id): "admin"}
    assert send("POST", f"{acme}/transfer", root.token, body={"user_id": str(bob.user_id)}).status == 200
    assert give(root, acme, ada, "viewer").status == 200
    assert refusal(remove(root, acme, bob)) == (409, "invalid_state")
    assert send("GET", "/v1/organizations", root.token).body["items"][0]["id"] == str(root.organization_id)


# ---- at once ----


def test_of_two_owners_who_demote_or_remove_each_other_at_once_one_succeeds(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    def demote(other: Customer) -> Work:
        return lambda tx, caller: organization_members.change_role(tx, caller, other.user_id, "admin")

    def expel(other: Customer) -> Work:
        return lambda tx, caller: organization_members.remove(tx, caller, other.user_id)

    join(app_db, acme, bob, "owner")
    for done in (demote, expel):
        rows(
            app_db,
            "UPDATE tenancy.organization_members SET role = 'owner' WHERE organization_id = %s",
            id_of(acme),
        )
        both = [(caller_of(ada, acme), done(bob)), (caller_of(bob, acme), done(ada))]
        outcome = at_once(app_db, "tenancy.organizations", id_of(acme), *both)
        assert outcome in (["done", "forbidden"], ["done", "not_found"])
        left = rows(
            app_db,
            "SELECT role FROM tenancy.organization_members WHERE organization_id = %s AND role = 'owner'",
            id_of(acme),
        )
        assert len(left) == 1


def test_of_two_owners_who_step_down_or_leave_at_once_one_stays(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    def leave(tx: db.Tx, caller: auth.Caller) -> None:
        assert caller.user_id is not None
        organization_members.remove(tx, caller, caller.user_id)

    def step_down(tx: db.Tx, caller: auth.Caller) -> None:
        assert caller.user_id is not None
        organization_members.change_role(tx, caller, caller.user_id, "viewer")

    join(app_db, acme, bob, "owner")
    both = caller_of(ada, acme), caller_of(bob, acme)
    for works in ((step_down, step_down), (leave, step_down), (leave, leave)):
        rows(
            app_db,
            """
            INSERT INTO tenancy.organization_members (organization_id, user_id, role)
            SELECT %s, id, 'owner' FROM identity.users
            ON CONFLICT (organization_id, user_id) DO UPDATE SET role = 'owner'
            """,
            id_of(acme),
        )
        outcome = at_once(app_db, "tenancy.organizations", id_of(acme), *zip(both, works, strict=True))
        assert outcome == ["done", "invalid_state"]


def test_of_several_who_accept_the_last_place_at_once_one_joins(
    app_db: Database, ada: Customer, acme: str
) -> None:
    rows(
        app_db,
        "INSERT INTO billing.plan_limits SELECT id, 'team.members', 2 FROM billing.plans WHERE key = 'free'",
    )
    works = []
    for number in range(4):
        secret = invite(ada, acme, f"guest{number}@example.com").body["token"]
        guest = caller_of_token(token(f"user_guest{number}"))
        works.append((guest, lambda tx, caller, secret=secret: invitations.accept(tx, caller, secret)))
    outcome = at_once(app_db, "tenancy.organizations", id_of(acme), *works)
    assert outcome == ["done"] + ["plan_limit_reached"] * 3
    assert len(roles(ada, acme)) == 2


def test_one_invitation_that_is_accepted_twice_at_once_makes_one_member(
    app_db: Database, ada: Customer, acme: str
) -> None:
    secret = invite(ada, acme).body["token"]
    one, other = caller_of_token(token("user_bob")), caller_of_token(token("user_eve"))

    def work(tx: db.Tx, caller: auth.Caller) -> None:
        invitations.accept(tx, caller, secret)

    outcome = at_once(app_db, "tenancy.organizations", id_of(acme), (one, work), (one, work), (other, work))
    assert outcome in (["done", "done", "not_found"], ["done", "not_found", "not_found"])
    assert len(roles(ada, acme)) == 2


def test_organisations_that_are_made_at_once_are_counted(
    app_db: Database, ada: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organization_rows, "MOST_OWNED", 2)
    new = organization_rows.NewOrganization(name="Acme")

    def work(tx: db.Tx, caller: auth.Caller) -> None:
        organization_rows.create(tx, caller, new)

    outcome = at_once(app_db, "identity.users", ada.user_id, *[(caller_of_token(ada.token), work)] * 4)
    assert outcome == ["done"] * 2 + ["plan_limit_reached"] * 2


# ---- the end ----


def sweep(database: Database) -> Any:
    with database.as_role("backplane_system"):
        return invoke(sweeper.handler, {})


def test_a_deleted_organisation_is_closed_at_once_and_erased_soon(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    join(app_db, acme, bob, "admin")
    with app_db.as_role("backplane_system"):
        give_credits(UUID(id_of(acme)), 10)
    there = id_of(acme)
    made = send("POST", "/v1/projects", ada.token, body={"title": "Secret plan"}, organization=there)
    send(
        "POST",
        "/v1/credits/debits",
        bob.token,
        key="k",
        body={"operation": "ai_text_chat"},
        organization=there,
    )
    key = send("POST", "/v1/api-keys", bob.token, body={"name": "robot"}, organization=there).body["key"]
    assert send("GET", "/v1/credits", key).status == 200
    assert send("DELETE", acme, bob.token).status == 403
    rows(
        app_db,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_x', id, 'unpaid', '0.1' FROM billing.plans WHERE key = 'pro'
        """,
        id_of(acme),
    )
    refused = send("DELETE", acme, ada.token)
    assert refusal(refused) == (409, "invalid_state")
    assert "portal" in refused.body["detail"]
    rows(app_db, "UPDATE billing.subscriptions SET status = 'canceled'")
    assert send("DELETE", acme, ada.token).status == 204
    assert send("DELETE", acme, ada.token).status == 404
    assert send("GET", "/v1/credits", key).status == 401
    for customer in (ada, bob):
        assert send("GET", "/v1/projects", customer.token, organization=there).status == 403
        assert id_of(acme) not in mine(customer)
    assert sweep(app_db)["organizations"] == 1
    assert sweep(app_db)["organizations"] == 0
    [project] = rows(app_db, "SELECT title, deleted_at FROM projects.projects WHERE id = %s", made.body["id"])
    assert (project["title"], project["deleted_at"] is None) == ("Deleted", False)
    audited = audits.audit(UUID(id_of(acme)))
    assert (audited.ok, audited.available) == (True, 9)
    told = [kind for kind, _ in events(app_db, id_of(acme))]
    assert told[-2:] == ["organization.deleted", "organization.erased"]
    [report] = rows(app_db, "SELECT * FROM platform.erasures")
    assert (report["user_id"], report["organization_id"], report["actor"]) == (
        None,
        UUID(id_of(acme)),
        "system",
    )
    log = rows(app_db, "SELECT actor, action FROM platform.audit_log WHERE organization_id = %s", id_of(acme))
    assert {"actor": f"user:{ada.user_id}", "action": "organization.deleted"} in log


def test_an_owner_who_is_erased_leaves_the_organisation_to_others_or_to_nobody(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    alone = f"/v1/organizations/{create(ada, 'Alone').body['id']}"
    two_owners = f"/v1/organizations/{create(ada, 'Two owners').body['id']}"
    eve = sign_up("user_eve")
    join(app_db, acme, eve, "viewer")
    join(app_db, acme, bob, "editor")
    join(app_db, two_owners, eve, "admin")
    join(app_db, two_owners, bob, "owner")
    with app_db.as_role("backplane_system"):
        assert post_clerk(clerk_user("user_ada", kind="deleted")).body["status"] == "processed"
    assert roles(bob, acme) == {str(bob.user_id): "owner", str(eve.user_id): "viewer"}
    assert roles(bob, two_owners) == {str(bob.user_id): "owner", str(eve.user_id): "admin"}
    [ended] = rows(app_db, "SELECT deleted_at FROM tenancy.organizations WHERE id = %s", id_of(alone))
    assert ended["deleted_at"] is not None
    assert sweep(app_db)["organizations"] == 1  # his personal one went with him
    assert rows(app_db, "SELECT name FROM tenancy.organizations WHERE id = %s", id_of(alone)) == [
        {"name": "Deleted"}
    ]


# ---- the audit log ----


def test_admins_read_their_own_audit_log_and_nobody_else_does(
    app_db: Database, ada: Customer, bob: Customer, acme: str
) -> None:
    join(app_db, acme, bob, "admin")
    eve = join(app_db, acme, sign_up("user_eve"), "editor")
    give(bob, acme, eve, "viewer")
    made = send("POST", "/v1/api-keys", bob.token, body={"name": "x"}, organization=id_of(acme)).body
    log = f"{acme}/audit-log"
    entries = send("GET", log, bob.token).body["items"]
    assert [(entry["actor"], entry["action"], entry["target"]) for entry in entries] == [
        (f"user:{bob.user_id}", "api_key.created", f"key:{made['id']}"),
        (f"user:{bob.user_id}", "membership.updated", f"user:{eve.user_id}"),
        (f"user:{ada.user_id}", "organization.created", f"organization:{id_of(acme)}"),
    ]
    of_key = send("GET", log, bob.token, query={"target": f"key:{made['id']}"}).body["items"]
    of_ada = send("GET", log, bob.token, query={"actor": f"user:{ada.user_id}"}).body["items"]
    assert (of_key, of_ada) == (entries[:1], entries[2:])
    first = send("GET", log, bob.token, query={"limit": "2"}).body
    rest = send("GET", log, bob.token, query={"cursor": first["next_cursor"]}).body
    assert (first["items"] + rest["items"], rest["next_cursor"]) == (entries, None)
    for stranger, status in ((eve.token, 403), (sign_up("user_late").token, 404), (made["key"], 403)):
        assert send("GET", log, stranger).status == status
    assert send("GET", f"/v1/organizations/{ada.organization_id}/audit-log", ada.token).body["items"] == []


@pytest.mark.parametrize("role", ["backplane_app", "backplane_system"])
def test_the_audit_log_is_only_ever_added_to(app_db: Database, acme: str, role: str) -> None:
    with app_db.connect(role) as session:
        for statement in ("UPDATE platform.audit_log SET actor = 'me'", "DELETE FROM platform.audit_log"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(statement.encode())
    with app_db.connect() as owner, pytest.raises(psycopg.errors.RestrictViolation):
        owner.execute("DELETE FROM platform.audit_log")
