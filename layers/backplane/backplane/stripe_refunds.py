"""Refunds: what a charge says it has refunded in all, and single refunds that fail.

The charge's cumulative amount decides what is clawed back. A refund is recorded; if it fails, the
money is ours again and the credits come back.
"""

from backplane import claw_backs, outbox, payments, stripe_events
from backplane.db import Tx
from backplane.inbox import Event, Outcome
from backplane.payments import Payment
from backplane.stripe_objects import Charge, Refund

FAILED = ("failed", "canceled")


def charge_refunded(tx: Tx, event: Event) -> Outcome:
    """Takes back the credits that the refunded part of the charge gave."""
    charge = stripe_events.read(Charge, event)
    payment = payments.find(tx, charge.payment_intent, charge.id, charge.invoice)
    told = tx.execute(
        """
        UPDATE billing.payments
        SET provider_charge_id = coalesce(provider_charge_id, %(charge_id)s),
            charged = %(charged)s,
            refunded = %(refunded)s,
            refunded_as_of = %(as_of)s
        WHERE id = %(id)s
          AND (refunded_as_of IS NULL OR (refunded_as_of, refunded) < (%(as_of)s, %(refunded)s))
        """,
        {
            "id": payment.id,
            "charge_id": charge.id,
            "charged": charge.amount_captured or charge.amount,
            "refunded": charge.amount_refunded,
            "as_of": event.occurred_at,
        },
    )
    if told.rowcount == 0:
        return Outcome("stale", "the charge has told a newer total", payment.organization_id)
    return _settled(tx, payment, event)


def refund_changed(tx: Tx, event: Event) -> Outcome:
    """Records the refund; one that failed gives back what it took."""
    refund = stripe_events.read(Refund, event)
    if refund.payment_intent is None and refund.charge is None:
        return Outcome("ignored", "the refund is of no payment")
    payment = payments.find(tx, refund.payment_intent, refund.charge)
    failed = event.type == "refund.failed" or refund.status in FAILED
    if _record(tx, payment, refund, event, failed=failed):
        outbox.append(
            tx,
            "refund.failed",
            organization_id=payment.organization_id,
            payload={
                "provider_refund_id": refund.id,
                "purchase_id": payment.purchase_id,
                "amount": refund.amount,
                "reason": refund.failure_reason,
            },
        )
    return _settled(tx, payment, event)


def _record(tx: Tx, payment: Payment, refund: Refund, event: Event, *, failed: bool) -> bool:
    """Stores what the newest event tells. Answers whether the refund is now known to have failed for
    the first time: no later word undoes that.
    """
    before = tx.execute(
        "SELECT failed_at FROM billing.payment_refunds WHERE provider_refund_id = %s", [refund.id]
    ).fetchone()
    tx.execute(
        """
        INSERT INTO billing.payment_refunds AS r
            (payment_id, provider_refund_id, amount, status, as_of, requested_at, failed_at)
        VALUES
            (%(payment_id)s, %(refund_id)s, %(amount)s, %(status)s, %(as_of)s, %(requested_at)s,
             %(failed_at)s)
        ON CONFLICT (provider_refund_id) DO UPDATE
        SET status = CASE WHEN r.as_of < EXCLUDED.as_of THEN EXCLUDED.status ELSE r.status END,
            as_of = greatest(r.as_of, EXCLUDED.as_of),
            requested_at = least(r.requested_at, EXCLUDED.requested_at),
            failed_at = least(r.failed_at, EXCLUDED.failed_at)
        """,
        {
            "payment_id": payment.id,
            "refund_id": refund.id,
            "amount": refund.amount,
            "status": refund.status,
            "as_of": stripe_events.as_of(event, final=failed),
            "requested_at": refund.created or event.occurred_at,
            "failed_at": event.occurred_at if failed else None,
        },
    )
    return failed and (before is None or before["failed_at"] is None)


def _settled(tx: Tx, payment: Payment, event: Event) -> Outcome:
    gave = claw_backs.settle(tx, payment, event_id=event.id)
    return Outcome("processed", None if gave else "the payment gave no credits", payment.organization_id)
