"""Every kind of event that Stripe sends us, in the shapes of its API versions, and what it comes to."""

import itertools
import json
from typing import Any

import pytest
from psycopg.rows import DictRow
from samtranslator.yaml_helper import yaml_parse
from tests.conftest import ROOT
from tests.databases import Database
from tests.payers import (
    PRO,
    SIGN_UP,
    Customer,
    available,
    entitled,
    linked_customer,
    moment,
    new_customer,
    organization,
    reason,
    rows,
    status,
)
from tests.senders import (
    DAY,
    FIRST,
    SECOND,
    THIRD,
    charge,
    checkout_session,
    invoice_line,
    invoice_payment,
    post_clerk,
    stripe_event,
)

from backplane.stripe_effects import EFFECTS

pytestmark = pytest.mark.usefixtures("webhook_secrets")

SHAPES = ("old", "new")


@pytest.fixture
def customer(system_db: Database) -> Customer:
    return linked_customer()


def told(database: Database, event_type: str) -> list[dict[str, Any]]:
    """The domain events of a type, oldest first."""
    query = "SELECT payload FROM platform.outbox WHERE type = %s ORDER BY created_at"
    return [row["payload"] for row in rows(database, query, event_type)]


def subscribed(database: Database, customer: Customer) -> DictRow:
    [row] = rows(
        database,
        """
        SELECT status::text, price_id, current_period_end, cancel_at_period_end, cancel_at, ended_at
        FROM billing.subscriptions
        WHERE provider_subscription_id = %s
        """,
        customer.subscription,
    )
    return row


def purchase(database: Database, purchase_id: str) -> str:
    [row] = rows(
        database,
        "SELECT status::text FROM billing.purchases WHERE provider_purchase_id = %s",
        purchase_id,
    )
    return str(row["status"])


# ---- subscriptions ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "case",
    [
        ("created", {}, "pro"),
        ("created", {"status": "incomplete"}, "free"),
        ("created", {"status": "trialing", "trial_end": SECOND}, "pro"),
        ("updated", {"status": "past_due"}, "pro"),
        ("updated", {"status": "unpaid"}, "free"),
        ("updated", {"status": "incomplete_expired"}, "free"),
        ("updated", {"price": "price_super_yearly"}, "super"),
        ("updated", {"pause_collection": {"behavior": "void", "resumes_at": None}}, "pro"),
        ("updated", {"status": "paused"}, "pro"),  # on demand, since endive
        ("paused", {"status": "paused"}, "pro"),  # a trial that ended without a card
        ("resumed", {"status": "active"}, "pro"),
        ("pending_update_applied", {"price": "price_super_monthly"}, "super"),
        ("pending_update_expired", {}, "pro"),
        ("updated", {"cancel_at": SECOND}, "pro"),  # the portal, since clover
        ("updated", {"cancel_at_period_end": True}, "pro"),
        ("deleted", {"status": "canceled", "ended_at": FIRST + 60}, "free"),
    ],
)
def test_a_subscriptions_event_stores_its_state(
    system_db: Database, customer: Customer, shape: str, case: tuple[str, dict[str, Any], str]
) -> None:
    kind, fields, tier = case
    if kind != "created":
        assert status(customer.told("created", shape=shape)) == "processed"
    assert status(customer.told(kind, created=FIRST + 60, shape=shape, **fields)) == "processed"
    current = entitled(customer, system_db)
    assert current.tier == tier
    assert current.current_period_end == moment(SECOND)
    assert current.cancels_at_period_end == ("cancel_at" in fields or "cancel_at_period_end" in fields)
    [changed] = told(system_db, "subscription.changed")[-1:]
    assert (changed["status"], changed["provider"]) == (fields.get("status", "active"), "stripe")


def test_paused_collection_is_seen_in_the_history_only(system_db: Database, customer: Customer) -> None:
    paused = customer.told("updated", pause_collection={"behavior": "keep_as_draft"})
    assert status(paused) == "processed"
    [row] = rows(system_db, "SELECT status, metadata FROM billing.subscription_events")
    assert (row["status"], row["metadata"]) == ("active", {"pause_collection": "keep_as_draft"})


