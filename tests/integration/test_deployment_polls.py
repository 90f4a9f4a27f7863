"""Silent deployments: providers are asked, what they tell is a step, and what nobody knows is given up."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import deployment_polls
import eas_api
import github_api
import provider_http
import pytest
import sweeper
import vercel_api
from provider_http import Api, Unheard
from tests import kills
from tests.counters import at_once, used
from tests.databases import Database
from tests.deploys import BUILD, NOON, Deployed, announced, deploy, project, steps, stored, tell, told
from tests.ledgers import rows
from tests.provider_apis import (
    REPOSITORY,
    TEAM,
    TOKEN,
    TROUBLE,
    FakeProviders,
    eas_build,
    github_status,
    vercel_deployment,
)
from tests.senders import invoke

from backplane import db, deployments, field_encryption, integrations
from backplane.field_encryption import Place
from backplane.integrations import Credentials

TYPES: dict[str, integrations.Type] = {"eas": "expo", "vercel": "vercel", "github": "github"}
CONFIGS: dict[str, dict[str, Any]] = {
    "eas": {"username": "acme"},
    "vercel": {"team_id": TEAM},
    "github": {"repository": REPOSITORY},
}
NAMES = {"eas": BUILD, "vercel": "dpl_1", "github": "145988746"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProviders]:
    with FakeProviders() as fake:
        for module in (eas_api, vercel_api, github_api):
            monkeypatch.setattr(module, "API", Api(module.API.name, fake.url))
        yield fake


def credentials(provider: str, token: str = TOKEN) -> Credentials:
    return Credentials(
        integration_id=UUID(int=1),
        organization_id=UUID(int=2),
        project_id=None,
        user_id=None,
        type=TYPES[provider],
        config=CONFIGS[provider],
        secrets={"access_token": token},
    )


@pytest.fixture
def integrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every organisation has set up what its deployments are asked about with."""
    monkeypatch.setattr(integrations, "find_credentials", lambda *found, **_: {"id": found[2]})
    by_type = {type_: provider for provider, type_ in TYPES.items()}
    monkeypatch.setattr(integrations, "read_credentials", lambda row: credentials(by_type[row["id"]]))


def silent(database: Database, provider: str = "eas", **fields: Any) -> Deployed:
    """A deployment that is due to be asked about."""
    kind = {"type": "eas-build"} if provider == "eas" else {"type": "web", "platform": "web"}
    return deploy(database, NAMES[provider], provider=provider, **{**kind, **fields})


def integrate(database: Database, deployed: Deployed, token: str) -> None:
    """With Expo, encrypted."""
    [made] = rows(
        database,
        """
        INSERT INTO deploys.integrations (organization_id, scope, type, config)
        VALUES (%s, 'organization', 'expo', '{"username": "acme"}')
        RETURNING id
        """,
        deployed.organization_id,
    )
    place = Place(integrations.TABLE, "secrets", made["id"], deployed.organization_id)
    sealed = field_encryption.encrypt(json.dumps({"access_token": token}).encode(), place)
    rows(
        database,
        "UPDATE deploys.integrations SET secrets = %s, encryption_key = %s WHERE id = %s",
        sealed,
        field_encryption.key_arn(),
        made["id"],
    )


def due_again(database: Database) -> None:
    rows(database, "UPDATE deploys.deployments SET next_poll_at = now() WHERE finished_at IS NULL")


def sweep() -> list[bool | None]:
    return deployment_polls.sweep(most=10, ends=time.monotonic() + 60)


# ---- what providers tell ----


