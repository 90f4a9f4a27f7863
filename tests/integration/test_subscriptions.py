"""What Stripe's events come to: plans, credits and their end, in every order the events may come in."""

import itertools
import random
from datetime import timedelta
from typing import Any

import pytest
from psycopg.rows import DictRow
from tests.databases import Database
from tests.payers import (
    PRO,
    SIGN_UP,
    STARTER,
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
    stored,
)
from tests.senders import (
    DAY,
    FIRST,
    SECOND,
    THIRD,
    checkout_session,
    clerk_user,
    invoice_line,
    post_clerk,
    post_stripe,
    stripe_event,
)
from tests.stripe_api import FakeStripe

from backplane.periods import add_months

pytestmark = pytest.mark.usefixtures("webhook_secrets", "stripe_path")


@pytest.fixture
def customer(system_db: Database) -> Customer:
    """Signed up and linked by a checkout."""
    return linked_customer()


def grants(database: Database, customer: Customer) -> list[DictRow]:
    return rows(
        database,
        """
        SELECT source::text, split_part(source_key, ':', 1) AS fact, amount, remaining, live,
               expires_at, period_end, provider_subscription_id
        FROM credits.grants
        WHERE organization_id = %s
        ORDER BY source, period_end, amount
        """,
        organization(database, customer),
    )


def older(stripe_path: FakeStripe | None) -> str:
    """What an older event answers: a fetched state is the newest, whichever event it is for."""
    return "stale" if stripe_path is None else "processed"


# ---- whose: checkout links a customer ----


@pytest.mark.parametrize("named_by", ["client_reference_id", "metadata"])
@pytest.mark.parametrize("name", ["our id", "clerk user", "clerk organization"])
def test_a_checkout_names_the_organisation_in_three_ways(
    system_db: Database, named_by: str, name: str
) -> None:
    customer = new_customer()
    post_clerk(customer.sign_up())
    expected = organization(system_db, customer)
    reference = {"our id": str(expected), "clerk user": customer.user, "clerk organization": "org_1"}[name]
    if name == "clerk organization":
        [made] = rows(
            system_db,
            "SELECT tenancy.provision_organization('org_1', 'Acme', id, 'admin') AS id FROM identity.users",
        )
        expected = made["id"]
    given = {"metadata": {"organization_id": reference}} if named_by == "metadata" else {named_by: reference}
    assert status(customer.session("checkout.session.completed", **given)) == "processed"
    assert rows(system_db, "SELECT organization_id, provider_customer_id FROM billing.customers") == [
        {"organization_id": expected, "provider_customer_id": customer.id}
    ]


def test_a_reference_in_capitals_is_the_same_organisation(system_db: Database) -> None:
    customer = new_customer()
    post_clerk(customer.sign_up())
    reference = str(organization(system_db, customer)).upper()
    assert (
        status(customer.session("checkout.session.completed", client_reference_id=reference)) == "processed"
    )


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("user_unknown", "parked"),
        ("org_unknown", "parked"),
        ("00000000-0000-7000-8000-000000000000", "quarantined"),
        ("ada@example.com", "quarantined"),
        ("x" * 300, "quarantined"),
        ("user_" + "x" * 250, "parked"),
    ],
)
def test_a_checkout_for_nobody_waits_where_he_may_still_come(
    system_db: Database, reference: str, expected: str
) -> None:
    checkout = Customer(1).session("checkout.session.completed", client_reference_id=reference)
    assert status(checkout) == expected
    assert rows(system_db, "SELECT 1 FROM billing.customers") == []


def test_a_checkout_that_names_nobody_is_parked_for_its_customer(system_db: Database) -> None:
    assert status(Customer(1).session("checkout.session.completed")) == "parked"


