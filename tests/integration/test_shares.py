"""Shares: invited by email, accepted by a token, and each role as far as it goes."""

import re
from typing import Any

import pytest
from tests.callers import Customer, mint, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    ada = sign_up("user_ada")
    rows(
        app_db,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_ada', id, 'active', '0.1' FROM billing.plans WHERE key = 'pro'
        """,
        ada.organization_id,
    )
    return ada


@pytest.fixture
def bob(ada: Customer) -> Customer:
    return sign_up("user_bob")


@pytest.fixture
def path(ada: Customer) -> str:
    """Of a private project of Ada's."""
    made = send("POST", "/v1/projects", ada.token, body={"title": "Fitness"})
    assert made.body["is_public"] is False
    return f"/v1/projects/{made.body['id']}"


def invite(ada: Customer, path: str, email: str = "bob@example.com", **fields: Any) -> Answer:
    return send("POST", f"{path}/shares", ada.token, body={"email": email, **fields})


def accept(customer: Customer | str, secret: str) -> Answer:
    credential = customer if isinstance(customer, str) else customer.token
    return send("POST", "/v1/invitations/accept", credential, body={"token": secret})


def shares(ada: Customer, path: str) -> list[Any]:
    items: list[Any] = send("GET", f"{path}/shares", ada.token).body["items"]
    return items


def test_an_invitation_opens_the_project_to_whom_it_was_given(
    app_db: Database, ada: Customer, bob: Customer, path: str
) -> None:
    invited = invite(ada, path, "Bob@Example.com", role="editor")
    assert invited.status == 201
    assert re.fullmatch("bpi_project_[0-9A-Za-z]{43}", invited.body["token"])
    assert (invited.body["email"], invited.body["state"]) == ("bob@example.com", "pending")
    assert send("GET", path, bob.token).status == 404
    for _ in range(2):
        accepted = accept(bob, invited.body["token"])
        assert accepted.status == 200
        assert accepted.body == {
            "kind": "project",
            "organization_id": str(ada.organization_id),
            "project_id": path.rpartition("/")[2],
            "role": "editor",
        }
    assert send("GET", path, bob.token).body["title"] == "Fitness"
    assert [item["title"] for item in send("GET", "/v1/projects", bob.token).body["items"]] == []
    found = send("GET", "/v1/projects", bob.token, query={"shared": "true"}).body["items"]
    assert [item["title"] for item in found] == ["Fitness"]
    [share] = shares(ada, path)
    assert (share["state"], share["user_id"], "token" in share) == ("accepted", str(bob.user_id), False)
    event = rows(app_db, "SELECT payload, organization_id FROM platform.outbox WHERE type = 'project.shared'")
    assert event == [
        {
            "payload": {
                "project_id": path.rpartition("/")[2],
                "share_id": invited.body["id"],
                "role": "editor",
            },
            "organization_id": ada.organization_id,
        }
    ]


def test_no_token_is_stored(app_db: Database, ada: Customer, path: str) -> None:
    secret = invite(ada, path).body["token"]
    [stored] = rows(app_db, "SELECT row_to_json(s)::text AS row FROM projects.shares AS s")
    assert secret.rpartition("_")[2] not in stored["row"]
    kept = send("POST", f"{path}/shares", ada.token, key="k", body={"email": "eve@example.com"})
    again = send("POST", f"{path}/shares", ada.token, key="k", body={"email": "eve@example.com"})
    assert (again.body, "token" in kept.body) == (
        {name: value for name, value in kept.body.items() if name != "token"},
        True,
    )


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("viewer", {"read"}),
        ("editor", {"read", "edit", "say"}),
        ("admin", {"read", "edit", "say", "share", "publish", "delete"}),
    ],
)
def test_a_share_goes_as_far_as_its_role(
    app_db: Database, ada: Customer, bob: Customer, path: str, *, role: str, allowed: set[str]
) -> None:
    accept(bob, invite(ada, path, role=role).body["token"])
    done = {
        "read": send("GET", f"{path}/messages", bob.token),
        "edit": send("PATCH", path, bob.token, body={"title": "Edited"}),
        "say": send("POST", f"{path}/messages", bob.token, body={"role": "user", "content": "hi"}),
        "share": invite(bob, path, "eve@example.com"),
        "publish": send("PATCH", path, bob.token, body={"is_public": True}),
        "delete": send("DELETE", path, bob.token),
    }
    assert {name for name, answer in done.items() if answer.status < 300} == allowed
    assert {answer.status for name, answer in done.items() if name not in allowed} <= {403}
    owned = rows(app_db, "SELECT DISTINCT organization_id FROM projects.messages")
    assert owned == ([{"organization_id": ada.organization_id}] if "say" in allowed else [])


