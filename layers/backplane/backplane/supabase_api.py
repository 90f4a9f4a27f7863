"""Supabase's Management API: its OAuth, and what there is in the organisation that a user let us into.

One attempt, bounded in time, never inside a database transaction.
Source: supabase.com/docs/guides/integrations/build-a-supabase-oauth-integration
"""

import base64
import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from backplane import secrets
from backplane.config import settings
from backplane.problems import Unavailable

TIMEOUT: Final = 5.0  # seconds, for connecting and for each read
MAX_BYTES: Final = 1024 * 1024
MAX_LIFETIME: Final = 366 * 86_400  # seconds; what claims to live longer is no answer of Supabase's

# What says that a grant is no good (RFC 6749, 5.2, and what Supabase answers instead). A 403 or 404 of the
# token endpoint is somebody's on the way, and must not cost a user his connection.
_REFUSED_GRANT: Final = frozenset({400, 401, 422})
_REFUSED_TOKEN: Final = frozenset({401, 403})

_logger = logging.getLogger("backplane.supabase_api")


class Refused(Exception):  # noqa: N818  Supabase's answer, not an error of ours
    """Supabase understood the request and refused it: the code or the token is not good (any more)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)  # good for one use
    expires_in: int  # seconds that the access token lives


@dataclass(frozen=True, slots=True)
class _Client:
    id: str
    secret: str = field(repr=False)


def configured() -> bool:
    return bool(settings().supabase_client_secret_arn and settings().supabase_redirect_uri)


def authorize_url(state: str, challenge: str) -> str:
    """Where the user gives his consent. Raises Unavailable where no OAuth app is configured."""
    query = {
        "client_id": _client().id,
        "redirect_uri": _redirect_uri(),
        "response_type": "code",
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    return f"{settings().supabase_api_base}/v1/oauth/authorize?{urlencode(query)}"


def exchange(code: str, verifier: str) -> Tokens:
    """The tokens that a code is good for, once. Raises Refused, Unavailable."""
    return _tokens(
        {
            "grant_type": "authorization_code",
            "code": code,
            "code_verifier": verifier,
            "redirect_uri": _redirect_uri(),
        }
    )


def refresh(refresh_token: str) -> Tokens:
    """New tokens for a refresh token, which is spent by it. Raises Refused, Unavailable."""
    return _tokens({"grant_type": "refresh_token", "refresh_token": refresh_token})


def organizations(access_token: str) -> list[dict[str, Any]]:
    """`[{id, name}]`. Raises Refused, Unavailable."""
    return _listed("/v1/organizations", access_token)


def projects(access_token: str) -> list[dict[str, Any]]:
    """`[{id, name, region, organization_id, status, …}]`. Raises Refused, Unavailable."""
    return _listed("/v1/projects", access_token)


def _tokens(form: Mapping[str, str]) -> Tokens:
    client = _client()
    basic = base64.b64encode(f"{client.id}:{client.secret}".encode()).decode()
    answer = _asked(
        urllib.request.Request(  # noqa: S310  the address is the operator's, never a caller's
            f"{settings().supabase_api_base}/v1/oauth/token",
            data=urlencode(form).encode(),
            headers=_headers(f"Basic {basic}") | {"Content-Type": "application/x-www-form-urlencoded"},
        ),
        _REFUSED_GRANT,
    )
    match answer:
        case {"access_token": str(access), "refresh_token": str(renewal), "expires_in": int(lifetime)} if (
            access and renewal and 0 < lifetime <= MAX_LIFETIME
        ):
            return Tokens(access, renewal, lifetime)
    raise _strange()


def _listed(path: str, access_token: str) -> list[dict[str, Any]]:
    answer = _asked(
        urllib.request.Request(  # noqa: S310
            f"{settings().supabase_api_base}{path}", headers=_headers(f"Bearer {access_token}")
        ),
        _REFUSED_TOKEN,
    )
    if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
        raise _strange()
    return answer


def _asked(request: urllib.request.Request, refused: frozenset[int]) -> Any:
    try:
        with _OPENER.open(request, timeout=TIMEOUT) as response:
            body = response.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise _strange()
        return json.loads(body)
    except urllib.error.HTTPError as error:
        with error:
            raise _translated(error, refused) from None
    except (OSError, http.client.HTTPException) as error:
        _logger.warning("Supabase can't be reached: %s", type(error).__name__)
        raise _away() from None
    except (ValueError, RecursionError):
        raise _strange() from None


def _translated(error: urllib.error.HTTPError, refused: frozenset[int]) -> Exception:
    """What it says of itself is read for one word only: it may repeat what was sent."""
    try:
        body = error.read(MAX_BYTES)
    except (OSError, http.client.HTTPException):
        body = b""
    if b"invalid_client" in body:
        _logger.error("Supabase does not know the OAuth app: mend the secret of SupabaseClientSecretArn")
        return Unavailable("Supabase can't be asked at the moment.", retry_after=60)
    if error.code in refused:
        return Refused(f"Supabase answered {error.code}")
    _logger.warning("Supabase answered %s", error.code)
    return _away()


def _headers(authorization: str) -> dict[str, str]:
    return {"Accept": "application/json", "Authorization": authorization, "User-Agent": "backplane"}


def _client() -> _Client:
    from botocore.exceptions import BotoCoreError, ClientError

    arn = settings().supabase_client_secret_arn
    if arn is None or not configured():
        raise Unavailable("Supabase is not set up here: no OAuth app is configured.", retry_after=3600)
    try:
        value = secrets.get(arn)
    except (BotoCoreError, ClientError) as error:
        raise _away() from error
    match value:
        case {"client_id": str(client_id), "client_secret": str(client_secret)}:
            return _Client(client_id, client_secret)
    _logger.error('the secret of SupabaseClientSecretArn must be {"client_id": …, "client_secret": …}')
    raise Unavailable("Supabase can't be asked at the moment.", retry_after=60)


def _redirect_uri() -> str:
    return settings().supabase_redirect_uri or ""


def _away() -> Unavailable:
    return Unavailable("Supabase can't be reached at the moment. Repeat the request.")


def _strange() -> Unavailable:
    return Unavailable("Supabase answered something that can't be read. Repeat the request.")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A credential is sent to one address and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