@pytest.mark.usefixtures("field_key")
def test_expo_tells_of_a_build_and_it_is_a_step_like_any_other(
    system_db: Database, fake: FakeProviders
) -> None:
    deployed = silent(system_db)
    integrate(system_db, deployed, TOKEN)
    fake.builds[BUILD] = eas_build("IN_PROGRESS")
    assert sweep() == [True]
    assert stored(system_db, deployed)["status"] == "in_progress"
    assert sweep() == []  # it rests
    due_again(system_db)
    fake.builds[BUILD] = eas_build()
    assert sweep() == [True]
    row = stored(system_db, deployed)
    assert (row["status"], row["app_version"], row["build_number"]) == ("successful", "1.0.2", "123")
    assert row["android_build_url"] == "https://expo.dev/artifacts/eas/1.aab"
    assert project(system_db, deployed)["status"] == "deployed"
    assert steps(system_db, deployed) == [("reported", "in_progress"), ("reported", "successful")]
    sources = rows(system_db, "SELECT source, actor, occurred_at FROM deploys.deployment_events ORDER BY id")
    assert {(row["source"], row["actor"]) for row in sources} == {("poll", "eas")}
    assert sources[-1]["occurred_at"] == datetime(2026, 3, 1, 12, 10, tzinfo=UTC)  # on Expo's clock
    assert tell(system_db, deployed, told("failed", 3600)) == "terminal"  # a late callback


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (vercel_deployment(), "successful"),
        (vercel_deployment(checksState="running"), "in_progress"),
        (vercel_deployment("BUILDING"), "in_progress"),
        (vercel_deployment("ERROR", errorMessage="no such module"), "failed"),
        (vercel_deployment("CANCELED", canceledAt=1772366530000), "aborted"),
    ],
)
def test_vercel_tells_of_a_deployment(fake: FakeProviders, answer: dict[str, Any], status: str) -> None:
    fake.deployments["dpl_1"] = answer
    told = vercel_api.ask(credentials("vercel"), "dpl_1")
    assert (told.status, told.error) == (status, answer.get("errorMessage"))
    assert told.urls.web == ("https://fitness-abc123.vercel.app" if status == "successful" else None)
    assert told.git_commit == "564b61ebdd403d28b5dc616a12ce160b91585b5b"
    assert told.occurred_at is not None
    assert told.occurred_at.isoformat()[:13] == "2026-03-01T12"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ([github_status("inactive"), github_status(environment_url="https://fit.example")], "successful"),
        ([github_status("failure", description="tests failed"), github_status("in_progress")], "failed"),
        ([github_status("in_progress")], "in_progress"),
    ],
)
def test_github_tells_of_a_deployments_newest_status(
    fake: FakeProviders, answer: list[dict[str, Any]], status: str
) -> None:
    fake.statuses[NAMES["github"]] = answer
    told = github_api.ask(credentials("github"), NAMES["github"])
    assert told is not None
    assert told.status == status
    assert told.urls.web == ("https://fit.example" if status == "successful" else None)
    assert told.error == ("tests failed" if status == "failed" else None)


def test_github_may_know_a_deployment_of_which_nobody_has_said_anything(fake: FakeProviders) -> None:
    fake.statuses[NAMES["github"]] = []
    assert github_api.ask(credentials("github"), NAMES["github"]) is None


@pytest.mark.parametrize("provider", TYPES)
def test_a_token_that_is_refused_and_a_build_that_is_not_shown_are_told_apart(
    fake: FakeProviders, provider: str
) -> None:
    ask = deployment_polls.ASK[provider][1]
    with pytest.raises(Unheard, match="refuses the token") as refused:
        ask(credentials(provider, "another-token-than-theirs"), NAMES[provider])
    with pytest.raises(Unheard, match="shows no such build") as unknown:
        ask(credentials(provider), NAMES[provider])
    assert not refused.value.passing
    assert not unknown.value.passing
    assert "another-token" not in refused.value.reason


@pytest.mark.parametrize("befalls", TROUBLE)
def test_trouble_is_passing_and_followed_nowhere(fake: FakeProviders, befalls: str) -> None:
    fake.trouble.append(befalls)
    with pytest.raises(Unheard) as unheard:
        eas_api.ask(credentials("eas"), BUILD)
    assert unheard.value.passing is (befalls != "an_empty_object")  # which is an answer: no such build
    assert (unheard.value.retry_after > 1700) is (befalls in {"too_often", "out_of_calls"})
    assert fake.asked == ["/graphql"]