def test_a_favourite_of_a_shared_project_is_the_readers_own(
    app_db: Database, ada: Customer, bob: Customer, path: str
) -> None:
    accept(bob, invite(ada, path).body["token"])
    assert send("PATCH", path, bob.token, body={"is_favorite": True}).body["is_favorite"] is True
    assert send("GET", path, ada.token).body["is_favorite"] is False


def test_an_invitation_that_is_over_opens_nothing(
    app_db: Database, ada: Customer, bob: Customer, path: str
) -> None:
    expired = invite(ada, path, "expired@example.com").body["token"]
    rows(app_db, "UPDATE projects.shares SET expires_at = now()")
    replaced = invite(ada, path).body["token"]
    renewed = invite(ada, path, role="editor")
    withdrawn = invite(ada, path, "withdrawn@example.com").body
    assert send("DELETE", f"{path}/shares/{withdrawn['id']}", ada.token).status == 204
    assert (accept(bob, expired).status, accept(bob, expired).body["code"]) == (409, "invalid_state")
    for secret in (replaced, withdrawn["token"], "bpi_project_" + "0" * 43, "bpi_other_" + "0" * 43, "x"):
        assert accept(bob, secret).status == 404
    assert send("GET", path, bob.token).status == 404
    assert accept(bob, renewed.body["token"]).status == 200
    eve = token("user_eve")
    assert accept(eve, renewed.body["token"]).status == 404  # somebody else has used it
    assert send("GET", path, eve).status == 404


def test_shares_are_listed_newest_first_in_parts(ada: Customer, path: str) -> None:
    emails = [f"{name}@example.com" for name in ("one", "two", "three")]
    for email in emails:
        assert invite(ada, path, email=email).status == 201
    first = send("GET", f"{path}/shares", ada.token, query={"limit": "2"}).body
    rest = send("GET", f"{path}/shares", ada.token, query={"cursor": first["next_cursor"]}).body
    assert [share["email"] for share in first["items"] + rest["items"]] == emails[::-1]


def test_a_share_that_was_accepted_is_changed_by_deleting_it(
    app_db: Database, ada: Customer, bob: Customer, path: str
) -> None:
    accept(bob, invite(ada, path).body["token"])
    assert invite(ada, path, role="admin").status == 409
    [share] = shares(ada, path)
    for status in (204, 404):
        assert send("DELETE", f"{path}/shares/{share['id']}", ada.token).status == status
    assert send("GET", path, bob.token).status == 404
    assert send("GET", "/v1/projects", bob.token, query={"shared": "true"}).body["items"] == []
    accept(bob, invite(ada, path, role="admin").body["token"])
    assert send("PATCH", path, bob.token, body={"title": "Edited"}).status == 200


def test_a_deleted_project_is_shared_with_nobody(
    app_db: Database, ada: Customer, bob: Customer, path: str
) -> None:
    accept(bob, invite(ada, path, role="admin").body["token"])
    pending = invite(ada, path, "eve@example.com").body["token"]
    assert send("DELETE", path, bob.token).status == 204
    assert send("GET", path, bob.token).status == 404
    assert send("POST", f"{path}/restore", bob.token).status == 404
    assert accept(token("user_eve"), pending).status == 404
    for query in ({"shared": "true"}, {"shared": "true", "deleted": "true"}):
        assert send("GET", "/v1/projects", bob.token, query=query).body["items"] == []
    assert send("POST", f"{path}/restore", ada.token).status == 200
    assert send("GET", path, bob.token).status == 200


def test_editors_keys_and_others_share_as_far_as_they_may(
    app_db: Database, ada: Customer, bob: Customer, path: str
) -> None:
    assert invite(bob, path).status == 404
    key = mint(app_db, ada.organization_id, ["read", "projects:write"])
    made = send("POST", f"{path}/shares", key, body={"email": "bob@example.com"})
    assert made.status == 201
    assert accept(key, made.body["token"]).status == 403


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "bob"},
        {"email": "bob@example.com", "role": "owner"},
        {"email": "bob@example.com", "expires_in": 0},
        {"email": "bob@example.com", "expires_in": 10**9},
    ],
)
def test_what_is_no_invitation_is_refused(
    app_db: Database, ada: Customer, path: str, body: dict[str, Any]
) -> None:
    assert send("POST", f"{path}/shares", ada.token, body=body).status == 422
    assert shares(ada, path) == []
