"""Signed webhooks and gateway events, as the senders and API Gateway make them.

Signatures are made here by the senders' published schemes, not by the product's code.
"""

import base64
import hashlib
import hmac
import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

STRIPE_SECRET = "whsec_test_stripe_0123456789"
CLERK_SECRET = "whsec_" + base64.b64encode(b"a clerk secret of 24 byte").decode()

_numbers = itertools.count(1)


@dataclass
class Context:
    """What Powertools and the product read of Lambda's context object."""

    function_name: str = "function"
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:000000000000:function:function"
    aws_request_id: str = "00000000-0000-0000-0000-000000000000"
    seconds: float = 15.0

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


def http_event(
    method: str,
    path: str,
    *,
    body: bytes | str | None = None,
    headers: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
    base64_encoded: bool = False,
) -> dict[str, Any]:
    """An HTTP API event of payload format 2.0."""
    if isinstance(body, bytes):
        body = base64.b64encode(body).decode() if base64_encoded else body.decode()
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "&".join(f"{k}={v}" for k, v in (query or {}).items()),
        "headers": {k.lower(): v for k, v in (headers or {}).items()},
        "requestContext": {
            "requestId": f"req-{next(_numbers)}",
            "stage": "$default",
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"},
        },
        "isBase64Encoded": base64_encoded,
    }
    if query:
        event["queryStringParameters"] = query
    if body is not None:
        event["body"] = body
    return event


def call(handler: Any, event: dict[str, Any]) -> Answer:
    """What a function answers to a request; if it is one of the API, the OpenAPI document must tell of it."""
    from tests import contract

    response = handler(event, Context())
    headers = {name.lower(): value for name, value in response["headers"].items()}
    body = json.loads(response["body"]) if response["body"] else None
    answer = Answer(response["statusCode"], headers, body)
    contract.check(event["requestContext"]["http"]["method"], event["rawPath"], answer)
    return answer


def invoke(handler: Any, event: dict[str, Any], *, seconds: float = 60.0) -> Any:
    """Invokes a function directly, as a schedule or a queue does."""
    return handler(event, Context(seconds=seconds))


def stripe_signature(body: bytes, secret: str = STRIPE_SECRET, at: float | None = None) -> str:
    timestamp = int(time.time() if at is None else at)
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def svix_headers(
    body: bytes, message_id: str, secret: str = CLERK_SECRET, at: float | None = None
) -> dict[str, str]:
    timestamp = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "svix-id": message_id,
        "svix-timestamp": timestamp,
        "svix-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def post_stripe(event: dict[str, Any], **signing: Any) -> Answer:
    """Signs a Stripe event and hands it to the function, as the gateway does."""
    import stripe_webhook

    body = json.dumps(event).encode()
    headers = {"stripe-signature": stripe_signature(body, **signing), "content-type": "application/json"}
    return call(stripe_webhook.handler, http_event("POST", "/webhooks/stripe", body=body, headers=headers))


def post_clerk(event: dict[str, Any], message_id: str | None = None, **signing: Any) -> Answer:
    """Signs a Clerk event and hands it to the function, as the gateway does."""
    import clerk_webhook

    body = json.dumps(event).encode()
    headers = svix_headers(body, message_id or f"msg_{next(_numbers)}", **signing)
    return call(clerk_webhook.handler, http_event("POST", "/webhooks/clerk", body=body, headers=headers))


# ---- what the senders tell ----

# Three billing periods in Unix seconds; the first began an hour ago, so its credits are alive.
DAY = 86_400
FIRST = int(time.time()) - 3600
SECOND = FIRST + 30 * DAY
THIRD = SECOND + 30 * DAY


def clerk_user(
    user_id: str,
    *,
    kind: str = "created",
    email: str | None = "ada@example.com",
    updated_at: int = FIRST * 1000,
    **fields: Any,
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": user_id,
        "object": "user",
        "first_name": "Ada",
        "last_name": "Lovelace",
        "email_addresses": [] if email is None else [{"id": "idn_1", "email_address": email}],
        "primary_email_address_id": None if email is None else "idn_1",
        "updated_at": updated_at,
    }
    if kind == "deleted":
        data = {"id": user_id, "object": "user", "deleted": True}
    return {"type": f"user.{kind}", "object": "event", "data": data | fields, "timestamp": updated_at}


