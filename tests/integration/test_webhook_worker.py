"""The webhook worker: what failed or waits is tried again, rests longer each time, and is given up late."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import webhook_worker
from psycopg.rows import DictRow
from samtranslator.yaml_helper import yaml_parse
from tests.databases import Database
from tests.senders import checkout_session, clerk_user, invoke, post_clerk, post_stripe, stripe_event

from backplane import identity, inbox, inbox_upkeep, stripe_effects, stripe_events
from backplane.inbox import Event, Outcome
from backplane.senders import SENDERS

TEMPLATE = Path(__file__).parents[2] / "template.yaml"

pytestmark = pytest.mark.usefixtures("webhook_secrets")


def run(event: dict[str, Any] | None = None) -> Any:
    return invoke(webhook_worker.handler, event or {})


def arrival(detail_type: str, data: dict[str, Any], message_id: str = "m1") -> dict[str, Any]:
    """A message of the queue, as SQS hands on what EventBridge put there."""
    body = {"source": "backplane", "detail-type": detail_type, "detail": {"type": detail_type, "data": data}}
    return {"messageId": message_id, "body": json.dumps(body)}


def pay(event_id: str, **fields: Any) -> Any:
    session = checkout_session(mode="payment", metadata={"pack_id": "pack_500"}, **fields)
    return post_stripe(stripe_event("checkout.session.completed", session, event_id=event_id))


def row(database: Database, event_id: str) -> DictRow:
    with database.connect() as connection:
        found = connection.execute(
            """
            SELECT *, next_attempt_at - clock_timestamp() AS rest
            FROM platform.webhook_inbox
            WHERE event_id = %s
            """,
            [event_id],
        ).fetchone()
    assert found is not None
    return found


def wake(database: Database) -> None:
    """Lets the rest of every row be over."""
    with database.connect() as connection:
        connection.execute(
            """
            UPDATE platform.webhook_inbox
            SET next_attempt_at = clock_timestamp() - interval '1 second'
            WHERE next_attempt_at IS NOT NULL
            """
        )


def break_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_tx: Any, _event: Event) -> Outcome:
        raise LookupError("a passing cause")

    effects = dict(stripe_effects.EFFECTS) | {"checkout.session.completed": broken}
    monkeypatch.setitem(SENDERS, "stripe", inbox.Sender(stripe_events.parse, effects))


def test_nothing_due_is_nothing_done(system_db: Database) -> None:
    assert run() == {"ok": True}


def test_a_failed_event_is_applied_once_its_cause_has_passed(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_clerk(clerk_user("user_1"))
    with monkeypatch.context() as broken:
        break_checkouts(broken)
        assert pay("evt_1", client_reference_id="user_1").status == 500
    assert run() == {"ok": True}, "it rests first"
    wake(system_db)
    assert run() == {"ok": True, "processed": 1}
    settled = row(system_db, "evt_1")
    assert (settled["status"], settled["error"], settled["attempts"]) == ("processed", None, 2)
    with system_db.connect() as connection:
        assert connection.execute("SELECT available FROM credits.accounts").fetchall() == [{"available": 600}]
    assert run() == {"ok": True}


def test_each_failure_lets_it_rest_longer_until_it_is_given_up(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_clerk(clerk_user("user_1"))
    break_checkouts(monkeypatch)
    pay("evt_1", client_reference_id="user_1")
    for attempt in range(1, inbox.MAX_ATTEMPTS):
        failed = row(system_db, "evt_1")
        assert (failed["status"], failed["attempts"]) == ("failed", attempt)
        longest = min(timedelta(minutes=2 ** (attempt - 1)), timedelta(hours=6))
        assert longest / 2 - timedelta(seconds=30) <= failed["rest"] <= longest
        wake(system_db)
        assert run() == {"ok": False, "failed": 1}
    given_up = row(system_db, "evt_1")
    assert (given_up["status"], given_up["next_attempt_at"]) == ("dead", None)
    assert "a passing cause" in given_up["error"]
    assert run() == {"ok": True}


def test_the_sender_may_still_bring_a_given_up_event_back(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_clerk(clerk_user("user_1"))
    session = checkout_session(mode="payment", metadata={"pack_id": "pack_500"}, client_reference_id="user_1")
    event = stripe_event("checkout.session.completed", session, event_id="evt_1")
    with monkeypatch.context() as broken:
        break_checkouts(broken)
        for _ in range(inbox.MAX_ATTEMPTS):
            assert post_stripe(event).status == 500
    assert row(system_db, "evt_1")["status"] == "dead"
    assert post_stripe(event).body["status"] == "processed"


def test_a_parked_event_goes_on_waiting_at_longer_intervals(system_db: Database) -> None:
    assert pay("evt_1", client_reference_id="user_late").body["status"] == "parked"
    for attempt in (2, 3, 4):
        wake(system_db)
        assert run() == {"ok": True, "parked": 1}
        waiting = row(system_db, "evt_1")
        assert (waiting["status"], waiting["attempts"]) == ("parked", attempt)
        assert waiting["rest"] > timedelta(minutes=2 ** (attempt - 2)) - timedelta(seconds=30)


def test_what_waits_for_a_user_whom_a_token_made_is_replayed_on_his_arrival(system_db: Database) -> None:
    assert pay("evt_1", client_reference_id="user_1").body["status"] == "parked"
    made = identity.provision_from_token(
        "user_1", email=None, name=None, clerk_org_id=None, org_slug=None, org_role=None, issued_at=None
    )
    told = arrival("user.created", {"user_id": str(made.user_id)})
    assert run({"Records": [told, told]}) == {"batchItemFailures": []}
    assert row(system_db, "evt_1")["status"] == "processed"
    with system_db.connect() as connection:
        assert connection.execute("SELECT available FROM credits.accounts").fetchall() == [{"available": 600}]


def test_what_waits_for_an_organisation_is_replayed_on_its_arrival(system_db: Database) -> None:
    assert pay("evt_1", client_reference_id="org_1").body["status"] == "parked"
    made = identity.provision_from_token(
        "user_1",
        email=None,
        name=None,
        clerk_org_id="org_1",
        org_slug="one",
        org_role="admin",
        issued_at=None,
    )
    told = arrival("organization.created", {"organization_id": str(made.organization_id)})
    assert run({"Records": [told]}) == {"batchItemFailures": []}
    assert row(system_db, "evt_1")["status"] == "processed"


def test_a_message_that_is_not_ours_fails_alone(system_db: Database) -> None:
    pay("evt_1", client_reference_id="user_1")
    made = identity.provision_from_token(
        "user_1", email=None, name=None, clerk_org_id=None, org_slug=None, org_role=None, issued_at=None
    )
    records = [
        {"messageId": "torn", "body": "{"},
        arrival("credits.granted", {}, "other"),
        arrival("user.created", {"user_id": "nobody"}, "odd"),
        arrival("user.created", {"user_id": str(made.user_id)}, "good"),
    ]
    failures = run({"Records": records})["batchItemFailures"]
    assert [failure["itemIdentifier"] for failure in failures] == ["torn", "other", "odd"]
    assert row(system_db, "evt_1")["status"] == "processed"


def test_two_workers_apply_an_event_once(system_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    post_clerk(clerk_user("user_1"))
    with monkeypatch.context() as broken:
        break_checkouts(broken)
        pay("evt_1", client_reference_id="user_1")
    wake(system_db)
    (due,) = inbox_upkeep.due(10)
    assert inbox_upkeep.retry(due, SENDERS) == "processed"
    assert inbox_upkeep.retry(due, SENDERS) == "duplicate"


def test_what_needs_a_person_is_counted_for_the_alarms(
    system_db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def counted() -> dict[str, list[float]]:
        run()
        line = next(line for line in capsys.readouterr().out.splitlines() if "WebhooksDead" in line)
        told = json.loads(line)
        (schema,) = told["_aws"]["CloudWatchMetrics"]
        assert schema["Namespace"] == "Backplane"
        assert {frozenset(dimensions) for dimensions in schema["Dimensions"]} == {
            frozenset(("service", "stage"))
        }
        return {metric["Name"]: told[metric["Name"]] for metric in schema["Metrics"]}

    def age(interval: str) -> None:
        with system_db.connect() as connection:
            connection.execute(
                f"""
                UPDATE platform.webhook_inbox
                SET received_at = received_at - interval '{interval}',
                    processed_at = processed_at - interval '{interval}'
                """.encode()
            )

    assert counted() == {"WebhooksDead": [0.0], "WebhooksQuarantined": [0.0], "WebhooksParkedLong": [0.0]}
    pay("evt_parked", client_reference_id="user_late")
    pay("evt_poison", client_reference_id="nobody's id")
    with monkeypatch.context() as broken:
        break_checkouts(broken)
        for _ in range(inbox.MAX_ATTEMPTS):
            pay("evt_dead", client_reference_id="user_late")
    assert counted() == {"WebhooksDead": [1.0], "WebhooksQuarantined": [1.0], "WebhooksParkedLong": [0.0]}
    age("61 minutes")
    assert counted() == {"WebhooksDead": [1.0], "WebhooksQuarantined": [1.0], "WebhooksParkedLong": [1.0]}
    age("1 day")
    assert counted() == {"WebhooksDead": [0.0], "WebhooksQuarantined": [0.0], "WebhooksParkedLong": [0.0]}
    assert row(system_db, "evt_parked")["status"] == "parked"  # reported, and not lost


@pytest.mark.parametrize("name", ["WebhooksDead", "WebhooksQuarantined", "WebhooksParkedLong"])
def test_the_template_watches_each_count(name: str) -> None:
    alarm = yaml_parse(TEMPLATE.read_text())["Resources"][f"{name}Alarm"]["Properties"]
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Threshold"]) == ("Backplane", name, 0)
    dimensions = {item["Name"]: item["Value"] for item in alarm["Dimensions"]}
    assert dimensions == {"service": "backplane", "stage": {"Ref": "Stage"}}


def test_an_index_serves_the_look_for_due_rows(system_db: Database) -> None:
    with psycopg.connect(system_db.owner) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            """
            EXPLAIN SELECT id FROM platform.webhook_inbox
            WHERE status IN ('parked', 'failed') AND next_attempt_at <= clock_timestamp()
            ORDER BY next_attempt_at LIMIT 100
            """
        ).fetchall()
    assert "webhook_inbox_due" in str(plan)
