"""The ledger against a model of it: any sequence of mutations ends where plain arithmetic says."""

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.counters import plan_id
from tests.databases import Database
from tests.ledgers import (
    Kept,
    assert_books_balance,
    debit,
    grants,
    held,
    make_grant,
    new_account,
    pass_expiry,
    pass_holds_expiry,
    release,
    roll_over,
    rows,
    settle,
)

from backplane import audits, corrections, db, holds, ledger, low_balance, usage
from backplane.problems import Conflict, IdempotencyConflict, InsufficientCredits

HOUR = timedelta(hours=1)
COSTS = {"ai_text_chat": 1, "ai_image_generation": 5}
THRESHOLD = 8  # less available is low
ROLLOVERS = {"starter": 0, "pro": 12, "super": -1}  # credits of earlier periods; -1: all


# ---- the model ----


@dataclass(eq=False)
class Granted:
    """What the model knows of a grant. It burns by (priority, expires, number)."""

    source_key: str
    amount: int
    priority: int
    number: int
    remaining: int
    expires: float  # hours from the start; infinity: never
    subscription: str | None = None
    period: int | None = None
    carry: int = 0  # of earlier periods' credits, how many go over; -1: all
    followed: bool = False  # by a later period's
    passed: bool = False  # the clock has reached its expiry; the next mutation books it
    ended: bool = False
    lapsed: int = 0
    clawed_back: int = 0

    @property
    def over(self) -> bool:
        return self.passed or self.ended or (self.followed and self.carry != -1)

    @property
    def taken_along(self) -> bool:
        """Under a cap: live still, but nothing is added to it."""
        return self.carry > 0 and self.followed and not self.passed and not self.ended

    def end(self) -> None:
        self.lapse(self.remaining)
        self.ended = True

    def lapse(self, amount: int) -> None:
        self.remaining -= amount
        self.lapsed += amount


Allocations: TypeAlias = list[tuple[Granted, int]]


@dataclass(eq=False)
class Held:
    amount: int
    unit_cost: int
    allocations: Allocations
    state: str = "open"
    passed: int | None = None  # the clock has reached its expiry, as the n-th


@dataclass(eq=False)
class Debited:
    amount: int
    allocations: Allocations
    refunded: int = 0


@dataclass(eq=False)
class Taken:
    """A claw-back."""

    grant: Granted
    amount: int
    from_grant: int
    restored: bool = False


@dataclass
class Books:
    """The ledger in plain arithmetic: no rows, no locks, no SQL."""

    granted: list[Granted] = field(default_factory=list)
    holds: list[Held] = field(default_factory=list)
    debt: int = 0

    @property
    def available(self) -> int:
        return sum(grant.remaining for grant in self.granted)

    @property
    def held(self) -> int:
        return sum(hold.amount for hold in self.holds if hold.state == "open")

    def add(
        self, source_key: str, amount: int, priority: int, *, pays: bool = True, expires: float = float("inf")
    ) -> Granted:
        paid = min(self.debt, amount) if pays else 0
        self.debt -= paid
        made = Granted(source_key, amount, priority, len(self.granted), amount - paid, expires)
        self.granted.append(made)
        return made

    def burn(self, amount: int) -> Allocations:
        taken: Allocations = []
        for grant in sorted(self.granted, key=lambda g: (g.priority, g.expires, g.number)):
            part = min(amount, grant.remaining)
            grant.remaining -= part
            amount -= part
            if part:
                taken.append((grant, part))
        assert not amount
        return taken

    def give_back(self, allocations: Allocations) -> None:
        for grant, amount in allocations:
            grant.remaining += amount
            if grant.taken_along:
                grant.lapse(amount)
            elif grant.over:
                grant.end()

    def pay(self, amount: int) -> int:
        paid = min(self.debt, amount)
        self.debt -= paid
        return paid

    def book_due(self) -> None:
        for hold in sorted((h for h in self.holds if h.passed is not None), key=lambda h: h.passed or 0):
            if hold.state == "open":
                self.free(hold, "expired")
        for grant in self.granted:
            if grant.passed:
                grant.end()

    def roll_over(self, subscription: str) -> None:
        of_it = [grant for grant in self.granted if grant.subscription == subscription]
        latest = max(grant.period or 0 for grant in of_it)
        expires = max(grant.expires for grant in of_it if grant.period == latest)
        kept = 0
        for grant in sorted(of_it, key=lambda g: (g.period or 0, g.number), reverse=True):
            if grant.period == latest or grant.ended:
                continue
            grant.followed = True
            if grant.carry == 0:
                grant.end()
                continue
            if grant.carry > 0:
                grant.lapse(max(grant.remaining - max(grant.carry - kept, 0), 0))
                kept += grant.remaining
            grant.expires = max(grant.expires, expires)

    def free(self, hold: Held, state: str) -> None:
        hold.state = state
        self.give_back(part(perishable_first(hold.allocations), self.pay(hold.amount), hold.amount))

    def settle(self, hold: Held, used: int) -> Debited:
        hold.state = "settled"
        ordered = perishable_first(hold.allocations)
        taken = part(ordered, 0, used) + self.burn(max(used - hold.amount, 0))
        rest = max(hold.amount - used, 0)
        self.give_back(part(ordered, used + self.pay(rest), hold.amount))
        return Debited(used, taken)

    def refund(self, of: Debited, amount: int, source_key: str) -> None:
        paid = self.pay(amount)
        back = part(of.allocations[::-1], of.refunded + paid, of.refunded + amount)
        of.refunded += amount
        self.give_back([(grant, part) for grant, part in back if not grant.over])
        if late := sum(part for grant, part in back if grant.over):
            self.add(source_key, late, 10, pays=False, expires=72 + len(self.granted) / 1e6)