@pytest.mark.parametrize(("metadata", "expected"), [({}, "ignored"), ({"pack_id": "pack_500"}, "parked")])
def test_a_guest_at_anothers_till_is_ignored_and_one_who_paid_for_a_pack_is_kept_for_a_person_to_see(
    system_db: Database, metadata: dict[str, str], expected: str
) -> None:
    guest = checkout_session(customer=None, mode="payment", metadata=metadata)
    assert status(stripe_event("checkout.session.completed", guest)) == expected


def test_a_checkout_without_a_reference_belongs_to_its_customers_organisation(
    system_db: Database, customer: Customer
) -> None:
    again = customer.session(
        "checkout.session.completed", mode="payment", metadata={"pack_id": "pack_500"}, subscription=None
    )
    assert status(again) == "processed"
    assert available(system_db, customer) == SIGN_UP + 500


def test_a_checkout_of_an_erased_user_is_quarantined(system_db: Database) -> None:
    customer = new_customer()
    post_clerk(customer.sign_up())
    post_clerk(clerk_user(customer.user, kind="deleted"))
    assert status(customer.checkout()) == "quarantined"


@pytest.mark.parametrize("arrival", ["created", "deleted"])
def test_a_checkout_waits_for_its_user_and_is_decided_when_he_is_known(
    system_db: Database, arrival: str
) -> None:
    customer = new_customer()
    checkout = customer.checkout()
    assert status(checkout) == "parked"
    post_clerk(clerk_user(customer.user, kind=arrival))
    [row] = rows(
        system_db,
        "SELECT status::text, reason FROM platform.webhook_inbox WHERE event_id = %s",
        checkout["id"],
    )
    assert row["status"] == {"created": "processed", "deleted": "quarantined"}[arrival]


def test_a_chain_of_waiting_events_is_applied_when_its_first_link_comes(system_db: Database) -> None:
    customer = new_customer()
    events = [customer.paid(), customer.told("created"), customer.checkout()]
    assert [status(event) for event in events] == ["parked"] * 3
    assert post_clerk(customer.sign_up()).body["status"] == "processed"
    assert available(system_db, customer) == SIGN_UP + PRO
    assert stored(system_db, customer)["status"] == "active"
    assert {status(event) for event in events} == {"duplicate"}


def test_metadata_of_a_subscription_or_its_invoice_links_the_customer_without_a_checkout(
    system_db: Database,
) -> None:
    for kind in ("subscription", "new", "old"):
        customer = new_customer()
        post_clerk(customer.sign_up())
        named = {"organization_id": customer.user}
        assert status(customer.paid()) == "parked"
        if kind == "subscription":
            assert status(customer.told("created", metadata=named)) == "processed"
        else:
            paid = customer.paid(shape=kind)
            details = {"subscription": customer.subscription, "metadata": named}
            obj = paid["data"]["object"]
            obj |= {"subscription_details": details} if kind == "old" else {}
            obj |= {"parent": {"subscription_details": details}} if kind == "new" else {}
            assert status(paid) == "processed"
        first = PRO if kind == "subscription" else 2 * PRO  # the parked invoice, and the one that links
        assert available(system_db, customer) == SIGN_UP + first


@pytest.mark.parametrize("reference", ["nobody", "00000000-0000-7000-8000-000000000000", {"a": 1}, 7])
@pytest.mark.parametrize("late", [False, True])
def test_metadata_that_names_nobody_does_not_matter_once_a_checkout_does(
    system_db: Database, reference: object, late: bool
) -> None:
    customer = new_customer()
    post_clerk(customer.sign_up())
    told = customer.told("created", metadata={"organization_id": reference})
    events = [customer.checkout(), told] if late else [told, customer.checkout()]
    for event in events:
        status(event)
    assert stored(system_db, customer)["status"] == "active"


# ---- packs ----


