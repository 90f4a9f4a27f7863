"""Callers for tests: session tokens signed with a key of our own, API keys, and requests with them."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import account
import admin
import billing
import credits  # noqa: A004  the function of this name
import deployments
import generations
import integrations
import jwt
import organizations
import plans
import projects
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.databases import Database
from tests.senders import Answer, http_event
from tests.senders import call as invoke

import files
from backplane import api, auth, config

ISSUER = "https://clerk.example.com"
ORIGIN = "https://app.example.com"
ROOT = "user_root"  # a platform admin
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

# Every function with a router, by the path its routes begin with.
FUNCTIONS: dict[str, tuple[api.Router, api.Handler]] = {
    "/v1/credits": (credits.router, credits.handler),
    "/v1/admin/credits": (credits.router, credits.handler),
    "/v1/admin": (admin.router, admin.handler),
    "/v1/integrations": (integrations.router, integrations.handler),
    "/v1/me": (account.router, account.handler),
    "/v1/settings": (account.router, account.handler),
    "/v1/api-keys": (account.router, account.handler),
    "/v1/subscription": (billing.router, billing.handler),
    "/v1/billing": (billing.router, billing.handler),
    "/v1/plans": (plans.router, plans.handler),
    "/v1/storage": (files.router, files.handler),
    "/v1/projects": (projects.router, projects.handler),
    "/v1/activity": (projects.router, projects.handler),
    "/v1/organizations": (organizations.router, organizations.handler),
    "/v1/invitations": (organizations.router, organizations.handler),
    "/v1/generations": (generations.router, generations.handler),
    "/v1/deployments": (deployments.router, deployments.handler),
}


@dataclass(frozen=True)
class Customer:
    """A signed-up user with his personal organisation and its 100 credits."""

    user_id: UUID
    organization_id: UUID
    token: str


def trust_our_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings under which `token` signs in. They end with the test."""
    monkeypatch.setenv("CLERK_ISSUER", ISSUER)
    monkeypatch.setenv("CLERK_JWT_KEY", PEM)
    monkeypatch.setenv("PLATFORM_ADMINS", ROOT)
    monkeypatch.setenv("ALLOWED_ORIGINS", ORIGIN)
    config.settings.cache_clear()


def token(user: str = "user_ada", **claims: Any) -> str:
    now = time.time()
    session = {"iss": ISSUER, "sub": user, "iat": now, "exp": now + 3600}
    return jwt.encode(session | claims, KEY, algorithm="RS256")


def sign_up(user: str = "user_ada", **claims: Any) -> Customer:
    session = token(user, **claims)
    caller = auth.authenticate({"authorization": f"Bearer {session}"})
    assert caller.user_id is not None
    return Customer(caller.user_id, caller.organization_id, session)


def mint(database: Database, organization_id: UUID | None, scopes: Sequence[str] = ("read",)) -> str:
    """A stored organisation key, or a service key where no organisation is given."""
    material = auth.mint_key("organization" if organization_id else "service")
    with database.connect() as connection:
        connection.execute(
            """
            INSERT INTO platform.api_keys (kind, organization_id, name, prefix, secret_hash, scopes)
            VALUES (%s, %s, 'test', %s, %s, %s)
            """,
            [material.kind, organization_id, material.prefix, material.secret_hash, list(scopes)],
        )
    return material.key


def send(
    method: str,
    path: str,
    credential: str | None = None,
    *,
    body: Any = None,
    key: str | None = None,
    organization: object = None,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """A request to the function that serves the path; `body` is sent as it is if it is text or bytes."""
    sent = {"content-type": "application/json"} if body is not None else {}
    if credential is not None:
        sent["authorization"] = f"Bearer {credential}"
    if key is not None:
        sent["idempotency-key"] = key
    if organization is not None:
        sent["x-organization-id"] = str(organization)
    event = http_event(
        method,
        path,
        body=body if body is None or isinstance(body, str | bytes) else json.dumps(body),
        headers=sent | (headers or {}),
        query=query,
        base64_encoded=isinstance(body, bytes),
    )
    return invoke(_serving(path), event)


def _serving(path: str) -> api.Handler:
    """The function that a path leads to; for one that no route has, whose it would be by its beginning."""
    for router, handler in FUNCTIONS.values():
        patterns = (re.sub(r"<\w+>", "[^/]+", route.path) for route in router.routes)
        if any(re.fullmatch(pattern, path) for pattern in patterns):
            return handler
    return next(handler for prefix, (_, handler) in FUNCTIONS.items() if path.startswith(prefix))


def debit(credential: str, operation: str = "ai_text_chat", *, key: str, **fields: Any) -> Answer:
    return send("POST", "/v1/credits/debits", credential, key=key, body={"operation": operation, **fields})


def moment(text: str) -> datetime:
    """A timestamp of an answer: RFC 3339 in UTC."""
    parsed = datetime.fromisoformat(text)
    assert "T" in text
    assert parsed.utcoffset() == timedelta(0)
    return parsed
