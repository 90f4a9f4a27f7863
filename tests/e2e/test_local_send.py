"""`make send` and `make invoke`, against the running stack."""

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.e2e.local_cloud import PATIENCE, ROOT, Cloud, until

STRIPE, CLERK = "events/stripe_webhook.json", "events/clerk_webhook.json"


def send(stack: Cloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    return stack.run("local.send", *arguments)


def status(sent: subprocess.CompletedProcess[str]) -> str:
    assert sent.returncode == 0, sent.stdout + sent.stderr
    told: str = json.loads(sent.stdout.partition("\n")[2])["status"]
    return told


def payload(stack: Cloud, event_id: str) -> Any:
    """What the inbox has of an event."""
    with psycopg.connect(stack.written["admin_database_url"]) as connection:
        row = connection.execute(
            "SELECT body FROM platform.webhook_inbox WHERE event_id = %s", [event_id]
        ).fetchone()
    assert row is not None
    return json.loads(row[0])


def test_the_samples_tell_a_subscriptions_life(stack: Cloud) -> None:
    life = [
        CLERK,
        "events/stripe/checkout_subscription.json",
        "events/stripe/subscription_created.json",
        "events/stripe/invoice_paid.json",
        "events/stripe/subscription_updated_2024.json",
        "events/stripe/invoice_paid_2024.json",
        "events/stripe/subscription_updated.json",
        "events/stripe/subscription_deleted.json",
        "events/clerk/user_updated.json",
    ]
    answers = {file: status(send(stack, file)) for file in life}

    assert set(answers.values()) <= {"processed", "stale"}, answers
    assert answers["events/stripe/subscription_deleted.json"] == "processed"


def test_a_users_end_is_a_sample_too(stack: Cloud) -> None:
    user = f"user_{uuid.uuid4().hex}"
    mail = f'data.email_addresses[0].email_address="{user}@example.com"'

    assert status(send(stack, CLERK, "--set", f"data.id={user},{mail}")) == "processed"
    assert status(send(stack, "events/clerk/user_deleted.json", "--set", f"data.id={user}")) == "processed"


def test_the_samples_tell_of_money_that_goes_back(stack: Cloud) -> None:
    order = [
        CLERK,
        STRIPE,
        "events/stripe/charge_refunded.json",
        "events/stripe/refund_failed.json",
        "events/stripe/dispute_funds_withdrawn.json",
        "events/stripe/dispute_won.json",
    ]
    answers = {file: status(send(stack, file)) for file in order}

    assert set(answers.values()) == {"processed"}, answers


def test_the_samples_tell_of_an_organisation_and_of_a_plan_paid_through_clerk(stack: Cloud) -> None:
    order = [
        CLERK,
        "events/clerk/organization_created.json",
        "events/clerk/organization_membership_created.json",
        "events/clerk/subscription_item_active.json",
    ]
    answers = {file: status(send(stack, file)) for file in order}

    assert set(answers.values()) == {"processed"}, answers


def test_the_samples_tell_of_builds_whose_deployment_begins_later(stack: Cloud) -> None:
    """Each after user_created, subscription_item_active and its sender's integration: expo_integration,
    vercel_integration, github_integration.
    """
    build = f"build-{uuid.uuid4().hex}"
    identity = ("--id", build.removeprefix("build-"))
    early = [
        status(send(stack, "events/build_webhook.json", *identity)),
        status(send(stack, "events/callbacks/eas_submission.json", *identity)),
        status(send(stack, "events/callbacks/vercel_succeeded.json")),
        status(send(stack, "events/callbacks/github_success.json")),
    ]
    assert early == ["parked"] * 4
    forged = send(stack, "events/build_webhook.json", "--forge")
    assert forged.returncode == 0, forged.stdout
    headers = {
        "authorization": f"Bearer {stack.token('user_builder')}",
        "content-type": "application/json",
    }
    made = stack.request("POST", "/v1/projects", b'{"title": "Fitness"}', headers)
    body = json.dumps({"type": "eas-build", "platform": "android", "external_id": build}).encode()
    begun = stack.request("POST", f"/v1/projects/{made.json()['id']}/deployments", body, headers)
    assert begun.status == 201, begun.body
    path = f"/v1/deployments/{begun.json()['id']}"

    def applied() -> bool:
        told = stack.request("GET", path, headers=headers).json()
        return told["status"] == "successful" and len(told["builds"]) == 2  # and the submission

    until(applied, "both callbacks are applied")


def test_every_sample_is_in_one_of_these_tests() -> None:
    text = Path(__file__).read_text()

    assert [file.name for file in (ROOT / "events").glob("*/*.json") if file.stem not in text] == []


def test_fields_are_overridden(stack: Cloud) -> None:
    name = uuid.uuid4().hex
    sets = (
        "--set",
        "data.object.amount_total=77,+data.object.metadata.note=by hand",
        "--set",
        "created=12345",
    )
    sent = send(stack, STRIPE, "--id", name, *sets)
    stored = payload(stack, f"evt_{name}")

    assert sent.returncode == 0, sent.stdout
    assert stored["data"]["object"]["amount_total"] == 77
    assert stored["data"]["object"]["metadata"] == {"pack_id": "pack_500", "note": "by hand"}
    assert stored["created"] == 12345


def test_make_hands_json_over_unchanged(stack: Cloud) -> None:
    name = uuid.uuid4().hex
    sent = subprocess.run(
        [
            "make",
            "-s",
            "send",
            f"E={STRIPE}",
            f"ID={name}",
            'SET=+data.object.note={"a": "it\'s, \\"b\\""},created=1',
        ],
        cwd=ROOT,
        env=stack.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert sent.returncode == 0, sent.stderr
    assert payload(stack, f"evt_{name}")["data"]["object"]["note"] == {"a": 'it\'s, "b"'}


def test_a_path_that_does_not_exist_is_refused_and_nothing_sent(stack: Cloud) -> None:
    refused = send(stack, STRIPE, "--set", "data.object.amount=5")

    assert refused.returncode == 1
    assert "there is no data.object.amount: data.object has id, object, amount_total" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_duplicates_at_once_are_counted_and_take_effect_once(stack: Cloud) -> None:
    assert send(stack, CLERK).returncode == 0  # the buyer, whoever of these tests runs first
    sent = send(stack, STRIPE, "--times", "10", "--set", f"data.object.id=cs_{uuid.uuid4().hex}")

    assert sent.returncode == 0
    first = sent.stdout.splitlines()[0]
    assert "10 at once: 9 answered 200 duplicate, 1 answered 200 processed" in first


@pytest.mark.parametrize("number", ["0", "1001", "many"])
def test_a_number_that_is_none_is_refused(stack: Cloud, number: str) -> None:
    refused = send(stack, STRIPE, "--times", number)

    assert refused.returncode == 1
    assert "N is a number from 1 to 1000" in refused.stderr


@pytest.mark.parametrize(
    ("file", "answer"), [(STRIPE, "400"), (CLERK, "400"), ("events/credits.json", "401")]
)
def test_a_forged_event_is_refused_and_leaves_nothing(stack: Cloud, file: str, answer: str) -> None:
    name = uuid.uuid4().hex
    sent = send(stack, file, "--forge", "--id", name)

    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert f"→ {answer}" in sent.stdout
    assert f"Refused, as a forged signature must be ({answer})" in sent.stdout
    with psycopg.connect(stack.written["admin_database_url"]) as connection:
        found = connection.execute(
            "SELECT count(*) FROM platform.webhook_inbox WHERE event_id LIKE %s", [f"%{name}"]
        ).fetchone()
    assert found == (0,)


def test_what_nobody_signs_can_not_be_forged(stack: Cloud) -> None:
    refused = send(stack, "events/health.json", "--forge")

    assert refused.returncode == 1
    assert "there is no signature to forge" in refused.stderr


def test_invoke_prints_the_answer_and_apart_from_it_the_calls_log(stack: Cloud) -> None:
    done = stack.run("local.invoke", "health")

    assert json.loads(done.stdout)["status"] == "healthy"
    assert "Duration:" in done.stderr
    assert "Max Memory Used:" in done.stderr
    assert "START RequestId" not in done.stderr


def test_an_invocation_that_fails_exits_so_and_shows_its_traceback(stack: Cloud, tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"invoke": {"action": "no such action"}}))
    done = stack.run("local.invoke", "migrate", str(event))

    assert done.returncode == 1
    assert "errorMessage" in json.loads(done.stdout)
    assert 'migrate.py", line ' in done.stderr
    assert "stackTrace" not in done.stderr
