"""The ledger against a model of it: any sequence of mutations ends where plain arithmetic says."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.databases import Database
from tests.ledgers import Kept, assert_books_balance, debit, grants, make_grant, new_account, pass_expiry

from backplane import db, ledger
from backplane.problems import IdempotencyConflict, InsufficientCredits

HOUR = timedelta(hours=1)
COSTS = {"ai_text_chat": 1, "ai_image_generation": 5}

amounts = st.integers(min_value=1, max_value=30)
subscriptions = st.sampled_from(["sub_1", "sub_2"])


@dataclass
class Granted:
    """What the model knows of a grant. It burns by (priority, expires, number)."""

    id: UUID
    source_key: str
    priority: int
    number: int
    remaining: int
    expires: float  # hours from the start; infinity: never
    subscription: str | None = None
    period: int | None = None
    due: bool = False  # the clock has passed its expiry; the next mutation books it


class LedgerAndModel(RuleBasedStateMachine):
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.start = datetime.now(UTC)
        self.organization_id = new_account(self.database)
        self.owner = Kept(self.database.connect())
        self.given: list[Granted] = []
        self.debited: dict[str, tuple[tuple[str, int], ledger.Debit]] = {}

    def teardown(self) -> None:
        self.owner.connection.close()

    # ---- the model's arithmetic ----

    def available(self) -> int:
        return sum(grant.remaining for grant in self.given if not grant.due)

    def book_due(self) -> None:
        for grant in self.given:
            if grant.due:
                grant.remaining = 0

    def burn(self, amount: int) -> None:
        self.book_due()
        for grant in sorted(self.given, key=lambda g: (g.priority, g.expires, g.number)):
            taken = min(amount, grant.remaining)
            grant.remaining -= taken
            amount -= taken

    # ---- mutations ----

    def grant(self, amount: int, source: str, **fields: Any) -> Granted:
        number = len(self.given)
        request = make_grant(self.organization_id, amount, source=source, **fields)
        grant_id, granted = db.run(lambda tx: ledger.grant(tx, request))
        assert granted
        self.book_due()
        made = Granted(grant_id, request.source_key, ledger.PRIORITY[source], number, amount, float("inf"))
        self.given.append(made)
        return made

    @rule(
        amount=amounts,
        source=st.sampled_from(["pack", "promotion", "sign_up", "adjustment"]),
        hours=st.none() | st.integers(min_value=-2, max_value=9).filter(bool),
    )
    def grant_credits(self, amount: int, source: str, hours: int | None) -> None:
        expires_at = None if hours is None else self.start + hours * HOUR
        made = self.grant(amount, source, expires_at=expires_at)
        if hours is not None:
            made.expires = hours
            if hours < 0:
                made.remaining = 0

    @rule(amount=amounts, subscription=subscriptions, period=st.integers(min_value=1, max_value=4))
    def grant_a_period(self, amount: int, subscription: str, period: int) -> None:
        end = self.start + period * 24 * HOUR
        made = self.grant(
            amount, "plan", subscription=subscription, period_end=end, expires_at=end + 72 * HOUR
        )
        made.subscription, made.period, made.expires = subscription, period, period * 24 + 72
        of_it = [grant for grant in self.given if grant.subscription == subscription]
        latest = max(grant.period or 0 for grant in of_it)
        for grant in of_it:
            if grant.period != latest:
                grant.remaining = 0

    @precondition(lambda self: self.given)
    @rule(data=st.data(), amount=amounts)
    def grant_the_same_again(self, data: st.DataObject, amount: int) -> None:
        grant = data.draw(st.sampled_from(self.given))
        request = make_grant(self.organization_id, amount, source_key=grant.source_key)
        assert db.run(lambda tx: ledger.grant(tx, request)) == (grant.id, False)

    @rule(operation=st.sampled_from(sorted(COSTS)), quantity=st.integers(min_value=1, max_value=12))
    def debit(self, operation: str, quantity: int) -> None:
        amount, available = quantity * COSTS[operation], self.available()
        key = f"key-{len(self.debited)}"
        if amount > available:
            with pytest.raises(InsufficientCredits, match=f"{available} are available"):
                debit(self.organization_id, operation, quantity=quantity, key=key)
            self.book_due()
            return
        made, replayed = debit(self.organization_id, operation, quantity=quantity, key=key)
        assert (made.amount, made.available_after, replayed) == (amount, available - amount, False)
        self.burn(amount)
        self.debited[key] = ((operation, quantity), made)

    @precondition(lambda self: self.debited)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
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

    @rule(subscription=subscriptions)
    def end_subscription(self, subscription: str) -> None:
        db.run(
            lambda tx: ledger.end_subscription(
                tx, self.organization_id, "stripe", subscription, actor="stripe"
            )
        )
        self.book_due()
        for grant in self.given:
            if grant.subscription == subscription:
                grant.remaining = 0

    @precondition(lambda self: any(self.passable()))
    @rule(data=st.data())
    def let_time_pass(self, data: st.DataObject) -> None:
        """Up to the expiry of one grant that still holds something."""
        grant = data.draw(st.sampled_from(self.passable()))
        pass_expiry(self.owner, grant.id)
        grant.due = True

    def passable(self) -> list[Granted]:
        return [grant for grant in self.given if grant.remaining and not grant.due]

    # ---- what must hold after each of them ----

    @invariant()
    def the_books_balance(self) -> None:
        assert_books_balance(self.owner, self.organization_id)

    @invariant()
    def ledger_and_model_agree(self) -> None:
        stored = {grant["id"]: grant["remaining"] for grant in grants(self.owner, self.organization_id)}
        assert stored == {grant.id: grant.remaining for grant in self.given}
        seen = db.run(lambda tx: ledger.balance(tx, self.organization_id))
        assert seen.available == self.available()
        assert {grant.id: grant.remaining for grant in seen.grants} == {
            grant.id: grant.remaining for grant in self.passable()
        }


@pytest.mark.timeout(300)
def test_any_sequence_of_mutations_ends_where_the_model_says(system_db: Database) -> None:
    machine = type("Machine", (LedgerAndModel,), {"database": system_db})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
