"""With a Stripe API key: what is fetched, how fetched and told states are ordered, and what befalls a fetch.

tests/integration/test_subscriptions.py runs over both paths; here is what only a fetch can do.
"""

import json
from typing import Any

import pytest
from tests.databases import Database
from tests.payers import PRO, SIGN_UP, Customer, available, entitled, moment, rows, status, stored
from tests.senders import DAY, FIRST, SECOND, post_clerk, post_stripe
from tests.stripe_api import FakeStripe

from backplane import config, db, inbox, secrets, stripe_api
from backplane.inbox import Fetched
from backplane.senders import SENDERS

pytestmark = pytest.mark.usefixtures("webhook_secrets", "stripe")


@pytest.fixture
def ada(system_db: Database, stripe: FakeStripe) -> Customer:
    customer = Customer(1)
    post_clerk(customer.sign_up())
    assert status(customer.checkout()) == "processed"
    return customer


def now(stripe: FakeStripe, event: dict[str, Any]) -> dict[str, Any]:
    """The event's subscription is what Stripe has now."""
    state = event["data"]["object"]
    stripe.subscriptions[state["id"]] = state
    return event


# ---- what is fetched ----


def test_the_state_is_stripes_now_and_not_the_events(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    now(stripe, ada.told("updated", status="past_due", price="price_super_monthly"))
    assert status(ada.told("created")) == "processed"
    assert (stored(system_db, ada)["status"], entitled(ada, system_db).tier) == ("past_due", "super")
    history = rows(system_db, "SELECT status, plan_key FROM billing.subscription_events")
    assert history == [{"status": "active", "plan_key": "pro"}], "the history says what the event told"


def test_only_subscriptions_and_sessions_without_a_pack_are_asked_for(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    for event in (ada.paid(), ada.pack(), ada.told("created", id="sub_other")):
        status(event)
    assert stripe.paths() == ["/v1/subscriptions/sub_other"]


def test_a_repetition_and_a_foreign_event_ask_for_nothing(ada: Customer, stripe: FakeStripe) -> None:
    told = now(stripe, ada.told("created"))
    assert [status(told), status(told)] == ["processed", "duplicate"]
    assert status(ada.told("updated") | {"livemode": True}) == "ignored"
    assert status(ada.told("updated") | {"account": "acct_1"}) == "ignored"
    assert len(stripe.asked) == 1


@pytest.mark.parametrize("identifier", [None, "", 7, {"a": 1}, "x" * 300])
def test_what_has_no_id_is_not_asked_for(ada: Customer, stripe: FakeStripe, identifier: object) -> None:
    assert status(ada.told("updated", id=identifier)) == "quarantined"
    assert stripe.asked == []


def test_without_a_key_nothing_is_asked_for(
    ada: Customer, stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRIPE_API_KEY_SECRET_ARN")
    config.settings.cache_clear()
    assert status(ada.told("created")) == "processed"
    assert stripe.asked == []


def test_nothing_is_asked_for_inside_a_transaction(
    ada: Customer, stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, open_ = stripe_api.get, []

    def watched(path: str, **params: Any) -> Any:
        open_.append(db.connection().info.transaction_status.name)
        return get(path, **params)

    monkeypatch.setattr(stripe_api, "get", watched)
    status(now(stripe, ada.told("created")))
    assert open_ == ["IDLE"]


# ---- packs ----


def test_a_pack_that_the_session_does_not_name_is_found_by_its_price(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    bought = ada.pack(metadata={})
    session = bought["data"]["object"]
    stripe.sessions[session["id"]] = session
    stripe.line_items[session["id"]] = [
        {"id": "li_1", "price": {"id": "price_of_a_mug"}, "quantity": 1},
        {"id": "li_2", "price": {"id": "price_pack_500"}, "quantity": 3},
    ]
    assert [status(bought), status(bought)] == ["processed", "duplicate"]
    assert available(system_db, ada) == SIGN_UP + 3 * 500


def test_a_pack_whose_items_could_not_be_had_waits_and_is_granted_by_the_worker(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    bought = ada.pack(metadata={})
    session = bought["data"]["object"]
    stripe.sessions[session["id"]] = session
    stripe.line_items[session["id"]] = [{"id": "li_1", "price": {"id": "price_pack_500"}, "quantity": 1}]
    stripe.trouble.append("error")
    assert status(bought) == "parked"
    assert available(system_db, ada) == SIGN_UP
    assert status(bought) == "processed"
    assert available(system_db, ada) == SIGN_UP + 500


def test_a_pack_that_waited_for_its_user_is_fetched_for_when_he_comes(
    system_db: Database, stripe: FakeStripe
) -> None:
    early = Customer(2)
    bought = early.pack(metadata={}, client_reference_id=early.user)
    session = bought["data"]["object"]
    stripe.sessions[session["id"]] = session
    stripe.line_items[session["id"]] = [{"id": "li_1", "price": {"id": "price_pack_500"}, "quantity": 1}]
    assert status(bought) == "parked"
    post_clerk(early.sign_up())
    assert available(system_db, early) == SIGN_UP + 500
    assert status(bought) == "duplicate"


def test_a_fetch_that_fails_after_an_arrival_leaves_the_arrival_and_the_event(
    system_db: Database, stripe: FakeStripe
) -> None:
    early = Customer(3)
    bought = early.pack(metadata={}, client_reference_id=early.user)
    session = bought["data"]["object"]
    stripe.sessions[session["id"]] = session
    stripe.line_items[session["id"]] = [{"id": "li_1", "price": {"id": "price_pack_500"}, "quantity": 1}]
    assert status(bought) == "parked"
    stripe.trouble.append("error")
    assert post_clerk(early.sign_up()).status == 200
    assert available(system_db, early) == SIGN_UP
    assert status(bought) == "processed"
    assert available(system_db, early) == SIGN_UP + 500


# ---- which state is the newer ----


def fetched(event: dict[str, Any], began: int, told: dict[str, Any] | None = None) -> str:
    """What becomes of an event for which `told`'s object was fetched, asked for at second `began`."""
    sender = SENDERS["stripe"]
    answer = Fetched(moment(began), (told or event)["data"]["object"])
    one: inbox.Senders = {"stripe": inbox.Sender(sender.parse, sender.effects, lambda _: answer)}
    return inbox.receive(sender.parse(event["id"], json.dumps(event).encode()), one)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_fetched_states_the_one_asked_for_later_stands_whoever_writes_last(
    system_db: Database, ada: Customer, order: int
) -> None:
    """The slow worker asked first and writes last."""
    before, after = ada.told("updated", created=FIRST + 9, status="past_due"), ada.told("updated")
    steps = [(before, FIRST + 100), (after, FIRST + 101)][::order]
    answers = [fetched(event, began) for event, began in steps]
    assert answers == (["processed", "processed"] if order == 1 else ["processed", "stale"])
    assert stored(system_db, ada)["status"] == "active"


def test_an_end_is_never_undone_by_a_later_answer(system_db: Database, ada: Customer) -> None:
    assert fetched(ada.told("deleted", status="canceled"), FIRST + 100) == "processed"
    assert fetched(ada.told("updated", created=FIRST + 60), FIRST + 200) == "stale"
    assert stored(system_db, ada)["status"] == "canceled"


def test_an_end_counts_however_early_it_was_asked_for(system_db: Database, ada: Customer) -> None:
    assert fetched(ada.told("updated"), FIRST + 200) == "processed"
    assert fetched(ada.told("deleted", created=FIRST + 60, status="canceled"), FIRST + 100) == "processed"
    assert stored(system_db, ada)["status"] == "canceled"


def test_between_a_fetched_and_a_told_state_the_events_order_decides(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    """Stripe's clock and ours are never compared."""
    assert fetched(ada.told("updated", created=FIRST + 60), FIRST + 100) == "processed"
    stripe.trouble += ["error", "error"]
    assert status(ada.told("updated", created=FIRST + 59, status="past_due")) == "stale"
    assert status(ada.told("updated", created=FIRST + 61, status="past_due")) == "processed"
    assert fetched(ada.told("updated", created=FIRST + 30), FIRST + 50) == "stale"
    assert stored(system_db, ada)["status"] == "past_due"
    assert fetched(ada.told("updated", created=FIRST + 62), FIRST + 51) == "processed"
    assert stored(system_db, ada)["status"] == "active"


def test_whatever_was_told_without_a_key_the_next_event_after_it_is_fetched(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    stripe.trouble.append("error")
    assert status(ada.told("created")) == "processed"
    now(stripe, ada.told("updated", cancel_at=SECOND))
    assert status(ada.told("updated", created=FIRST + 1)) == "processed"
    assert stored(system_db, ada)["cancel_at"] == moment(SECOND)


# ---- what befalls a fetch ----


@pytest.mark.parametrize("trouble", ["rate_limit", "error", "hang"])
def test_while_stripes_api_is_away_the_events_word_and_order_stand(
    system_db: Database, ada: Customer, stripe: FakeStripe, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_api, "READ_TIMEOUT", 0.2)
    stripe.trouble += [trouble] * 3
    assert status(ada.told("updated", created=FIRST + 60)) == "processed"
    assert status(ada.told("created")) == "stale"
    assert status(ada.paid()) == "processed"
    assert available(system_db, ada) == SIGN_UP + PRO
    assert status(ada.told("deleted", created=FIRST + 90, status="canceled")) == "processed"
    assert entitled(ada, system_db).tier == "free"


def test_a_subscription_that_stripe_does_not_know_is_as_its_event_tells(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    """Test data that was deleted, or a key of another account: nobody's plan ends by that."""
    assert status(ada.told("created")) == "processed"
    assert entitled(ada, system_db).tier == "pro"
    assert status(ada.told("deleted", created=FIRST + DAY, status="canceled")) == "processed"
    assert entitled(ada, system_db).tier == "free"
    assert len(stripe.asked) == 2


@pytest.mark.parametrize("secret", [{"key": "sk_test_revoked"}, {"key": "sk_live_1"}, {"key": ""}, [], "sk"])
def test_a_key_that_is_of_no_use_is_no_worse_than_none(
    system_db: Database, ada: Customer, monkeypatch: pytest.MonkeyPatch, secret: object
) -> None:
    get = secrets.get
    monkeypatch.setattr(
        secrets,
        "get",
        lambda arn, *, refresh=False: secret if arn == "stripe-api-key" else get(arn, refresh=refresh),
    )
    assert status(ada.told("created")) == "processed"
    assert entitled(ada, system_db).tier == "pro"


def test_an_answer_that_is_no_subscription_is_put_aside_for_a_person(
    system_db: Database, ada: Customer, stripe: FakeStripe
) -> None:
    told = ada.told("created")
    stripe.subscriptions[ada.subscription] = {"id": ada.subscription, "status": "of tomorrow"}
    assert post_stripe(told).body["status"] == "quarantined"
    [row] = rows(system_db, "SELECT reason FROM platform.webhook_inbox WHERE event_id = %s", told["id"])
    assert "Stripe's API" in row["reason"]