def test_what_an_answer_holds_is_cut_or_refused_as_in_a_callback(fake: FakeProviders) -> None:
    error = {"errorCode": "X", "message": "c" * 20_000}
    fake.builds[BUILD] = eas_build("ERRORED", error=error, appVersion="1" * 999)
    told = eas_api.ask(credentials("eas"), BUILD)
    assert (len(told.error or ""), len(told.app_version or "")) == (10_003, 255)
    for strange in (
        {"artifacts": {"buildUrl": "javascript:alert(1)"}},
        {"appVersion": "a\x00b"},
        {"updatedAt": "yesterday"},
        {"status": "ASLEEP"},
    ):
        fake.builds[BUILD] = eas_build() | strange
        with pytest.raises(Unheard) as unheard:
            eas_api.ask(credentials("eas"), BUILD)
        assert unheard.value.passing


# ---- what becomes of it ----


@pytest.mark.usefixtures("integrated")
def test_of_several_builds_each_that_is_not_over_is_asked_about(
    system_db: Database, fake: FakeProviders
) -> None:
    deployed = silent(system_db, platform="all")
    rows(
        system_db,
        """
        INSERT INTO deploys.provider_jobs (organization_id, external_id, deployment_id, kind)
        VALUES (%s, 'ios', %s, 'build')
        """,
        deployed.organization_id,
        deployed.id,
    )
    fake.builds[BUILD] = eas_build()
    fake.builds["ios"] = eas_build("IN_QUEUE", platform="IOS")
    assert sweep() == [True]
    assert len(fake.asked) == 2
    due_again(system_db)
    fake.builds["ios"] = eas_build(platform="IOS", updatedAt="2026-03-01T12:20:00Z")
    assert sweep() == [True]
    assert len(fake.asked) == 3
    row = stored(system_db, deployed)
    assert (row["status"], row["ios_build_url"]) == ("successful", row["android_build_url"])


# ---- silence ----


def test_what_nobody_knows_is_stale_for_a_day_and_then_given_up(
    system_db: Database, fake: FakeProviders
) -> None:
    deployed = silent(system_db)
    assert sweep() == [False]
    due_again(system_db)
    assert sweep() == [False]
    row = stored(system_db, deployed)
    assert (row["status"], row["unheard"]) == ("in_progress", 2)
    assert row["stale_reason"] == "no integration of type expo is set up to ask with"
    assert [event["deployment_id"] for event in announced(system_db, "deployment.stale")] == [
        str(deployed.id)
    ]
    rows(system_db, "UPDATE deploys.deployments SET stale_at = stale_at - interval '25 hours'")
    due_again(system_db)
    assert sweep() == [False]
    row = stored(system_db, deployed)
    assert (row["status"], row["stale_at"]) == ("failed", None)
    assert "nothing was heard of it for more than a day" in row["error_log"]
    assert project(system_db, deployed)["status"] == "error"
    assert used(system_db, deployed.organization_id, "app.deployments") == 0
    assert steps(system_db, deployed) == [("went_stale", "in_progress"), ("given_up", "failed")]
    due_again(system_db)
    assert sweep() == []
    assert fake.asked == []


@pytest.mark.usefixtures("integrated")
def test_a_stale_deployment_that_is_heard_of_again_is_so_no_more(
    system_db: Database, fake: FakeProviders
) -> None:
    deployed = silent(system_db)
    assert sweep() == [False]
    assert stored(system_db, deployed)["stale_at"] is not None
    fake.builds[BUILD] = eas_build("IN_PROGRESS", updatedAt="2026-02-01T00:00:00Z")
    due_again(system_db)
    assert sweep() == [True]
    due_again(system_db)
    assert sweep() == [True]  # nothing new, and yet heard of
    row = stored(system_db, deployed)
    assert (row["stale_at"], row["unheard"], row["status"]) == (None, 0, "in_progress")