@pytest.mark.parametrize("payment_status", ["paid", "no_payment_required"])
def test_a_paid_pack_is_granted_once_and_for_ever(
    system_db: Database, customer: Customer, payment_status: str
) -> None:
    for _ in range(2):  # two events of one session: the session is what grants
        bought = customer.pack(payment_status=payment_status, payment_intent="pi_7", invoice="in_7")
        assert status(bought) == "processed"
    assert available(system_db, customer) == SIGN_UP + 500
    [grant] = rows(system_db, "SELECT * FROM credits.grants WHERE source = 'pack'")
    assert (grant["expires_at"], grant["checkout_session_id"]) == (None, f"cs_of_{customer.number}")
    assert (grant["payment_intent_id"], grant["invoice_id"]) == ("pi_7", "in_7")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_pack_paid_later_is_granted_when_the_payment_succeeds(
    system_db: Database, customer: Customer, reverse: bool
) -> None:
    events = [customer.pack(payment_status="unpaid"), customer.pack("async_payment_succeeded")]
    expected = [SIGN_UP, SIGN_UP + 500]
    for event, balance in zip(reversed(events) if reverse else events, expected, strict=True):
        assert status(event) == "processed"
        assert available(system_db, customer) == (SIGN_UP + 500 if reverse else balance)


@pytest.mark.parametrize(
    ("metadata", "expected", "said"),
    [
        ({}, "parked", "no metadata.pack_id"),
        ({"pack_id": "pack_9"}, "parked", "no pack pack_9"),
        ({"pack_id": 500}, "quarantined", "pack_id"),
        ({"pack_id": "x" * 300}, "quarantined", "pack_id"),
        ("pack_500", "quarantined", "metadata"),
    ],
)
def test_a_pack_that_is_not_known_is_not_granted_and_says_why(
    system_db: Database, customer: Customer, metadata: object, expected: str, said: str
) -> None:
    bought = customer.pack(metadata=metadata)
    assert status(bought) == expected
    assert said in reason(system_db, bought)
    assert available(system_db, customer) == SIGN_UP


# ---- the subscription's state ----


@pytest.mark.parametrize("shape", ["old", "new"])
def test_both_shapes_give_the_same_subscription_and_the_same_grant(
    system_db: Database, customer: Customer, shape: str
) -> None:
    assert status(customer.told("created", shape=shape)) == "processed"
    assert status(customer.paid(shape=shape)) == "processed"
    assert stored(system_db, customer) == {
        "plan": "pro",
        "price_id": "price_pro_monthly",
        "status": "active",
        "provider_customer_id": customer.id,
        "current_period_start": moment(FIRST),
        "current_period_end": moment(SECOND),
        "cancel_at_period_end": False,
        "cancel_at": None,
        "canceled_at": None,
        "ended_at": None,
        "trial_end": None,
    }
    [grant, _] = grants(system_db, customer)
    assert grant == {
        "source": "plan",
        "fact": "invoice",
        "amount": PRO,
        "remaining": PRO,
        "live": True,
        "expires_at": moment(SECOND + 3 * DAY),
        "period_end": moment(SECOND),
        "provider_subscription_id": customer.subscription,
    }


@pytest.mark.parametrize(
    ("fields", "cancels"),
    [
        ({"cancel_at": SECOND}, True),  # the portal, with flexible billing
        ({"cancel_at_period_end": True, "cancel_at": SECOND}, True),
        ({"cancel_at_period_end": True}, True),
        ({}, False),
    ],
)
def test_a_cancellation_at_the_periods_end_is_seen_and_keeps_the_plan_till_then(
    system_db: Database, customer: Customer, fields: dict[str, Any], cancels: bool
) -> None:
    status(customer.told("created"))
    assert status(customer.told("updated", created=FIRST + 60, **fields)) == "processed"
    current = entitled(customer, system_db)
    assert (current.tier, current.status, current.cancels_at_period_end) == ("pro", "active", cancels)


@pytest.mark.parametrize(
    ("told", "tier"),
    [
        ("trialing", "pro"),
        ("active", "pro"),
        ("past_due", "pro"),
        ("paused", "pro"),
        ("incomplete", "free"),
        ("incomplete_expired", "free"),
        ("unpaid", "free"),
        ("canceled", "free"),
    ],
)
def test_a_status_decides_the_tier(system_db: Database, customer: Customer, told: str, tier: str) -> None:
    status(customer.told("created", status=told))
    current = entitled(customer, system_db)
    assert (current.tier, current.status) == (tier, told)


