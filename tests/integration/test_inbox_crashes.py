"""Whatever an event's delivery dies of, and wherever: delivered again, it has one effect, and all of it."""

import itertools

import pytest
from tests.databases import Database
from tests.kills import Killed, at_statement, end_the_session
from tests.ledgers import assert_books_balance, rows
from tests.senders import (
    Answer,
    checkout_session,
    clerk_user,
    invoice,
    post_clerk,
    post_stripe,
    stripe_event,
    subscription,
)
from tests.tcp_proxy import Cut, Proxy

from backplane import config, db

pytestmark = pytest.mark.usefixtures("webhook_secrets")

_numbers = itertools.count(1)


class Customer:
    """Somebody new, and everything that is told of him, each once."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.user = f"user_{number}"
        self.customer = f"cus_{number}"
        self.subscription = f"sub_{number}"
        self._message = f"msg_{number}"
        parent = {"subscription_details": {"subscription": self.subscription}}
        session = checkout_session(client_reference_id=self.user, customer=self.customer)
        state = subscription(id=self.subscription, customer=self.customer)
        bill = invoice(customer=self.customer, parent=parent)
        self._signed_up = clerk_user(self.user, email=f"{number}@example.com")
        self._events = {
            "checkout": stripe_event("checkout.session.completed", session),
            "subscription": stripe_event("customer.subscription.created", state),
            "invoice": stripe_event("invoice.paid", bill),
        }

    def deliver(self, name: str) -> Answer:
        if name == "user":
            return post_clerk(self._signed_up, self._message)
        return post_stripe(self._events[name])

    def assert_once(self, database: Database) -> None:
        """All that was told stands, and each of it once."""
        (account,) = rows(
            database,
            """
            SELECT o.id, a.available
            FROM identity.users AS u
            JOIN tenancy.organizations AS o ON o.personal_user_id = u.id
            JOIN credits.accounts AS a ON a.organization_id = o.id
            WHERE u.clerk_id = %s
            """,
            self.user,
        )
        assert account["available"] == 1100
        assert_books_balance(database, account["id"])
        told = rows(
            database,
            "SELECT type FROM platform.outbox WHERE organization_id = %s ORDER BY type",
            account["id"],
        )
        assert [event["type"] for event in told] == [
            "credits.granted",
            "credits.granted",
            "subscription.changed",
            "user.created",
        ]
        history = rows(
            database,
            "SELECT 1 FROM billing.subscription_events WHERE organization_id = %s",
            account["id"],
        )
        assert len(history) == 1
        identifiers = [event["id"] for event in self._events.values()]
        inbox = rows(
            database,
            "SELECT status FROM platform.webhook_inbox WHERE event_id = ANY(%s)",
            [*identifiers, self._message],
        )
        assert [event["status"] for event in inbox] == ["processed"] * 4


# The delivery that dies is the last one's. Before the user, all that is told of him is parked, and applied
# in the transaction that makes him: the longest there is.
SHORT = ("user", "checkout", "subscription", "invoice")
LONG = ("checkout", "subscription", "invoice", "user")
both_ways = pytest.mark.parametrize("order", [SHORT, LONG], ids="-".join)


@both_ways
def test_a_process_killed_before_any_statement_has_done_nothing_or_all(
    system_db: Database, order: tuple[str, ...]
) -> None:
    def strike() -> None:
        end_the_session(system_db)
        raise Killed

    for number in itertools.count(1, 2):  # every second: each has a customer of its own
        customer = Customer()
        *before, last = order
        for name in before:
            assert customer.deliver(name).status == 200
        with at_statement(number, strike) as said:
            try:
                whole = customer.deliver(last).status == 200
            except Killed:
                whole = False
        db.reset()
        again = customer.deliver(last)
        assert (again.status, again.body["status"]) == (200, "duplicate" if whole else "processed")
        customer.assert_once(system_db)
        if len(said) < number:
            break
    assert number > 5


def test_a_session_ended_before_any_statement_is_replaced_without_the_sender(system_db: Database) -> None:
    order = LONG
    for number in itertools.count(1, 2):
        customer = Customer()
        *before, last = order
        for name in before:
            customer.deliver(name)
        with at_statement(number, lambda: end_the_session(system_db)) as said:
            answer = customer.deliver(last)
        if answer.status == 503:  # at the commit, which may have come through: never repeated unasked
            assert said[number - 1].strip().upper() == "COMMIT"
            answer = customer.deliver(last)
        assert answer.status == 200
        customer.assert_once(system_db)
        if len(said) < number:
            break


@both_ways
@pytest.mark.parametrize("heard", [True, False])
def test_a_commit_whose_answer_is_lost_is_503_and_its_repetition_finds_what_became_of_it(
    database: Database, order: tuple[str, ...], heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(database.system) as proxy, monkeypatch.context() as patched:
        patched.setenv("DATABASE_URL", proxy.url)
        config.settings.cache_clear()
        db.reset()
        customer = Customer()
        *before, last = order
        for name in before:
            assert customer.deliver(name).status == 200
        proxy.cut = Cut(b"COMMIT\x00", heard=heard)  # not READ COMMITTED
        lost = customer.deliver(last)
        assert (lost.status, lost.body["code"]) == (503, "unavailable")
        assert customer.deliver(last).body["status"] == ("duplicate" if heard else "processed")
        customer.assert_once(database)
        db.reset()
    config.settings.cache_clear()