@pytest.mark.usefixtures("integrated")
def test_a_provider_in_trouble_is_asked_again_and_left_in_peace_before_people_are_told(
    system_db: Database, fake: FakeProviders
) -> None:
    deployed = silent(system_db)
    fake.trouble = ["too_often"] * 5
    for poll in range(1, 6):
        due_again(system_db)
        assert sweep() == [False]
        row = stored(system_db, deployed)
        assert (row["unheard"], row["stale_at"] is not None) == (poll, poll == 5)
        assert row["next_poll_at"] > datetime.now(UTC) + timedelta(seconds=1700)


@pytest.mark.usefixtures("integrated")
def test_a_provider_that_hangs_or_is_gone_is_left_alone_for_the_rest_of_the_sweep(
    system_db: Database, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_http, "TIMEOUT", 0.2)
    for _ in range(3):
        silent(system_db)
    silent(system_db, "github", next_poll_at=NOON + timedelta(days=1))
    fake.statuses[NAMES["github"]] = [github_status()]
    fake.trouble.append("hang")
    assert sweep() == [False, True]
    assert len(fake.asked) == 2
    reasons = rows(system_db, "SELECT DISTINCT unheard FROM deploys.deployments ORDER BY 1")
    assert [row["unheard"] for row in reasons] == [0, 1]


# ---- twice, at once, and cut off ----


def dying(*_: Any) -> None:
    raise kills.Killed


def test_two_sweepers_at_once_ask_once(system_db: Database, fake: FakeProviders) -> None:
    silent(system_db)

    def claimed(_: int) -> bool:
        with system_db.connect("backplane_system") as connection, connection.transaction():
            return deployment_polls.claim(connection, []) is not None

    assert sorted(at_once(4, claimed)) == [False, False, False, True]


@pytest.mark.usefixtures("integrated")
def test_a_sweeper_that_dies_after_asking_leaves_it_to_the_next_one(
    system_db: Database, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = silent(system_db)
    fake.builds[BUILD] = eas_build()
    with monkeypatch.context() as patched:
        patched.setattr(deployments, "advance", dying)
        with pytest.raises(kills.Killed):
            sweep()
    row = stored(system_db, deployed)
    assert (row["status"], row["polls"]) == ("in_progress", 1)
    assert row["next_poll_at"] > datetime.now(UTC)
    due_again(system_db)
    assert sweep() == [True]
    assert stored(system_db, deployed)["status"] == "successful"


@pytest.mark.usefixtures("integrated")
def test_a_callback_amid_the_question_wins(
    system_db: Database, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = silent(system_db)
    fake.builds[BUILD] = eas_build()
    ask = eas_api.ask

    def slow(*args: Any) -> Any:
        answer = ask(*args)
        assert tell(system_db, deployed, told("aborted")) == "applied"
        return answer

    monkeypatch.setitem(deployment_polls.ASK, "eas", ("expo", slow))
    assert sweep() == [True]
    assert stored(system_db, deployed)["status"] == "aborted"


@pytest.mark.usefixtures("integrated")
def test_nothing_is_open_while_a_provider_is_asked(
    system_db: Database, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent(system_db)
    seen: list[int] = []

    def ask(*_: Any) -> None:
        seen.extend(row["n"] for row in rows(system_db, OPEN))

    monkeypatch.setitem(deployment_polls.ASK, "eas", ("expo", ask))
    sweep()
    assert seen == [0]


OPEN = """
    SELECT count(*) AS n
    FROM pg_stat_activity
    WHERE datname = current_database() AND usename = 'backplane_system' AND state LIKE 'idle in%%'
"""


@pytest.mark.usefixtures("integrated")
def test_the_sweeper_asks_and_answers_how_many(system_db: Database, fake: FakeProviders) -> None:
    silent(system_db)
    silent(system_db, "github")
    fake.builds[BUILD] = eas_build()
    answer = invoke(sweeper.handler, {})
    assert (answer["ok"], answer["polled"], answer["unheard"]) == (True, 2, 1)
    assert db.run(lambda tx: deployment_polls.claim(tx, [])) is None
