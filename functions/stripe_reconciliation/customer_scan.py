"""One customer's objects at Stripe, and what of them is not so here.

What is missing or different goes through the inbox as the event that should have told it, under an id of
ours (`reconciliation:…`), so that the inbox shows what was mended, when and from what.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import replay
from pydantic import ValidationError

from backplane import customers, db, stripe_api
from backplane.config import settings
from backplane.stripe_objects import Subscription

PAGE = 100  # Stripe's most


def run(customer: str) -> dict[str, Any]:
    """Answers {ok, customer, checked: {kind: count}, drift: [{object, fields, status}]}."""
    checked: dict[str, int] = {}
    drift: list[dict[str, Any]] = []
    # In this order: a session links the customer, a subscription is there before what pays it.
    for kind, listed in (
        ("checkout_sessions", _listed("/v1/checkout/sessions", customer=customer)),
        ("subscriptions", _listed("/v1/subscriptions", customer=customer, status="all")),
        ("invoices", _listed("/v1/invoices", customer=customer, status="paid")),
    ):
        checked[kind] = 0
        for told in listed:
            checked[kind] += 1
            if (found := _CHECKS[kind](told, customer)) is not None:
                drift.append(found)
    unsettled = [found for found in drift if found["status"] in replay.UNSETTLED]
    return {"ok": not unsettled, "customer": customer, "checked": checked, "drift": drift}


def _listed(path: str, **params: str) -> Iterator[dict[str, Any]]:
    """Every object of a list."""
    after: dict[str, str] = {}
    while True:
        page = stripe_api.get(path, limit=PAGE, **params, **after)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"starting_after": page["data"][-1]["id"]}


def _session(told: Mapping[str, Any], customer: str) -> dict[str, Any] | None:
    if told.get("status") != "complete":
        return None
    paid = told.get("mode") == "payment" and told.get("payment_status") != "unpaid"
    here = _granted(customer, f"session:{told['id']}") if paid else _organization(customer) is not None
    if here:
        return None
    found = _told("checkout.session.completed", told, str(told.get("payment_status")))
    return found | {"fields": ["grant" if paid else "customer"]}


def _invoice(told: Mapping[str, Any], customer: str) -> dict[str, Any] | None:
    source_key = f"invoice:{told['id']}"
    if _granted(customer, source_key):
        return None
    found = _told("invoice.paid", told, "paid")
    if found["status"] not in replay.UNSETTLED and not _granted(customer, source_key):
        return None  # a trial's, a downgrade's: there was nothing to grant
    return found | {"fields": ["grant"]}


def _subscription(told: Mapping[str, Any], _: str) -> dict[str, Any] | None:
    row = db.run(
        lambda tx: tx.execute(
            """
            SELECT status::text, price_id, current_period_end, cancel_at_period_end, cancel_at, canceled_at,
                   ended_at
            FROM billing.subscriptions
            WHERE provider = 'stripe' AND provider_subscription_id = %s
            """,
            [told["id"]],
        ).fetchone()
    )
    try:
        state = Subscription.model_validate(told)
    except ValidationError:
        return _told("customer.subscription.updated", told, "unreadable") | {"fields": ["shape"]}
    now = {
        "status": state.status,
        "price_id": row["price_id"] if row and row["price_id"] in state.price_ids else state.price_ids,
        "current_period_end": state.period[1],
        "cancel_at_period_end": state.cancel_at_period_end,
        "cancel_at": state.cancel_at,
        "canceled_at": state.canceled_at,
        "ended_at": state.ended_at,
    }
    different = [name for name in now if row is None or row[name] != now[name]]
    if not different:
        return None
    return _told("customer.subscription.updated", told, str(uuid4())) | {"fields": different}


_CHECKS = {"checkout_sessions": _session, "subscriptions": _subscription, "invoices": _invoice}


def _organization(customer: str) -> UUID | None:
    known = db.run(lambda tx: customers.find(tx, "stripe", customer))
    return None if known is None else known.organization_id


def _granted(customer: str, source_key: str) -> bool:
    row = db.call(
        """
        SELECT EXISTS (
            SELECT 1
            FROM credits.grants
            WHERE organization_id = %(organization_id)s AND source_key = %(source_key)s
        ) AS granted
        """,
        {"organization_id": _organization(customer), "source_key": source_key},
        repeatable=True,
    )
    return bool(row and row["granted"])


def _told(event_type: str, told: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Replays an object as an event of now. The same version of it is replayed once."""
    clock = db.call("SELECT extract(epoch FROM clock_timestamp())::bigint AS now", repeatable=True)
    event = {
        "id": f"reconciliation:{told['id']}:{version}",
        "object": "event",
        "type": event_type,
        "created": 0 if clock is None else clock["now"],
        "livemode": settings().livemode,
        "data": {"object": dict(told)},
    }
    return {"object": told["id"], "status": replay.replay(event)}
