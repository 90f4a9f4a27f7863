"""What Stripe knows and we do not: found, replayed once, and reported, however often and however cut off."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import event_scan
import pytest
import replay
import stripe_reconciliation
from samtranslator.yaml_helper import yaml_parse
from tests.databases import Database
from tests.payers import PRO, SIGN_UP, Customer, available, entitled, rows, status, stored
from tests.senders import DAY, FIRST, SECOND, invoice_line, invoke, post_clerk
from tests.stripe_api import FakeStripe

from backplane import config, ledger

pytestmark = pytest.mark.usefixtures("webhook_secrets", "stripe")

TEMPLATE = Path(__file__).parents[2] / "template.yaml"


def run(event: dict[str, Any] | None = None, **limits: float) -> dict[str, Any]:
    answer: dict[str, Any] = invoke(stripe_reconciliation.handler, event or {}, **limits)
    return answer


@pytest.fixture
def ada(system_db: Database) -> Customer:
    customer = Customer(1)
    post_clerk(customer.sign_up())
    return customer


def happened(stripe: FakeStripe, *events: dict[str, Any]) -> None:
    """At Stripe, where nobody has told us of it."""
    for event in events:
        stripe.events[event["id"]] = event
        stripe.learn(event)


def life(customer: Customer) -> list[dict[str, Any]]:
    return [
        customer.checkout(),
        customer.told("created", created=FIRST + 1),
        customer.paid(created=FIRST + 2),
    ]


def metric(said: str) -> dict[str, Any]:
    [record] = [json.loads(line) for line in said.splitlines() if '"_aws"' in line]
    found: dict[str, Any] = record
    return found


# ---- the events of 30 days ----


def test_what_never_came_is_replayed_and_reported(
    system_db: Database, ada: Customer, stripe: FakeStripe, capsys: pytest.CaptureFixture[str]
) -> None:
    happened(stripe, *life(ada), ada.paid() | {"type": "invoice.created", "id": "evt_without_effect"})
    answer = run()
    assert (answer["ok"], answer["complete"], answer["listed"]) == (True, True, 4)
    assert (answer["replayed"], answer["late"]) == (3, 3)
    assert sum(answer["statuses"].values()) == 3
    assert available(system_db, ada) == SIGN_UP + PRO
    assert entitled(ada, system_db).tier == "pro"
    said = metric(capsys.readouterr().out)
    assert (said["StripeDrift"], said["StripeReconciliationFailures"]) == ([3.0], [0.0])


def test_what_came_by_webhook_is_left_as_it_is(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    events = life(ada)
    happened(stripe, *events)
    for event in events:
        status(event)
    answer = run()
    assert (answer["ok"], answer["listed"], answer["replayed"], answer["statuses"]) == (True, 3, 0, {})
    assert available(system_db, ada) == SIGN_UP + PRO


def test_a_second_run_finds_nothing_more_and_the_webhook_later_repeats(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    events = life(ada)
    happened(stripe, *events)
    assert run()["replayed"] == 3
    assert run()["replayed"] == 0
    assert {status(event) for event in events} == {"duplicate"}
    assert available(system_db, ada) == SIGN_UP + PRO


def test_an_event_that_may_still_be_on_its_way_is_replayed_but_is_no_drift(
    ada: Customer, stripe: FakeStripe
) -> None:
    happened(stripe, ada.checkout() | {"created": int(time.time()) - 60})
    answer = run()
    assert (answer["replayed"], answer["late"]) == (1, 0)


def test_what_is_older_than_30_days_is_out_of_reach(ada: Customer, stripe: FakeStripe) -> None:
    happened(stripe, ada.checkout() | {"created": FIRST - 31 * DAY})
    assert run()["listed"] == 0


def test_many_events_come_page_by_page(
    system_db: Database, ada: Customer, stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_scan, "PAGE", 2)
    happened(stripe, *life(ada), *(ada.told("updated", created=FIRST + n) for n in range(3, 7)))
    answer = run()
    assert (answer["ok"], answer["listed"], answer["replayed"]) == (True, 7, 7)
    assert available(system_db, ada) == SIGN_UP + PRO


def test_a_run_that_is_cut_off_is_taken_up_where_it_was(
    system_db: Database, ada: Customer, stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_scan, "PAGE", 2)
    happened(stripe, *life(ada))
    page = event_scan._page
    pages: list[str | None] = []

    def dying(scan: event_scan.Scan) -> Any:
        pages.append(scan.last_event_id)
        if len(pages) == 2:
            raise KeyboardInterrupt
        return page(scan)

    monkeypatch.setattr(event_scan, "_page", dying)
    with pytest.raises(KeyboardInterrupt):
        run()
    answer = run()
    assert (answer["complete"], answer["listed"], answer["replayed"]) == (True, 3, 3)
    assert pages[0] is None
    assert pages[1] == pages[2] is not None
    assert available(system_db, ada) == SIGN_UP + PRO
    assert rows(system_db, "SELECT count(*) AS scans FROM billing.stripe_reconciliations") == [{"scans": 1}]


def test_a_run_without_time_leaves_its_place_for_the_next(ada: Customer, stripe: FakeStripe) -> None:
    happened(stripe, *life(ada))
    answer = run(seconds=stripe_reconciliation.MARGIN)
    assert (answer["ok"], answer["complete"], answer["listed"]) == (False, False, 0)
    assert run()["replayed"] == 3


def test_a_page_that_takes_too_long_is_counted_in_parts(
    system_db: Database, ada: Customer, stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened(stripe, *life(ada))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(event_scan, "time", SimpleNamespace(monotonic=lambda: clock.now))
    one = replay.replay

    def slow(event: Any) -> str:
        clock.now += 50
        return one(event)

    monkeypatch.setattr(replay, "replay", slow)
    first, second = event_scan.run(seconds=90), event_scan.run(seconds=90)
    assert (first["complete"], first["replayed"], first["late"]) == (False, 2, 2)
    assert (second["complete"], second["listed"], second["replayed"], second["late"]) == (True, 3, 3, 3)
    assert available(system_db, ada) == SIGN_UP + PRO


def test_two_runs_at_once_share_one_scan_and_count_each_page_once(
    system_db: Database, ada: Customer, stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run does the whole scan while this one is at its first page."""
    monkeypatch.setattr(event_scan, "PAGE", 2)
    happened(stripe, *life(ada))
    lacking = event_scan._lacking
    other: list[dict[str, Any]] = []

    def overtaken(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = lacking(events)
        if not other:
            other.append({})
            other[0] |= event_scan.run(seconds=60)
        return found

    monkeypatch.setattr(event_scan, "_lacking", overtaken)
    answer = run()
    assert (other[0]["complete"], answer["complete"]) == (True, True)
    assert (answer["listed"], answer["replayed"]) == (3, 3)
    assert available(system_db, ada) == SIGN_UP + PRO


def test_a_scan_whose_place_is_out_of_reach_begins_again(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    happened(stripe, *life(ada))
    run(seconds=stripe_reconciliation.MARGIN)
    rows(system_db, "UPDATE billing.stripe_reconciliations SET last_event_id = 'evt_forgotten' RETURNING 1")
    answer = run()
    assert (answer["complete"], answer["listed"], answer["replayed"]) == (True, 3, 3)


def test_an_event_that_fails_is_recorded_for_the_worker_and_does_not_stop_the_others(
    system_db: Database, ada: Customer, stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened(stripe, *life(ada))

    def broken(*_: Any) -> Any:
        raise LookupError

    monkeypatch.setattr(ledger, "grant", broken)
    answer = run()
    assert (answer["ok"], answer["complete"], answer["statuses"]["failed"]) == (False, True, 1)
    assert entitled(ada, system_db).tier == "pro"
    failed = rows(system_db, "SELECT event_type FROM platform.webhook_inbox WHERE status = 'failed'")
    assert failed == [{"event_type": "invoice.paid"}]


@pytest.mark.parametrize("trouble", ["rate_limit", "error"])
def test_while_stripes_api_is_away_it_says_so_and_goes_on_later(
    ada: Customer, stripe: FakeStripe, trouble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    happened(stripe, *life(ada))
    stripe.trouble.append(trouble)
    answer = run()
    assert (answer["ok"], answer["configured"]) == (False, True)
    assert "Stripe" in answer["reason"]
    assert metric(capsys.readouterr().out)["StripeReconciliationFailures"] == [1.0]
    assert run()["replayed"] == 3


def test_without_a_key_it_says_so_and_does_nothing(
    system_db: Database,
    stripe: FakeStripe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("STRIPE_API_KEY_SECRET_ARN")
    config.settings.cache_clear()
    for event in ({}, {"customer": "cus_1"}):
        answer = run(event)
        assert (answer["ok"], answer["configured"]) == (True, False)
        assert "no Stripe API key" in answer["reason"]
        assert metric(capsys.readouterr().out)["StripeReconciliationFailures"] == [0.0]
    assert stripe.asked == []
    assert rows(system_db, "SELECT 1 FROM billing.stripe_reconciliations") == []


# ---- one customer ----


def at_stripe(stripe: FakeStripe, customer: Customer) -> None:
    """The customer's objects as Stripe has them after a checkout, a month and a pack."""
    stripe.add_customer(customer.id)
    for event in (customer.checkout(), customer.pack()):
        session = event["data"]["object"] | {"status": "complete"}
        stripe.sessions[session["id"]] = session
    stripe.learn(customer.told("created"))
    paid = customer.paid()["data"]["object"]
    trial = customer.paid(lines=[invoice_line(amount=0)])["data"]["object"]
    stripe.invoices |= {each["id"]: each for each in (paid, trial)}


def test_a_customer_nobody_told_of_is_made_whole(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    at_stripe(stripe, ada)
    answer = run({"customer": ada.id})
    assert answer["ok"]
    assert answer["checked"] == {"checkout_sessions": 2, "subscriptions": 1, "invoices": 2}
    assert [(found["fields"], found["status"]) for found in answer["drift"]] == [
        (["customer"], "processed"),
        (["grant"], "processed"),
        (answer["drift"][2]["fields"], "processed"),
        (["grant"], "processed"),
    ]
    assert available(system_db, ada) == SIGN_UP + PRO + 500
    assert stored(system_db, ada)["status"] == "active"
    again = run({"customer": ada.id})
    assert (again["ok"], again["drift"]) == (True, [])
    assert available(system_db, ada) == SIGN_UP + PRO + 500


def test_what_differs_of_a_subscription_is_named_and_mended(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    at_stripe(stripe, ada)
    run({"customer": ada.id})
    stripe.subscriptions[ada.subscription] |= {"cancel_at": SECOND, "status": "past_due"}
    answer = run({"customer": ada.id})
    [found] = answer["drift"]
    assert (found["object"], found["fields"], found["status"]) == (
        ada.subscription,
        ["status", "cancel_at"],
        "processed",
    )
    assert stored(system_db, ada)["status"] == "past_due"
    stripe.subscriptions[ada.subscription] |= {"cancel_at": None, "status": "active"}
    assert run({"customer": ada.id})["drift"][0]["status"] == "processed"
    assert stored(system_db, ada)["status"] == "active", "a state that comes again is applied again"


def test_a_customer_of_nobody_is_reported_as_waiting(system_db: Database, stripe: FakeStripe) -> None:
    stranger = Customer(9)
    stripe.learn(stranger.told("created"))
    answer = run({"customer": stranger.id})
    assert (answer["ok"], [found["status"] for found in answer["drift"]]) == (False, ["parked"])


@pytest.mark.parametrize("customer", ["", 7, ["cus_1"], "x" * 300, {"id": "cus_1"}])
def test_a_customer_must_be_named_by_his_id(
    system_db: Database, stripe: FakeStripe, customer: object
) -> None:
    answer = run({"customer": customer})
    assert (answer["ok"], "cus_" in answer["reason"]) == (False, True)
    assert stripe.asked == []


@pytest.mark.parametrize(
    ("alarm", "name"),
    [("StripeDriftAlarm", "StripeDrift"), ("StripeReconciliationAlarm", "StripeReconciliationFailures")],
)
def test_the_alarms_watch_what_is_written(
    system_db: Database, stripe: FakeStripe, capsys: pytest.CaptureFixture[str], alarm: str, name: str
) -> None:
    watching = yaml_parse(TEMPLATE.read_text())["Resources"][alarm]["Properties"]
    run()
    record = metric(capsys.readouterr().out)
    written = record["_aws"]["CloudWatchMetrics"][0]
    assert watching["Namespace"] == written["Namespace"]
    assert watching["MetricName"] == name
    assert name in {each["Name"] for each in written["Metrics"]}
    assert [set(names) for names in written["Dimensions"]] == [
        {dimension["Name"] for dimension in watching["Dimensions"]}
    ]


def test_statuses_are_counted_by_name() -> None:
    assert replay.counts(["processed", "stale", "processed"]) == {"processed": 2, "stale": 1}


# ---- what nobody is left to use ----


def deleted(customer: Customer) -> None:
    gone = {"type": "user.deleted", "object": "event", "data": {"id": customer.user, "deleted": True}}
    assert post_clerk(gone).status == 200


def cancels(stripe: FakeStripe) -> list[str]:
    return [asked.path for asked in stripe.asked if asked.method == "DELETE"]


def test_a_deleted_users_subscription_is_canceled_at_stripe_once(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    eve = Customer(2)
    post_clerk(eve.sign_up())
    for customer in (ada, eve):
        happened(stripe, *life(customer))
    run()
    deleted(ada)
    assert run()["orphans"] == {"ok": True, "canceled": [ada.subscription], "refused": {}}
    assert stripe.subscriptions[ada.subscription]["status"] == "canceled"
    assert stripe.subscriptions[eve.subscription]["status"] == "active"
    assert stored(system_db, ada)["status"] == "canceled"
    assert run()["orphans"]["canceled"] == []
    assert cancels(stripe) == [f"/v1/subscriptions/{ada.subscription}"]


def test_a_deleted_users_subscription_that_stripe_has_no_more_is_over_here_too(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    happened(stripe, *life(ada))
    run()
    deleted(ada)
    stripe.subscriptions.clear()
    assert run()["orphans"]["canceled"] == [ada.subscription]
    assert stored(system_db, ada)["status"] == "canceled"


def test_a_subscription_that_cannot_be_canceled_fails_the_run_and_is_tried_by_the_next(
    system_db: Database, ada: Customer, stripe: FakeStripe, capsys: pytest.CaptureFixture[str]
) -> None:
    happened(stripe, *life(ada))
    run()
    deleted(ada)
    capsys.readouterr()
    stripe.trouble += [None, "error"]  # the events are listed, the cancellation fails
    assert run()["ok"] is False
    assert metric(capsys.readouterr().out)["StripeReconciliationFailures"] == [1]
    assert cancels(stripe) == [f"/v1/subscriptions/{ada.subscription}"]
    assert run()["orphans"]["canceled"] == [ada.subscription]
