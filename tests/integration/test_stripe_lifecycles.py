"""Lifecycles drawn at random, delivered in hostile ways, against an oracle in plain Python.

A story is drawn: trial, renewals, changes of plan, packs, refunds in parts and failed, disputes, the
end. Its events are shuffled, repeated, cut off and the rest sent late, one after the other and many
at once. Whatever has been delivered until then, the database must say what the oracle computes from
the set of facts delivered, which knows no order. Where credits are spent in between, what is left depends
on when; what was given and taken back does not.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.deliveries import post, processes
from tests.ledgers import assert_books_balance, debit
from tests.payers import SIGN_UP, Customer, entitled, new_customer, organization, rows
from tests.senders import (
    DAY,
    FIRST,
    charge,
    clerk_user,
    dispute,
    invoice_line,
    invoice_payment,
    refund,
    stripe_event,
)

from backplane import claw_backs
from backplane.senders import SENDERS

CREDITS = {"starter": 500, "pro": 1000, "super": 10_000}
ORDER = list(CREDITS)
LENGTH = {"monthly": 30 * DAY, "yearly": 365 * DAY}  # of what is paid for; credits come by the month
PAID = 4900  # what every payment is, in minor units

# The order of a life among states told in the same second.
KINDS = {"created": 0, "updated": 1, "deleted": 2}
STATUSES = ["incomplete", "trialing", "active", "past_due", "canceled"]


# ---- what is known ----


@dataclass(frozen=True)
class Fact:
    """What one event tells, for the oracle."""


@dataclass(frozen=True)
class SignedUp(Fact): ...


@dataclass(frozen=True)
class Linked(Fact): ...


@dataclass(frozen=True)
class Gone(Fact):
    """The customer was deleted."""


@dataclass(frozen=True)
class State(Fact):
    rank: tuple[Any, ...]
    status: str
    plan: str


@dataclass(frozen=True)
class Given(Fact):
    """Credits of a purchase; of a plan's `period`, or of a pack."""

    purchase: str
    amount: int
    period: int | None


@dataclass(frozen=True)
class PaidBy(Fact):
    purchase: str
    payment: str


@dataclass(frozen=True)
class Refunded(Fact):
    payment: str
    at: int
    total: int


@dataclass(frozen=True)
class Failed(Fact):
    payment: str
    at: int
    since: int
    amount: int


@dataclass(frozen=True)
class Disputed(Fact):
    payment: str
    word: str  # withdrawn, reinstated, lost, nothing
    amount: int


@dataclass(frozen=True)
class Told:
    event: dict[str, Any]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Expected:
    tier: str
    status: str
    available: int
    grants: dict[str, int]  # what remains of each purchase's, where nothing is spent
    taken: dict[str, int]  # what went back of each
    lapsed: set[str]


def expect(facts: set[Fact]) -> Expected | None:
    """What must stand once these facts are known, in whatever order. None: nobody has signed up."""

    def of(kind: type[Any]) -> list[Any]:
        return [fact for fact in facts if isinstance(fact, kind)]

    if not of(SignedUp):
        return None
    linked = bool(of(Linked))
    states = sorted(of(State), key=lambda state: state.rank) if linked else []
    newest = states[-1] if states else None
    over = bool(of(Gone)) or (newest is not None and newest.status == "canceled")
    given = {g for g in of(Given) if g.period is None or linked}
    last = max((g.period for g in given if g.period is not None), default=None)
    lapsed = {g.purchase for g in given if g.period is not None and (over or g.period != last)}
    taken = {
        g.purchase: int(
            g.amount * share_taken(g.purchase, of(PaidBy), of(Refunded), of(Failed), of(Disputed))
        )
        for g in given
    }
    remains = {g.purchase: 0 if g.purchase in lapsed else g.amount - taken[g.purchase] for g in given}
    status = "inactive" if newest is None else "canceled" if over else newest.status
    return Expected(
        tier=newest.plan if newest is not None and status not in {"incomplete", "canceled"} else "free",
        status=status,
        available=SIGN_UP + sum(remains.values()),
        grants=remains,
        taken=taken,
        lapsed=lapsed,
    )


