"""Who is in the demo's story and what they can do: requests, signed events, and looks into the database."""

import http.client
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.rows import dict_row

from local.issuer import ORIGINS, SigningKey, session_claims
from local.running import Stack
from local.send import stripe_signature, svix_signature

MONTH = 30 * 86_400
PATIENCE = 30.0  # seconds for what happens behind the scenes


class Mismatch(Exception):  # noqa: N818  a finding, not a defect of the demo
    """What was seen is not what should be."""


@dataclass
class Answer:
    status: int
    body: Any


@dataclass
class Story:
    """A stack and the people in it."""

    stack: Stack
    user: str = field(default_factory=lambda: f"user_demo{uuid.uuid4().hex[:12]}")
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def customer(self) -> str:
        return f"cus_{self.user}"

    def token(self, user: str) -> str:
        claims = session_claims(user, issuer=self.stack.issuer, origin=ORIGINS[0], now=int(time.time()))
        return SigningKey(Path(self.stack.signing_key_path)).sign(claims)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(self.stack.api_url).netloc, timeout=60)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        finally:
            connection.close()

    def get(self, path: str, user: str | None = None) -> Answer:
        return self.request("GET", path, headers={"authorization": f"Bearer {self.token(user or self.user)}"})

    def debit(self, key: str, quantity: int = 1, user: str | None = None) -> Answer:
        body = json.dumps({"operation": "ai_image_generation", "quantity": quantity}).encode()
        headers = {"authorization": f"Bearer {self.token(user or self.user)}", "idempotency-key": key}
        return self.request("POST", "/v1/credits/debits", body, headers)

    def clerk(self, kind: str, data: Mapping[str, Any]) -> Answer:
        now = int(time.time())
        body = json.dumps({"type": kind, "object": "event", "timestamp": now * 1000, "data": data}).encode()
        message = f"msg_{uuid.uuid4().hex}"
        signature = svix_signature(self.stack.clerk_webhook_secret, message, body, now)
        headers = {"svix-id": message, "svix-timestamp": str(now), "svix-signature": signature}
        return self.request("POST", "/webhooks/clerk", body, headers)

    def stripe(self, event: Mapping[str, Any], secret: str | None = None) -> Answer:
        body = json.dumps(event).encode()
        signature = stripe_signature(secret or self.stack.stripe_webhook_secret, body, int(time.time()))
        return self.request("POST", "/webhooks/stripe", body, {"stripe-signature": signature})

    def event(self, kind: str, told: Mapping[str, Any], *, at: int = 0) -> dict[str, Any]:
        """A Stripe event; `at` in seconds after the story began."""
        return {
            "id": f"evt_{uuid.uuid4().hex}",
            "object": "event",
            "type": kind,
            "created": self.started + at,
            "livemode": False,
            "data": {"object": dict(told)},
        }

    def subscription(self, **fields: Any) -> dict[str, Any]:
        period = {"current_period_start": self.started, "current_period_end": self.started + MONTH}
        item = {"id": "si_demo", "price": {"id": "price_pro_monthly"}, **period}
        return {
            "id": f"sub_{self.user}",
            "customer": self.customer,
            "status": "active",
            "items": {"data": [item]},
            "cancel_at_period_end": False,
            "metadata": {},
        } | fields

    def invoice(self) -> dict[str, Any]:
        period = {"start": self.started, "end": self.started + MONTH}
        line = {
            "amount": 4900,
            "period": period,
            "pricing": {"price_details": {"price": "price_pro_monthly"}},
        }
        return {
            "id": f"in_{self.user}",
            "customer": self.customer,
            "billing_reason": "subscription_create",
            "lines": {"data": [line]},
            "parent": {"subscription_details": {"subscription": f"sub_{self.user}"}},
        }

    def pack(self, user: str, session: str) -> dict[str, Any]:
        return {
            "id": session,
            "mode": "payment",
            "payment_status": "paid",
            "customer": f"cus_{user}",
            "client_reference_id": user,
            "payment_intent": f"pi_{session}",
            "amount_total": 2000,
            "metadata": {"pack_id": "pack_500"},
        }

    def charge(self, session: str, *, refunded: int) -> dict[str, Any]:
        """The pack's charge, of which so much was refunded in all."""
        names = {"id": f"ch_{session}", "payment_intent": f"pi_{session}"}
        return names | {"amount": 2000, "amount_captured": 2000, "amount_refunded": refunded}

    def dispute(self, session: str, status: str) -> dict[str, Any]:
        names = {"charge": f"ch_{session}", "payment_intent": f"pi_{session}"}
        return {"id": f"du_{session}", "amount": 2000, "status": status, "reason": "fraudulent", **names}

    def rows(self, query: str, *params: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.stack.admin_database_url, row_factory=dict_row) as connection:
            return connection.execute(query, params).fetchall()

    def balance(self, user: str | None = None) -> int:
        (row,) = self.rows(
            """
            SELECT a.available
            FROM credits.accounts AS a
            JOIN tenancy.organizations AS o ON o.id = a.organization_id
            JOIN identity.users AS u ON u.id = o.personal_user_id
            WHERE u.clerk_id = %s
            """,
            user or self.user,
        )
        available: int = row["available"]
        return available

    def inbox(self, event: Mapping[str, Any]) -> str | None:
        """The status of an event's row, or None where it left none."""
        found = self.rows("SELECT status FROM platform.webhook_inbox WHERE event_id = %s", event["id"])
        return found[0]["status"] if found else None


def expect(what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise Mismatch(f"{what} is {seen!r} and should be {wanted!r}")


@dataclass(frozen=True)
class Row:
    title: str
    act: Callable[[Story], str]  # answers what was seen; raises Mismatch
