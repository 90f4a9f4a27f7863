"""Disputes: money that the cardholder's bank takes away, gives back when the dispute is won, or keeps.

What any event of a dispute tells is kept: that the money was withdrawn, that it was reinstated, that
the dispute is lost, which is final. An inquiry (`warning_…`) moves no money.
"""

from backplane import claw_backs, outbox, payments, stripe_events
from backplane.db import Tx
from backplane.inbox import Event, Outcome
from backplane.payments import Payment
from backplane.stripe_objects import Dispute

# The domain event that each tells, where it tells one.
_TOLD = {"charge.dispute.created": "dispute.opened", "charge.dispute.closed": "dispute.closed"}


def dispute_changed(tx: Tx, event: Event) -> Outcome:
    """Takes the credits back while the money is away, and restores them when it comes back."""
    dispute = stripe_events.read(Dispute, event)
    if dispute.payment_intent is None and dispute.charge is None:
        return Outcome("ignored", "the dispute is of no payment")
    payment = payments.find(tx, dispute.payment_intent, dispute.charge)
    _record(tx, payment, dispute, event)
    if event.type in _TOLD:
        outbox.append(
            tx,
            _TOLD[event.type],
            organization_id=payment.organization_id,
            payload={
                "provider_dispute_id": dispute.id,
                "purchase_id": payment.purchase_id,
                "status": dispute.status,
                "reason": dispute.reason,
                "amount": dispute.amount,
                "currency": dispute.currency,
            },
        )
    gave = claw_backs.settle(tx, payment, event_id=event.id)
    return Outcome("processed", None if gave else "the payment gave no credits", payment.organization_id)


def _record(tx: Tx, payment: Payment, dispute: Dispute, event: Event) -> None:
    warning = dispute.status.startswith("warning_")
    tx.execute(
        """
        INSERT INTO billing.disputes AS d
            (payment_id, provider_dispute_id, amount, status, as_of, withdrawn, reinstated, lost)
        VALUES
            (%(payment_id)s, %(dispute_id)s, %(amount)s, %(status)s, %(as_of)s, %(withdrawn)s, %(reinstated)s,
             %(lost)s)
        ON CONFLICT (provider_dispute_id) DO UPDATE
        SET amount = CASE WHEN d.as_of < EXCLUDED.as_of THEN EXCLUDED.amount ELSE d.amount END,
            status = CASE WHEN d.as_of < EXCLUDED.as_of THEN EXCLUDED.status ELSE d.status END,
            as_of = greatest(d.as_of, EXCLUDED.as_of),
            withdrawn = d.withdrawn OR EXCLUDED.withdrawn,
            reinstated = d.reinstated OR EXCLUDED.reinstated,
            lost = d.lost OR EXCLUDED.lost
        """,
        {
            "payment_id": payment.id,
            "dispute_id": dispute.id,
            "amount": dispute.amount,
            "status": dispute.status,
            "as_of": stripe_events.as_of(event, final=dispute.status in {"won", "lost", "warning_closed"}),
            "withdrawn": event.type == "charge.dispute.funds_withdrawn" and not warning,
            "reinstated": dispute.status == "won"
            or (event.type == "charge.dispute.funds_reinstated" and not warning),
            "lost": dispute.status == "lost",
        },
    )