def share_taken(
    purchase: str,
    paid_by: list[PaidBy],
    refunded: list[Refunded],
    failed: list[Failed],
    disputed: list[Disputed],
) -> Fraction:
    payments = {link.payment for link in paid_by if link.purchase == purchase}
    back = 0
    for payment in payments:
        totals = [(told.at, told.total) for told in refunded if told.payment == payment]
        if totals:
            at, total = max(totals)
            undone = {f for f in failed if f.payment == payment and f.since <= at <= f.at}
            back += max(0, total - sum(f.amount for f in undone))
        words = {told.word for told in disputed if told.payment == payment}
        if "lost" in words or ("withdrawn" in words and "reinstated" not in words):
            back += PAID
    return min(Fraction(back, PAID), Fraction(1))


# ---- the stories ----


@dataclass
class Story:
    """One customer's events with their facts, in the order in which they happened."""

    draw: st.DrawFn
    customer: Customer
    shape: str
    interval: str
    told: list[Told] = field(default_factory=list)
    now: int = FIRST

    def begins(self, period: int) -> int:
        return FIRST + period * LENGTH[self.interval]

    def tell(self, event: dict[str, Any], *facts: Fact) -> None:
        self.told.append(Told(event, facts))

    def pass_time(self) -> int:
        """Sometimes several things happen in one second."""
        self.now += self.draw(st.sampled_from([0, 60]))
        return self.now

    def state(self, kind: str, status: str, plan: str, period: int, **fields: Any) -> None:
        at = self.pass_time()
        event = self.customer.told(
            kind,
            created=at,
            shape=self.shape,
            status=status,
            price=f"price_{plan}_{self.interval}",
            start=self.begins(period),
            end=self.begins(period + 1),
            **fields,
        )
        over = status == "canceled"
        self.tell(event, State((over, at, KINDS[kind], STATUSES.index(status), event["id"]), status, plan))

    def bill(self, reason: str, lines: list[tuple[str, int]], period: int, credits_: int) -> None:
        """An invoice that is paid, by one payment."""
        at = self.pass_time()
        name = f"{self.customer.number}_{len(self.told)}"
        purchase, payment, charged = f"in_{name}", f"pi_{name}", f"ch_{name}"
        made = [
            invoice_line(
                shape=self.shape,
                price=f"price_{plan}_{self.interval}",
                amount=amount,
                start=self.begins(period),
                end=self.begins(period + 1),
                proration=reason == "subscription_update",
            )
            for plan, amount in lines
        ]
        old = {"payment_intent": payment, "charge": charged} if self.shape == "old" else {}
        paid = self.customer.paid(
            shape=self.shape, created=at, id=purchase, reason=reason, lines=made, amount_paid=PAID, **old
        )
        gave = (Given(purchase, credits_, period),) if credits_ else ()
        link = PaidBy(purchase, payment)
        self.tell(paid, *gave, *((link,) if old else ()))
        if not old:
            told = invoice_payment(purchase, payment, amount=PAID)
            self.tell(stripe_event("invoice_payment.paid", told, created=at), link)
        self.take_back(payment, charged)

    def buy_pack(self) -> None:
        at = self.pass_time()
        name = f"{self.customer.number}_{len(self.told)}"
        session: dict[str, Any] = {
            "id": f"cs_{name}",
            "payment_intent": f"pi_{name}",
            "client_reference_id": self.customer.user,
            "amount_total": PAID,
        }
        facts = (Linked(), Given(f"cs_{name}", 500, None), PaidBy(f"cs_{name}", f"pi_{name}"))
        match self.draw(st.sampled_from(["card", "later", "failed", "expired"])):
            case "card":
                self.tell(self.customer.pack(created=at, **session), *facts)
            case "later":
                pending = self.customer.pack(created=at, payment_status="unpaid", **session)
                self.tell(pending, Linked())
                at = self.pass_time()
                self.tell(self.customer.pack("async_payment_succeeded", created=at, **session), *facts)
            case "failed":
                pending = self.customer.pack(created=at, payment_status="unpaid", **session)
                self.tell(pending, Linked())
                at = self.pass_time()
                failed = self.customer.pack(
                    "async_payment_failed", created=at, payment_status="unpaid", **session
                )
                self.tell(failed, Linked())
                return
            case _:
                expired = self.customer.pack("expired", created=at, payment_status="unpaid", **session)
                self.tell(expired, Linked())
                return
        self.take_back(f"pi_{name}", f"ch_{name}")

    def take_back(self, payment: str, charged: str) -> None:
        """Perhaps a refund in parts, some of which fail, and perhaps a dispute."""
        names = {"payment_intent": payment, "charge": charged}
        total = 0
        for number, part in enumerate(self.draw(st.lists(st.sampled_from([490, 1000, 1450]), max_size=3))):
            self.now += 60
            since = self.now
            total += part
            made = refund(f"re_{payment}_{number}", amount=part, created=since, **names)
            self.tell(stripe_event("refund.created", made, created=since))
            whole = charge(charged, refunded=total, amount=PAID, payment_intent=payment)
            self.tell(stripe_event("charge.refunded", whole, created=since), Refunded(payment, since, total))
            if self.draw(st.integers(0, 3)) == 0:
                self.now += 60
                total -= part
                failed = made | {"status": "failed"}
                kind = self.draw(st.sampled_from(["refund.failed", "refund.updated"]))
                self.tell(
                    stripe_event(kind, failed, created=self.now), Failed(payment, self.now, since, part)
                )
        course = self.draw(st.sampled_from([None, None, None, "won", "lost", "inquiry", "lost at once"]))
        steps: dict[str | None, list[tuple[str, str, str]]] = {
            None: [],
            "won": [
                ("created", "needs_response", "nothing"),
                ("funds_withdrawn", "needs_response", "withdrawn"),
                ("closed", "won", "reinstated"),
                ("funds_reinstated", "won", "reinstated"),
            ],
            "lost": [
                ("created", "needs_response", "nothing"),
                ("funds_withdrawn", "under_review", "withdrawn"),
                ("closed", "lost", "lost"),
            ],
            "inquiry": [
                ("created", "warning_needs_response", "nothing"),
                ("closed", "warning_closed", "nothing"),
            ],
            "lost at once": [("created", "lost", "lost")],
        }
        for kind, word, fact in steps[course]:
            self.now += 60
            told = dispute(f"du_{payment}", status=word, amount=PAID, **names)
            event = stripe_event(f"charge.dispute.{kind}", told, created=self.now)
            self.tell(event, Disputed(payment, fact, PAID))


