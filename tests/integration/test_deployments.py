"""Deployments as callers have them: begun, named, ended by hand, counted, listed, and nobody else's."""

import json
from typing import Any
from uuid import UUID

import deployment_changes
import project_activity
import pytest
import webhook_worker
from deployment_requests import Build, Completion, NewDeployment
from tests import kills
from tests.callers import Customer, mint, send, sign_up, trust_our_tokens
from tests.counters import at_once, transaction, used
from tests.databases import Database
from tests.deploys import BUILD
from tests.ledgers import rows
from tests.query_plans import plan_of
from tests.senders import Answer, invoke

from backplane import db, inbox
from backplane.access import Access
from backplane.auth import Caller, authenticate
from backplane.problems import PlanLimitReached

BUILDING = {"type": "eas-build", "platform": "android"}


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada", name="Ada Lovelace")


@pytest.fixture
def project(ada: Customer) -> str:
    return create(ada)


def create(customer: Customer, **fields: Any) -> str:
    made = send("POST", "/v1/projects", customer.token, body={"title": "Fitness"} | fields)
    project_id: str = made.body["id"]
    return project_id


def subscribe(database: Database, customer: Customer, plan: str) -> None:
    rows(
        database,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_1', id, 'active', '0.1' FROM billing.plans WHERE key = %s
        """,
        customer.organization_id,
        plan,
    )


def start(customer: Customer, project_id: str, *, key: str | None = None, **fields: Any) -> Answer:
    path = f"/v1/projects/{project_id}/deployments"
    return send("POST", path, customer.token, body=BUILDING | fields, key=key)


def act(customer: Customer, deployment: Any, verb: str, **body: Any) -> Answer:
    return send("POST", f"/v1/deployments/{deployment['id']}/{verb}", customer.token, body=body or None)


def counted(database: Database, customer: Customer) -> int:
    return used(database, customer.organization_id, "app.deployments")


def status_of(customer: Customer, project_id: str) -> Any:
    return send("GET", f"/v1/projects/{project_id}", customer.token).body["status"]


# ---- from the start to the end ----


def test_a_deployment_begins_is_named_and_completed_by_hand(ada: Customer, project: str) -> None:
    begun = start(ada, project, app_version="1.0.0", config={"profile": "production"})
    assert begun.status == 201
    made = begun.body
    assert (made["status"], made["environment"], made["provider"]) == ("pending", "production", "eas")
    assert (made["project_name"], made["user"]["id"]) == ("Fitness", str(ada.user_id))
    assert status_of(ada, project) == "deploying"
    named = act(ada, made, "builds", builds=[{"external_id": BUILD, "platform": "android"}])
    assert (named.status, named.body["status"]) == (200, "in_progress")
    assert [(job["external_id"], job["status"]) for job in named.body["builds"]] == [(BUILD, "pending")]
    url = "https://expo.dev/artifacts/1.aab"
    done = act(ada, made, "complete", android_build_url=url, web_url="https://fit.example").body
    assert (done["status"], done["android_build_url"], done["app_version"]) == ("successful", url, "1.0.0")
    told = [(event["kind"], event["status"], event["source"]) for event in done["events"]]
    assert told == [
        ("started", "pending", "user"),
        ("linked", "in_progress", "user"),
        ("completed", "successful", "user"),
    ]
    assert {event["actor"] for event in done["events"]} == {f"user:{ada.user_id}"}
    its = send("GET", f"/v1/projects/{project}", ada.token).body
    assert (its["status"], its["deployment_url"]) == ("deployed", "https://fit.example")
    assert its["deployed_at"] is not None
    assert send("GET", f"/v1/deployments/{made['id']}", ada.token).body == done


def test_an_end_by_hand_is_repeated_in_peace_and_never_changed(ada: Customer, project: str) -> None:
    made = start(ada, project, type="manual").body
    assert made["status"] == "in_progress"
    canceled = act(ada, made, "cancel")
    assert (canceled.status, canceled.body["status"]) == (200, "aborted")
    assert act(ada, made, "cancel").body == canceled.body
    for refused in (
        act(ada, made, "complete", app_version="2"),
        act(ada, made, "builds", builds=[{"external_id": "b"}]),
    ):
        assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    assert status_of(ada, project) == "draft"
    again = start(ada, project, type="manual").body
    failed = act(ada, again, "complete", status="failed", error_log="no signing key").body
    assert (failed["status"], failed["error_log"], status_of(ada, project)) == (
        "failed",
        "no signing key",
        "error",
    )


def test_a_build_belongs_to_one_deployment(app_db: Database, ada: Customer, project: str) -> None:
    subscribe(app_db, ada, "pro")
    first = start(ada, project, external_id=BUILD).body
    assert first["status"] == "in_progress"
    refused = start(ada, project, external_id=BUILD)
    assert (refused.status, refused.body["code"]) == (409, "conflict")
    other = start(ada, project).body
    assert act(ada, other, "builds", builds=[{"external_id": "new"}, {"external_id": BUILD}]).status == 409
    assert send("GET", f"/v1/deployments/{other['id']}", ada.token).body == other  # nothing half done
    assert act(ada, first, "builds", builds=[{"external_id": BUILD, "platform": "ios"}]).status == 200
    web = start(ada, project, type="web", platform="web").body
    assert web["provider"] is None
    assert act(ada, web, "builds", builds=[{"external_id": "dpl_1"}]).body["provider"] == "vercel"
    assert counted(app_db, ada) == 3


def test_a_repeated_start_begins_once(app_db: Database, ada: Customer, project: str) -> None:
    first, again = (start(ada, project, key="deploy-1") for _ in range(2))
    assert (first.body, first.status) == (again.body, again.status)
    assert again.headers["idempotent-replayed"] == "true"
    assert start(ada, project, key="deploy-1", platform="ios").body["code"] == "idempotency_conflict"
    assert counted(app_db, ada) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "ftp"),
        ("platform", "symbian"),
        ("external_id", ""),
        ("external_id", "a b"),
        ("environment", "a/b"),
        ("provider", "vercel"),
        ("config", {"x": "y" * 70_000}),
        ("status", "successful"),
    ],
)
def test_what_is_no_deployment_is_refused(ada: Customer, project: str, field: str, value: Any) -> None:
    refused = start(ada, project, **{field: value})
    assert (refused.status, refused.body["code"]) == (422, "invalid_request")
    assert refused.body["errors"]


# ---- the plan's limit ----


def test_what_is_under_way_or_stands_counts_and_nothing_else(
    app_db: Database, ada: Customer, project: str
) -> None:
    first = start(ada, project).body
    refused = start(ada, project)
    assert (refused.status, refused.body["code"]) == (403, "plan_limit_reached")
    assert send("GET", "/v1/me", ada.token).body["limits"]["app.deployments"]["used"] == 1
    act(ada, first, "cancel")
    second = start(ada, project).body
    assert send("DELETE", f"/v1/deployments/{second['id']}", ada.token).body["code"] == "invalid_state"
    act(ada, second, "complete", status="failed")
    third = start(ada, project).body
    act(ada, third, "complete", app_version="1")
    assert start(ada, project).status == 403
    send("DELETE", f"/v1/projects/{project}", ada.token)
    assert counted(app_db, ada) == 1
    assert [
        send("DELETE", f"/v1/deployments/{made['id']}", ada.token).status for made in (third, third, first)
    ] == [204, 404, 204]
    assert counted(app_db, ada) == 0
    assert send("GET", f"/v1/deployments/{third['id']}", ada.token).status == 404


def standing(customer: Customer, project_id: str) -> tuple[Caller, Access]:
    caller = authenticate({"authorization": f"Bearer {customer.token}"})
    return caller, Access(UUID(project_id), customer.organization_id, "member")


def test_of_many_starts_at_once_as_many_begin_as_the_plan_allows(
    app_db: Database, ada: Customer, project: str
) -> None:
    subscribe(app_db, ada, "pro")
    caller, found = standing(ada, project)

    def attempt(_: int) -> bool:
        try:
            with transaction(app_db, ada.organization_id) as tx:
                deployment_changes.start(tx, found, caller, NewDeployment(type="web", platform="web"))
        except PlanLimitReached:
            return False
        return True

    assert [attempt(0) for _ in range(7)] == [True] * 7
    assert sum(at_once(12, attempt)) == 3  # of the ten that pro allows
    assert counted(app_db, ada) == 10
    assert len(rows(app_db, "SELECT 1 FROM deploys.deployments")) == 10


def test_a_session_killed_before_any_statement_leaves_nothing_half_done(
    app_db: Database, ada: Customer, project: str
) -> None:
    caller, found = standing(ada, project)
    builds = [Build(external_id="android"), Build(external_id="ios")]
    made: list[UUID] = []

    def snapshot() -> Any:
        deploys = ("deployments", "provider_jobs", "deployment_events")
        tables = [f"deploys.{name}" for name in deploys]
        tables += ["projects.projects", "platform.outbox", "billing.usage_counters"]
        return [rows(app_db, f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in tables]

    def begin(tx: db.Tx) -> None:
        made.append(deployment_changes.start(tx, found, caller, NewDeployment(type="web", platform="all")))

    for work in (
        begin,
        lambda tx: deployment_changes.link(tx, found, caller, made[-1], builds),
        lambda tx: deployment_changes.complete(tx, caller, made[-1], Completion(status="failed")),
        lambda tx: deployment_changes.delete(tx, caller, made[-1]),
    ):
        before = snapshot()

        def checked(tx: db.Tx, work: Any = work, before: Any = before) -> None:
            assert snapshot() == before
            work(tx)

        assert kills.until_through(app_db, ada.organization_id, checked) > 4
    assert counted(app_db, ada) == 0
    kinds = rows(app_db, "SELECT kind FROM deploys.deployment_events ORDER BY id")
    assert [row["kind"] for row in kinds] == ["started", "linked", "completed", "deleted"]


# ---- lists, statistics, activity ----


def test_deployments_are_listed_newest_first_in_parts(app_db: Database, ada: Customer, project: str) -> None:
    subscribe(app_db, ada, "pro")
    bob = sign_up("user_bob")
    start(bob, create(bob))
    made = [start(ada, project).body["id"] for _ in range(3)]
    other = start(ada, create(ada), type="web", platform="web").body["id"]
    send("DELETE", f"/v1/projects/{project}", ada.token)  # its deployments stay
    first = send("GET", "/v1/deployments", ada.token, query={"limit": "2"}).body
    rest = send("GET", "/v1/deployments", ada.token, query={"cursor": first["next_cursor"]}).body
    assert [item["id"] for item in first["items"] + rest["items"]] == [other, *made[::-1]]
    of_one = send("GET", f"/v1/projects/{project}/deployments", ada.token).body
    assert [item["id"] for item in of_one["items"]] == made[::-1]
    send("POST", f"/v1/deployments/{made[0]}/cancel", ada.token)
    aborted = send("GET", "/v1/deployments", ada.token, query={"status": "aborted"}).body["items"]
    assert [item["id"] for item in aborted] == [made[0]]
    assert send("POST", f"/v1/projects/{project}/deployments", ada.token, body=BUILDING).status == 404


def test_statistics_and_activity_tell_of_deployments(app_db: Database, ada: Customer, project: str) -> None:
    subscribe(app_db, ada, "pro")
    made = [start(ada, project).body for _ in range(4)]
    act(ada, made[0], "complete", app_version="1")
    act(ada, made[1], "complete", status="failed")
    act(ada, made[2], "cancel")
    stats = send("GET", "/v1/deployments/stats", ada.token).body
    assert stats == {
        "total": 4,
        "by_status": {"pending": 1, "in_progress": 0, "successful": 1, "failed": 1, "aborted": 1},
        "success_rate": 0.3333,
    }
    assert send("GET", "/v1/projects/stats", ada.token).body["deployments"] == stats
    later = create(ada, title="Later")
    latest = send("GET", "/v1/activity", ada.token, query={"limit": "3"}).body
    rest = send("GET", "/v1/activity", ada.token, query={"cursor": latest["next_cursor"]}).body
    found = [(item["type"], item["id"], item["name"]) for item in latest["items"] + rest["items"]]
    assert found == [
        ("project", later, "Later"),
        *(("deployment", each["id"], "Fitness") for each in made[::-1]),
        ("project", project, "Fitness"),
    ]


def test_indexes_serve_them_among_everybody_elses(app_db: Database, ada: Customer, project: str) -> None:
    rows(
        app_db,
        """
        INSERT INTO tenancy.organizations (id, name)
        SELECT gen_random_uuid(), 'x' FROM generate_series(1, 200)
        """,
    )
    rows(
        app_db,
        """
        INSERT INTO projects.projects (organization_id, kind, title)
        SELECT id, 'web', 'x' FROM tenancy.organizations CROSS JOIN generate_series(1, 15)
        """,
    )
    rows(
        app_db,
        """
        INSERT INTO deploys.deployments
            (organization_id, project_id, type, platform, project_name, status, finished_at, deployed_at)
        SELECT organization_id, id, 'web', 'web', 'x', 'successful', now(), now()
        FROM projects.projects CROSS JOIN generate_series(1, 4)
        """,
    )
    rows(app_db, "VACUUM ANALYZE deploys.deployments")
    rows(app_db, "VACUUM ANALYZE projects.projects")
    mine = ada.organization_id
    with db.transaction(organization_id=mine) as tx:
        counts = plan_of(tx, lambda tx: project_activity.stats(tx, mine, "30d"))
        latest = plan_of(tx, lambda tx: project_activity.activity(tx, mine, before=None, limit=10))
    for plan in (counts, latest):  # by an index that the organisation leads
        assert "Seq Scan" not in plan, plan
        assert "_pkey" not in plan, plan
    assert "deployments_status" in counts, counts


def test_the_view_has_the_first_sources_names_and_states(
    app_db: Database, ada: Customer, project: str
) -> None:
    subscribe(app_db, ada, "pro")
    made = [start(ada, project).body for _ in range(3)]
    act(ada, made[0], "complete", status="failed")
    act(ada, made[1], "complete", ios_build_url="https://expo.dev/1.ipa")
    seen = rows(app_db, 'SELECT status, "iosBuildUrl", "userId" FROM deploys.deployed_apps ORDER BY id')
    assert [row["status"] for row in seen] == ["aborted", "successful", "in_progress"]
    assert (seen[1]["iosBuildUrl"], seen[1]["userId"]) == ("https://expo.dev/1.ipa", ada.user_id)


# ---- who may ----


def test_viewers_and_keys_go_as_far_as_their_scopes(app_db: Database, ada: Customer, project: str) -> None:
    made = start(ada, project).body
    reads = mint(app_db, ada.organization_id, ["read"])
    writes = mint(app_db, ada.organization_id, ["read", "deployments:write"])
    path = f"/v1/deployments/{made['id']}"
    assert send("GET", path, reads).status == 200
    assert send("POST", f"{path}/cancel", reads).status == 403
    by_key = send("POST", f"{path}/cancel", writes)
    assert (by_key.status, by_key.body["events"][-1]["actor"][:4]) == (200, "key:")


def test_whoever_a_project_is_shared_with_goes_as_far_as_his_share(
    app_db: Database, ada: Customer, project: str
) -> None:
    subscribe(app_db, ada, "pro")
    made = start(ada, project).body
    bob = sign_up("user_bob")
    assert send("GET", f"/v1/deployments/{made['id']}", bob.token).status == 404
    for role, may in (("viewer", 403), ("editor", 201)):
        invited = send(
            "POST",
            f"/v1/projects/{project}/shares",
            ada.token,
            body={"email": f"{role}@x.example", "role": role},
        )
        send("POST", "/v1/invitations/accept", bob.token, body={"token": invited.body["token"]})
        assert send("GET", f"/v1/deployments/{made['id']}", bob.token).status == 200
        assert start(bob, project).status == may
    assert send("GET", "/v1/deployments", bob.token).body["items"] == []  # they are not his organisation's
    assert (counted(app_db, ada), counted(app_db, bob)) == (2, 0)


def test_strangers_see_nothing_of_a_public_projects_deployments(ada: Customer, project: str) -> None:
    made = start(ada, project).body  # on the free plan every project is public
    bob = sign_up("user_bob")
    assert send("GET", f"/v1/deployments/{made['id']}", bob.token).status == 404
    assert send("GET", f"/v1/projects/{project}/deployments", bob.token).status == 403
    assert start(bob, project).status == 403


# ---- callbacks that came before ----


def test_a_start_wakes_what_waits_for_its_builds(
    app_db: Database, ada: Customer, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(ada, project, external_id=BUILD).body
    [event] = rows(app_db, "SELECT type, payload FROM platform.outbox WHERE type = 'deployment.started'")
    woken: list[str] = []
    monkeypatch.setattr(inbox, "replay", lambda subject, senders: woken.append(subject))
    message = {"detail-type": event["type"], "detail": {"data": event["payload"]}}
    record = {"messageId": "1", "body": json.dumps(message)}
    with app_db.as_role("backplane_system"):
        assert invoke(webhook_worker.handler, {"Records": [record]}) == {"batchItemFailures": []}
    assert woken == [f"deployment.job:{ada.organization_id}:{BUILD}"]
    assert made["builds"][0]["external_id"] == BUILD