def test_of_two_events_of_one_second_the_update_is_the_newer_in_both_orders(
    stripe_path: FakeStripe | None, system_db: Database
) -> None:
    for order in (1, -1):
        customer = new_customer()
        post_clerk(customer.sign_up())
        status(customer.checkout())
        events = [customer.told("created", status="incomplete"), customer.told("updated")]
        answers = [status(event) for event in events[::order]]
        assert answers == ["processed", "processed" if order == 1 else older(stripe_path)]
        assert stored(system_db, customer)["status"] == "active"


def test_the_kind_decides_within_a_second_where_states_are_equal_and_ids_tell_nothing(
    system_db: Database,
) -> None:
    for order in (1, -1):
        customer = new_customer()
        post_clerk(customer.sign_up())
        status(customer.checkout())
        events = [
            customer.told("created") | {"id": f"evt_z{customer.number}"},
            customer.told("updated", cancel_at=SECOND) | {"id": f"evt_a{customer.number}"},
        ]
        for event in events[::order]:
            status(event)
        assert stored(system_db, customer)["cancel_at"] == moment(SECOND)


def test_of_two_updates_of_one_second_the_later_state_of_a_life_wins_in_both_orders(
    system_db: Database,
) -> None:
    for order in (1, -1):
        customer = new_customer()
        post_clerk(customer.sign_up())
        status(customer.checkout())
        events = [
            customer.told("updated", status="incomplete") | {"id": f"evt_z_{customer.number}"},
            customer.told("updated") | {"id": f"evt_a_{customer.number}"},
        ]
        for event in events[::order]:
            status(event)
        assert stored(system_db, customer)["status"] == "active"


