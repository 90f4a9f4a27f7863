"""Refunds and disputes: what goes back takes its credits along, and brings them back when it returns."""

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
from tests.databases import Database
from tests.kills import Killed, at_statement, end_the_session
from tests.ledgers import assert_books_balance, debit
from tests.payers import PRO, SIGN_UP, Customer, linked_customer, new_customer, organization, rows, status
from tests.senders import (
    DAY,
    FIRST,
    SECOND,
    THIRD,
    charge,
    dispute,
    invoice_line,
    invoice_payment,
    post_clerk,
    post_stripe,
    refund,
    stripe_event,
)

from backplane import db

pytestmark = pytest.mark.usefixtures("webhook_secrets")

PACK = 500


@pytest.fixture
def customer(system_db: Database) -> Customer:
    return linked_customer()


@dataclass(frozen=True)
class Bought:
    """A payment of a customer's, and what is told of it. Days are counted from the payment."""

    customer: Customer
    name: str
    amount: int = 4900

    @property
    def intent(self) -> str:
        return f"pi_{self.name}_{self.customer.number}"

    @property
    def charge(self) -> str:
        return f"ch_{self.name}_{self.customer.number}"

    def refunded(self, total: int, *, day: int = 1, **fields: Any) -> dict[str, Any]:
        """The charge says what was refunded in all."""
        told = charge(self.charge, refunded=total, amount=self.amount, payment_intent=self.intent)
        return stripe_event("charge.refunded", told | fields, created=FIRST + day * DAY)

    def refund(
        self, kind: str, name: str, amount: int, *, day: int = 1, since: int = 1, **fields: Any
    ) -> dict[str, Any]:
        """A single refund, made on the day `since`: `created`, `updated`, `failed`."""
        told = refund(
            f"re_{name}_{self.name}_{self.customer.number}",
            amount=amount,
            charge=self.charge,
            payment_intent=self.intent,
            created=FIRST + since * DAY,
        )
        kind = kind if "." in kind else f"refund.{kind}"
        return stripe_event(kind, told | fields, created=FIRST + day * DAY)

    def dispute(
        self,
        kind: str,
        status: str,
        *,
        day: int = 2,
        name: str = "a",
        amount: int | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        told = dispute(
            f"du_{name}_{self.name}_{self.customer.number}",
            status=status,
            amount=self.amount if amount is None else amount,
            charge=self.charge,
            payment_intent=self.intent,
        )
        return stripe_event(f"charge.dispute.{kind}", told | fields, created=FIRST + day * DAY)


def bought_pack(customer: Customer) -> Bought:
    """A pack of 500, paid and granted."""
    bought = Bought(customer, "pack", 2000)
    paid = customer.pack(payment_intent=bought.intent, amount_total=bought.amount)
    assert status(paid) == "processed"
    return bought


def paid_period(customer: Customer, shape: str = "new", **fields: Any) -> Bought:
    """A month of pro, paid and granted."""
    bought = Bought(customer, "month")
    old = {"payment_intent": bought.intent, "charge": bought.charge} if shape == "old" else {}
    paid = customer.paid(shape=shape, id=f"in_month_{customer.number}", **old | fields)
    assert status(paid) == "processed"
    if shape == "new":
        told = invoice_payment(f"in_month_{customer.number}", bought.intent)
        assert status(stripe_event("invoice_payment.paid", told)) == "processed"
    return bought


def account(database: Database, customer: Customer) -> tuple[int, int]:
    """What is available and what is owed; and the books add up."""
    organization_id = organization(database, customer)
    assert_books_balance(database, organization_id)
    [row] = rows(
        database, "SELECT available, debt FROM credits.accounts WHERE organization_id = %s", organization_id
    )
    return row["available"], row["debt"]


def told(database: Database, customer: Customer) -> list[tuple[str, Any]]:
    """The domain events of claw-backs, restorations, refunds and disputes, with what tells them apart."""
    found = rows(
        database,
        """
        SELECT type, coalesce(payload ->> 'status', payload ->> 'amount') AS said
        FROM platform.outbox
        WHERE organization_id = %s AND type ~ '^(credits.(clawed_back|restored)|refund|dispute)'
        ORDER BY created_at
        """,
        organization(database, customer),
    )
    return [(row["type"], row["said"]) for row in found]


# ---- refunds ----


@pytest.mark.parametrize(
    ("totals", "left"),
    [
        ([2000], 0),
        ([500], 375),
        ([500, 2000], 0),
        ([1, 2, 3], 500),  # a credit costs four of the currency's parts: three give none back
        ([667], 334),
        ([400, 800, 1200, 1600, 2000], 0),
        ([500, 500], 375),
        ([5000], 0),  # more than was paid takes no more than was given
    ],
)
def test_a_refund_takes_back_in_proportion_what_the_charge_has_refunded_in_all(
    system_db: Database, customer: Customer, totals: list[int], left: int
) -> None:
    bought = bought_pack(customer)
    for day, total in enumerate(totals, 1):
        assert status(bought.refunded(total, day=day)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + left, 0)


def test_a_total_told_late_is_stale_and_one_told_twice_takes_nothing_more(
    system_db: Database, customer: Customer
) -> None:
    bought = bought_pack(customer)
    assert status(bought.refunded(2000, day=2)) == "processed"
    assert status(bought.refunded(500, day=1)) == "stale"
    assert status(bought.refunded(2000, day=2)) == "stale"
    assert account(system_db, customer) == (SIGN_UP, 0)


def test_what_was_spent_of_the_refunded_credits_is_owed_and_the_next_purchase_pays_it(
    system_db: Database, customer: Customer
) -> None:
    bought = bought_pack(customer)
    debit(organization(system_db, customer), quantity=400)
    assert status(bought.refunded(2000)) == "processed"
    assert account(system_db, customer) == (0, 300)  # the sign-up's 100 are spent first
    assert status(customer.pack(id="cs_next", payment_intent="pi_next")) == "processed"
    assert account(system_db, customer) == (PACK - 300, 0)


@pytest.mark.parametrize("shape", ["old", "new"])
def test_a_periods_refund_finds_its_grant_in_both_shapes(
    system_db: Database, customer: Customer, shape: str
) -> None:
    bought = paid_period(customer, shape)
    assert account(system_db, customer) == (SIGN_UP + PRO, 0)
    assert status(bought.refunded(2450)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + 500, 0)
    assert told(system_db, customer) == [("credits.clawed_back", "500")]


def test_a_charge_that_names_its_invoice_needs_no_other_link(system_db: Database, customer: Customer) -> None:
    """Before basil, where the invoice named its payment too but was read before we kept that."""
    assert status(customer.paid(id="in_1")) == "processed"
    assert status(Bought(customer, "month").refunded(4900, invoice="in_1")) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)


