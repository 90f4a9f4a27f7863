"""Stripe's customers for tests: what is told of them, and what stands of it in the database."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg.rows import DictRow
from tests.databases import Database
from tests.senders import (
    FIRST,
    checkout_session,
    clerk_user,
    invoice,
    post_clerk,
    post_stripe,
    stripe_event,
    subscription,
)

from backplane import db, subscriptions

SIGN_UP = 100
PRO = 1000
STARTER = 500

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Customer:
    """A user with a personal organisation, who is one of Stripe's customers too."""

    number: int

    @property
    def user(self) -> str:
        return f"user_{self.number}"

    @property
    def id(self) -> str:
        return f"cus_of_{self.number}"

    @property
    def subscription(self) -> str:
        return f"sub_of_{self.number}"

    def sign_up(self) -> dict[str, Any]:
        return clerk_user(self.user, email=f"{self.number}@example.com")

    def checkout(self, **fields: Any) -> dict[str, Any]:
        return self.session(
            "checkout.session.completed",
            client_reference_id=self.user,
            subscription=self.subscription,
            **fields,
        )

    def session(self, kind: str, *, created: int = FIRST, **fields: Any) -> dict[str, Any]:
        return stripe_event(kind, checkout_session(customer=self.id, **fields), created=created)

    def told(self, kind: str, *, created: int = FIRST, **fields: Any) -> dict[str, Any]:
        """A subscription event: `created`, `updated` or `deleted`."""
        state = subscription(customer=self.id, **{"id": self.subscription} | fields)
        return stripe_event(f"customer.subscription.{kind}", state, created=created)

    def paid(self, *, shape: str = "new", created: int = FIRST, **fields: Any) -> dict[str, Any]:
        return self.billed("paid", shape=shape, created=created, **fields)

    def billed(self, kind: str, *, shape: str = "new", created: int = FIRST, **fields: Any) -> dict[str, Any]:
        """An event of the subscription's invoice: `paid`, `payment_failed`, `voided` …"""
        body = invoice(shape=shape, customer=self.id, **fields)
        if shape == "new":
            body["parent"]["subscription_details"]["subscription"] = self.subscription
        else:
            body["subscription"] = self.subscription
        return stripe_event(f"invoice.{kind}", body, created=created)

    def pack(self, kind: str = "completed", *, created: int = FIRST, **fields: Any) -> dict[str, Any]:
        """A checkout session of a pack of 500 credits: always the same one."""
        session = {
            "id": f"cs_of_{self.number}",
            "mode": "payment",
            "subscription": None,
            "metadata": {"pack_id": "pack_500"},
        }
        return self.session(f"checkout.session.{kind}", created=created, **session | fields)


def new_customer() -> Customer:
    """One of whom nothing was told yet."""
    return Customer(next(_numbers))


def linked_customer() -> Customer:
    """Signed up, and linked by a checkout."""
    customer = new_customer()
    post_clerk(customer.sign_up())
    assert status(customer.checkout()) == "processed"
    return customer


def status(event: dict[str, Any]) -> str:
    answer = post_stripe(event)
    assert answer.status == 200, answer.body
    return str(answer.body["status"])


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def rows(database: Database, query: str, *params: object) -> list[DictRow]:
    with database.connect() as connection:
        return connection.execute(query, params).fetchall()


def organization(database: Database, customer: Customer) -> Any:
    [row] = rows(
        database,
        """
        SELECT o.id
        FROM tenancy.organizations AS o
        JOIN identity.users AS u ON u.id = o.personal_user_id
        WHERE u.clerk_id = %s
        """,
        customer.user,
    )
    return row["id"]


def available(database: Database, customer: Customer) -> int:
    [row] = rows(
        database,
        """
        SELECT a.available, a.held, a.debt, coalesce(sum(e.amount), 0) AS entries
        FROM credits.accounts AS a
        LEFT JOIN credits.entries AS e USING (organization_id)
        WHERE a.organization_id = %s
        GROUP BY a.organization_id
        """,
        organization(database, customer),
    )
    assert (row["held"], row["debt"], row["entries"]) == (0, 0, row["available"])
    return int(row["available"])


def entitled(customer: Customer, database: Database) -> subscriptions.CurrentPlan:
    organization_id = organization(database, customer)
    with db.transaction() as tx:
        return subscriptions.entitlement(tx, organization_id).current


def reason(database: Database, event: dict[str, Any]) -> str:
    [row] = rows(database, "SELECT reason FROM platform.webhook_inbox WHERE event_id = %s", event["id"])
    return str(row["reason"])


def stored(database: Database, customer: Customer) -> DictRow:
    """The subscription's row without what storing it adds."""
    [row] = rows(
        database,
        """
        SELECT p.key AS plan, s.price_id, s.status::text, s.provider_customer_id,
               s.current_period_start, s.current_period_end, s.cancel_at_period_end, s.cancel_at,
               s.canceled_at, s.ended_at, s.trial_end
        FROM billing.subscriptions AS s
        JOIN billing.plans AS p ON p.id = s.plan_id
        WHERE s.provider_subscription_id = %s
        """,
        customer.subscription,
    )
    return row
