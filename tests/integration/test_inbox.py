"""The inbox: each event once, whatever its order, its repetitions, its failures and its company."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow
from tests.databases import Database
from tests.deliveries import processes
from tests.senders import (
    checkout_session,
    clerk_user,
    invoice,
    post_clerk,
    post_stripe,
    stripe_event,
    subscription,
)

from backplane import config, db, inbox, ledger
from backplane.inbox import Event, Outcome, Park, Quarantine, Sender
from backplane.problems import InvalidPayload

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


# ---- the inbox itself, with effects made for the test ----


def event(event_id: str = "evt_1", kind: str = "thing.happened", **fields: Any) -> Event:
    return Event(
        provider="stripe", id=event_id, type=kind, occurred_at=fields.pop("occurred_at", NOON),
        data=fields, body=json.dumps({"type": kind} | fields).encode(),
    )  # fmt: skip


def senders(**effects: inbox.Effect) -> dict[inbox.Provider, Sender]:
    """A sender whose `thing.happened` has the effect `happened`."""

    def parse(event_id: str, body: bytes) -> Event:
        data = json.loads(body)
        return event(event_id, data.pop("type"), **data)

    return {"stripe": Sender(parse, {f"thing.{name}": effect for name, effect in effects.items()})}


def write(tx: db.Tx, note: str) -> None:
    """Something an effect does, to be seen or to be gone."""
    tx.execute(
        "INSERT INTO platform.audit_log (actor, action, target) VALUES ('system', 'thing.noted', %s)", [note]
    )


def notes(database: Database) -> list[str]:
    with database.connect() as connection:
        rows = connection.execute("SELECT target FROM platform.audit_log ORDER BY created_at").fetchall()
    return [row["target"] for row in rows]


def noted(note: str, outcome: Outcome | Exception | None = None) -> inbox.Effect:
    def effect(tx: db.Tx, _event: Event) -> Outcome:
        write(tx, note)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or Outcome()

    return effect


def row(database: Database, event_id: str = "evt_1") -> DictRow:
    found = rows(database)[event_id]
    assert found is not None
    return found


def rows(database: Database) -> dict[str, DictRow]:
    with database.connect() as connection:
        found = connection.execute("SELECT * FROM platform.webhook_inbox ORDER BY received_at").fetchall()
    return {row["event_id"]: row for row in found}


def test_an_event_is_applied_once_and_its_bytes_are_kept(system_db: Database) -> None:
    table = senders(happened=noted("once"))
    assert [inbox.receive(event(size=1), table) for _ in range(3)] == ["processed", "duplicate", "duplicate"]
    assert notes(system_db) == ["once"]
    kept = row(system_db)
    assert (kept["status"], bytes(kept["body"])) == ("processed", event(size=1).body)
    assert (kept["event_type"], kept["occurred_at"]) == ("thing.happened", NOON)
    assert kept["processed_at"] is not None


@pytest.mark.parametrize(
    ("effect", "status", "reason", "kept"),
    [
        (noted("done", Outcome("processed", "why not")), "processed", "why not", ["done"]),
        (noted("done", Outcome("stale", "older")), "stale", "older", ["done"]),
        (noted("done", Outcome("ignored", "not ours")), "ignored", "not ours", ["done"]),
        (noted("done", Quarantine("impossible")), "quarantined", "impossible", []),
        (noted("done", Park("thing:1", "no thing yet")), "parked", "no thing yet", []),
    ],
)
def test_what_became_of_an_event_stands_in_its_row(
    system_db: Database, effect: inbox.Effect, status: str, reason: str, kept: list[str]
) -> None:
    assert inbox.receive(event(), senders(happened=effect)) == status
    assert notes(system_db) == kept  # what is not applied leaves nothing half done
    stored = row(system_db)
    assert (stored["status"], stored["reason"], stored["error"]) == (status, reason, None)
    assert stored["waiting_for"] == ("thing:1" if status == "parked" else None)
    assert (stored["next_attempt_at"] is None) == (status != "parked")


def test_an_event_of_a_kind_without_effect_is_recorded_and_ignored(system_db: Database) -> None:
    assert inbox.receive(event(kind="thing.else"), senders()) == "ignored"
    assert row(system_db)["status"] == "ignored"


def test_an_event_with_a_defect_is_quarantined_before_any_effect(system_db: Database) -> None:
    broken = replace(event(), defect="torn")
    assert inbox.receive(broken, senders(happened=noted("never"))) == "quarantined"
    assert (notes(system_db), row(system_db)["reason"]) == ([], "torn")
    assert inbox.receive(broken, senders(happened=noted("never"))) == "duplicate"


# ---- parked ----


def waits(subject: str, *, arrived: tuple[str, ...] = ()) -> inbox.Effect:
    """Parks until the subject was noted."""

    def effect(tx: db.Tx, event: Event) -> Outcome:
        inbox.lock(tx, subject)
        if not tx.execute("SELECT 1 FROM platform.audit_log WHERE target = %s", [subject]).fetchone():
            raise Park(subject, f"{subject} is missing")
        write(tx, event.id)
        return Outcome(arrived=arrived)

    return effect


def arrives(subject: str) -> inbox.Effect:
    def effect(tx: db.Tx, _event: Event) -> Outcome:
        inbox.lock(tx, subject)
        write(tx, subject)
        return Outcome(arrived=(subject,))

    return effect


def test_what_is_parked_is_replayed_in_order_when_its_subject_arrives(system_db: Database) -> None:
    table = senders(waited=waits("thing"), other=waits("other"), arrived=arrives("thing"))
    for event_id, minutes in (("evt_late", 2), ("evt_early", 1)):
        late = event(event_id, "thing.waited", occurred_at=NOON + timedelta(minutes=minutes))
        assert inbox.receive(late, table) == "parked"
    assert inbox.receive(event("evt_other", "thing.other"), table) == "parked"
    assert inbox.receive(event("evt_subject", "thing.arrived"), table) == "processed"
    assert notes(system_db) == ["thing", "evt_early", "evt_late"]
    statuses = {event_id: (r["status"], r["waiting_for"]) for event_id, r in rows(system_db).items()}
    assert statuses == {
        "evt_late": ("processed", None),
        "evt_early": ("processed", None),
        "evt_other": ("parked", "other"),
        "evt_subject": ("processed", None),
    }


def test_one_arrival_may_be_what_the_next_waits_for(system_db: Database) -> None:
    def linked(tx: db.Tx, event: Event) -> Outcome:
        waits("user")(tx, event)
        return arrives("customer")(tx, event)

    table = senders(paid=waits("customer"), linked=linked, joined=arrives("user"))
    assert inbox.receive(event("evt_paid", "thing.paid"), table) == "parked"
    assert inbox.receive(event("evt_linked", "thing.linked"), table) == "parked"
    assert inbox.receive(event("evt_joined", "thing.joined"), table) == "processed"
    assert notes(system_db) == ["user", "evt_linked", "customer", "evt_paid"]
    assert {r["status"] for r in rows(system_db).values()} == {"processed"}


def test_a_parked_event_sent_again_is_tried_again(system_db: Database) -> None:
    table = senders(waited=waits("thing"))
    assert [inbox.receive(event(kind="thing.waited"), table) for _ in range(2)] == ["parked", "parked"]
    with system_db.connect() as connection:
        write(connection, "thing")
    assert inbox.receive(event(kind="thing.waited"), table) == "processed"
    assert inbox.receive(event(kind="thing.waited"), table) == "duplicate"


def test_a_replay_that_fails_does_not_undo_the_arrival(system_db: Database) -> None:
    broken = [True]

    def fails_once_replayed(tx: db.Tx, event: Event) -> Outcome:
        outcome = waits("thing")(tx, event)
        if broken:
            raise LookupError("a passing cause")
        return outcome

    table = senders(fragile=fails_once_replayed, waited=waits("thing"), arrived=arrives("thing"))
    assert inbox.receive(event("evt_fragile", "thing.fragile"), table) == "parked"
    assert inbox.receive(event("evt_waited", "thing.waited"), table) == "parked"
    assert inbox.receive(event("evt_subject", "thing.arrived"), table) == "processed"
    assert notes(system_db) == ["thing", "evt_waited"]
    assert row(system_db, "evt_fragile")["status"] == "parked"
    assert row(system_db, "evt_fragile")["next_attempt_at"] is not None
    broken.clear()
    assert inbox.receive(event("evt_fragile", "thing.fragile"), table) == "processed"


def test_the_subject_an_event_is_parked_for_cannot_arrive_before_the_event_is_stored(
    system_db: Database,
) -> None:
    """Else it would arrive unseen by the event, find nothing parked, and leave it waiting."""
    with db.transaction() as tx, system_db.connect() as other:
        waiting = senders(waited=waits("thing"))
        assert inbox._apply(tx, event(kind="thing.waited"), waiting, unfetched=[]) == "parked"
        free = other.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended('thing', 0)) AS free"
        ).fetchone()
    assert free == {"free": False}


def test_an_event_whose_subject_came_while_it_was_looked_for_is_not_parked(system_db: Database) -> None:
    looked: list[str] = []

    def effect(tx: db.Tx, event: Event) -> Outcome:
        if not looked:
            looked.append(event.id)
            with system_db.connect() as other:
                write(other, "thing")
            raise Park("thing", "it was not there when the effect looked")
        return waits("thing")(tx, event)

    assert inbox.receive(event(), senders(happened=effect)) == "processed"
    assert notes(system_db) == ["thing", "evt_1"]


def test_an_event_that_lacks_one_subject_after_the_other_waits_for_the_last(system_db: Database) -> None:
    subjects = iter(["customer", "customer", "user", "customer"])

    def effect(_tx: db.Tx, _event: Event) -> Outcome:
        raise Park(next(subjects), "missing")

    assert inbox.receive(event(), senders(happened=effect)) == "parked"
    assert row(system_db)["waiting_for"] == "customer"


# ---- failures ----


def test_a_failing_effect_leaves_nothing_but_a_row_that_tells_why(system_db: Database) -> None:
    table = senders(happened=noted("half", LookupError("the other half is missing")))
    for attempt in (1, 2):
        with pytest.raises(LookupError):
            inbox.receive(event(), table)
        stored = row(system_db)
        assert (stored["status"], stored["reason"], stored["attempts"]) == ("failed", "LookupError", attempt)
        assert "the other half is missing" in stored["error"]
        assert "Traceback" in stored["error"]
        assert stored["next_attempt_at"] is not None
    assert notes(system_db) == []
    assert inbox.receive(event(), senders(happened=noted("whole"))) == "processed"
    assert (notes(system_db), row(system_db)["error"]) == (["whole"], None)


def test_a_parked_event_that_fails_when_sent_again_is_failed(system_db: Database) -> None:
    assert inbox.receive(event(), senders(happened=noted("", Park("thing", "missing")))) == "parked"
    with pytest.raises(LookupError):
        inbox.receive(event(), senders(happened=noted("", LookupError())))
    assert (row(system_db)["status"], row(system_db)["waiting_for"]) == ("failed", None)


def test_a_failure_does_not_cover_a_success_that_came_first(system_db: Database) -> None:
    inbox.receive(event(), senders(happened=noted("done")))
    with pytest.raises(inbox._Settled):
        inbox._record_failure(event(), LookupError("the loser of a race"))
    assert row(system_db)["status"] == "processed"


def test_an_effect_that_fails_because_its_event_was_applied_meanwhile_is_a_duplicate(
    system_db: Database,
) -> None:
    def raced(tx: db.Tx, event: Event) -> Outcome:
        with system_db.connect("backplane_system") as other:
            inbox._record(other, event, "processed")
        raise LookupError("what the other delivery did is in the way")

    assert inbox.receive(event(), senders(happened=raced)) == "duplicate"
    assert (row(system_db)["status"], row(system_db)["attempts"]) == ("processed", 1)


def test_what_an_effect_did_is_undone_where_its_event_was_applied_meanwhile(system_db: Database) -> None:
    def raced(tx: db.Tx, event: Event) -> Outcome:
        write(tx, "twice")
        with system_db.connect("backplane_system") as other:
            write(other, "once")
            inbox._record(other, event, "processed")
        return Outcome()

    assert inbox.receive(event(), senders(happened=raced)) == "duplicate"
    assert notes(system_db) == ["once"]


def test_an_error_that_quotes_what_cannot_be_stored_is_recorded_without_it(system_db: Database) -> None:
    with pytest.raises(LookupError):
        inbox.receive(
            event(), senders(happened=noted("", LookupError("a\x00b\ud800c" + "x" * 20_000 + "end")))
        )
    error = row(system_db)["error"]
    assert len(error) <= inbox.MAX_ERROR
    assert error.endswith("end\n")


def test_an_event_that_cannot_be_read_any_more_is_quarantined_and_does_not_stop_the_others(
    system_db: Database,
) -> None:
    table = senders(waited=waits("thing"), arrived=arrives("thing"))
    for event_id in ("evt_odd", "evt_good"):
        inbox.receive(event(event_id, "thing.waited"), table)

    reader = table["stripe"]

    def stricter(event_id: str, body: bytes) -> Event:
        if event_id == "evt_odd":
            raise InvalidPayload("what was read before is refused now")
        return reader.parse(event_id, body)

    table["stripe"] = Sender(stricter, reader.effects)
    assert inbox.receive(event("evt_subject", "thing.arrived"), table) == "processed"
    assert row(system_db, "evt_good")["status"] == "processed"
    odd = row(system_db, "evt_odd")
    assert (odd["status"], odd["reason"]) == ("quarantined", "what was read before is refused now")


def test_an_effect_that_the_server_refuses_fails_and_an_sql_error_is_no_quarantine(
    system_db: Database,
) -> None:
    def effect(tx: db.Tx, _event: Event) -> Outcome:
        tx.execute("SELECT 1 / 0")
        return Outcome()

    with pytest.raises(psycopg.errors.DivisionByZero):
        inbox.receive(event(), senders(happened=effect))
    assert row(system_db)["status"] == "failed"


def test_without_a_database_the_sender_hears_503_and_nothing_is_recorded(
    webhook_secrets: None, system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")
        config.settings.cache_clear()
        db.reset()
        answer = post_stripe(stripe_event("invoice.paid", invoice(), event_id="evt_1"))
    assert (answer.status, answer.body["code"]) == (503, "unavailable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    assert rows(system_db) == {}
    with system_db.as_role("backplane_system"):
        assert (
            post_stripe(stripe_event("invoice.paid", invoice(), event_id="evt_1")).body["status"] == "parked"
        )


def test_a_database_lost_in_the_middle_is_tried_again_without_the_sender(system_db: Database) -> None:
    attempts: list[int] = []

    def effect(tx: db.Tx, _event: Event) -> Outcome:
        write(tx, "once")
        attempts.append(tx.info.backend_pid)
        if len(attempts) == 1:
            with system_db.connect() as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", attempts)
        tx.execute("SELECT 1")
        return Outcome()

    assert inbox.receive(event(), senders(happened=effect)) == "processed"
    assert (len(attempts), notes(system_db)) == (2, ["once"])


def test_the_sender_hears_500_and_his_retry_applies(
    webhook_secrets: None, system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_clerk(clerk_user("user_1"))
    post_stripe(stripe_event("checkout.session.completed", checkout_session(client_reference_id="user_1")))
    paid = stripe_event("invoice.paid", invoice(), event_id="evt_paid")

    def refuse(*_: object) -> None:
        raise LookupError("the ledger is out")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "grant", refuse)
        answer = post_stripe(paid)
    assert (answer.status, answer.body["code"]) == (500, "internal_error")
    assert "ledger" not in json.dumps(answer.body)  # the cause is for the log, not for the sender
    assert row(system_db, "evt_paid")["status"] == "failed"
    assert balance(system_db) == 100
    assert post_stripe(paid).body["status"] == "processed"
    assert balance(system_db) == 1100


# ---- many at once, each in a process of its own as Lambda runs them ----


def balance(database: Database) -> int:
    with database.connect() as connection:
        account = connection.execute("SELECT available FROM credits.accounts").fetchone()
    assert account is not None
    return int(account["available"])


def test_one_event_delivered_ten_times_at_once_grants_once(
    webhook_secrets: None, system_db: Database
) -> None:
    post_clerk(clerk_user("user_1"))
    post_stripe(stripe_event("checkout.session.completed", checkout_session(client_reference_id="user_1")))
    paid = stripe_event("invoice.paid", invoice())
    with processes(10, system_db) as post:
        answers = post([paid] * 10)
    assert sorted(answers) == [(200, "duplicate")] * 9 + [(200, "processed")]
    assert balance(system_db) == 1100


def test_all_events_of_a_new_customer_at_once_are_all_applied(
    webhook_secrets: None, system_db: Database
) -> None:
    """User, link, subscription and payments race: whichever waits for another is applied with it."""
    events: list[dict[str, Any]] = []
    for number in range(6):
        customer, sub, user = f"cus_{number}", f"sub_{number}", f"user_{number}"
        parent = {"subscription_details": {"subscription": sub}}
        checkout = checkout_session(client_reference_id=user, customer=customer)
        events += [
            stripe_event("invoice.paid", invoice(customer=customer, parent=parent)),
            stripe_event("customer.subscription.created", subscription(id=sub, customer=customer)),
            stripe_event("customer.subscription.updated", subscription(id=sub, customer=customer)),
            stripe_event("checkout.session.completed", checkout),
            clerk_user(user, email=f"{number}@example.com"),
        ]
    with processes(5, system_db) as post:
        answers = post(events)
    assert {status for status, _ in answers} == {200}
    assert {r["status"] for r in rows(system_db).values()} <= {"processed", "stale"}
    with system_db.connect() as connection:
        balances = connection.execute("SELECT available FROM credits.accounts").fetchall()
        active = connection.execute("SELECT 1 FROM billing.subscriptions WHERE status = 'active'").fetchall()
    assert [account["available"] for account in balances] == [1100] * 6
    assert len(active) == 6