@st.composite
def stories(draw: st.DrawFn) -> Story:
    shape, interval = draw(st.sampled_from(["old", "new"])), draw(st.sampled_from(list(LENGTH)))
    story = Story(draw, new_customer(), shape, interval)
    customer = story.customer
    story.tell(clerk_user(customer.user, email=f"{customer.number}@example.com"), SignedUp())
    story.tell(customer.checkout(), Linked())
    plan = draw(st.sampled_from(ORDER[:2]))
    if draw(st.booleans()):
        story.state("created", "trialing", plan, 0, trial_end=FIRST + DAY)
        story.bill("subscription_create", [(plan, 0)], 0, 0)
        story.state("updated", "active", plan, 0)
        story.bill("subscription_cycle", [(plan, PAID)], 0, CREDITS[plan])
    else:
        story.state("created", "incomplete", plan, 0)
        story.state("updated", "active", plan, 0)
        story.bill("subscription_create", [(plan, PAID)], 0, CREDITS[plan])
    for period in range(draw(st.integers(0, 2)) + 1):
        if period:
            story.state("updated", draw(st.sampled_from(["active", "past_due"])), plan, period)
            story.bill("subscription_cycle", [(plan, PAID)], period, CREDITS[plan])
        change = draw(st.sampled_from(["none", "up", "down"]))
        index = ORDER.index(plan)
        if change == "up" and index < 2:
            higher = ORDER[index + 1]
            story.state("updated", "active", higher, period)
            lines = [(plan, -100), (higher, PAID + 100)]
            story.bill("subscription_update", lines, period, CREDITS[higher] - CREDITS[plan])
            plan = higher
        elif change == "down" and index > 0:
            lower = ORDER[index - 1]
            story.state("updated", "active", lower, period)
            story.bill("subscription_update", [(plan, -900), (lower, 100)], period, 0)
            plan = lower
        if draw(st.booleans()):
            story.buy_pack()
    match draw(st.sampled_from(["goes on", "will end", "ended", "customer deleted"])):
        case "will end":
            story.state("updated", "active", plan, period, cancel_at=story.begins(period + 1))
        case "ended":
            story.now += 60
            story.state("deleted", "canceled", plan, period, ended_at=story.now)
        case "customer deleted":
            story.now += 60
            told = {"id": customer.id, "object": "customer"}
            story.tell(stripe_event("customer.deleted", told, created=story.now), Gone())
    return story


