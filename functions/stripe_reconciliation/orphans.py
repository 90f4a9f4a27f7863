"""Subscriptions at Stripe whose organisation is gone: they are canceled, or somebody pays for nothing.

A user or an organisation that is deleted in Clerk says nothing to Stripe, which would bill on. Nobody is
left to use what it is for.
"""

import time
from collections.abc import Mapping
from typing import Any

import replay
from aws_lambda_powertools import Logger

from backplane import db, stripe_api
from backplane.config import settings

logger = Logger()


def run(*, seconds: float) -> dict[str, Any]:
    """Answers {ok, canceled: [subscription ids], refused: {id: reason}}. What time does not suffice for, the
    next run does. Raises Unavailable where Stripe or the database can't be reached.
    """
    ends = time.monotonic() + seconds
    canceled, refused = [], {}
    for row in _orphans():
        if time.monotonic() > ends:
            break
        identifier = row["provider_subscription_id"]
        try:
            over = _cancel(row)
        except stripe_api.Refused as refusal:
            logger.warning("an orphaned subscription was not canceled", id=identifier, reason=str(refusal))
            refused[identifier] = str(refusal)
            continue
        if replay.replay(over) not in {"processed", "stale"}:
            refused[identifier] = "canceled at Stripe, and not recorded here: see the webhook inbox"
            continue
        logger.info("an orphaned subscription was canceled", id=identifier)
        canceled.append(identifier)
    return {"ok": not refused, "canceled": canceled, "refused": refused}


def _orphans() -> list[dict[str, Any]]:
    return db.answer(
        """
        SELECT s.provider_subscription_id, s.provider_customer_id, s.price_id
        FROM billing.subscriptions AS s
        JOIN tenancy.organizations AS o ON o.id = s.organization_id
        WHERE s.provider = 'stripe' AND s.status NOT IN ('canceled', 'incomplete_expired')
          AND o.deleted_at IS NOT NULL
        ORDER BY s.provider_subscription_id
        """,
        repeatable=True,
    )


def _cancel(row: Mapping[str, Any]) -> dict[str, Any]:
    """What Stripe's event of the end tells. It may also come by itself: an end stands once."""
    identifier = row["provider_subscription_id"]
    try:
        state = stripe_api.delete(stripe_api.path("subscriptions", identifier))
    except stripe_api.Refused as refusal:
        if not refusal.missing:
            raise
        # Over before, or a test's that was deleted with its data.
        state = {
            "id": identifier,
            "object": "subscription",
            "customer": row["provider_customer_id"],
            "status": "canceled",
            "items": {"data": [{"price": {"id": row["price_id"]}}]},
        }
    return {
        "id": f"reconciliation:{identifier}:orphan",
        "object": "event",
        "type": "customer.subscription.deleted",
        "created": int(time.time()),
        "livemode": settings().livemode,
        "data": {"object": state},
    }