def test_the_item_with_the_plan_decides_the_price(system_db: Database, customer: Customer) -> None:
    for order in itertools.permutations(["price_addon", "price_pro_yearly", "price_seats"]):
        event = customer.told("updated", created=FIRST + 60)
        event["data"]["object"]["items"]["data"] = [
            {"price": {"id": price}, "current_period_start": FIRST, "current_period_end": SECOND}
            for price in order
        ]
        status(event)
        assert subscribed(system_db, customer)["price_id"] == "price_pro_yearly"


def test_a_trials_end_is_told_and_changes_nothing(system_db: Database, customer: Customer) -> None:
    status(customer.told("created", status="trialing", trial_end=SECOND))
    before = subscribed(system_db, customer)
    ending = customer.told("trial_will_end", created=FIRST + 60, status="trialing", trial_end=SECOND)
    assert status(ending) == "processed"
    assert subscribed(system_db, customer) == before
    assert told(system_db, "subscription.trial_will_end") == [
        {
            "provider": "stripe",
            "provider_subscription_id": customer.subscription,
            "trial_end": moment(SECOND).isoformat(),
        }
    ]
    status(customer.told("deleted", created=FIRST + 90, status="canceled"))
    late = customer.told("trial_will_end", created=FIRST + 70, status="trialing", trial_end=SECOND)
    assert status(late) == "stale"


@pytest.mark.parametrize("kind", ["subscription", "invoice", "pack"])
def test_a_price_nobody_knows_is_recorded_and_counted_and_changes_nothing(
    system_db: Database, customer: Customer, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    status(customer.told("created"))
    items = {"data": [{"price": {"id": "price_of_tomorrow"}, "quantity": 1}]}
    event = {
        "subscription": lambda: customer.told("updated", created=FIRST + 60, price="price_of_tomorrow"),
        "invoice": lambda: customer.paid(lines=[invoice_line(price="price_of_tomorrow")]),
        "pack": lambda: customer.pack(metadata={}, line_items=items),
    }[kind]()
    capsys.readouterr()
    assert status(event) == "parked"
    assert "price_of_tomorrow" in reason(system_db, event)
    current = entitled(customer, system_db)
    assert (current.tier, current.status, available(system_db, customer)) == ("pro", "active", SIGN_UP)
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"UnknownPrices"' in line]
    assert written
    alarm = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]["UnknownPricesAlarm"]["Properties"]
    [metric] = written[0]["_aws"]["CloudWatchMetrics"]
    assert (metric["Namespace"], metric["Metrics"][0]["Name"]) == (alarm["Namespace"], alarm["MetricName"])
    [dimensions] = metric["Dimensions"]
    assert sorted(dimensions) == sorted(watched["Name"] for watched in alarm["Dimensions"])


# ---- invoices that are not paid ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "case",
    [
        ("payment_failed", "payment.failed", "failed"),
        ("payment_action_required", "payment.action_required", "pending"),
        ("voided", None, "void"),
        ("marked_uncollectible", None, "uncollectible"),
    ],
)
def test_an_unpaid_invoice_is_told_and_leaves_plan_and_credits_alone(
    system_db: Database, customer: Customer, shape: str, case: tuple[str, str | None, str]
) -> None:
    kind, domain_event, stands = case
    status(customer.told("created"))
    fields: dict[str, Any] = {
        "id": "in_1",
        "amount_due": 4900,
        "currency": "usd",
        "attempt_count": 2,
        "next_payment_attempt": SECOND,
        "hosted_invoice_url": "https://invoice.example.com/1",
        "subscription": customer.subscription,
    }
    assert status(customer.billed(kind, shape=shape, **fields)) == "processed"
    assert entitled(customer, system_db).status == "active"
    assert available(system_db, customer) == SIGN_UP
    assert purchase(system_db, "in_1") == stands
    if domain_event is not None:
        [payload] = told(system_db, domain_event)
        assert payload == {
            "provider": "stripe",
            "purchase_id": "in_1",
            "provider_subscription_id": customer.subscription,
            "amount": 4900,
            "currency": "usd",
            "attempt": 2,
            "next_attempt_at": moment(SECOND).isoformat(),
        } | ({"url": fields["hosted_invoice_url"]} if domain_event == "payment.action_required" else {})