@dataclass(frozen=True)
class Delivery:
    """What is sent until each look at the database."""

    customer: Customer
    parts: list[list[Told]]
    spend: int  # which part of what is available after the first part, in percent
    at_once: bool = True  # where events can be; else each goes through its effect


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    """Shuffled, some of it twice, in two parts: the second is what was delayed, or never comes."""
    story = draw(stories())
    shuffled = draw(st.permutations(story.told))
    cut = draw(st.integers(0, len(shuffled)))
    again = [shuffled[index] for index in draw(st.lists(st.integers(0, len(shuffled) - 1), max_size=4))]
    parts = [shuffled[:cut], [*shuffled[cut:], *again]]
    return Delivery(story.customer, parts, draw(st.sampled_from([0, 70, 100])), draw(st.booleans()))


# ---- the comparison ----


def check(database: Database, customer: Customer, delivered: list[Told], *, spent: bool = False) -> None:
    expected = expect({fact for told in delivered for fact in told.facts})
    known = rows(database, "SELECT 1 FROM identity.users WHERE clerk_id = %s", customer.user)
    if expected is None:
        assert known == []
        return
    current = entitled(customer, database)
    assert (current.tier, current.status) == (expected.tier, expected.status)
    organization_id = organization(database, customer)
    granted = rows(
        database,
        """
        SELECT coalesce(checkout_session_id, invoice_id) AS purchase, amount, remaining, clawed_back, lapsed
        FROM credits.grants
        WHERE organization_id = %s AND source <> 'sign_up'
        """,
        organization_id,
    )
    assert len(granted) == len(expected.grants)
    assert {row["purchase"] for row in granted} == set(expected.grants)
    for row in granted:
        # What lapsed unused counts as taken back, whichever came first.
        back, taken = row["clawed_back"], expected.taken[row["purchase"]]
        lapsed = row["purchase"] in expected.lapsed
        assert back <= taken <= back + row["lapsed"] if lapsed else back == taken
        assert back + row["lapsed"] + row["remaining"] <= row["amount"]
    [account] = rows(
        database,
        "SELECT available, held, debt FROM credits.accounts WHERE organization_id = %s",
        organization_id,
    )
    if not spent:
        assert {row["purchase"]: row["remaining"] for row in granted} == expected.grants
        assert account == {"available": expected.available, "held": 0, "debt": 0}
    told = rows(
        database,
        "SELECT count(*) AS n FROM platform.outbox WHERE organization_id = %s AND type = 'credits.granted'",
        organization_id,
    )
    assert told == [{"n": len(expected.grants) + 1}]
    assert_books_balance(database, organization_id)