def perishable_first(allocations: Allocations) -> Allocations:
    return sorted(allocations, key=lambda allocation: not allocation[0].over)


def part(allocations: Allocations, begin: int, end: int) -> Allocations:
    """The credits from `begin` to `end` of a list."""
    each = [grant for grant, amount in allocations for _ in range(amount)][begin:end]
    return [(grant, 1) for grant in each]


# ---- the ledger beside it ----

amounts = st.integers(min_value=1, max_value=30)
subscriptions = st.sampled_from(["sub_1", "sub_2"])


class LedgerAndModel(RuleBasedStateMachine):
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.start = datetime.now(UTC)
        self.organization_id = new_account(self.database)
        self.owner = Kept(self.database.connect())
        db.run(lambda tx: low_balance.set_threshold(tx, self.organization_id, THRESHOLD))
        self.books = Books()
        self.numbers = iter(range(10_000))
        self.debited: dict[str, tuple[tuple[str, int], ledger.Debit]] = {}
        self.debits: dict[UUID, Debited] = {}
        self.holds: dict[UUID, Held] = {}
        self.taken: dict[UUID, Taken] = {}
        self.repeats: list[Any] = []  # what was answered, and how to ask for it again

    def teardown(self) -> None:
        self.owner.connection.close()

    def key(self) -> str:
        return f"key-{next(self.numbers)}"

    # ---- credits in ----

    @initialize(amounts=st.lists(st.integers(min_value=1, max_value=12), min_size=3, max_size=3))
    def begin_with_a_few_small_grants(self, amounts: list[int]) -> None:
        """So that what is debited and held spans several."""
        self.grant_a_period(amounts[0], "sub_1", 1)
        self.grant_credits(amounts[1], "promotion", 1)
        self.grant_credits(amounts[2], "pack", None)

    def grant(self, amount: int, source: str, **fields: Any) -> Granted:
        request = make_grant(self.organization_id, amount, source=source, **fields)
        _, granted = db.run(lambda tx: ledger.grant(tx, request))
        assert granted
        self.books.book_due()
        return self.books.add(request.source_key, amount, ledger.PRIORITY[source])

    @rule(
        amount=amounts,
        source=st.sampled_from(["pack", "promotion", "sign_up", "adjustment"]),
        hours=st.none() | st.integers(min_value=-2, max_value=9).filter(bool),
    )
    def grant_credits(self, amount: int, source: str, hours: int | None) -> None:
        made = self.grant(amount, source, expires_at=None if hours is None else self.start + hours * HOUR)
        if hours is not None:
            made.expires, made.passed = hours, hours < 0
        self.books.book_due()

    @rule(
        amount=amounts,
        subscription=subscriptions,
        period=st.integers(min_value=1, max_value=4),
        plan=st.sampled_from(sorted(ROLLOVERS)),
    )
    def grant_a_period(self, amount: int, subscription: str, period: int, plan: str = "starter") -> None:
        end = self.start + period * 24 * HOUR
        made = self.grant(
            amount,
            "plan",
            subscription=subscription,
            period_end=end,
            expires_at=end + 72 * HOUR,
            plan_id=plan_id(self.owner, plan),
        )
        made.subscription, made.period, made.expires = subscription, period, period * 24 + 72
        made.carry = ROLLOVERS[plan]
        self.books.roll_over(subscription)
        self.books.book_due()

    @precondition(lambda self: self.books.granted)
    @rule(data=st.data(), amount=amounts)
    def grant_the_same_again(self, data: st.DataObject, amount: int) -> None:
        grant = data.draw(st.sampled_from(self.books.granted))
        request = make_grant(self.organization_id, amount, source_key=grant.source_key)
        assert not db.run(lambda tx: ledger.grant(tx, request))[1]

    @rule(subscription=subscriptions)
    def end_subscription(self, subscription: str) -> None:
        db.run(
            lambda tx: ledger.end_subscription(
                tx, self.organization_id, "stripe", subscription, actor="stripe"
            )
        )
        for grant in self.books.granted:
            if grant.subscription == subscription:
                grant.end()
        self.books.book_due()

    @rule(amount=st.integers(min_value=-20, max_value=20).filter(bool), allow_debt=st.booleans())
    def adjust(self, amount: int, allow_debt: bool) -> None:
        key = self.key()

        def adjusting() -> tuple[corrections.Adjustment, bool]:
            return corrections.adjust(
                self.organization_id, amount, reason="why", key=key, actor="user:1", allow_debt=allow_debt
            )

        self.books.book_due()
        if not allow_debt and -amount > self.books.available:
            with pytest.raises(InsufficientCredits):
                adjusting()
            return
        made, _ = adjusting()
        if amount > 0:
            self.books.add(f"adjustment:{key}", amount, 40)
        else:
            burned = min(self.books.available, -amount)
            self.books.burn(burned)
            self.books.debt += -amount - burned
        assert (made.available_after, made.debt_after) == (self.books.available, self.books.debt)
        self.repeats.append((adjusting, made))

    # ---- debits ----

    @rule(operation=st.sampled_from(sorted(COSTS)), quantity=st.integers(min_value=1, max_value=12))
    def debit(self, operation: str, quantity: int) -> None:
        self.books.book_due()
        amount, available = quantity * COSTS[operation], self.books.available
        key = self.key()
        if amount > available:
            with pytest.raises(InsufficientCredits, match=f"{available} are available"):
                debit(self.organization_id, operation, quantity=quantity, key=key)
            return
        made, replayed = debit(self.organization_id, operation, quantity=quantity, key=key)
        assert (made.amount, made.available_after, replayed) == (amount, available - amount, False)
        self.debits[made.id] = Debited(amount, self.books.burn(amount))
        self.debited[key] = ((operation, quantity), made)

    @precondition(lambda self: self.debited)
    @rule(data=st.data())
    def replay_a_debit(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.debited)))
        (operation, quantity), made = self.debited[key]
        assert debit(self.organization_id, operation, quantity=quantity, key=key) == (made, True)

    @precondition(lambda self: self.debited)
    @rule(data=st.data())
    def ask_for_more_under_the_same_key(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.debited)))
        (operation, quantity), _ = self.debited[key]
        with pytest.raises(IdempotencyConflict):
            debit(self.organization_id, operation, quantity=quantity + 1, key=key)

    @precondition(lambda self: self.debits)
    @rule(data=st.data(), amount=st.none() | amounts)
    def refund(self, data: st.DataObject, amount: int | None) -> None:
        debit_id = data.draw(st.sampled_from(list(self.debits)))
        of, key = self.debits[debit_id], self.key()

        def refunding() -> tuple[corrections.Refund, bool]:
            return corrections.refund(
                self.organization_id, debit_id, amount=amount, reason="why", key=key, actor="key:1"
            )

        left = of.amount - of.refunded
        back = left if amount is None else amount
        if not 1 <= back <= left:
            with pytest.raises(Conflict):
                refunding()
            return
        made, replayed = refunding()
        self.books.book_due()
        self.books.refund(of, back, f"refund:{made.id}")
        assert (made.amount, made.refunded_total, replayed) == (back, of.refunded, False)
        self.repeats.append((refunding, made))

    # ---- holds ----

    @rule(operation=st.sampled_from(sorted(COSTS)), quantity=st.integers(min_value=1, max_value=12))
    def hold(self, operation: str, quantity: int) -> None:
        key = self.key()

        def holding() -> tuple[holds.Hold, bool]:
            return holds.hold(self.organization_id, operation, quantity, key=key, actor="user:1")

        self.books.book_due()
        amount = quantity * COSTS[operation]
        if amount > self.books.available:
            with pytest.raises(InsufficientCredits, match=f"{self.books.available} are available"):
                holding()
            return
        made, replayed = holding()
        assert (made.amount, replayed) == (amount, False)
        self.holds[made.id] = Held(amount, COSTS[operation], self.books.burn(amount))
        self.books.holds.append(self.holds[made.id])
        self.repeats.append((holding, made))

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), used=st.integers(min_value=0, max_value=40), by_quantity=st.booleans())
    def settle(self, data: st.DataObject, used: int, by_quantity: bool) -> None:
        hold_id = data.draw(st.sampled_from(list(self.holds)))
        hold, key = self.holds[hold_id], self.key()
        request = {"quantity": used} if by_quantity else {"amount": used}
        amount = used * hold.unit_cost if by_quantity else used
        if hold.state == "settled":
            return
        self.books.book_due()

        def settling() -> tuple[holds.Settlement, bool]:
            return settle(self.organization_id, hold_id, key=key, **request)

        if hold.state != "open":
            with pytest.raises(Conflict):
                settling()
        elif amount - hold.amount > self.books.available:
            with pytest.raises(InsufficientCredits):
                settling()
        else:
            made, replayed = settling()
            assert (made.amount_settled, replayed) == (amount, False)
            self.debits[made.debit_id] = self.books.settle(hold, amount)
            self.repeats.append((settling, made))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        hold_id = data.draw(st.sampled_from(list(self.holds)))
        hold, key = self.holds[hold_id], self.key()
        self.books.book_due()
        if hold.state == "settled":
            with pytest.raises(Conflict):
                release(self.organization_id, hold_id, key=key)
            return
        made, replayed = release(self.organization_id, hold_id, key=key)
        assert replayed == (hold.state != "open")
        if hold.state == "open":
            self.books.free(hold, "released")
        assert (made.state, made.amount_released) == (hold.state, hold.amount)
        self.repeats.append((lambda: release(self.organization_id, hold_id, key=key), made))

    @precondition(lambda self: self.repeats)
    @rule(data=st.data())
    def lose_a_reply_and_ask_again(self, data: st.DataObject) -> None:
        ask, answered = data.draw(st.sampled_from(self.repeats))
        again, replayed = ask()
        if isinstance(again, holds.Hold):  # whose expiry this test moves
            again = again.model_copy(update={"expires_at": answered.expires_at})
        assert (again, replayed) == (answered, True)
        # A release by state books what is due before it answers; all others answer by their key.
        audits.book_due(self.organization_id)
        self.books.book_due()

    # ---- claw-backs ----

    @precondition(lambda self: self.books.granted)
    @rule(data=st.data(), amount=st.none() | amounts)
    def claw_back(self, data: st.DataObject, amount: int | None) -> None:
        grant = data.draw(st.sampled_from(self.books.granted))
        key = self.key()
        grant_id = next(g["id"] for g in self.stored() if g["source_key"] == grant.source_key)
        made, _ = db.run(
            lambda tx: corrections.claw_back(tx, grant_id, key=key, amount=amount, actor="stripe")
        )
        self.books.book_due()
        most = grant.amount - grant.clawed_back - grant.lapsed
        taken = min(amount or grant.amount, most)
        assert made.amount == taken
        if made.id is None:
            assert not taken
            return
        from_grant = min(taken, grant.remaining)
        grant.remaining -= from_grant
        grant.clawed_back += taken
        self.books.debt += taken - from_grant
        assert made.owed == taken - from_grant
        self.taken[made.id] = Taken(grant, taken, from_grant)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        claw_back_id = data.draw(st.sampled_from(list(self.taken)))
        taken = self.taken[claw_back_id]
        made, restored = db.run(lambda tx: corrections.restore(tx, claw_back_id, actor="stripe"))
        assert (made.amount, restored) == (taken.amount, not taken.restored)
        if not restored:
            return
        taken.restored = True
        self.books.book_due()
        back = taken.amount - self.books.pay(taken.amount)
        to_grant = min(back, taken.from_grant)
        taken.grant.clawed_back -= taken.amount
        if back > to_grant:
            self.books.add(f"restore:{claw_back_id}", back - to_grant, 40, pays=False)
        if to_grant:
            self.books.give_back([(taken.grant, to_grant)])

    # ---- time ----

    @precondition(lambda self: self.passable())
    @rule(data=st.data())
    def let_a_grant_expire(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.passable()))
        pass_expiry(self.owner, next(g["id"] for g in self.stored() if g["source_key"] == grant.source_key))
        grant.passed, grant.expires = True, 0

    def passable(self) -> list[Granted]:
        return [grant for grant in self.books.granted if not grant.passed and not grant.ended]

    @precondition(lambda self: self.open_holds())
    @rule(data=st.data())
    def let_a_hold_expire(self, data: st.DataObject) -> None:
        hold_id = data.draw(st.sampled_from(self.open_holds()))
        pass_holds_expiry(self.owner, hold_id)
        self.holds[hold_id].passed = next(self.numbers)

    def open_holds(self) -> list[UUID]:
        return [
            hold_id for hold_id, hold in self.holds.items() if hold.state == "open" and hold.passed is None
        ]

    @rule()
    def sweep(self) -> None:
        audits.book_due(self.organization_id)
        self.books.book_due()

    # ---- what must hold after each of them ----

    def stored(self) -> list[dict[str, Any]]:
        return grants(self.owner, self.organization_id)

    @invariant()
    def the_books_balance(self) -> None:
        assert_books_balance(self.owner, self.organization_id)

    @invariant()
    def ledger_and_model_agree(self) -> None:
        stored = {grant["source_key"]: grant["remaining"] for grant in self.stored()}
        assert stored == {grant.source_key: grant.remaining for grant in self.books.granted}
        account = rows(
            self.owner, "SELECT * FROM credits.accounts WHERE organization_id = %s", self.organization_id
        )[0]
        assert (account["available"], account["held"], account["debt"]) == (
            self.books.available,
            self.books.held,
            self.books.debt,
        )
        for hold_id, hold in self.holds.items():
            assert held(self.owner, hold_id)["state"] == hold.state

    @invariant()
    def what_is_low_was_told_once_a_crossing(self) -> None:
        commits: dict[str, int] = {}  # what each transaction left, oldest first
        booked = """
            SELECT xmin::text, available_after
            FROM credits.entries
            WHERE organization_id = %s
            ORDER BY version
        """
        for entry in rows(self.owner, booked, self.organization_id):
            commits[entry["xmin"]] = entry["available_after"]
        low = [True, *(available < THRESHOLD for available in commits.values())]
        crossings = sum(after and not before for before, after in pairwise(low))
        told = rows(
            self.owner,
            "SELECT 1 FROM platform.outbox WHERE organization_id = %s AND type = 'credits.low_balance'",
            self.organization_id,
        )
        assert len(told) == crossings

    @invariant()
    def usage_is_what_was_debited_less_what_was_refunded(self) -> None:
        used = sum(debited.amount - debited.refunded for debited in self.debits.values())
        seen = db.run(lambda tx: usage.usage(tx, self.organization_id, days=1))
        assert sum(row.credits for row in seen.by_operation) == used
        assert sum(row.credits for row in seen.by_day) == used
        assert sum(row.count for row in seen.by_operation) == len(self.debits)

    @invariant()
    def a_read_says_what_booking_will(self) -> None:
        booked = copy.deepcopy(self.books)
        booked.book_due()
        seen = db.run(lambda tx: ledger.balance(tx, self.organization_id))
        assert (seen.available, seen.held, seen.debt) == (booked.available, booked.held, booked.debt)
        if not self.books.debt:
            assert sorted(grant.remaining for grant in seen.grants) == sorted(
                grant.remaining for grant in booked.granted if grant.remaining
            )
        assert sum(grant.remaining for grant in seen.grants) == seen.available


def test_any_sequence_of_mutations_ends_where_the_model_says(system_db: Database) -> None:
    for plan, carry in ROLLOVERS.items():
        roll_over(system_db, plan, carry)
    machine = type("Machine", (LedgerAndModel,), {"database": system_db})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=35,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