@pytest.mark.parametrize(
    "kind", ["payment_failed", "payment_action_required", "voided", "marked_uncollectible"]
)
def test_what_an_invoice_lacked_is_stale_once_it_is_paid(
    system_db: Database, customer: Customer, kind: str
) -> None:
    assert status(customer.paid(id="in_1")) == "processed"
    assert status(customer.billed(kind, id="in_1")) == "stale"
    assert purchase(system_db, "in_1") == "paid"
    assert available(system_db, customer) == SIGN_UP + PRO
    assert told(system_db, "payment.failed") + told(system_db, "payment.action_required") == []


def test_an_uncollectible_invoice_may_be_paid_after_all(system_db: Database, customer: Customer) -> None:
    status(customer.billed("marked_uncollectible", id="in_1"))
    assert status(customer.paid(id="in_1")) == "processed"
    assert purchase(system_db, "in_1") == "paid"
    assert available(system_db, customer) == SIGN_UP + PRO


@pytest.mark.parametrize("kind", ["payment_failed", "voided", "marked_uncollectible"])
def test_an_invoice_of_no_subscription_is_ignored_paid_or_not(
    system_db: Database,
    customer: Customer,
    kind: str,
) -> None:
    event = customer.billed(kind)
    event["data"]["object"]["parent"] = None
    assert status(event) == "ignored"


def test_an_invoices_payment_may_be_no_payment_of_stripes(
    system_db: Database,
) -> None:
    outside = invoice_payment("in_1", "pi_1", payment={"type": "payment_record", "payment_record": "pr_1"})
    assert status(stripe_event("invoice_payment.paid", outside)) == "ignored"


# ---- checkouts ----


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_pack_whose_payment_fails_is_told_once_and_never_granted(
    system_db: Database, customer: Customer, order: tuple[int, ...]
) -> None:
    events = [
        customer.pack(payment_status="unpaid"),
        customer.pack("async_payment_failed", payment_status="unpaid", amount_total=2000, currency="usd"),
        customer.pack("expired", payment_status="unpaid"),
    ]
    for index in order:
        assert status(events[index]) in {"processed", "stale"}
    assert available(system_db, customer) == SIGN_UP
    assert purchase(system_db, f"cs_of_{customer.number}") == "expired"


def test_a_failed_payment_of_a_session_is_told(system_db: Database, customer: Customer) -> None:
    failed = customer.pack("async_payment_failed", payment_status="unpaid", amount_total=2000, currency="usd")
    assert status(failed) == "processed"
    [payload] = told(system_db, "payment.failed")
    assert (payload["purchase_id"], payload["amount"]) == (f"cs_of_{customer.number}", 2000)
    assert payload["next_attempt_at"] is None


@pytest.mark.parametrize("kind", ["async_payment_failed", "expired"])
def test_a_session_that_was_paid_neither_fails_nor_expires(
    system_db: Database, customer: Customer, kind: str
) -> None:
    assert status(customer.pack()) == "processed"
    assert status(customer.pack(kind, payment_status="unpaid")) == "stale"
    assert purchase(system_db, f"cs_of_{customer.number}") == "paid"
    assert available(system_db, customer) == SIGN_UP + 500


@pytest.mark.parametrize("kind", ["async_payment_failed", "expired"])
def test_a_guests_session_that_came_to_nothing_is_ignored(
    system_db: Database,
    kind: str,
) -> None:
    guest = checkout_session(customer=None, mode="payment", payment_status="unpaid")
    assert status(stripe_event(f"checkout.session.{kind}", guest)) == "ignored"


# ---- packs ----