def clerk_organization(
    clerk_id: str = "org_1",
    *,
    kind: str = "created",
    updated_at: int = FIRST * 1000,
    **fields: Any,
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": clerk_id,
        "object": "organization",
        "name": "Acme",
        "slug": clerk_id.removeprefix("org_"),
        "image_url": "https://img.example.com/acme.png",
        "created_by": "user_1",
        "updated_at": updated_at,
    }
    if kind == "deleted":
        data = {"id": clerk_id, "object": "organization", "deleted": True}
    return {
        "type": f"organization.{kind}",
        "object": "event",
        "data": data | fields,
        "timestamp": updated_at,
    }


def clerk_membership(
    user_id: str = "user_1",
    clerk_org_id: str = "org_1",
    *,
    kind: str = "created",
    role: str = "org:member",
    joined_at: int = FIRST * 1000,
    updated_at: int = FIRST * 1000,
    **fields: Any,
) -> dict[str, Any]:
    """A membership; a deletion carries the whole object too."""
    data = {
        "id": f"orgmem_{user_id}",
        "object": "organization_membership",
        "role": role,
        "organization": {"id": clerk_org_id, "object": "organization", "name": "Acme", "slug": "acme"},
        "public_user_data": {"user_id": user_id, "first_name": "Ada", "identifier": "ada@example.com"},
        "created_at": joined_at,
        "updated_at": updated_at,
    }
    return {
        "type": f"organizationMembership.{kind}",
        "object": "event",
        "data": data | fields,
        "timestamp": updated_at,
    }


def clerk_item(
    item_id: str = "csub_item_1",
    *,
    kind: str = "active",
    status: str = "active",
    plan: str = "pro",
    payer: str | None = "user_1",
    start: int = FIRST,
    end: int | None = SECOND,
    updated_at: int = FIRST * 1000,
    **fields: Any,
) -> dict[str, Any]:
    """A subscription item's event; `start` and `end` of its period in seconds."""
    data = {
        "id": item_id,
        "object": "subscription_item",
        "status": status,
        "is_free_trial": False,
        "interval": "month",
        "plan_id": f"cplan_{plan}",
        "plan": {"id": f"cplan_{plan}", "slug": plan, "name": plan.title(), "is_recurring": True},
        "period_start": start * 1000,
        "period_end": None if end is None else end * 1000,
        "subscription_id": "csub_1",
        "updated_at": updated_at,
    }
    if payer is not None:
        data["payer"] = clerk_payer(payer)
    return {
        "type": f"subscriptionItem.{kind}",
        "object": "event",
        "data": data | fields,
        "timestamp": updated_at // 1000,
    }


def clerk_payer(clerk_id: str) -> dict[str, Any]:
    """A user or an organisation; the id of the other kind is empty."""
    return {
        "object": "commerce_payer",
        "id": f"cpayer_{clerk_id}",
        "user_id": clerk_id if clerk_id.startswith("user_") else "",
        "organization_id": clerk_id if clerk_id.startswith("org_") else "",
        "first_name": "Ada",
        "email": "ada@example.com",
    }


def clerk_subscription(
    *items: dict[str, Any], kind: str = "updated", payer: str = "user_1", updated_at: int = FIRST * 1000
) -> dict[str, Any]:
    """A subscription's event with the items of items' events, which do not name the payer then."""
    carried = [{key: value for key, value in item["data"].items() if key != "payer"} for item in items]
    data = {
        "id": "csub_1",
        "object": "commerce_subscription",
        "status": "active",
        "payer": clerk_payer(payer),
        "items": carried,
        "updated_at": updated_at,
    }
    return {
        "type": f"subscription.{kind}",
        "object": "event",
        "data": data,
        "timestamp": updated_at // 1000,
    }


def stripe_event(
    event_type: str, obj: dict[str, Any], *, created: int = FIRST, event_id: str | None = None, **fields: Any
) -> dict[str, Any]:
    return {
        "id": event_id or f"evt_{next(_numbers)}",
        "object": "event",
        "type": event_type,
        "created": created,
        "livemode": False,
        "data": {"object": obj},
    } | fields


