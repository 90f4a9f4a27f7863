"""Stripe's objects in the shapes of its API versions: the same facts come out of all of them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from tests.senders import FIRST, SECOND, THIRD, checkout_session, invoice, invoice_line, subscription

from backplane.stripe_objects import CheckoutSession, Invoice, Subscription


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def item(price: str, start: int | None = None, end: int | None = None) -> dict[str, Any]:
    return {"price": {"id": price}, "current_period_start": start, "current_period_end": end}


@pytest.mark.parametrize("shape", ["old", "new"])
def test_a_subscription_tells_its_period_in_both_shapes(shape: str) -> None:
    read = Subscription.model_validate(subscription(shape=shape))
    assert read.period == (moment(FIRST), moment(SECOND))
    assert read.price_ids == ["price_pro_monthly"]


def test_several_items_end_with_the_one_that_is_billed_first() -> None:
    items = {"data": [item("price_a", FIRST, THIRD), item("price_b", FIRST, SECOND), item("price_c")]}
    read = Subscription.model_validate(subscription() | {"items": items})
    assert read.period == (moment(FIRST), moment(SECOND))
    assert read.price_ids == ["price_a", "price_b", "price_c"]


def test_prices_of_the_oldest_shapes_are_read_from_the_plan() -> None:
    on_the_item = Subscription.model_validate(subscription() | {"items": {"data": [{"plan": {"id": "p"}}]}})
    on_top = Subscription.model_validate(subscription() | {"items": {"data": []}, "plan": {"id": "p"}})
    assert on_the_item.price_ids == on_top.price_ids == ["p"]


def test_a_subscription_without_items_has_neither_price_nor_period() -> None:
    read = Subscription.model_validate(subscription() | {"items": {"data": []}})
    assert (read.price_ids, read.period) == ([], (None, None))


@pytest.mark.parametrize("shape", ["old", "new"])
def test_an_invoice_tells_its_subscription_and_lines_in_both_shapes(shape: str) -> None:
    lines = [
        invoice_line(shape=shape, price="price_a", proration=True),
        invoice_line(shape=shape, price="price_b", start=SECOND, end=THIRD),
    ]
    read = Invoice.model_validate(invoice(shape=shape, lines=lines))
    assert read.subscription == "sub_1"
    assert [(line.price_id, line.is_proration) for line in read.lines.data] == [
        ("price_a", True),
        ("price_b", False),
    ]
    assert (read.lines.data[1].period.start, read.lines.data[1].period.end) == (moment(SECOND), moment(THIRD))


@pytest.mark.parametrize(
    "fields",
    [
        {"parent": {"subscription_details": {"subscription": "sub_1", "metadata": {"organization_id": "o"}}}},
        {"subscription": "sub_1", "subscription_details": {"metadata": {"organization_id": "o"}}},
    ],
)
def test_an_invoice_carries_its_subscriptions_metadata_in_both_shapes(fields: dict[str, Any]) -> None:
    read = Invoice.model_validate({"id": "in_1", "customer": "cus_1"} | fields)
    assert (read.subscription, read.subscription_metadata) == ("sub_1", {"organization_id": "o"})


def test_a_prorated_invoice_item_is_a_proration_in_the_new_shape_too() -> None:
    line = invoice_line() | {
        "parent": {"invoice_item_details": {"proration": True}, "subscription_item_details": None}
    }
    assert Invoice.model_validate(invoice(lines=[line])).lines.data[0].is_proration


@pytest.mark.parametrize("parent", [None, {}, {"subscription_details": None}, {"quote_details": {}}])
def test_an_invoice_may_be_nobodys_subscription(parent: object) -> None:
    assert Invoice.model_validate(invoice() | {"parent": parent}).subscription is None


def test_expanded_fields_are_read_like_plain_ids() -> None:
    session = CheckoutSession.model_validate(
        checkout_session(customer={"id": "cus_9", "object": "customer"}, payment_intent={"id": "pi_9"})
    )
    assert (session.customer, session.payment_intent) == ("cus_9", "pi_9")
    assert Subscription.model_validate(subscription(customer={"id": "cus_9"})).customer == "cus_9"


@pytest.mark.parametrize("metadata", [None, {}, []])
def test_no_metadata_is_empty_metadata(metadata: object) -> None:
    assert CheckoutSession.model_validate(checkout_session(metadata=metadata)).metadata == {}


LATEST = int(datetime(9998, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("value", [0, 1_800_000_000, LATEST])
def test_times_are_whole_seconds_that_can_be_counted_on_from(value: int) -> None:
    assert Subscription.model_validate(subscription(cancel_at=value)).cancel_at == moment(value)


@pytest.mark.parametrize(
    "value", [-1, LATEST + 1, 10**12, 10**400, 1.5, True, "1700000000", [], {}, float("inf")]
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        Subscription.model_validate(subscription(cancel_at=value))


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "sub_1",
        {},
        subscription(customer=None),
        subscription(customer={"name": "no id"}),
        subscription(customer={"id": None}),
        subscription(customer=""),
        subscription(customer="c" * 256),
        subscription(status="melted"),
        subscription(metadata="x"),
        subscription() | {"items": None},
        subscription() | {"items": {"data": "x"}},
        subscription() | {"items": {"data": [None]}},
        subscription() | {"items": {"data": [{"price": "price_1"}]}},
        subscription() | {"items": {"data": [{"price": {"id": "p" * 256}}]}},
        subscription(id=1),
    ],
)
def test_what_is_no_subscription_is_refused(broken: object) -> None:
    with pytest.raises(ValidationError):
        Subscription.model_validate(broken)


@pytest.mark.parametrize(
    "broken",
    [
        invoice() | {"lines": None},
        invoice() | {"lines": {"data": [{}]}},
        invoice() | {"parent": "sub_1"},
        invoice(lines=[invoice_line() | {"period": None}]),
        invoice(lines=[invoice_line() | {"period": {"start": None, "end": None}}]),
        invoice(lines=[invoice_line() | {"period": {"start": FIRST, "end": 10**13}}]),
        invoice(lines=[invoice_line() | {"amount": "many"}]),
        invoice(lines=[invoice_line() | {"amount": 1.5}]),
        invoice(lines=[invoice_line() | {"pricing": {"price_details": {"price": 7}}}]),
        invoice(customer=None),
        invoice(id=""),
    ],
)
def test_what_is_no_invoice_is_refused(broken: object) -> None:
    with pytest.raises(ValidationError):
        Invoice.model_validate(broken)


@pytest.mark.parametrize(
    "broken",
    [
        checkout_session(mode="gift"),
        checkout_session(payment_status=None),
        checkout_session(client_reference_id=7),
        checkout_session(metadata=["x"]),
    ],
)
def test_what_is_no_session_is_refused(broken: object) -> None:
    with pytest.raises(ValidationError):
        CheckoutSession.model_validate(broken)