def test_an_older_state_is_stale_and_stands_in_the_history_only(
    stripe_path: FakeStripe | None, system_db: Database, customer: Customer
) -> None:
    assert status(customer.told("updated", created=FIRST + 60)) == "processed"
    assert status(customer.told("updated", created=FIRST + 59, status="past_due")) == older(stripe_path)
    assert stored(system_db, customer)["status"] == "active"
    history = rows(system_db, "SELECT status FROM billing.subscription_events ORDER BY occurred_at")
    assert [row["status"] for row in history] == ["past_due", "active"]
    changed = rows(system_db, "SELECT payload FROM platform.outbox WHERE type = 'subscription.changed'")
    assert {row["payload"]["status"] for row in changed} == {"active"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_deleted_subscription_stays_so_whatever_comes_later(
    system_db: Database, customer: Customer, order: tuple[int, ...]
) -> None:
    events = [
        customer.told("created"),
        customer.told("deleted", created=FIRST + 60, status="canceled", ended_at=FIRST + 60),
        customer.told("updated", created=FIRST + 90),  # sent late by a confused sender
    ]
    for index in order:
        status(events[index])
    assert (stored(system_db, customer)["status"], stored(system_db, customer)["ended_at"]) == (
        "canceled",
        moment(FIRST + 60),
    )
    assert entitled(customer, system_db).tier == "free"


@pytest.mark.parametrize(("kind", "told"), [("deleted", "active"), ("updated", "canceled")])
def test_the_end_is_told_by_the_event_or_by_the_status(
    stripe_path: FakeStripe | None, system_db: Database, customer: Customer, kind: str, told: str
) -> None:
    assert status(customer.told(kind, created=FIRST + 60, status=told)) == "processed"
    assert status(customer.told("updated", created=FIRST + 90)) == older(stripe_path)
    assert stored(system_db, customer)["status"] == "canceled"


def test_a_deletion_that_comes_first_leaves_a_tombstone(
    stripe_path: FakeStripe | None, system_db: Database, customer: Customer
) -> None:
    assert status(customer.told("deleted", created=FIRST + 60, status="canceled")) == "processed"
    assert status(customer.told("created")) == older(stripe_path)
    assert stored(system_db, customer)["status"] == "canceled"


def test_an_unknown_price_waits_and_leaves_what_is_there(system_db: Database, customer: Customer) -> None:
    status(customer.told("created"))
    before = stored(system_db, customer)
    changed = customer.told("updated", created=FIRST + 60, price="price_of_tomorrow")
    assert status(changed) == "parked"
    assert "price_of_tomorrow" in reason(system_db, changed)
    assert stored(system_db, customer) == before
    assert entitled(customer, system_db).tier == "pro"
    assert status(customer.paid(lines=[invoice_line(price="price_of_tomorrow")])) == "parked"
    assert available(system_db, customer) == SIGN_UP
    with system_db.connect() as connection:
        connection.execute(
            """
            INSERT INTO billing.plan_prices (price_id, plan_id, "interval")
            SELECT 'price_of_tomorrow', id, 'month' FROM billing.plans WHERE key = 'super'
            """
        )
    assert status(changed) == "processed"  # the sender's own retry is enough
    assert entitled(customer, system_db).tier == "super"


def test_the_end_of_a_subscription_is_told_under_any_price(system_db: Database, customer: Customer) -> None:
    status(customer.told("created"))
    end = customer.told("deleted", created=FIRST + 60, status="canceled", price="price_withdrawn")
    assert status(end) == "processed"
    assert (stored(system_db, customer)["plan"], stored(system_db, customer)["status"]) == ("pro", "canceled")


def test_a_subscription_of_several_items_is_its_highest_plan(system_db: Database, customer: Customer) -> None:
    state = customer.told("created", price="price_addon")
    items = [
        {"price": {"id": price}, "current_period_start": FIRST, "current_period_end": end}
        for price, end in [
            ("price_addon", SECOND),
            ("price_super_monthly", THIRD),
            ("price_starter_monthly", THIRD),
        ]
    ]
    state["data"]["object"]["items"]["data"] = items
    assert status(state) == "processed"
    assert stored(system_db, customer)["plan"] == "super"
    assert stored(system_db, customer)["current_period_end"] == moment(SECOND)


def test_of_two_subscriptions_the_higher_one_counts(system_db: Database, customer: Customer) -> None:
    status(customer.told("created", id="sub_a", price="price_starter_monthly"))
    status(customer.told("created", id="sub_b", price="price_super_monthly"))
    assert entitled(customer, system_db).tier == "super"
    status(customer.told("deleted", id="sub_b", created=FIRST + 60, status="canceled"))
    current = entitled(customer, system_db)
    assert (current.tier, current.status) == ("starter", "active")


@pytest.mark.parametrize(
    "fields", [{"livemode": True}, {"livemode": None}, {"livemode": "false"}, {"account": "acct_1"}]
)
def test_what_is_not_this_stages_is_recorded_without_effect(
    system_db: Database, customer: Customer, fields: dict[str, Any]
) -> None:
    for event in (customer.told("created"), customer.paid(), customer.pack()):
        assert status(event | fields) == "ignored"
    assert available(system_db, customer) == SIGN_UP
    assert rows(system_db, "SELECT 1 FROM billing.subscriptions") == []


@pytest.mark.parametrize(
    "kind",
    ["invoice.payment_succeeded", "customer.created", "payment_intent.succeeded", "a.kind.of.tomorrow"],
)
def test_kinds_without_effect_are_ignored(system_db: Database, customer: Customer, kind: str) -> None:
    paid = customer.paid()
    assert status(paid | {"type": kind}) == "ignored"
    assert available(system_db, customer) == SIGN_UP


# ---- credits of a plan ----


@pytest.mark.parametrize("shape", ["old", "new"])
@pytest.mark.parametrize(
    ("lines", "granted"),
    [
        ([("starter", -1355), ("pro", 3387)], PRO - STARTER),
        ([("pro", -3387), ("starter", 1355)], 0),  # a downgrade
        ([("pro", -4900), ("pro", 9800)], 0),  # more seats of the same
        ([("starter", -5), ("pro", 10), ("pro", -9), ("super", 99)], 10_000 - STARTER),  # two steps at once
        ([("pro", 10)], PRO - STARTER),  # from nothing: the period's first 500 are granted already
        ([("super", 0)], 0),  # a trial made longer
        ([("pro", -10)], 0),  # to nothing
        ([("starter", -5), ("pro", 10), ("pro", 20)], PRO - STARTER),  # a tiered price: a line a tier
    ],
)
def test_a_change_in_the_middle_of_a_period_grants_the_difference_only(
    system_db: Database, customer: Customer, shape: str, lines: list[tuple[str, int]], granted: int
) -> None:
    half = FIRST + 15 * DAY
    changes = [
        invoice_line(
            shape=shape, price=f"price_{plan}_monthly", amount=amount, start=half, end=SECOND, proration=True
        )
        for plan, amount in lines
    ]
    status(customer.told("created", price="price_starter_monthly"))
    status(customer.paid(lines=[invoice_line(price="price_starter_monthly")]))
    assert status(customer.paid(shape=shape, lines=changes, reason="subscription_update")) == "processed"
    assert available(system_db, customer) == SIGN_UP + STARTER + granted


def test_down_and_up_again_on_invoices_of_their_own_grants_each_step_once(
    system_db: Database, customer: Customer
) -> None:
    """The portal pays the second climb from the balance that the descent left: it costs nothing."""

    def change(before: str, after: str, sign: int) -> str:
        lines = [
            invoice_line(
                price=f"price_{plan}_monthly", amount=amount, start=FIRST + DAY, end=SECOND, proration=True
            )
            for plan, amount in ((before, -100 if sign > 0 else -900), (after, 900 if sign > 0 else 100))
        ]
        return status(customer.paid(lines=lines, reason="subscription_update"))

    status(customer.paid(lines=[invoice_line(price="price_starter_monthly")]))
    for _ in range(3):
        assert change("starter", "super", 1) == "processed"
        assert change("super", "starter", -1) == "processed"
    assert available(system_db, customer) == SIGN_UP + 10_000
    assert change("starter", "pro", 1) == "processed"
    assert change("pro", "enterprise", 1) == "processed"
    assert available(system_db, customer) == SIGN_UP + 50_000


def test_a_change_that_begins_a_new_period_does_not_end_what_the_old_one_gave(
    system_db: Database, customer: Customer
) -> None:
    """From monthly to yearly: a new anchor, and an invoice for the difference only."""
    half = FIRST + 1800
    status(customer.paid(lines=[invoice_line(price="price_starter_monthly")]))
    change = [
        invoice_line(price="price_starter_monthly", amount=-500, start=half, end=SECOND, proration=True),
        invoice_line(price="price_pro_yearly", amount=49_000, start=half, end=half + 365 * DAY),
    ]
    assert status(customer.paid(lines=change, reason="subscription_update")) == "processed"
    assert available(system_db, customer) == SIGN_UP + PRO
    year_end = moment(half + 365 * DAY)
    lasts = max(grant["expires_at"] for grant in grants(system_db, customer) if grant["source"] == "plan")
    assert lasts == add_months(year_end, -11) + timedelta(hours=72)


def test_a_change_to_a_plan_not_known_waits_for_that_plan(system_db: Database, customer: Customer) -> None:
    change = [
        invoice_line(price="price_starter_monthly", amount=-500, proration=True),
        invoice_line(price="price_of_tomorrow", amount=900, proration=True),
    ]
    assert status(customer.paid(lines=change, reason="subscription_update")) == "parked"
    [row] = rows(system_db, "SELECT waiting_for FROM platform.webhook_inbox WHERE status = 'parked'")
    assert row["waiting_for"] == "billing.price:price_of_tomorrow"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reason": "manual"}, "ignored"),
        ({"reason": "upcoming"}, "ignored"),
        ({"reason": None}, "ignored"),
        ({"lines": [invoice_line(amount=0)]}, "processed"),  # a trial
        ({"lines": []}, "quarantined"),
    ],
)
def test_invoices_that_pay_no_period_grant_nothing(
    system_db: Database, customer: Customer, fields: dict[str, Any], expected: str
) -> None:
    assert status(customer.paid(**fields)) == expected
    assert available(system_db, customer) == SIGN_UP