def test_an_invoice_paid_by_two_payments_goes_back_by_halves(system_db: Database, customer: Customer) -> None:
    one, other = Bought(customer, "one", 2450), Bought(customer, "other", 2450)
    assert status(customer.paid(id="in_1")) == "processed"
    for half in (one, other):
        linked = stripe_event("invoice_payment.paid", invoice_payment("in_1", half.intent, amount=2450))
        assert status(linked) == "processed"
    assert status(one.refunded(2450)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + 500, 0)
    assert status(other.refunded(2450)) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)


def test_a_refund_waits_for_its_payment_and_the_payment_for_its_invoice(
    system_db: Database, customer: Customer
) -> None:
    bought = Bought(customer, "month")
    refunded = bought.refunded(4900)
    assert status(refunded) == "parked"
    [row] = rows(system_db, "SELECT waiting_for FROM platform.webhook_inbox WHERE status = 'parked'")
    assert row["waiting_for"] == f"stripe.payment:{bought.intent}"
    link = stripe_event("invoice_payment.paid", invoice_payment("in_1", bought.intent))
    assert status(link) == "processed"
    assert status(customer.paid(id="in_1")) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)
    assert status(refunded) == "duplicate"


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_packs_refund_in_every_order(system_db: Database, order: tuple[int, ...]) -> None:
    customer = linked_customer()
    bought = Bought(customer, "pack", 2000)
    events = [
        customer.pack(payment_intent=bought.intent, amount_total=2000),
        bought.refund("created", "a", 500),
        bought.refunded(500),
        bought.refunded(2000, day=2),
    ]
    for index in order:
        assert status(events[index]) in {"processed", "parked", "stale"}
    assert account(system_db, customer) == (SIGN_UP, 0)


