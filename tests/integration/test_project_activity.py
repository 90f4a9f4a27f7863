"""Forks, statistics and the latest activity."""

from typing import Any

import pytest
from tests.callers import Customer, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada")


@pytest.fixture
def bob(ada: Customer) -> Customer:
    return sign_up("user_bob")


def create(customer: Customer, title: str = "Fitness", **fields: Any) -> Any:
    answer = send("POST", "/v1/projects", customer.token, body={"title": title} | fields)
    assert answer.status == 201, answer.body
    return answer.body


def fork(customer: Customer, project: Any, **fields: Any) -> Answer:
    return send("POST", f"/v1/projects/{project['id']}/fork", customer.token, body=fields)


def say(customer: Customer, project: Any, content: Any) -> None:
    path = f"/v1/projects/{project['id']}/messages"
    assert send("POST", path, customer.token, body={"role": "user", "content": content}).status == 201


def subscribe(database: Database, customer: Customer) -> None:
    rows(
        database,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', %s, id, 'active', '0.1' FROM billing.plans WHERE key = 'pro'
        """,
        customer.organization_id,
        f"sub_{customer.organization_id}",
    )


# ---- forks ----


def test_a_fork_of_ones_own_takes_over_all_but_keys_names_and_history(
    app_db: Database, ada: Customer
) -> None:
    source = create(
        ada, description="counts", kind="web", template={"name": "vite", "version": "5"}, tags=["health"]
    )
    changes = {
        "config": {"color": "blue"},
        "app": {"ios_bundle_id": "com.example.fitness"},
        "supabase": {"anon_key": "sb_publishable_x"},
        "is_favorite": True,
    }
    send("PATCH", f"/v1/projects/{source['id']}", ada.token, body=changes)
    say(ada, source, "hello")
    made = fork(ada, source)
    assert made.status == 201
    assert made.body["forked_from"] == source["id"]
    assert made.body["slug"] == f"fitness-{made.body['id'][-6:]}"
    for field in ("title", "description", "kind", "template", "tags", "features", "status"):
        assert made.body[field] == source[field], field
    assert made.body["config"] == {"color": "blue"}
    assert made.body["app"]["ios_bundle_id"] == "com.example.fitness"
    assert (made.body["supabase"], made.body["is_favorite"], made.body["message_count"]) == (None, False, 0)


def test_a_fork_takes_the_messages_along_where_they_are_wanted(app_db: Database, ada: Customer) -> None:
    source = create(ada)
    say(ada, source, "hello")
    say(ada, source, [{"type": "text", "text": "in parts"}])
    made = fork(ada, source, include_messages=True, title="Copy").body
    heard = send("GET", f"/v1/projects/{made['id']}/messages", ada.token).body["items"]
    assert [item["content"] for item in heard] == [[{"type": "text", "text": "in parts"}], "hello"]
    assert (made["title"], made["message_count"]) == ("Copy", 2)


def test_others_fork_what_is_public_without_what_is_not(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    source = create(ada)
    send("PATCH", f"/v1/projects/{source['id']}", ada.token, body={"config": {"secret": "of ada"}})
    assert fork(bob, source, include_messages=True).status == 403
    made = fork(bob, source).body
    assert (made["config"], made["created_by"]["id"]) == ({}, str(bob.user_id))
    assert [item["id"] for item in send("GET", "/v1/projects", bob.token).body["items"]] == [made["id"]]
    [stored] = rows(app_db, "SELECT organization_id FROM projects.projects WHERE id = %s", made["id"])
    assert stored["organization_id"] == bob.organization_id


def test_a_private_project_is_forked_by_whom_it_is_shared_with_alone(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    subscribe(app_db, ada)
    source = create(ada)
    say(ada, source, "hello")
    assert fork(bob, source).status == 404
    path = f"/v1/projects/{source['id']}/shares"
    invited = send("POST", path, ada.token, body={"email": "bob@example.com"})
    send("POST", "/v1/invitations/accept", bob.token, body={"token": invited.body["token"]})
    refused = fork(bob, source)  # without private projects in his plan it would be there for all to see
    assert (refused.status, refused.body["code"]) == (403, "feature_not_in_plan")
    assert "is_public" in refused.body["detail"]
    assert fork(bob, source, is_public=True).body["is_public"] is True
    subscribe(app_db, bob)
    made = fork(bob, source, include_messages=True)
    assert (made.status, made.body["message_count"], made.body["is_public"]) == (201, 1, False)
    owners = rows(app_db, "SELECT organization_id FROM projects.messages ORDER BY created_at")
    assert [row["organization_id"] for row in owners] == [ada.organization_id, bob.organization_id]


def test_a_fork_counts_as_a_project(app_db: Database, ada: Customer) -> None:
    source = create(ada)
    assert [fork(ada, source).status for _ in range(3)] == [201, 201, 403]


# ---- statistics and activity ----


def test_statistics_are_those_of_the_projects(app_db: Database, ada: Customer, bob: Customer) -> None:
    def stats(**query: str) -> Any:
        return send("GET", "/v1/projects/stats", ada.token, query=query).body

    empty = stats()
    assert empty == {
        "total": 0, "public": 0, "active": 0, "avg_messages": None, "last_activity": None,
        "created": 0, "changed": 0,
        "deployments": {
            "total": 0, "success_rate": None,
            "by_status": {"pending": 0, "in_progress": 0, "successful": 0, "failed": 0, "aborted": 0},
        },
    }  # fmt: skip
    subscribe(app_db, ada)
    talked, silent, deleted = create(ada), create(ada, is_public=True), create(ada, is_public=True)
    create(bob, is_public=True)
    for content in ("a", "b", "c"):
        say(ada, talked, content)
    send("DELETE", f"/v1/projects/{deleted['id']}", ada.token)
    age = "UPDATE projects.projects SET created_at = now() - interval '3 days' WHERE id = %s"
    rows(app_db, age, silent["id"])
    seen = stats()
    assert (seen["total"], seen["public"], seen["active"], seen["avg_messages"]) == (3, 2, 2, 1.5)
    assert (seen["created"], seen["changed"]) == (3, 2)
    [newest] = rows(app_db, "SELECT max(updated_at) AS at FROM projects.projects WHERE id = %s", silent["id"])
    assert seen["last_activity"].startswith(newest["at"].isoformat()[:19])
    age = "UPDATE projects.projects SET created_at = now() - make_interval(days => %s) WHERE id = %s"
    for days, created in ((6, [2, 3, 3, 3]), (29, [2, 2, 3, 3]), (89, [2, 2, 2, 3]), (91, [2, 2, 2, 2])):
        rows(app_db, age, days, silent["id"])
        assert [stats(period=period)["created"] for period in ("24h", "7d", "30d", "90d")] == created
    assert send("GET", "/v1/projects/stats", ada.token, query={"period": "1y"}).status == 422


def test_the_latest_activity_comes_first_in_parts(app_db: Database, ada: Customer, bob: Customer) -> None:
    subscribe(app_db, ada)
    made = [create(ada, f"Project {number}") for number in range(12)]
    create(bob, "Of Bob")
    send("DELETE", f"/v1/projects/{made[11]['id']}", ada.token)
    first = send("GET", "/v1/activity", ada.token).body
    assert [item["name"] for item in first["items"]] == [f"Project {number}" for number in range(10, 0, -1)]
    assert set(first["items"][0]) == {"type", "id", "name", "timestamp"}
    rest = send("GET", "/v1/activity", ada.token, query={"cursor": first["next_cursor"]}).body
    assert [item["name"] for item in rest["items"]] == ["Project 0"]
