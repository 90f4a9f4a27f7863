"""A deployment's steps against the real database: told in any order, twice and at once, over once."""

import random
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from tests.counters import at_once, transaction, used
from tests.databases import Database
from tests.deploys import BUILD, NOON, Deployed, announced, deploy, project, steps, stored, tell, told
from tests.ledgers import new_account, rows

from backplane import deployments
from backplane.deployments import Status, Urls

ENDS: tuple[Status, ...] = ("successful", "failed", "aborted")
AFTERWARDS = {"successful": "deployed", "failed": "error", "aborted": "draft"}


def counted(database: Database, deployed: Deployed) -> int:
    return used(database, deployed.organization_id, "app.deployments")


@pytest.mark.parametrize("end", ENDS)
def test_an_end_moves_the_project_the_count_and_the_history_once(system_db: Database, end: Status) -> None:
    deployed = deploy(system_db, BUILD, status="pending")
    assert tell(system_db, deployed, told("in_progress", 1)) == "applied"
    assert tell(system_db, deployed, told("in_progress", 1)) == "stale"
    assert tell(system_db, deployed, told(end, 2, error="no such file")) == "applied"
    for again in ENDS:
        assert tell(system_db, deployed, told(again, 3)) == "terminal"
    assert tell(system_db, deployed, told("in_progress", 4)) == "terminal"
    row = stored(system_db, deployed)
    assert (row["status"], row["error_log"], row["next_poll_at"]) == (end, "no such file", None)
    assert (row["deployed_at"] is not None) is (end == "successful")
    assert project(system_db, deployed)["status"] == AFTERWARDS[end]
    assert counted(system_db, deployed) == int(end == "successful")
    assert steps(system_db, deployed) == [("reported", "in_progress"), ("reported", end)]
    assert [event["status"] for event in announced(system_db, "deployment.changed")] == ["in_progress", end]


def test_what_is_told_fills_the_deployment_and_a_late_word_only_what_is_missing(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD, type="web", platform="web", provider=None)
    early = told("successful", 2, provider="vercel", urls=Urls(web="https://a.example"), app_version="1.0.2")
    late = told("successful", 9, urls=Urls(web="https://b.example", logs="https://logs.example"))
    assert tell(system_db, deployed, early) == "applied"
    assert tell(system_db, deployed, late) == "applied"
    assert tell(system_db, deployed, late) == "terminal"
    row = stored(system_db, deployed)
    assert (row["provider"], row["app_version"]) == ("vercel", "1.0.2")
    assert (row["web_url"], row["logs_url"]) == ("https://a.example", "https://logs.example")
    its = project(system_db, deployed)
    assert (its["deployment_url"], its["deployed_at"] is not None) == ("https://a.example", True)


def test_a_preview_is_not_where_the_world_finds_the_project(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD, type="web", environment="preview")
    tell(system_db, deployed, told("successful", urls=Urls(web="https://a.example")))
    assert project(system_db, deployed)["deployment_url"] is None


def test_of_many_ends_at_once_one_wins_and_is_counted_once(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD)
    ends = [*ENDS] * 4
    random.shuffle(ends)
    outcomes = at_once(len(ends), lambda n: tell(system_db, deployed, told(ends[n], n)))
    assert outcomes.count("applied") == 1
    assert outcomes.count("terminal") == len(ends) - 1
    end = ends[outcomes.index("applied")]
    assert stored(system_db, deployed)["status"] == end
    assert steps(system_db, deployed) == [("reported", end)]
    assert counted(system_db, deployed) == int(end == "successful")


def test_a_deployment_of_two_builds_is_over_when_both_are(system_db: Database) -> None:
    deployed = deploy(system_db, "android", "ios", platform="all")
    finished = told(
        "successful", 5, build="android", platform="android", urls=Urls(android="https://a/1.aab")
    )
    assert tell(system_db, deployed, finished) == "applied"
    assert stored(system_db, deployed)["status"] == "in_progress"
    assert tell(system_db, deployed, finished) == "terminal"
    assert tell(system_db, deployed, told("in_progress", 6, build="android")) == "terminal"
    last = told("successful", 1, build="ios", platform="ios", urls=Urls(ios="https://a/2.ipa"))
    assert tell(system_db, deployed, last) == "applied"
    row = stored(system_db, deployed)
    assert (row["status"], row["android_build_url"], row["ios_build_url"]) == (
        "successful",
        "https://a/1.aab",
        "https://a/2.ipa",
    )