def test_an_invoice_that_is_no_subscriptions_is_ignored(system_db: Database, customer: Customer) -> None:
    paid = customer.paid()
    paid["data"]["object"]["parent"] = None
    assert status(paid) == "ignored"


def test_prorations_on_a_renewals_invoice_do_not_count_twice(system_db: Database, customer: Customer) -> None:
    lines = [
        invoice_line(price="price_starter_monthly", amount=-5, proration=True),
        invoice_line(price="price_super_monthly", amount=99, proration=True),
        invoice_line(price="price_pro_monthly", start=SECOND, end=THIRD),
    ]
    assert status(customer.paid(reason="subscription_cycle", lines=lines)) == "processed"
    assert available(system_db, customer) == SIGN_UP + PRO


@pytest.mark.parametrize("months_in", [0, 5])
def test_a_yearly_price_gives_the_months_credits_not_the_years(
    system_db: Database, customer: Customer, months_in: int
) -> None:
    year_end = add_months(moment(FIRST), 12)
    start = add_months(moment(FIRST), months_in)
    line = invoice_line(price="price_pro_yearly", start=int(start.timestamp()), end=int(year_end.timestamp()))
    assert status(customer.paid(lines=[line])) == "processed"
    assert available(system_db, customer) == SIGN_UP + PRO
    assert grants(system_db, customer)[0]["period_end"] == add_months(moment(FIRST), months_in + 1)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_renewal_ends_the_earlier_periods_credits_in_both_orders(
    system_db: Database, customer: Customer, reverse: bool
) -> None:
    first = customer.paid()
    second = customer.paid(reason="subscription_cycle", lines=[invoice_line(start=SECOND, end=THIRD)])
    for event in (second, first) if reverse else (first, second):
        assert status(event) == "processed"
    assert available(system_db, customer) == SIGN_UP + PRO
    assert [
        (g["period_end"], g["remaining"]) for g in grants(system_db, customer) if g["source"] == "plan"
    ] == [
        (moment(SECOND), 0),
        (moment(THIRD), PRO),
    ]


