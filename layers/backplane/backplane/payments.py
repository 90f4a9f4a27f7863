"""What was bought, and which payments paid for it: so that a refund finds what its money gave.

A payment goes by the name of its intent (`pi_…`), or of its charge where it has none. It may be told
before what it paid for and after; what is taken back of it waits for both under its name.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from backplane import db, inbox

PurchaseStatus = Literal["pending", "failed", "expired", "uncollectible", "void", "paid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """An invoice or a checkout session. `amount` in minor units of the currency."""

    id: str
    organization_id: UUID
    status: PurchaseStatus
    amount: int | None
    currency: str | None
    subscription_id: str | None = None
    period: tuple[datetime, datetime] | None = None  # of the subscription, which it paid


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A payment, by its intent or its charge or both, and what it paid for."""

    purchase_id: str
    intent_id: str | None
    charge_id: str | None
    amount: int | None

    @property
    def payment_id(self) -> str | None:
        return self.intent_id or self.charge_id


@dataclass(frozen=True, slots=True)
class Payment:
    id: UUID
    purchase_id: str
    organization_id: UUID


def subject(name: str) -> str:
    """The name under which refunds and disputes wait for a payment, and the name of its lock."""
    return f"stripe.payment:{name}"


def lock_purchase(tx: db.Tx, purchase_id: str) -> None:
    """Taken by what tells a purchase and by what tells its payments: one of them sees the other."""
    inbox.lock(tx, f"stripe.purchase:{purchase_id}")