@pytest.mark.parametrize(
    ("session", "granted"),
    [
        ({"metadata": {"pack_id": "pack_2000"}}, 2000),
        ({"metadata": {"pack_id": "pack_500", "credits": "750"}}, 750),
        (
            {"metadata": {}, "line_items": {"data": [{"price": {"id": "price_pack_500"}, "quantity": 3}]}},
            1500,
        ),
        (
            {
                "metadata": {},
                "line_items": {
                    "data": [
                        {"price": {"id": "price_shipping"}, "quantity": 1},
                        {"price": {"id": "price_pack_500"}, "quantity": 1},
                        {"price": {"id": "price_pack_2000"}, "quantity": 1},
                    ]
                },
            },
            2500,
        ),
    ],
)
def test_a_pack_is_known_by_its_id_or_its_price(
    system_db: Database, customer: Customer, session: dict[str, Any], granted: int
) -> None:
    assert status(customer.pack(**session)) == "processed"
    assert available(system_db, customer) == SIGN_UP + granted


@pytest.mark.parametrize(
    "credits_",
    [
        "-500",
        "5e2",
        "0",
        "",
        " 500",
        "500 ",
        "0500",
        "1" * 40,
        "\u0665\u0660\u0660",
        "1.5",
        "1_000",
        500,
        None,
        [],
        {},
    ],
)
def test_credits_in_metadata_must_be_a_plain_number(
    system_db: Database, customer: Customer, credits_: object
) -> None:
    bought = customer.pack(metadata={"pack_id": "pack_500", "credits": credits_})
    if credits_ is None:
        assert status(bought) == "processed"
        return
    assert status(bought) == "quarantined"
    assert "metadata.credits" in reason(system_db, bought)
    assert available(system_db, customer) == SIGN_UP


def test_a_session_whose_pack_is_not_known_yet_links_its_customer_all_the_same(system_db: Database) -> None:
    customer = new_customer()
    post_clerk(customer.sign_up())
    paid = customer.paid()
    assert status(paid) == "parked"
    bought = customer.pack(client_reference_id=customer.user, metadata={"pack_id": "pack_of_tomorrow"})
    assert status(bought) == "parked"
    assert "pack_of_tomorrow" in reason(system_db, bought)
    assert available(system_db, customer) == SIGN_UP + PRO
    rows(
        system_db,
        """
        INSERT INTO billing.credit_packs (id, name, credits)
        VALUES ('pack_of_tomorrow', 'New', 9)
        RETURNING id
        """,
    )
    assert status(bought) == "processed"
    assert available(system_db, customer) == SIGN_UP + PRO + 9


# ---- one customer, two organisations ----


@pytest.mark.parametrize("reverse", [False, True])
def test_what_names_an_organisation_is_that_ones_and_what_names_none_the_customers(
    system_db: Database, reverse: bool
) -> None:
    first, other = linked_customer(), new_customer()
    post_clerk(other.sign_up())
    named = {"organization_id": other.user}
    second = f"{first.subscription}_b"
    paid = first.paid(lines=[invoice_line(price="price_super_monthly")])
    paid["data"]["object"]["parent"]["subscription_details"] = {"subscription": second, "metadata": named}
    events = [
        first.told("created"),
        first.paid(),
        first.told("created", id=second, price="price_super_monthly", metadata=named),
        paid,
        first.pack(id="cs_named", client_reference_id=other.user),
        first.pack(id="cs_unnamed"),
    ]
    for event in reversed(events) if reverse else events:
        assert status(event) == "processed"
    assert (entitled(first, system_db).tier, entitled(other, system_db).tier) == ("pro", "super")
    assert available(system_db, first) == SIGN_UP + PRO + 500
    assert available(system_db, other) == SIGN_UP + 10_000 + 500


# ---- customers that are deleted ----


def deleted(customer: Customer, *, created: int = FIRST + 90) -> dict[str, Any]:
    return stripe_event("customer.deleted", {"id": customer.id, "object": "customer"}, created=created)