def deliver(
    database: Database,
    delivery: Delivery,
    send: Callable[[list[dict[str, Any]]], list[tuple[int, str]]],
) -> None:
    delivered: list[Told] = []
    spent = False
    for part in delivery.parts:
        for http_status, word in send([told.event for told in part]):
            assert http_status == 200
            assert word in {"processed", "stale", "parked", "duplicate"}
        delivered += part
        check(database, delivery.customer, delivered, spent=spent)
        spent = spent or spend(database, delivery.customer, delivery.spend)


def spend(database: Database, customer: Customer, percent: int) -> bool:
    """Spends so much of what is available. Answers whether anything was."""
    if not rows(database, "SELECT 1 FROM identity.users WHERE clerk_id = %s", customer.user):
        return False
    organization_id = organization(database, customer)
    [account] = rows(
        database, "SELECT available FROM credits.accounts WHERE organization_id = %s", organization_id
    )
    credits_ = account["available"] * percent // 100
    if credits_:
        debit(organization_id, quantity=credits_)
    return bool(credits_)


_SETTINGS = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def world(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """One database for all stories: each is of a customer of its own."""
    name = f"lifecycles_{os.getpid()}_{next(_numbers)}"
    create_database(server_url, name, template)
    urls = [on(server_url, name, user=role, password=role_passwords[role]) for role in ROLES]
    yield Database(name, on(server_url, name), *urls)
    drop_database(server_url, name)


@pytest.mark.timeout(300)
def test_any_delivery_of_any_lifecycle_ends_as_the_oracle_says(
    webhook_secrets: None, world: Database
) -> None:
    @given(delivery=deliveries())
    @settings(_SETTINGS, max_examples=24)
    def run(delivery: Delivery) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if not delivery.at_once:
                patch.setitem(SENDERS, "stripe", replace(SENDERS["stripe"], at_once={}))
            deliver(world, delivery, lambda events: [post(event) for event in events])

    with world.as_role("backplane_system"):
        run()


def disputed_pack() -> Delivery:
    customer = new_customer()
    names: dict[str, Any] = {"payment_intent": f"pi_{customer.number}", "charge": f"ch_{customer.number}"}
    lost = dispute(f"du_{customer.number}", status="lost", amount=PAID, **names)
    bought = customer.pack(
        payment_intent=names["payment_intent"], client_reference_id=customer.user, amount_total=PAID
    )
    session = bought["data"]["object"]["id"]
    told = [
        Told(clerk_user(customer.user, email=f"{customer.number}@example.com"), (SignedUp(),)),
        Told(
            bought,
            (Linked(), Given(session, 500, None), PaidBy(session, names["payment_intent"])),
        ),
        Told(stripe_event("charge.dispute.closed", lost), (Disputed(names["payment_intent"], "lost", PAID),)),
    ]
    return Delivery(customer, [told[:2], told[2:]], 70)


@pytest.mark.parametrize("kept", [False, True])
def test_the_oracle_notices_a_dispute_that_takes_nothing(
    webhook_secrets: None, world: Database, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept:
        monkeypatch.setattr(claw_backs, "share_taken", lambda _: Fraction(0))
    with world.as_role("backplane_system"), pytest.raises(AssertionError) if kept else nullcontext():
        deliver(world, disputed_pack(), lambda events: [post(event) for event in events])


@pytest.mark.timeout(300)
def test_any_lifecycle_delivered_by_four_at_once_ends_as_the_oracle_says(
    webhook_secrets: None, world: Database
) -> None:
    with world.as_role("backplane_system"), processes(4, world) as send:

        @given(delivery=deliveries())
        @settings(_SETTINGS, max_examples=8)
        def run(delivery: Delivery) -> None:
            deliver(world, delivery, send)

        run()
