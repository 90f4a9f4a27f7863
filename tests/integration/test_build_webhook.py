"""Callbacks of those who build and deploy: verified, once, and each to its own deployment only."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import build_webhook
import health
import pytest
from local import aws
from local.aws import CREDENTIALS
from tests.build_callbacks import (
    BUILD,
    DEPLOYMENT,
    GITHUB_DEPLOYMENT,
    SECRET,
    eas_build,
    eas_submission,
    github_status,
    integrate,
    post,
    rotate,
    signed,
    vercel_event,
)
from tests.callers import ROOT, send, sign_up, trust_our_tokens
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.deploys import Deployed, deploy, project, steps, stored
from tests.keys import make_key
from tests.ledgers import new_account, rows
from tests.senders import call as invoke
from tests.senders import http_event

from backplane import db, deployments, field_encryption, inbox, inbox_upkeep
from backplane.senders import SENDERS

pytestmark = pytest.mark.usefixtures("field_key")

OTHER_SECRET = "another webhook secret of 36 letters"
LATER, EARLIER = "2999-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"
FINISHED = eas_build()


@pytest.fixture(scope="module")
def database(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """One for all: each test has organisations of its own."""
    name = f"build_webhook_{os.getpid()}"
    create_database(server_url, name, template)
    urls = [on(server_url, name, user=role, password=role_passwords[role]) for role in ROLES]
    yield Database(name, on(server_url, name), *urls)
    drop_database(server_url, name)


@pytest.fixture(scope="module")
def field_key(aws_url: str) -> Iterator[str]:
    """One for all, as making one and its clients costs more than what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": aws_url}.items():
            patch.setenv(variable, value)
        arn = make_key(aws.clients(aws_url)("kms"))
        patch.setenv("FIELD_KEY_ARN", arn)
        yield arn
    field_encryption.forget()


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's process knows, the next one's does not."""
    monkeypatch.setattr(build_webhook, "_known", {})


def inbox_rows(database: Database, integration_id: UUID) -> list[dict[str, Any]]:
    return rows(
        database,
        "SELECT * FROM platform.webhook_inbox WHERE event_id LIKE %s ORDER BY id",
        f"{integration_id}:%",
    )


def jobs(database: Database, deployed: Deployed) -> dict[str, tuple[str, str]]:
    found = rows(
        database,
        "SELECT external_id, kind, status FROM deploys.provider_jobs WHERE deployment_id = %s",
        deployed.id,
    )
    return {row["external_id"]: (row["kind"], row["status"]) for row in found}


def name(database: Database, deployed: Deployed, external_id: str, kind: str = "build") -> None:
    """As whoever began a deployment does when he is told its name at the provider."""
    rows(
        database,
        """
        INSERT INTO deploys.provider_jobs (organization_id, external_id, deployment_id, kind)
        VALUES (%s, %s, %s, %s)
        """,
        deployed.organization_id,
        external_id,
        deployed.id,
        kind,
    )


def arrive(deployed: Deployed, external_id: str) -> None:
    inbox.replay(deployments.subject(deployed.organization_id, external_id), SENDERS)


# ---- what they do ----


@pytest.mark.parametrize("base64_encoded", [True, False])
def test_a_finished_build_fills_in_what_it_left(system_db: Database, *, base64_encoded: bool) -> None:
    deployed = deploy(system_db, BUILD)
    integration = integrate(system_db, "eas", deployed.organization_id)
    answer = post("eas", integration, FINISHED, base64_encoded=base64_encoded)
    assert (answer.status, answer.body["status"]) == (200, "processed")
    assert answer.body["event_id"].startswith(f"{integration}:build:{BUILD}:finished:")
    now = stored(system_db, deployed)
    page = FINISHED["buildDetailsPageUrl"]
    assert {
        "status": "successful",
        "android_build_url": FINISHED["artifacts"]["buildUrl"],
        "application_archive_url": FINISHED["artifacts"]["buildUrl"],
        "ios_build_url": None,
        "build_details_url": page,
        "logs_url": page,
        "app_version": "1.0.2",
        "build_number": "123",
        "git_commit": "564b61ebdd403d28b5dc616a12ce160b91585b5b",
        "error_log": None,
    }.items() <= now.items()
    assert project(system_db, deployed)["status"] == "deployed"
    (row,) = inbox_rows(system_db, integration)
    assert row["organization_id"] == deployed.organization_id
    kept = bytes(row["body"]).decode()
    assert "username" not in kept
    assert "Add the home screen" not in kept


def test_an_ios_build_has_logs_of_its_own(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD, platform="ios")
    integration = integrate(system_db, "eas", deployed.organization_id)
    told = eas_build(platform="ios")
    assert post("eas", integration, told).body["status"] == "processed"
    now = stored(system_db, deployed)
    assert now["ios_build_url"] == told["artifacts"]["buildUrl"]
    assert now["android_build_url"] is None
    assert now["logs_url"] == told["artifacts"]["xcodeBuildLogsUrl"]


@pytest.mark.parametrize(
    ("sender", "told", "status", "error"),
    [
        ("eas", eas_build(status="errored"), "failed", "KEYSTORE_MISSING: The keystore is missing"),
        ("eas", eas_build(status="canceled", artifacts={}), "aborted", None),
        ("eas", eas_build(status="in-progress"), "in_progress", None),
        ("eas", {"id": BUILD, "status": "finished", "platform": "ios"}, "successful", None),
        ("vercel", vercel_event("created"), "in_progress", None),
        ("vercel", vercel_event("ready"), "in_progress", None),
        ("vercel", vercel_event("succeeded"), "successful", None),
        ("vercel", vercel_event("promoted"), "successful", None),
        ("vercel", vercel_event("error"), "failed", None),
        ("vercel", vercel_event("canceled"), "aborted", None),
        ("github", github_status("queued"), "in_progress", None),
        ("github", github_status("in_progress"), "in_progress", None),
        ("github", github_status("success"), "successful", None),
        ("github", github_status("failure"), "failed", "It broke"),
        ("github", github_status("error"), "failed", "It broke"),
    ],
)
def test_a_callback_moves_its_deployment(
    system_db: Database, sender: str, told: dict[str, Any], status: str, error: str | None
) -> None:
    names = {"eas": BUILD, "vercel": DEPLOYMENT, "github": str(GITHUB_DEPLOYMENT)}
    deployed = deploy(system_db, names[sender], type="web", platform="web", provider=sender)
    integration = integrate(system_db, sender, deployed.organization_id)
    answer = post(sender, integration, told)
    assert answer.status == 200
    now = stored(system_db, deployed)
    assert (now["status"], now["error_log"]) == (status, error)
    web = {"vercel": "https://fitness-abc123.vercel.app", "github": "https://fitness.example.com"}
    assert now["web_url"] == (web.get(sender) if status == "successful" else None)


@pytest.mark.parametrize(
    ("sender", "told", "kind"),
    [
        ("eas", eas_build(status="dreaming"), "build.dreaming"),
        ("vercel", vercel_event("cleanup"), "deployment.cleanup"),
        ("vercel", vercel_event(type="project.created"), "project.created"),
        ("github", {"zen": "Keep it logically awesome.", "hook_id": 1, "hook": {}}, "ping"),
        ("github", {"action": "created", "deployment": {"id": 1}}, "deployment"),
        ("github", github_status("inactive"), "deployment_status.inactive"),
        ("github", {"ref": "refs/heads/main", "commits": []}, "other"),
    ],
)
def test_other_kinds_are_recorded_without_effect_and_without_what_they_say(
    system_db: Database, sender: str, told: dict[str, Any], kind: str
) -> None:
    integration = integrate(system_db, sender, new_account(system_db))
    assert post(sender, integration, told).body["status"] == "ignored"
    (row,) = inbox_rows(system_db, integration)
    assert (row["event_type"], row["body"]) == (kind, None)


@pytest.mark.parametrize("status", ["finished", "errored", "canceled"])
def test_a_submission_is_told_of_its_builds_deployment_and_leaves_its_state(
    system_db: Database, status: str
) -> None:
    deployed = deploy(system_db, BUILD)
    integration = integrate(system_db, "eas", deployed.organization_id)
    post("eas", integration, FINISHED)
    submission = eas_submission(status=status)
    assert post("eas", integration, submission).body["status"] == "processed"
    assert stored(system_db, deployed)["status"] == "successful"
    ours = {"finished": "successful", "errored": "failed", "canceled": "aborted"}[status]
    assert jobs(system_db, deployed)[submission["id"]] == ("submission", ours)
    assert steps(system_db, deployed)[-1] == ("reported", "successful")
    assert post("eas", integration, submission).body["status"] == "duplicate"


# ---- once, and never backwards ----


def test_an_event_comes_twice_and_a_later_change_of_it_is_another(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD)
    integration = integrate(system_db, "eas", deployed.organization_id)
    told = [post("eas", integration, FINISHED).body["status"] for _ in range(2)]
    assert told == ["processed", "duplicate"]
    later = eas_build(minutes=11)
    assert post("eas", integration, later).body["status"] == "stale"
    assert len(inbox_rows(system_db, integration)) == 2
    assert len(steps(system_db, deployed)) == 1


def test_an_end_is_never_left(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD)
    integration = integrate(system_db, "eas", deployed.organization_id)
    post("eas", integration, eas_build(status="errored"))
    for late in (eas_build(minutes=30), eas_build(status="in-progress", minutes=40)):
        assert post("eas", integration, late).body["status"] == "stale"
    assert stored(system_db, deployed)["status"] == "failed"


@pytest.mark.parametrize(
    ("sender", "told"),
    [("eas", FINISHED), ("vercel", vercel_event()), ("github", github_status())],
)
def test_the_same_event_of_two_integrations_is_two(
    system_db: Database, sender: str, told: dict[str, Any]
) -> None:
    for _ in range(2):
        integration = integrate(system_db, sender, new_account(system_db))
        answers = [post(sender, integration, told, delivery="d-1").body["status"] for _ in range(2)]
        assert answers == ["parked", "parked"]
        assert len(inbox_rows(system_db, integration)) == 1


# ---- before its deployment ----


@pytest.mark.parametrize(
    ("sender", "told", "external_id"),
    [
        ("eas", FINISHED, BUILD),
        ("vercel", vercel_event(), DEPLOYMENT),
        ("github", github_status(), str(GITHUB_DEPLOYMENT)),
    ],
)
def test_what_comes_too_early_waits_and_is_applied_when_its_deployment_has_its_name(
    system_db: Database, sender: str, told: dict[str, Any], external_id: str
) -> None:
    deployed = deploy(system_db, provider=sender)
    integration = integrate(system_db, sender, deployed.organization_id)
    assert post(sender, integration, told).body["status"] == "parked"
    (row,) = inbox_rows(system_db, integration)
    assert row["reason"] == f"no deployment has {external_id} as its external_id yet"
    assert row["organization_id"] == deployed.organization_id
    name(system_db, deployed, external_id)
    arrive(deployed, external_id)
    assert inbox_rows(system_db, integration)[0]["status"] == "processed"
    assert stored(system_db, deployed)["status"] == "successful"


def test_what_nobody_tells_to_be_there_is_found_by_the_worker(system_db: Database) -> None:
    deployed = deploy(system_db)
    integration = integrate(system_db, "eas", deployed.organization_id)
    post("eas", integration, FINISHED)
    name(system_db, deployed, BUILD)
    (waiting,) = inbox_rows(system_db, integration)
    due = waiting["id"]
    assert waiting["next_attempt_at"] is not None
    assert inbox_upkeep.retry(due, SENDERS) == "processed"
    assert inbox_upkeep.retry(due, SENDERS) == "duplicate"
    assert stored(system_db, deployed)["status"] == "successful"


def test_a_submission_waits_for_its_build_or_for_a_deployment_of_its_own(system_db: Database) -> None:
    deployed, own = deploy(system_db), deploy(system_db)
    integration = integrate(system_db, "eas", deployed.organization_id)
    submission = eas_submission()
    assert post("eas", integration, submission).body["status"] == "parked"
    name(system_db, deployed, BUILD)
    arrive(deployed, BUILD)
    assert jobs(system_db, deployed)[submission["id"]] == ("submission", "successful")
    integration = integrate(system_db, "eas", own.organization_id)
    name(system_db, own, "a-submission", "submission")
    answer = post("eas", integration, eas_submission("a-submission", build=None))
    assert answer.body["status"] == "processed"
    assert jobs(system_db, own)["a-submission"] == ("submission", "successful")


def test_what_nobody_claims_for_a_month_is_ignored(system_db: Database) -> None:
    integration = integrate(system_db, "eas", new_account(system_db))
    post("eas", integration, FINISHED)
    rows(
        system_db,
        "UPDATE platform.webhook_inbox SET received_at = now() - interval '31 days' WHERE event_id LIKE %s",
        f"{integration}:%",
    )
    assert post("eas", integration, FINISHED).body["status"] == "ignored"
    assert (
        inbox_rows(system_db, integration)[0]["reason"] == f"no deployment has had {BUILD} as its external_id"
    )


def test_what_waits_is_nobodys_once_its_integration_is_deleted(system_db: Database) -> None:
    deployed = deploy(system_db)
    integration = integrate(system_db, "eas", deployed.organization_id)
    post("eas", integration, FINISHED)
    rows(system_db, "DELETE FROM deploys.integrations WHERE id = %s", integration)
    name(system_db, deployed, BUILD)
    arrive(deployed, BUILD)
    assert inbox_rows(system_db, integration)[0]["status"] == "ignored"
    assert stored(system_db, deployed)["status"] == "in_progress"


# ---- whose ----


def test_another_organisations_deployment_is_never_met(system_db: Database) -> None:
    theirs = deploy(system_db, BUILD)
    ours = deploy(system_db)
    integration = integrate(system_db, "eas", ours.organization_id)
    for told in (FINISHED, eas_submission(), eas_build(status="errored")):
        assert post("eas", integration, told).body["status"] == "parked"
    assert stored(system_db, theirs)["status"] == "in_progress"
    name(system_db, ours, BUILD)
    arrive(ours, BUILD)
    assert stored(system_db, ours)["status"] in {"successful", "failed"}
    assert stored(system_db, theirs)["status"] == "in_progress"
    assert steps(system_db, theirs) == []


def test_a_projects_integration_speaks_of_that_project_only(system_db: Database) -> None:
    ours = deploy(system_db, BUILD)
    theirs = deploy(system_db, "their-build", organization_id=ours.organization_id)
    integration = integrate(system_db, "eas", ours.organization_id, ours.project_id)
    told = eas_build("their-build")
    assert post("eas", integration, told).body["status"] == "ignored"
    submission = eas_submission(build="their-build")
    assert post("eas", integration, submission).body["status"] == "ignored"
    assert stored(system_db, theirs)["status"] == "in_progress"
    assert submission["id"] not in jobs(system_db, theirs)
    assert post("eas", integration, FINISHED).body["status"] == "processed"


def test_a_deployment_at_one_provider_does_not_hear_another(system_db: Database) -> None:
    deployed = deploy(system_db, DEPLOYMENT, provider="vercel")
    integration = integrate(system_db, "eas", deployed.organization_id)
    assert post("eas", integration, eas_build(DEPLOYMENT)).body["status"] == "parked"
    assert stored(system_db, deployed)["status"] == "in_progress"


@pytest.mark.parametrize("sender", ["eas", "vercel", "github"])
def test_an_unknown_integration_is_404_whoever_signed(system_db: Database, sender: str) -> None:
    organization_id = new_account(system_db)
    other = {"eas": "vercel", "vercel": "github", "github": "eas"}[sender]
    disabled = integrate(system_db, sender, organization_id)
    rows(system_db, "UPDATE deploys.integrations SET state = 'disabled' WHERE id = %s", disabled)
    known = integrate(system_db, other, organization_id)
    for unknown in (uuid4(), known, disabled, "x", "", "a" * 36, f"{known}/", f"{known}x", "%00", "-" * 36):
        answer = post(sender, unknown, {})
        assert (answer.status, answer.body["code"]) == (404, "not_found"), unknown


# ---- signed by whom ----


@pytest.mark.parametrize("sender", ["eas", "vercel", "github"])
def test_a_secret_that_was_rotated_out_is_honoured_until_its_end(system_db: Database, sender: str) -> None:
    organization_id = new_account(system_db)
    told = {"eas": FINISHED, "vercel": vercel_event(), "github": github_status()}[sender]
    integration = integrate(system_db, sender, organization_id)
    assert post(sender, integration, told).status == 200
    rotate(
        system_db, integration, organization_id, (OTHER_SECRET, None), (SECRET, "2999-01-01T00:00:00+00:00")
    )
    build_webhook._known.clear()
    for secret in (SECRET, OTHER_SECRET):
        assert post(sender, integration, told, secret=secret).status == 200
    rotate(
        system_db, integration, organization_id, (OTHER_SECRET, None), (SECRET, "2026-01-01T00:00:00+00:00")
    )
    build_webhook._known.clear()
    refused = post(sender, integration, told)
    assert (refused.status, refused.body["code"]) == (400, "invalid_signature")
    assert post(sender, integration, told, secret=OTHER_SECRET).status == 200


def test_a_new_secret_is_known_though_the_old_one_is_remembered(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization_id = new_account(system_db)
    integration = integrate(system_db, "eas", organization_id)
    assert post("eas", integration, FINISHED).status == 200
    rotate(system_db, integration, organization_id, (OTHER_SECRET, None))
    assert (
        post("eas", integration, FINISHED, secret=OTHER_SECRET).status == 400
    )  # a moment ago it was looked up
    monkeypatch.setattr(build_webhook, "MIN_REFRESH", 0.0)
    assert post("eas", integration, FINISHED, secret=OTHER_SECRET).status == 200


def test_a_deleted_integration_is_unknown_soon(system_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    integration = integrate(system_db, "eas", new_account(system_db))
    assert post("eas", integration, FINISHED).status == 200
    rows(system_db, "DELETE FROM deploys.integrations WHERE id = %s", integration)
    monkeypatch.setattr(build_webhook, "MAX_AGE", 0.0)
    assert post("eas", integration, FINISHED).status == 404


def test_another_ones_secret_and_another_senders_scheme_are_refused(system_db: Database) -> None:
    organization_id = new_account(system_db)
    body = json.dumps(FINISHED).encode()
    for sender in ("eas", "vercel", "github"):
        integration = integrate(system_db, sender, organization_id)
        forged = signed(sender, body, OTHER_SECRET)
        other_body = signed(sender, body + b" ")
        for headers in (
            forged,
            other_body,
            {},
            {name: value.upper() for name, value in signed(sender, body).items()},
        ):
            answer = post(sender, integration, body, headers=headers)
            assert (answer.status, answer.body["code"]) == (400, "invalid_signature"), headers
        assert inbox_rows(system_db, integration) == []


# ---- poison ----


@pytest.mark.parametrize(
    ("sender", "told"),
    [
        ("eas", eas_build(metadata=[])),
        ("eas", eas_build(artifacts="https://expo.dev/a.aab")),
        ("eas", eas_build(artifacts={"buildUrl": "javascript:alert(1)"})),
        ("eas", eas_build(artifacts={"buildUrl": "https://expo.dev/" + "a" * 5000})),
        ("eas", eas_build(buildDetailsPageUrl={"a": 1})),
        ("eas", eas_build(metadata={"appVersion": {"major": 1}})),
        ("eas", eas_build(metadata={"appVersion": "1\u0000"})),
        ("eas", eas_build(error={"message": "\ud800"})),
        ("eas", eas_build("a build")),
        ("eas", eas_build("b" * 200)),
        ("eas", eas_build(updatedAt="yesterday")),
        ("eas", eas_build(updatedAt=[1])),
        ("eas", eas_build(updatedAt="0001-01-01T00:00:00+14:00")),
        ("eas", eas_build(expirationDate="9999-12-31T23:59:59-14:00")),
        ("eas", eas_submission(submissionInfo={"error": "no"})),
        ("vercel", vercel_event(payload=None)),
        ("vercel", vercel_event(payload=[])),
        ("vercel", vercel_event(deployment=7)),
        ("vercel", vercel_event(createdAt="now")),
        ("vercel", vercel_event(createdAt=10**30)),
        ("vercel", vercel_event(createdAt=True)),
        ("vercel", vercel_event(payload={"deployment": {"id": "dpl_1", "url": "evil.com/<script>"}})),
        ("github", github_status(deployment="x")),
        ("github", github_status(deployment=2**70)),
        ("github", github_status(deployment=True)),
        ("github", github_status() | {"deployment": None}),
        ("github", {"deployment_status": {"state": "success"}}),
    ],
)
def test_what_can_never_be_applied_is_put_aside(
    system_db: Database, sender: str, told: dict[str, Any]
) -> None:
    integration = integrate(system_db, sender, new_account(system_db))
    for answered in ("quarantined", "duplicate"):
        answer = post(sender, integration, told, delivery="d-1")
        assert (answer.status, answer.body["status"]) == (200, answered)
    (row,) = inbox_rows(system_db, integration)
    assert row["reason"]
    assert inbox_upkeep.retry(row["id"], SENDERS, anew=True) == "quarantined"


@pytest.mark.parametrize(
    ("sender", "told"),
    [
        ("eas", {}),
        ("eas", {"id": BUILD}),
        ("eas", {"status": "finished"}),
        ("eas", eas_build(id=7)),
        ("eas", eas_build(status="")),
        ("eas", eas_build(status="s" * 300)),
        ("vercel", vercel_event(id=None)),
        ("vercel", vercel_event(type=["deployment.created"])),
        ("github", {"deployment_status": []}),
        ("github", {"deployment_status": {"state": 5}}),
        ("github", []),
        ("eas", b"\xff"),
        ("vercel", b"payload=%7B%7D"),
    ],
)
def test_what_has_no_envelope_is_refused(system_db: Database, sender: str, told: Any) -> None:
    integration = integrate(system_db, sender, new_account(system_db))
    answer = post(sender, integration, told, base64_encoded=True)
    assert (answer.status, answer.body["code"]) == (400, "invalid_payload")
    assert inbox_rows(system_db, integration) == []


@pytest.mark.parametrize("delivery", [None, "", "a" * 65, "a b", "é", "a\x00"])
def test_a_delivery_of_githubs_has_an_id(system_db: Database, delivery: str | None) -> None:
    integration = integrate(system_db, "github", new_account(system_db))
    body = json.dumps(github_status()).encode()
    headers = signed("github", body) | {"x-github-delivery": delivery or ""}
    if delivery is None:
        del headers["x-github-delivery"]
    answer = post("github", integration, body, headers=headers)
    assert (answer.status, answer.body["code"]) == (400, "invalid_payload")


def test_long_texts_are_cut_and_long_names_fit_the_inbox(system_db: Database) -> None:
    deployed = deploy(system_db, BUILD)
    integration = integrate(system_db, "eas", deployed.organization_id)
    told = eas_build(
        status="errored",
        metadata={"appVersion": "1" * 5000, "appBuildVersion": 7},
        error={"message": "x" * 50_000},
        updatedAt="2026-03-01T12:10:00." + "0" * 6 + "+00:00",
    )
    assert post("eas", integration, told).body["status"] == "processed"
    now = stored(system_db, deployed)
    assert (len(now["app_version"]), now["build_number"], len(now["error_log"])) == (255, "7", 10_000)
    answer = post("eas", integration, eas_build("Ж" * 255, status="s" * 255))
    assert answer.body["status"] == "ignored"
    assert UUID(answer.body["event_id"].partition(":")[0]) == integration


def test_what_waited_goes_with_the_person_whose_organisation_it_was(system_db: Database) -> None:
    """Its body may name his account at the provider."""
    deployed = deploy(system_db)
    integration = integrate(system_db, "eas", deployed.organization_id)
    post("eas", integration, FINISHED)
    (waiting,) = inbox_rows(system_db, integration)
    rows(system_db, "DELETE FROM deploys.integrations WHERE id = %s", integration)
    rows(
        system_db,
        """
        WITH person AS (INSERT INTO identity.users (clerk_id) VALUES (%s) RETURNING id)
        UPDATE tenancy.organizations
        SET personal_user_id = (SELECT id FROM person), deleted_at = now()
        WHERE id = %s
        """,
        f"user_{integration.hex}",
        deployed.organization_id,
    )
    assert inbox_upkeep.retry(waiting["id"], SENDERS) == "ignored"
    (row,) = inbox_rows(system_db, integration)
    assert row["body"] is None


def test_the_function_starts_without_what_it_needs_later() -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
import build_webhook
late = {{"boto3", "botocore.session", "aws_encryption_sdk", "backplane.api", "stripe"}}
raise SystemExit(bool(late & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---- looked after ----


def test_admins_replay_them_safely_and_health_counts_them(
    system_db: Database, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust_our_tokens(monkeypatch)
    root = sign_up(ROOT).token
    before = invoke(health.handler, http_event("GET", "/health")).body["checks"]["inbox"]["parked"]
    deployed = deploy(system_db)
    integration = integrate(system_db, "eas", deployed.organization_id)
    post("eas", integration, FINISHED)
    after = invoke(health.handler, http_event("GET", "/health")).body["checks"]["inbox"]["parked"]
    assert after == before + 1
    # For hours, too, nobody is called: the build may be one that never had a deployment here.
    rows(system_db, "UPDATE platform.webhook_inbox SET received_at = received_at - interval '2 hours'")
    assert db.run(inbox_upkeep.census).parked_long == 0
    (waiting,) = inbox_rows(system_db, integration)
    path = f"/v1/admin/webhooks/{waiting['id']}"
    shown = send("GET", path, root).body
    assert (shown["provider"], shown["status"], shown["body"]["id"]) == ("eas", "parked", BUILD)
    assert send("POST", f"{path}/replay", root).body["status"] == "parked"
    name(system_db, deployed, BUILD)
    assert send("POST", f"{path}/replay", root).body["status"] == "processed"
    assert send("POST", f"{path}/replay", root).body["status"] == "duplicate"
    assert stored(system_db, deployed)["status"] == "successful"
    assert len(steps(system_db, deployed)) == 1
