"""The senders' customers and the organisations they pay for."""

import re
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from backplane import db, identity, inbox
from backplane.plans import PricedPlan

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


class Gone(inbox.Quarantine):
    """Whom a reference names was deleted, or never was."""

    def __init__(self, reference: str, organization_id: UUID | None) -> None:
        super().__init__(f"the organisation of {reference} does not exist any more", organization_id)


def subject(provider: str, customer_id: str) -> str:
    """The name under which events wait for a customer to be linked, and the name of his lock."""
    return f"{provider}.customer:{customer_id}"


@dataclass(frozen=True, slots=True)
class Customer:
    organization_id: UUID | None  # None only on the tombstone of one whom we never heard of
    deleted: bool  # at the sender's: a tombstone, which keeps late events out


def find(tx: db.Tx, provider: str, customer_id: str) -> Customer | None:
    """A customer with the organisation he is linked to, or was."""
    row = tx.execute(
        """
        SELECT organization_id, deleted_at IS NOT NULL AS deleted
        FROM billing.customers
        WHERE provider = %s AND provider_customer_id = %s
        """,
        [provider, customer_id],
    ).fetchone()
    return None if row is None else Customer(**row)


def lock(tx: db.Tx, provider: str, customer_id: str) -> Customer | None:
    """Takes the customer's lock until the transaction ends; what `find` says of him under it."""
    return lock_with_plan(tx, provider, customer_id, [])[0]


def lock_with_plan(
    tx: db.Tx, provider: str, customer_id: str, price_ids: list[str]
) -> tuple[Customer | None, PricedPlan | None]:
    """`lock`, and what plans.find_by_prices says, in one round trip."""
    row = tx.execute(
        _LOCK,
        {
            "provider": provider,
            "customer_id": customer_id,
            "subject": subject(provider, customer_id),
            "price_ids": price_ids,
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("billing.lock_customer answers one row")
    organization_id, deleted = row.pop("organization_id"), row.pop("deleted")
    customer = None if deleted is None else Customer(organization_id, deleted)
    return customer, None if row["id"] is None else PricedPlan(**row)


_LOCK = """
    SELECT customer.organization_id, customer.deleted, plan.*
    FROM billing.lock_customer(%(provider)s, %(customer_id)s, %(subject)s) AS customer
    LEFT JOIN billing.plan_of_prices(%(price_ids)s) AS plan ON true
"""


def of_organization(tx: db.Tx, provider: str, organization_id: UUID) -> str | None:
    """The organisation's newest customer that stands."""
    row = tx.execute(
        """
        SELECT provider_customer_id
        FROM billing.customers
        WHERE provider = %s AND organization_id = %s AND deleted_at IS NULL
        ORDER BY created_at DESC, id DESC
        LIMIT 1
        """,
        [provider, organization_id],
    ).fetchone()
    return None if row is None else row["provider_customer_id"]


def link(tx: db.Tx, provider: str, customer_id: str, organization_id: UUID) -> bool:
    """Links a customer, unless he is linked already. Answers whether this call did.

    One who was deleted before anybody said whose he was stays so, and what was told of him finds out.
    """
    linked = tx.execute(
        """
        INSERT INTO billing.customers AS c (organization_id, provider, provider_customer_id)
        VALUES (%s, %s, %s)
        ON CONFLICT (provider, provider_customer_id) DO UPDATE
        SET organization_id = EXCLUDED.organization_id
        WHERE c.organization_id IS NULL
        """,
        [organization_id, provider, customer_id],
    )
    return linked.rowcount == 1


def deleted_at(tx: db.Tx, provider: str, customer_id: str) -> datetime:
    """When the customer of a tombstone was deleted."""
    row = tx.execute(
        "SELECT deleted_at FROM billing.customers WHERE provider = %s AND provider_customer_id = %s",
        [provider, customer_id],
    ).fetchone()
    if row is None or row["deleted_at"] is None:
        raise RuntimeError(f"{customer_id} has no tombstone")
    moment: datetime = row["deleted_at"]
    return moment


def bury(tx: db.Tx, provider: str, customer_id: str, deleted_at: datetime) -> None:
    """Leaves a tombstone: the customer is over, and moves to nobody else."""
    tx.execute(
        """
        INSERT INTO billing.customers (provider, provider_customer_id, deleted_at)
        VALUES (%(provider)s, %(customer_id)s, %(deleted_at)s)
        ON CONFLICT (provider, provider_customer_id) DO UPDATE
        SET deleted_at = EXCLUDED.deleted_at
        """,
        {"provider": provider, "customer_id": customer_id, "deleted_at": deleted_at},
    )


def organization_named(tx: db.Tx, reference: str) -> UUID:
    """The organisation that a sender's reference names: our id, a Clerk organisation id, or a Clerk
    user id, which stands for the user's personal organisation.

    Raises inbox.Park where a Clerk id is not known yet, Gone where it is not any more, inbox.Quarantine
    where it never will be.
    """
    if _UUID.fullmatch(reference):
        query = "SELECT id, deleted_at FROM tenancy.organizations WHERE id = %s"
        waiting_for = None
    elif reference.startswith("user_"):
        query = """
            SELECT o.id, coalesce(u.deleted_at, o.deleted_at) AS deleted_at
            FROM identity.users AS u
            LEFT JOIN tenancy.organizations AS o ON o.personal_user_id = u.id
            WHERE u.clerk_id = %s
        """
        waiting_for = identity.user_subject(reference)
    elif reference.startswith("org_"):
        query = "SELECT id, deleted_at FROM tenancy.organizations WHERE clerk_id = %s"
        waiting_for = identity.organization_subject(reference)
    else:
        raise inbox.Quarantine(
            f"{reference[:100]!r} is neither an organisation's id nor a Clerk user's or organisation's"
        )
    if waiting_for is not None:
        inbox.lock(tx, waiting_for)
    row = tx.execute(query, [reference]).fetchone()
    if row is None and waiting_for is not None:
        raise inbox.Park(waiting_for, f"{reference} is not known yet")
    if row is None or row["id"] is None or row["deleted_at"] is not None:
        raise Gone(reference, None if row is None else row["id"])
    organization_id: UUID = row["id"]
    return organization_id