def test_a_submission_is_recorded_and_ends_nothing(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD)
    refused = told("failed", 1, build="submission", job="submission", error="the icon has an alpha channel")
    assert tell(system_db, deployed, refused) == "applied"
    row = stored(system_db, deployed)
    assert (row["status"], row["error_log"]) == ("in_progress", None)
    assert tell(system_db, deployed, told("successful", 2)) == "applied"
    sent = told("successful", 3, build="another submission", job="submission")
    assert [tell(system_db, deployed, sent) for _ in range(2)] == ["applied", "terminal"]
    assert stored(system_db, deployed)["status"] == "successful"
    assert counted(system_db, deployed) == 1


def test_news_end_a_silence_and_put_the_next_question_off(system_db: Database) -> None:
    silent: dict[str, Any] = {"polls": 3, "unheard": 2, "stale_at": NOON, "stale_reason": "nobody answers"}
    deployed = deploy(system_db, BUILD, **silent)
    tell(system_db, deployed, told("in_progress", 1))
    row = stored(system_db, deployed)
    assert (row["polls"], row["unheard"], row["stale_at"]) == (0, 0, None)
    assert row["next_poll_at"] > row["updated_at"] + timedelta(minutes=29)


def test_the_project_stays_deploying_until_the_last_of_its_deployments_is_over(system_db: Database) -> None:
    first = deploy(system_db, BUILD)
    with system_db.connect() as connection:
        connection.execute(
            """
            INSERT INTO deploys.deployments
                (organization_id, project_id, type, platform, project_name, next_poll_at)
            VALUES (%s, %s, 'web', 'web', 'Fitness', now())
            """,
            [first.organization_id, first.project_id],
        )
    tell(system_db, first, told("successful"))
    assert project(system_db, first)["status"] == "deploying"


@pytest.mark.parametrize(
    ("before", "kind", "end", "after"),
    [
        ("deploying", "mobile", "aborted", "draft"),
        ("deploying, files_version = 1", "mobile", "aborted", "ready"),
        ("deploying, files_version = 1, deployed_at = now()", "mobile", "aborted", "deployed"),
        ("deploying, deployed_at = now()", "mobile", "failed", "error"),
        ("generating", "mobile", "successful", "generating"),
        ("archived", "web", "successful", "archived"),
        ("published", "site", "failed", "published"),
    ],
)
def test_a_projects_status_follows_by_legal_steps_only(
    system_db: Database, before: str, kind: str, end: Status, after: str
) -> None:
    deployed = deploy(system_db, BUILD)
    status, *more = before.split(", ")
    assignments = ", ".join([f"status = '{status}'", f"kind = '{kind}'", *more])
    rows(system_db, f"UPDATE projects.projects SET {assignments} WHERE id = %s", deployed.project_id)
    assert tell(system_db, deployed, told(end)) == "applied"
    assert project(system_db, deployed)["status"] == after


def test_a_job_is_found_in_its_organisation_and_by_its_provider_alone(system_db: Database) -> None:
    deployed, other = deploy(system_db, BUILD), new_account(system_db)
    anybodys = deploy(system_db, "dpl_1", organization_id=deployed.organization_id, provider=None)
    with transaction(system_db, other, "backplane_system") as tx:
        assert deployments.find(tx, deployed.organization_id, "eas", BUILD) == deployed.id
        assert deployments.find(tx, deployed.organization_id, "github", BUILD) is None
        assert deployments.find(tx, deployed.organization_id, "vercel", "dpl_1") == anybodys.id
        assert deployments.find(tx, other, "eas", BUILD) is None
        assert deployments.advance(tx, uuid4(), told("failed")) == "unknown"
        assert deployments.advance(tx, anybodys.id, told("failed")) == "unknown"  # a job of the other one