def checkout_session(**fields: Any) -> dict[str, Any]:
    return {
        "id": f"cs_{next(_numbers)}",
        "object": "checkout.session",
        "mode": "subscription",
        "payment_status": "paid",
        "customer": "cus_1",
        "client_reference_id": None,
        "subscription": "sub_1",
        "payment_intent": None,
        "invoice": None,
        "metadata": {},
    } | fields


def subscription(
    *,
    shape: str = "new",
    price: str = "price_pro_monthly",
    start: int = FIRST,
    end: int = SECOND,
    **fields: Any,
) -> dict[str, Any]:
    """A subscription: in the new shape the period stands on the item, in the old one on the top."""
    period = {"current_period_start": start, "current_period_end": end}
    item: dict[str, Any] = {"id": "si_1", "price": {"id": price, "recurring": {"interval": "month"}}}
    top: dict[str, Any] = {}
    if shape == "new":
        item |= period
    else:
        top |= period
    return {
        "id": "sub_1",
        "object": "subscription",
        "customer": "cus_1",
        "status": "active",
        "items": {"object": "list", "data": [item]},
        "cancel_at_period_end": False,
        "cancel_at": None,
        "canceled_at": None,
        "ended_at": None,
        "metadata": {},
        **top,
    } | fields


def invoice_line(
    *,
    shape: str = "new",
    price: str = "price_pro_monthly",
    amount: int = 4900,
    start: int = FIRST,
    end: int = SECOND,
    proration: bool = False,
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": f"il_{next(_numbers)}",
        "amount": amount,
        "period": {"start": start, "end": end},
    }
    if shape == "new":
        details = {"proration": proration, "subscription": "sub_1", "subscription_item": "si_1"}
        line["pricing"] = {"type": "price_details", "price_details": {"price": price, "product": "prod_1"}}
        line["parent"] = {"type": "subscription_item_details", "subscription_item_details": details}
    else:
        line |= {"price": {"id": price}, "proration": proration, "type": "subscription"}
    return line


def invoice(
    *,
    shape: str = "new",
    lines: list[dict[str, Any]] | None = None,
    reason: str = "subscription_create",
    **fields: Any,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": f"in_{next(_numbers)}",
        "object": "invoice",
        "customer": "cus_1",
        "billing_reason": reason,
        "lines": {"object": "list", "data": [invoice_line(shape=shape)] if lines is None else lines},
        "status": "paid",
        "amount_paid": 4900,
    }
    if shape == "new":
        details = {"subscription": "sub_1", "metadata": {}}
        body["parent"] = {"type": "subscription_details", "subscription_details": details}
    else:
        body |= {"subscription": "sub_1", "payment_intent": "pi_1", "charge": "ch_1", "paid": True}
    return body | fields


def invoice_payment(
    invoice_id: str, payment_intent: str, *, amount: int = 4900, **fields: Any
) -> dict[str, Any]:
    """Since basil: what paid an invoice."""
    return {
        "id": f"inpay_{next(_numbers)}",
        "object": "invoice_payment",
        "invoice": invoice_id,
        "amount_paid": amount,
        "status": "paid",
        "payment": {"type": "payment_intent", "payment_intent": payment_intent},
    } | fields


def charge(charge_id: str, *, refunded: int, amount: int = 4900, **fields: Any) -> dict[str, Any]:
    """A charge of which `refunded` has been refunded in all."""
    return {
        "id": charge_id,
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": refunded,
        "refunded": refunded == amount,
        "payment_intent": None,
        "customer": None,
    } | fields


def refund(refund_id: str, *, amount: int, status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    return {
        "id": refund_id,
        "object": "refund",
        "amount": amount,
        "status": status,
        "charge": None,
        "payment_intent": None,
        "created": FIRST,
    } | fields


def dispute(dispute_id: str, *, status: str, amount: int = 4900, **fields: Any) -> dict[str, Any]:
    return {
        "id": dispute_id,
        "object": "dispute",
        "amount": amount,
        "currency": "usd",
        "status": status,
        "reason": "fraudulent",
        "charge": None,
        "payment_intent": None,
        "balance_transactions": [],
    } | fields