def test_a_deleted_customer_has_no_subscription_any_more_and_keeps_his_packs(
    system_db: Database, customer: Customer
) -> None:
    for event in (customer.told("created"), customer.paid(), customer.pack(), deleted(customer)):
        assert status(event) == "processed"
    current = entitled(customer, system_db)
    assert (current.tier, current.status) == ("free", "canceled")
    assert subscribed(system_db, customer)["ended_at"] == moment(FIRST + 90)
    assert available(system_db, customer) == SIGN_UP + 500
    assert told(system_db, "subscription.changed")[-1]["status"] == "canceled"


def test_what_is_told_of_a_deleted_customer_is_stale_and_he_is_never_linked_again(
    system_db: Database, customer: Customer
) -> None:
    status(customer.told("created"))
    assert status(deleted(customer)) == "processed"
    named = {"organization_id": customer.user}
    for event in (
        deleted(customer),
        customer.told("updated", created=FIRST + 99, metadata=named),
        customer.told("created", id="sub_new", created=FIRST + 99, metadata=named),
        customer.told("trial_will_end", created=FIRST + 99),
        customer.paid(),
        customer.billed("payment_failed"),
    ):
        assert status(event) == "stale"
    status(customer.checkout())
    assert status(customer.told("created", id="sub_newer", created=FIRST + 99)) == "stale"
    assert entitled(customer, system_db).tier == "free"
    assert available(system_db, customer) == SIGN_UP
    [link] = rows(system_db, "SELECT deleted_at FROM billing.customers")
    assert link["deleted_at"] == moment(FIRST + 90)


@pytest.mark.parametrize("named", [True, False])
def test_a_pack_that_was_paid_is_granted_though_its_customer_is_deleted(
    system_db: Database, customer: Customer, named: bool
) -> None:
    status(deleted(customer))
    bought = customer.pack(client_reference_id=customer.user if named else None)
    assert status(bought) == "processed"
    assert available(system_db, customer) == SIGN_UP + 500


def test_a_customer_deleted_before_he_was_linked_is_settled_by_the_checkout(system_db: Database) -> None:
    customer = new_customer()
    post_clerk(customer.sign_up())
    assert [status(event) for event in (customer.told("created"), customer.paid())] == ["parked", "parked"]
    assert status(deleted(customer)) == "processed"
    assert status(customer.pack()) == "parked"
    assert status(customer.checkout()) == "processed"
    found = rows(
        system_db, "SELECT DISTINCT status::text FROM platform.webhook_inbox WHERE provider = 'stripe'"
    )
    assert {row["status"] for row in found} == {"processed", "stale"}
    assert (entitled(customer, system_db).tier, entitled(customer, system_db).status) == ("free", "canceled")
    assert available(system_db, customer) == SIGN_UP + 500


@pytest.mark.parametrize("shape", SHAPES)
def test_a_refund_of_what_a_deleted_customer_had_paid_does_not_wait_for_ever(
    system_db: Database, customer: Customer, shape: str
) -> None:
    status(deleted(customer))
    names: dict[str, Any] = {"payment_intent": "pi_1", "charge": "ch_1"}
    old = names if shape == "old" else {}
    assert status(customer.paid(shape=shape, id="in_1", **old)) == "stale"
    if shape == "new":
        assert status(stripe_event("invoice_payment.paid", invoice_payment("in_1", "pi_1"))) == "processed"
    refunded = charge("ch_1", refunded=4900, payment_intent="pi_1")
    assert status(stripe_event("charge.refunded", refunded)) == "processed"
    assert available(system_db, customer) == SIGN_UP  # what lapsed with him is not owed


def test_a_refund_of_an_invoice_that_gives_no_credits_does_not_wait_for_ever(
    system_db: Database, customer: Customer
) -> None:
    bill = customer.paid(shape="old", reason="manual", payment_intent="pi_1", charge="ch_1")
    assert status(bill) == "ignored"
    refunded = charge("ch_1", refunded=4900, payment_intent="pi_1")
    assert status(stripe_event("charge.refunded", refunded)) == "processed"
    assert available(system_db, customer) == SIGN_UP