def test_an_invoice_told_after_its_period_and_grace_gives_nothing_that_lasts(
    system_db: Database, customer: Customer
) -> None:
    line = invoice_line(start=FIRST - 40 * DAY, end=FIRST - 10 * DAY)
    assert status(customer.paid(lines=[line])) == "processed"
    assert available(system_db, customer) == SIGN_UP


def test_the_end_of_a_subscription_ends_its_credits_and_no_others(
    system_db: Database, customer: Customer
) -> None:
    status(customer.told("created"))
    status(customer.paid())
    status(customer.pack())
    status(customer.told("created", id="sub_other", price="price_starter_monthly"))
    other = customer.paid(lines=[invoice_line(price="price_starter_monthly")])
    other["data"]["object"]["parent"]["subscription_details"]["subscription"] = "sub_other"
    status(other)
    assert available(system_db, customer) == SIGN_UP + PRO + 500 + STARTER
    assert status(customer.told("deleted", created=FIRST + 60, status="canceled")) == "processed"
    assert available(system_db, customer) == SIGN_UP + 500 + STARTER


def test_a_payment_told_after_the_end_leaves_nothing(system_db: Database, customer: Customer) -> None:
    status(customer.told("deleted", created=FIRST + 60, status="canceled"))
    assert status(customer.paid()) == "processed"
    assert available(system_db, customer) == SIGN_UP
    assert [
        entry["amount"] for entry in rows(system_db, "SELECT amount FROM credits.entries ORDER BY version")
    ] == [
        SIGN_UP,
        PRO,
        -PRO,
    ]