def record(tx: db.Tx, purchase: Purchase) -> PurchaseStatus:
    """Stores the purchase. Answers the status that stands: a later one than told, if that was known."""
    row = tx.execute(
        """
        INSERT INTO billing.purchases AS p
            (organization_id, provider, provider_purchase_id, status, amount, currency,
             provider_subscription_id, period_start, period_end)
        VALUES (%(organization_id)s, 'stripe', %(id)s, %(status)s, %(amount)s, %(currency)s,
                %(subscription_id)s, %(period_start)s, %(period_end)s)
        ON CONFLICT (provider, provider_purchase_id) DO UPDATE
        SET status = greatest(p.status, EXCLUDED.status),
            amount = CASE WHEN EXCLUDED.status >= p.status THEN coalesce(EXCLUDED.amount, p.amount)
                          ELSE p.amount END,
            currency = coalesce(p.currency, EXCLUDED.currency),
            provider_subscription_id =
                coalesce(p.provider_subscription_id, EXCLUDED.provider_subscription_id),
            period_start = coalesce(p.period_start, EXCLUDED.period_start),
            period_end = coalesce(p.period_end, EXCLUDED.period_end)
        RETURNING status
        """,
        {
            "organization_id": purchase.organization_id,
            "id": purchase.id,
            "status": purchase.status,
            "amount": purchase.amount,
            "currency": purchase.currency,
            "subscription_id": purchase.subscription_id,
            "period_start": None if purchase.period is None else purchase.period[0],
            "period_end": None if purchase.period is None else purchase.period[1],
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("an upsert answers its row")
    status: PurchaseStatus = row["status"]
    return status


def link(tx: db.Tx, told: Link) -> tuple[str, ...]:
    """Says what a payment paid for. Answers the subjects that arrived with it, their locks held."""
    subjects = _lock(tx, told.intent_id, told.charge_id)
    tx.execute(
        """
        INSERT INTO billing.payments AS p
            (provider, provider_payment_id, provider_charge_id, provider_purchase_id, amount)
        VALUES ('stripe', %(payment_id)s, %(charge_id)s, %(purchase_id)s, %(amount)s)
        ON CONFLICT (provider, provider_payment_id) DO UPDATE
        SET provider_charge_id = coalesce(p.provider_charge_id, EXCLUDED.provider_charge_id),
            amount = coalesce(p.amount, EXCLUDED.amount)
        """,
        {
            "payment_id": told.payment_id,
            "charge_id": told.charge_id,
            "purchase_id": told.purchase_id,
            "amount": told.amount,
        },
    )
    return subjects


def subjects_of(tx: db.Tx, purchase_id: str) -> tuple[str, ...]:
    """The subjects of the payments that were told before what they paid for, their locks held."""
    rows = tx.execute(
        """
        SELECT provider_payment_id, provider_charge_id
        FROM billing.payments
        WHERE provider = 'stripe' AND provider_purchase_id = %s
        """,
        [purchase_id],
    ).fetchall()
    names = {name for row in rows for name in row.values()}
    return _lock(tx, *names)


def find(tx: db.Tx, intent_id: str | None, charge_id: str | None, purchase_id: str | None = None) -> Payment:
    """The payment of an intent or a charge, locked, and whose it is.

    With `purchase_id`, what it paid for, an unknown payment becomes known. Raises inbox.Park where the
    payment, or what it paid for, is not known yet.
    """
    if purchase_id is not None:
        lock_purchase(tx, purchase_id)
        link(tx, Link(purchase_id=purchase_id, intent_id=intent_id, charge_id=charge_id, amount=None))
    _lock(tx, intent_id, charge_id)
    names = [name for name in (intent_id, charge_id) if name is not None]
    row = tx.execute(
        """
        SELECT p.id, p.provider_purchase_id AS purchase_id, b.organization_id
        FROM billing.payments AS p
        LEFT JOIN billing.purchases AS b
            ON b.provider = p.provider
            AND b.provider_purchase_id = p.provider_purchase_id
            AND b.status = 'paid'
        WHERE p.provider = 'stripe'
          AND (p.provider_payment_id = ANY(%(names)s) OR p.provider_charge_id = ANY(%(names)s))
        ORDER BY b.organization_id IS NULL, p.id
        LIMIT 1
        """,
        {"names": names},
    ).fetchone()
    if row is None:
        raise inbox.Park(subject(names[0]), f"what {names[0]} paid for is not known yet")
    if row["organization_id"] is None:
        raise inbox.Park(subject(names[0]), f"{row['purchase_id']}, which {names[0]} paid, is not known yet")
    return Payment(**row)


def of_month(tx: db.Tx, organization_id: UUID, subscription_id: str, month_end: datetime) -> Payment | None:
    """A payment of the year that a month is of, or None where none is known. Either way nothing is told of
    the year's payments until the transaction ends.
    """
    year = tx.execute(
        f"""
        SELECT b.provider_purchase_id AS id
        FROM billing.purchases AS b
        WHERE b.organization_id = %(organization_id)s
          AND b.provider_subscription_id = %(subscription_id)s
          AND {covers_year("b", "%(month_end)s::timestamptz")}
        ORDER BY b.period_start DESC
        LIMIT 1
        """.encode(),
        {"organization_id": organization_id, "subscription_id": subscription_id, "month_end": month_end},
    ).fetchone()
    if year is None:
        return None
    lock_purchase(tx, year["id"])
    subjects_of(tx, year["id"])
    row = tx.execute(
        """
        SELECT id, provider_purchase_id AS purchase_id, %(organization_id)s::uuid AS organization_id
        FROM billing.payments
        WHERE provider = 'stripe' AND provider_purchase_id = %(purchase_id)s
        ORDER BY id
        LIMIT 1
        """,
        {"organization_id": organization_id, "purchase_id": year["id"]},
    ).fetchone()
    return None if row is None else Payment(**row)


def covers_year(purchase: str, month_end: str) -> str:
    """SQL: the purchase paid a whole year, and the month is of it. The steps of a change within a year are
    shorter; where a change begins a new year, the months are the later one's.
    """
    return f"""
        ({purchase}.provider = 'stripe'
         AND {purchase}.status = 'paid'
         AND {purchase}.period_end >= {purchase}.period_start + interval '1 year' - interval '1 day'
         AND {purchase}.period_start < {month_end}
         AND {purchase}.period_end >= {month_end})
    """


def _lock(tx: db.Tx, *names: str | None) -> tuple[str, ...]:
    subjects = tuple(sorted(subject(name) for name in names if name is not None))
    for each in subjects:
        inbox.lock(tx, each)
    return subjects
