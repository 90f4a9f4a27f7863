"""Clerk, as far as a token needs it: a signing key, its JWKS, and session tokens."""

import base64
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from werkzeug.wrappers import Request, Response

from local.credentials import write_private

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# Where the developer's front ends run: allowed origins, and the first is a token's `azp`.
ORIGINS = ("http://localhost:3000", "http://localhost:5173")
LIFETIME = 12 * 3600  # seconds; Clerk's live for one minute


class SigningKey:
    """An RSA key in a PEM file, made on first use."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            pem = made.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            write_private(file, pem.decode())
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError(f"{file} must hold an RSA key")
        self._key = key
        self._public: dict[str, Any] = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        self.kid = _thumbprint(self._public)

    def jwks(self) -> dict[str, Any]:
        members = {name: self._public[name] for name in ("kty", "n", "e")}
        return {"keys": [members | {"use": "sig", "alg": "RS256", "kid": self.kid}]}

    def sign(self, claims: Mapping[str, Any]) -> str:
        return jwt.encode(dict(claims), self._key, algorithm="RS256", headers={"kid": self.kid})


def session_claims(
    user: str, *, issuer: str, origin: str, now: int, organization: str | None = None, role: str = "admin"
) -> dict[str, Any]:
    """A session token's claims (version 1), as Clerk makes them; `role` without Clerk's prefix."""
    claims: dict[str, Any] = {
        "sub": user,
        "sid": f"sess_{secrets.token_hex(12)}",
        "iss": issuer,
        "azp": origin,
        "iat": now,
        "nbf": now - 10,  # as Clerk does, for clocks that are behind
        "exp": now + LIFETIME,
    }
    if organization:
        claims |= {
            "org_id": organization,
            "org_slug": organization.removeprefix("org_").lower().replace("_", "-"),
            "org_role": role if role.startswith("org:") else f"org:{role}",
        }
    return claims


class Jwks:
    """A WSGI application that serves the key set where token checkers look for it."""

    def __init__(self, key: SigningKey) -> None:
        self._body = json.dumps(key.jwks())

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if Request(environ).path == "/.well-known/jwks.json":
            response = Response(self._body, content_type="application/json")
        else:
            response = Response(status=HTTPStatus.NOT_FOUND)
        return response(environ, start_response)


def _thumbprint(jwk: Mapping[str, Any]) -> str:
    """RFC 7638: the same key has the same id in every run."""
    members = json.dumps({name: jwk[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(members.encode()).digest()).decode().rstrip("=")
