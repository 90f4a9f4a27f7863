"""What is taken back of a purchase's credits, as far as its payments were refunded or disputed.

Always the whole is computed from what is known of the payments, and the ledger is brought there:
so the order in which refunds, failures and disputes were told does not matter, and telling again
changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from uuid import UUID

from backplane import corrections, db, outbox
from backplane.payments import Payment, covers_year


@dataclass(frozen=True, slots=True)
class Taken:
    """What a payment was, and what of it went back. Amounts in minor units; None: not known."""

    paid: int | None
    refunded: int
    disputed: int


def settle(tx: db.Tx, payment: Payment, *, event_id: str) -> bool:
    """Claws back, or restores, what the state of the purchase's payments asks for.

    Answers whether the purchase gave any credits at all.
    """
    share = share_taken(_payments(tx, payment.purchase_id))
    grants = _grants(tx, payment)
    for grant in grants:
        target = int(grant["amount"] * share)
        if target != grant["clawed_back"]:
            key = f"stripe:{event_id}:{grant['id']}"
            _settle_grant(tx, payment, grant["id"], target, key=key)
    return bool(grants)


def _grants(tx: db.Tx, payment: Payment) -> list[dict[str, Any]]:
    """What the purchase gave: its own credits, and the months that were granted of a year it paid."""
    return tx.execute(
        f"""
        SELECT g.id, g.amount, g.clawed_back
        FROM credits.grants AS g
        WHERE g.organization_id = %(organization_id)s
          AND (g.invoice_id = %(purchase_id)s OR g.checkout_session_id = %(purchase_id)s)
        UNION ALL
        SELECT g.id, g.amount, g.clawed_back
        FROM billing.purchases AS b
        JOIN credits.grants AS g
            ON g.organization_id = b.organization_id
            AND g.provider = b.provider
            AND g.provider_subscription_id = b.provider_subscription_id
        WHERE b.organization_id = %(organization_id)s
          AND b.provider_purchase_id = %(purchase_id)s
          AND starts_with(g.source_key, 'month:')
          AND {covers_year("b", "g.period_end")}
          AND NOT EXISTS (
              SELECT 1
              FROM billing.purchases AS later
              WHERE later.organization_id = b.organization_id
                AND later.provider_subscription_id = b.provider_subscription_id
                AND later.period_start > b.period_start
                AND {covers_year("later", "g.period_end")}
          )
        ORDER BY id
        """.encode(),
        {"organization_id": payment.organization_id, "purchase_id": payment.purchase_id},
    ).fetchall()


def share_taken(payments: Iterable[Taken]) -> Fraction:
    """Which part of what was paid went back: 0 to 1. A refund and a dispute of the same money count once."""
    paid = taken = 0
    for payment in payments:
        back = payment.refunded + payment.disputed
        if not payment.paid:
            if back:
                return Fraction(1)
            continue
        paid += payment.paid
        taken += min(back, payment.paid)
    return Fraction(taken, paid) if paid else Fraction(0)


def _payments(tx: db.Tx, purchase_id: str) -> list[Taken]:
    """A refund that failed counts no longer, unless the charge has told its total since."""
    rows = tx.execute(
        """
        SELECT coalesce(p.charged, p.amount, b.amount) AS paid,
               greatest(0, p.refunded - coalesce((
                   SELECT sum(r.amount)
                   FROM billing.payment_refunds AS r
                   WHERE r.payment_id = p.id
                     AND r.requested_at <= p.refunded_as_of
                     AND r.failed_at >= p.refunded_as_of), 0))::bigint AS refunded,
               coalesce((
                   SELECT sum(d.amount)
                   FROM billing.disputes AS d
                   WHERE d.payment_id = p.id
                     AND (d.lost OR (d.withdrawn AND NOT d.reinstated))), 0)::bigint AS disputed
        FROM billing.payments AS p
        JOIN billing.purchases AS b
            ON b.provider = p.provider AND b.provider_purchase_id = p.provider_purchase_id
        WHERE p.provider = 'stripe' AND p.provider_purchase_id = %s
        """,
        [purchase_id],
    ).fetchall()
    return [Taken(**row) for row in rows]


def _settle_grant(tx: db.Tx, payment: Payment, grant_id: UUID, target: int, *, key: str) -> None:
    """Restores the newest claw-backs until no more than the target is taken, then takes what is missing."""
    standing = _standing(tx, payment.organization_id, grant_id)
    taken = sum(entry["amount"] for entry in standing)
    for entry in standing:
        if taken <= target:
            break
        restoration, _ = corrections.restore(tx, entry["id"], actor="stripe")
        taken -= entry["amount"]
        _tell(
            tx,
            "credits.restored",
            payment,
            grant_id,
            amount=restoration.amount,
            claw_back_id=str(entry["id"]),
        )
    # What lapsed unused is not owed: it counts as taken back, whichever came first.
    missing = target - taken - _lapsed(tx, grant_id)
    if missing <= 0:
        return
    claw_back, made = corrections.claw_back(tx, grant_id, key=key, actor="stripe", amount=missing)
    if made:
        _tell(
            tx,
            "credits.clawed_back",
            payment,
            grant_id,
            amount=claw_back.amount,
            owed=claw_back.owed,
            claw_back_id=str(claw_back.id),
        )


def _standing(tx: db.Tx, organization_id: UUID, grant_id: UUID) -> list[dict[str, Any]]:
    """The grant's claw-backs that were not restored, newest first."""
    return tx.execute(
        """
        SELECT e.id, -e.amount AS amount
        FROM credits.entries AS e
        WHERE e.organization_id = %(organization_id)s
          AND e.kind = 'claw_back'
          AND e.source_id = %(grant_id)s
          AND e.amount < 0
          AND NOT EXISTS (
              SELECT 1
              FROM credits.entries AS r
              WHERE r.organization_id = e.organization_id
                AND r.kind = 'claw_back'
                AND r.idempotency_key = 'restore:' || e.id
          )
        ORDER BY e.version DESC
        """,
        {"organization_id": organization_id, "grant_id": grant_id},
    ).fetchall()


def _lapsed(tx: db.Tx, grant_id: UUID) -> int:
    row = tx.execute("SELECT lapsed FROM credits.grants WHERE id = %s", [grant_id]).fetchone()
    return 0 if row is None else int(row["lapsed"])


def _tell(tx: db.Tx, event_type: str, payment: Payment, grant_id: UUID, **facts: Any) -> None:
    outbox.append(
        tx,
        event_type,
        organization_id=payment.organization_id,
        payload={"grant_id": str(grant_id), "purchase_id": payment.purchase_id, **facts},
    )
