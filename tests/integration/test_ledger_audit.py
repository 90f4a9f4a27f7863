"""The proof of the books: it holds for whatever the ledger did, and finds each way of breaking them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import ledger_audit
import pytest
from samtranslator.yaml_helper import yaml_parse
from tests.databases import Database
from tests.ledgers import (
    debit,
    entries,
    give,
    grants,
    held,
    hold,
    new_account,
    pass_expiry,
    pass_holds_expiry,
    rows,
    settle,
)
from tests.senders import invoke

from backplane import audits, config, corrections
from backplane.problems import NotFound

TEMPLATE = Path(__file__).parents[2] / "template.yaml"


def used_account(database: Database) -> UUID:
    """An account with a few of everything: a grant partly spent, a hold, a settle and a refund."""
    organization_id = new_account(database, 50, 50)
    made, _ = debit(organization_id, quantity=10)
    corrections.refund(organization_id, made.id, amount=3, reason="it failed", key="key-1", actor="key:1")
    settle(organization_id, hold(organization_id, 20), amount=5)
    hold(organization_id, 60)
    return organization_id


def run(**limits: float) -> dict[str, Any]:
    answer: dict[str, Any] = invoke(ledger_audit.handler, {}, **limits)
    return answer


def metric(said: str) -> dict[str, Any]:
    """The one EMF record among what was written to standard output."""
    records = [json.loads(line) for line in said.splitlines() if '"_aws"' in line]
    assert len(records) == 1
    found: dict[str, Any] = records[0]
    return found


# ---- one account ----


def test_a_sound_account_is_recomputed_to_what_it_says(system_db: Database) -> None:
    organization_id = used_account(system_db)
    made = audits.audit(organization_id)
    assert made.model_dump() == {
        "ok": True,
        "available": 28,
        "held": 60,
        "debt": 0,
        "entries_sum": 88,
        "entries": len(entries(system_db, organization_id)),
        "versions_gapless": True,
    }


def test_an_account_without_an_entry_is_sound(system_db: Database) -> None:
    made = audits.audit(new_account(system_db))
    assert (made.ok, made.entries, made.entries_sum) == (True, 0, 0)
    with pytest.raises(NotFound):
        audits.audit(uuid4())


def test_an_audit_books_what_is_due_first_and_so_agrees_with_the_balance(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    hold_id = hold(organization_id, 4)
    pass_holds_expiry(system_db, hold_id)
    made = audits.audit(organization_id)
    assert (made.ok, made.available, made.held) == (True, 10, 0)
    assert held(system_db, hold_id)["state"] == "expired"


BREAKAGES = {
    "UPDATE credits.accounts SET available = available + 1": "available is not what live grants hold",
    "UPDATE credits.accounts SET held = held + 1": "held is not what open holds hold",
    "UPDATE credits.accounts SET debt = debt + 1": "the balance is not the sum of the entries",
    "UPDATE credits.accounts SET version = version + 1": "versions have a gap",
    "UPDATE credits.grants SET remaining = remaining - 1 WHERE remaining > 1": (
        "available is not what live grants hold"
    ),
    "UPDATE credits.holds SET amount = amount + 1 WHERE state = 'open'": (
        "a hold is not what its allocations say"
    ),
    "UPDATE credits.entries SET amount = amount - 1 WHERE version = 3": (
        "an entry is out of step with the one before"
    ),
    "UPDATE credits.entries SET amount = amount + 1 WHERE version = 1": (
        "the balance is not the sum of the entries"
    ),
    "UPDATE credits.entries SET held_after = held_after + 1, available_after = available_after - 1": (
        "the balance is not what the newest entry says"
    ),
    "UPDATE credits.entries SET version = version + 10 WHERE version = 2": "versions have a gap",
    "UPDATE credits.refunds SET amount = 11, refunded_total = 11": "more was refunded than debited",
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_each_way_of_breaking_the_books_is_found(
    system_db: Database,
    breakage: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = used_account(system_db)
    with system_db.connect() as owner:
        owner.execute("ALTER TABLE credits.entries DISABLE TRIGGER USER")
        owner.execute(breakage.encode())
    sound = used_account(system_db)

    assert not audits.audit(broken).ok
    assert audits.audit(sound).ok
    answer = run()
    assert (answer["ok"], answer["accounts"]) == (False, 2)
    assert [wrong["organization_id"] for wrong in answer["wrong"]] == [str(broken)]
    assert BREAKAGES[breakage] in answer["wrong"][0]["faults"]
    assert metric(capsys.readouterr().out)["LedgerAuditFailures"] == [1.0]
    logged = [record for record in caplog.records if record.message == "an account does not add up"]
    assert [record.__dict__["organization_id"] for record in logged] == [str(broken)]


# ---- every account, by night ----


def test_the_nightly_audit_checks_every_account_in_batches(
    system_db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ledger_audit, "BATCH", 2)
    for _ in range(5):
        new_account(system_db, 10)
    assert run() == {"ok": True, "accounts": 5, "complete": True, "wrong": []}
    assert metric(capsys.readouterr().out)["LedgerAuditFailures"] == [0.0]


def test_the_nightly_audit_books_what_has_expired(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    expired = give(organization_id, 5, source="plan", expires_at=datetime.now(UTC) + timedelta(hours=1))
    hold_id = hold(organization_id, 3)
    pass_expiry(system_db, expired)
    pass_holds_expiry(system_db, hold_id)
    assert run()["ok"]
    assert held(system_db, hold_id)["state"] == "expired"
    assert [grant["live"] for grant in grants(system_db, organization_id)] == [True, False]


def test_an_account_whose_expiry_cannot_be_booked_does_not_hide_the_others(system_db: Database) -> None:
    accounts = [new_account(system_db, 10) for _ in range(3)]
    for organization_id in accounts:
        pass_holds_expiry(system_db, hold(organization_id, 3))
    rows(
        system_db, "UPDATE credits.accounts SET held = 0 WHERE organization_id = %s", accounts[1]
    )  # freeing the hold would make it negative
    answer = run()
    assert [wrong["organization_id"] for wrong in answer["wrong"]] == [str(accounts[1])]
    assert answer["wrong"][0]["faults"][0] == "what is due cannot be booked (23514)"
    states = rows(system_db, "SELECT state FROM credits.holds ORDER BY created_at")
    assert [row["state"] for row in states] == ["expired", "open", "expired"]


def test_an_audit_that_runs_out_of_time_is_not_ok(
    system_db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    new_account(system_db, 10)
    assert run(seconds=ledger_audit.MARGIN) == {"ok": False, "accounts": 0, "complete": False, "wrong": []}
    assert metric(capsys.readouterr().out)["LedgerAuditFailures"] == [1.0]


def test_an_audit_that_breaks_off_counts_as_a_failure(
    system_db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new_account(system_db, 10)

    def break_off(*_: Any, **__: Any) -> Any:
        raise LookupError

    monkeypatch.setattr(audits, "faults", break_off)
    with pytest.raises(LookupError):
        run()
    assert metric(capsys.readouterr().out)["LedgerAuditFailures"] == [1.0]


def test_the_alarm_watches_the_metric_that_is_written(
    system_db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = yaml_parse(TEMPLATE.read_text())["Resources"]["LedgerAuditAlarm"]["Properties"]
    run()
    record = metric(capsys.readouterr().out)
    written = record["_aws"]["CloudWatchMetrics"][0]
    assert written["Namespace"] == alarm["Namespace"]
    assert [metric["Name"] for metric in written["Metrics"]] == [alarm["MetricName"]]
    watched = {dimension["Name"]: dimension["Value"] for dimension in alarm["Dimensions"]}
    assert [set(names) for names in written["Dimensions"]] == [set(watched)]
    assert record["service"] == watched["service"]
    assert (record["stage"], watched["stage"]) == (config.settings().stage, {"Ref": "Stage"})