@pytest.mark.parametrize(
    "failure",
    [
        ("failed", {"status": "failed"}),
        ("failed", {"status": "succeeded"}),  # the event's name is enough
        ("updated", {"status": "failed"}),
        ("updated", {"status": "canceled"}),
        ("charge.refund.updated", {"status": "failed"}),  # before acacia
    ],
)
def test_a_refund_that_fails_gives_back_its_part_once(
    system_db: Database, customer: Customer, failure: tuple[str, dict[str, str]]
) -> None:
    bought = bought_pack(customer)
    kind, fields = failure
    for event in (
        bought.refund("created", "a", 500),
        bought.refunded(500),
        bought.refund("created", "b", 1500, day=2, since=2),
        bought.refunded(2000, day=2),
    ):
        assert status(event) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)
    for day in (3, 4):
        assert status(bought.refund(kind, "b", 1500, day=day, since=2, **fields)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + 375, 0)
    assert told(system_db, customer) == [
        ("credits.clawed_back", "125"),
        ("credits.clawed_back", "375"),
        ("refund.failed", "1500"),
        ("credits.restored", "375"),
    ]


def test_a_refund_made_again_after_it_failed_counts(system_db: Database, customer: Customer) -> None:
    bought = bought_pack(customer)
    events = [
        bought.refunded(2000),
        bought.refund("failed", "a", 2000, day=3),
        bought.refund("created", "b", 2000, day=4, since=4),
        bought.refunded(2000, day=4),
    ]
    for event in events:
        assert status(event) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)


def test_the_first_of_two_refunds_fails_and_only_its_part_comes_back(
    system_db: Database, customer: Customer
) -> None:
    bought = bought_pack(customer)
    status(bought.refunded(500))
    status(bought.refunded(2000, day=2))
    assert status(bought.refund("failed", "a", 500, day=3)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + 125, 0)


def test_a_refund_of_what_gave_no_credits_takes_none(system_db: Database, customer: Customer) -> None:
    """A downgrade's invoice, and one that is no subscription's, which waits for what may be a pack."""
    lines = [
        invoice_line(price="price_pro_monthly", amount=-9, proration=True),
        invoice_line(price="price_starter_monthly", amount=19, proration=True),
    ]
    bought = paid_period(customer, "old", lines=lines, reason="subscription_update")
    assert status(bought.refunded(4900)) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)
    assert status(Bought(customer, "elsewhere").refunded(4900)) == "parked"
    of_nothing = refund("re_balance", amount=100)
    assert status(stripe_event("refund.created", of_nothing)) == "ignored"


def test_a_refund_after_the_period_owes_only_what_was_used(system_db: Database, customer: Customer) -> None:
    """The renewal ended what was left of the month: nobody used it, and nobody owes it."""
    bought = paid_period(customer)
    debit(organization(system_db, customer), quantity=300)
    renewal = customer.paid(reason="subscription_cycle", lines=[invoice_line(start=SECOND, end=THIRD)])
    assert status(renewal) == "processed"
    assert account(system_db, customer) == (SIGN_UP + PRO, 0)
    assert status(bought.refunded(2450)) == "processed"  # half, of which more than half lapsed
    assert account(system_db, customer) == (SIGN_UP + PRO, 0)
    assert status(bought.refunded(4900, day=2)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + PRO, 300)