def test_past_due_keeps_credits(system_db: Database, customer: Customer) -> None:
    status(customer.told("created"))
    status(customer.paid())
    status(customer.told("updated", created=FIRST + 60, status="past_due"))
    assert available(system_db, customer) == SIGN_UP + PRO


# ---- every order ----


def lifecycle(customer: Customer, *, ending: bool) -> list[dict[str, Any]]:
    """A month, an upgrade inside it, a renewal, and perhaps the end; the sign-up comes in any order too."""
    change = [
        invoice_line(price="price_starter_monthly", amount=-5, start=FIRST + 600, end=SECOND, proration=True),
        invoice_line(price="price_pro_monthly", amount=9, start=FIRST + 600, end=SECOND, proration=True),
    ]
    renewal = [invoice_line(start=SECOND, end=THIRD)]
    events = [
        customer.sign_up(),
        customer.checkout(),
        customer.told("created", status="incomplete", price="price_starter_monthly"),
        customer.told("updated", price="price_starter_monthly"),
        customer.paid(lines=[invoice_line(price="price_starter_monthly")]),
        customer.told("updated", created=FIRST + 600),
        customer.paid(reason="subscription_update", lines=change, created=FIRST + 601),
        customer.told("updated", created=SECOND, start=SECOND, end=THIRD),
        customer.paid(reason="subscription_cycle", lines=renewal, created=SECOND + 3600),
    ]
    over = {"status": "canceled", "ended_at": THIRD, "start": SECOND, "end": THIRD}
    return [*events, customer.told("deleted", created=THIRD, **over)] if ending else events


def outcome(database: Database, customer: Customer) -> dict[str, Any]:
    state = stored(database, customer)
    state.pop("provider_customer_id")
    kept = [
        {k: v for k, v in g.items() if k != "provider_subscription_id"} for g in grants(database, customer)
    ]
    return {"subscription": state, "grants": kept, "available": available(database, customer)}


@pytest.mark.parametrize("ending", [False, True])
def test_every_order_with_repetitions_ends_in_the_same_state(
    stripe_path: FakeStripe | None, system_db: Database, ending: bool
) -> None:
    drawn = random.Random(20260501)
    expected: dict[str, Any] | None = None
    for attempt in range(30 if stripe_path is None else 8):
        customer = new_customer()
        events = lifecycle(customer, ending=ending)
        if attempt:  # the first one in order
            events += drawn.sample(events, 3)
            drawn.shuffle(events)
        for event in events:
            answer = post_stripe(event) if "id" in event else post_clerk(event, f"msg_{customer.user}")
            assert answer.status == 200
        expected = expected or outcome(system_db, customer)
        assert outcome(system_db, customer) == expected, [event["type"] for event in events]
    statuses = rows(system_db, "SELECT DISTINCT status::text FROM platform.webhook_inbox")
    assert {row["status"] for row in statuses} <= {"processed", "stale"}
    assert expected is not None
    assert expected["available"] == (SIGN_UP if ending else SIGN_UP + PRO)
    assert expected["subscription"]["status"] == ("canceled" if ending else "active")
    assert [grant["amount"] for grant in expected["grants"]] == [STARTER, PRO - STARTER, PRO, SIGN_UP]
    unequal = rows(
        system_db,
        """
        SELECT 1
        FROM credits.accounts AS a
        JOIN LATERAL (
            SELECT sum(g.remaining) AS live
            FROM credits.grants AS g
            WHERE g.organization_id = a.organization_id
        ) AS g ON true
        WHERE a.available <> g.live
        """,
    )
    assert unequal == []