@pytest.mark.parametrize("last", range(6))
@pytest.mark.parametrize("ended", [False, True])
def test_a_deleted_customers_story_ends_alike_whatever_came_last(
    system_db: Database, last: int, ended: bool
) -> None:
    """Also for what was told in the second of his deletion, for his plan's last price, and where the
    subscription had ended before.
    """
    customer = new_customer()
    post_clerk(customer.sign_up())
    story = [
        customer.checkout(),
        customer.told("created", created=FIRST, status="incomplete", price="price_starter_monthly"),
        customer.told("updated", created=FIRST + 90, status="past_due"),
        customer.paid(),
        deleted(customer),
    ]
    if ended:
        over: dict[str, Any] = {"status": "canceled", "price": "price_starter_monthly"}
        story.append(
            customer.told("deleted", created=FIRST + 50, ended_at=FIRST + 40, canceled_at=FIRST + 30, **over)
        )
    for event in [*story[last + 1 :], *story[: last + 1]]:
        assert status(event) in {"processed", "stale", "parked"}
    state = subscribed(system_db, customer)
    price, at = ("price_starter_monthly", FIRST + 40) if ended else ("price_pro_monthly", FIRST + 90)
    assert (state["status"], state["price_id"], state["ended_at"]) == ("canceled", price, moment(at))
    assert available(system_db, customer) == SIGN_UP
    assert len(rows(system_db, "SELECT 1 FROM credits.grants WHERE source = 'plan'")) == 1


# ---- whose stage, whose account ----


@pytest.mark.parametrize("fields", [{"livemode": True}, {"account": "acct_1"}])
def test_nothing_of_another_stage_or_account_has_an_effect(
    system_db: Database, customer: Customer, fields: dict[str, Any]
) -> None:
    status(customer.told("created"))
    for kind in EFFECTS:
        assert status(stripe_event(kind, {"id": customer.id}) | fields) == "ignored"
    assert organization(system_db, customer)
    assert entitled(customer, system_db).tier == "pro"


# ---- a month is a month in every shape ----


@pytest.mark.parametrize("shape", SHAPES)
def test_a_story_from_trial_to_the_end_comes_to_the_same_in_every_shape(
    system_db: Database, customer: Customer, shape: str
) -> None:
    def period(price: str, amount: int, start: int, end: int, *, proration: bool = False) -> dict[str, Any]:
        return invoice_line(
            shape=shape, price=price, amount=amount, start=start, end=end, proration=proration
        )

    trial: dict[str, Any] = {
        "status": "trialing",
        "trial_end": FIRST + DAY,
        "price": "price_starter_monthly",
    }
    free = [period("price_starter_monthly", 0, FIRST, FIRST + DAY)]
    first = [period("price_starter_monthly", 2900, FIRST + DAY, SECOND)]
    up = [
        period("price_starter_monthly", -1400, FIRST + 2 * DAY, SECOND, proration=True),
        period("price_pro_monthly", 2400, FIRST + 2 * DAY, SECOND, proration=True),
    ]
    renewed = [period("price_pro_monthly", 4900, SECOND, THIRD)]
    story: list[tuple[dict[str, Any], int]] = [
        (customer.told("created", shape=shape, **trial), 0),
        (customer.paid(shape=shape, lines=free), 0),
        (customer.told("updated", shape=shape, created=FIRST + 60, price="price_starter_monthly"), 0),
        (customer.paid(shape=shape, reason="subscription_cycle", lines=first), 500),
        (customer.told("updated", shape=shape, created=FIRST + 120), 500),
        (customer.paid(shape=shape, reason="subscription_update", lines=up), PRO),
        (customer.told("updated", shape=shape, created=FIRST + 180, start=SECOND, end=THIRD), PRO),
        (customer.paid(shape=shape, reason="subscription_cycle", lines=renewed), PRO),
        (customer.told("deleted", shape=shape, created=FIRST + 240, status="canceled"), 0),
    ]
    for event, credits_of_the_plan in story:
        assert status(event) == "processed"
        assert available(system_db, customer) == SIGN_UP + credits_of_the_plan