# ---- disputes ----


def test_a_dispute_takes_the_credits_while_the_money_is_away(system_db: Database, customer: Customer) -> None:
    bought = bought_pack(customer)
    assert status(bought.dispute("created", "needs_response")) == "processed"
    assert account(system_db, customer) == (SIGN_UP + PACK, 0)
    assert status(bought.dispute("funds_withdrawn", "needs_response")) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)
    assert status(bought.dispute("updated", "under_review", day=3)) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)
    assert status(bought.dispute("closed", "won", day=4)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + PACK, 0)
    assert status(bought.dispute("funds_reinstated", "won", day=4)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + PACK, 0)
    assert told(system_db, customer) == [
        ("dispute.opened", "needs_response"),
        ("credits.clawed_back", "500"),
        ("dispute.closed", "won"),
        ("credits.restored", "500"),
    ]


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([("created", "lost")], 0),
        ([("closed", "lost")], 0),
        ([("funds_withdrawn", "needs_response"), ("closed", "lost")], 0),
        ([("funds_withdrawn", "lost"), ("closed", "lost"), ("updated", "lost")], 0),
        ([("created", "warning_needs_response"), ("closed", "warning_closed")], PACK),
        ([("funds_withdrawn", "warning_needs_response")], PACK),
        ([("created", "warning_needs_response"), ("funds_withdrawn", "needs_response")], 0),
        ([("funds_reinstated", "won")], PACK),
        ([("closed", "won"), ("funds_withdrawn", "needs_response")], PACK),
        ([("updated", "a status of tomorrow")], PACK),
    ],
)
def test_what_a_dispute_comes_to_in_every_order(
    system_db: Database, events: list[tuple[str, str]], left: int
) -> None:
    for order in itertools.permutations(events):
        customer = linked_customer()
        bought = bought_pack(customer)
        for kind, word in order:
            assert status(bought.dispute(kind, word)) == "processed"
        assert account(system_db, customer) == (SIGN_UP + left, 0)


@pytest.mark.parametrize("pack_last", [False, True])
def test_a_refund_and_a_dispute_of_one_charge_take_no_more_than_the_grant(
    system_db: Database, pack_last: bool
) -> None:
    customer = linked_customer()
    bought = Bought(customer, "pack", 2000)
    paid = customer.pack(payment_intent=bought.intent, amount_total=2000)
    events = [
        bought.refunded(1000),
        bought.dispute("funds_withdrawn", "needs_response"),
        bought.refunded(2000, day=3),
    ]
    for event in [*events, paid] if pack_last else [paid, *events]:
        status(event)
    assert account(system_db, customer) == (SIGN_UP, 0)
    assert status(bought.dispute("closed", "won", day=5)) == "processed"
    assert account(system_db, customer) == (SIGN_UP, 0)
    assert status(bought.refund("failed", "b", 1000, day=6, since=3)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + 250, 0)


def test_a_dispute_that_is_won_restores_what_a_refund_does_not_take(
    system_db: Database, customer: Customer
) -> None:
    bought = bought_pack(customer)
    status(bought.dispute("funds_withdrawn", "needs_response"))
    status(bought.refunded(500, day=3))
    assert account(system_db, customer) == (SIGN_UP, 0)
    assert status(bought.dispute("closed", "won", day=5)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + 375, 0)


def test_a_dispute_before_its_pack_waits_and_one_known_by_its_charge_alone_is_found(
    system_db: Database, customer: Customer
) -> None:
    bought = Bought(customer, "pack", 2000)
    withdrawn = bought.dispute("funds_withdrawn", "needs_response")
    assert status(withdrawn) == "parked"
    bought_pack(customer)
    assert account(system_db, customer) == (SIGN_UP, 0)
    status(bought.refunded(0))  # which names the charge
    assert status(bought.dispute("closed", "won", payment_intent=None)) == "processed"
    assert account(system_db, customer) == (SIGN_UP + PACK, 0)


def test_a_dispute_that_is_won_pays_the_debt_it_made(system_db: Database, customer: Customer) -> None:
    bought = bought_pack(customer)
    debit(organization(system_db, customer), quantity=350)  # the sign-up's 100, and 250 of the pack
    status(bought.dispute("funds_withdrawn", "needs_response"))
    assert account(system_db, customer) == (0, 250)
    status(bought.dispute("closed", "won"))
    assert account(system_db, customer) == (250, 0)


def test_an_amount_that_cannot_be_is_quarantined(system_db: Database, customer: Customer) -> None:
    bought = bought_pack(customer)
    for amount in (2**62, 10**14, -1):
        assert status(bought.dispute("closed", "lost", name=str(amount), amount=amount)) == "quarantined"
    assert account(system_db, customer) == (SIGN_UP + PACK, 0)


# ---- every order ----


def test_a_life_of_refunds_and_disputes_ends_alike_in_every_order(system_db: Database) -> None:
    drawn = random.Random(20260502)
    for attempt in range(40):
        customer = new_customer()
        pack, month = Bought(customer, "pack", 2000), Bought(customer, "month")
        events = [
            customer.sign_up(),
            customer.checkout(),
            customer.paid(id=f"in_{customer.number}"),
            stripe_event("invoice_payment.paid", invoice_payment(f"in_{customer.number}", month.intent)),
            customer.pack(payment_intent=pack.intent, amount_total=2000),
            pack.refund("created", "a", 500),
            pack.refunded(500),
            pack.refunded(1500, day=2),
            pack.refund("failed", "b", 1000, day=4, since=2),
            month.dispute("created", "needs_response"),
            month.dispute("funds_withdrawn", "needs_response"),
            month.dispute("closed", "won", day=6),
            month.dispute("funds_reinstated", "won", day=6),
            month.refunded(490, day=7),
        ]
        if attempt:
            events += drawn.sample(events, 4)
            drawn.shuffle(events)
        for event in events:
            answer = post_stripe(event) if "id" in event else post_clerk(event, f"msg_{customer.user}")
            assert answer.status == 200
        assert account(system_db, customer) == (SIGN_UP + 375 + 900, 0), [e["type"] for e in events]
    left = rows(system_db, "SELECT DISTINCT status::text FROM platform.webhook_inbox")
    assert {row["status"] for row in left} <= {"processed", "stale"}


# ---- killed anywhere ----


@pytest.mark.parametrize("last", ["refund", "dispute won", "pack"])
def test_a_process_killed_before_any_statement_has_taken_and_restored_nothing_or_all(
    system_db: Database, last: str
) -> None:
    """The pack comes last too: what waited for it is applied in the transaction that makes it."""

    def strike() -> None:
        end_the_session(system_db)
        raise Killed

    for number in itertools.count(1, 2):  # every second: each has a life of its own
        customer = linked_customer()
        bought = Bought(customer, "pack", 2000)
        paid = customer.pack(payment_intent=bought.intent, amount_total=2000)
        withdrawn = bought.dispute("funds_withdrawn", "needs_response")
        events, left = {
            "refund": ([paid, withdrawn, bought.refunded(500)], 0),
            "dispute won": ([paid, bought.refunded(500), withdrawn, bought.dispute("closed", "won")], 375),
            "pack": ([withdrawn, bought.refunded(500), bought.dispute("closed", "won"), paid], 375),
        }[last]
        for event in events[:-1]:
            status(event)
        with at_statement(number, strike) as said:
            try:
                post_stripe(events[-1])
            except Killed:
                db.reset()
        assert post_stripe(events[-1]).body["status"] in {"processed", "duplicate"}
        assert account(system_db, customer) == (SIGN_UP + left, 0)
        waiting = rows(system_db, "SELECT 1 FROM platform.webhook_inbox WHERE status = 'parked'")
        assert waiting == []
        if len(said) < number:
            break
    assert number > 5
