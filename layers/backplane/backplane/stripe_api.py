"""Stripe's API, through its SDK: one attempt, bounded in time, never inside a database transaction.

The SDK is imported by the first call. Webhook functions start without it, and where no key is configured
nobody pays for it (docs/decisions/refetch.md).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from backplane import secrets
from backplane.config import settings
from backplane.problems import Unavailable

if TYPE_CHECKING:
    import stripe

CONNECT_TIMEOUT = 2.0  # seconds
READ_TIMEOUT = 5.0  # seconds: what a webhook, whose sender waits, can spare
WRITE_TIMEOUT = 15.0  # seconds: making a session takes Stripe a second or two

T = TypeVar("T")

_logger = logging.getLogger("backplane.stripe_api")


class Refused(Exception):  # noqa: N818  Stripe's answer, not an error of ours
    """Stripe understood the request and refused it. `code` and `param` are Stripe's."""

    def __init__(self, status: int | None, code: str | None, param: str | None, message: str | None) -> None:
        super().__init__(f"{status} {code or ''} {param or ''}: {message or ''}")
        self.status = status
        self.code = code
        self.param = param or ""

    @property
    def missing(self) -> bool:
        """Whether it knows no such object."""
        return self.code == "resource_missing"


def configured() -> bool:
    return settings().stripe_api_key_secret_arn is not None


def get(path: str, **params: Any) -> dict[str, Any]:
    """An object, or a list with `data` and `has_more`, as plain JSON.

    Raises Refused, and Unavailable where Stripe can't be reached or does not take the key.
    """
    return _asked(lambda client: _plain(client.raw_request("get", path, **params)), READ_TIMEOUT)


def post(path: str, params: Mapping[str, Any], *, idempotency_key: str) -> dict[str, Any]:
    """Makes an object, once per key (Stripe keeps keys for a day). Raises as `get` does."""
    return _asked(
        lambda client: _plain(client.raw_request("post", path, **params, idempotency_key=idempotency_key)),
        WRITE_TIMEOUT,
    )


def delete(path: str) -> dict[str, Any]:
    """Ends an object, and answers it as it is then. Raises as `get` does."""
    return _asked(lambda client: _plain(client.raw_request("delete", path)), WRITE_TIMEOUT)


def path(*parts: str) -> str:
    """A path under /v1 of names and ids. Ids come from outside and may hold anything."""
    return "/".join(["/v1", *(quote(part, safe="") for part in parts)])


def _plain(response: Any) -> dict[str, Any]:
    data = response.data
    if not isinstance(data, dict):
        raise Unavailable("Stripe answered something that is not an object.")
    return data


def _asked(ask: Callable[["stripe.StripeClient"], T], timeout: float) -> T:
    """The answer. A key that Stripe doesn't take is read anew once: it may have been rolled."""
    key = _key()
    try:
        with _translated():
            return ask(_client(key, settings().stripe_api_base, timeout))
    except _KeyRefused:
        newer = _key(refresh=True)
        if newer == key:
            raise
    with _translated():
        return ask(_client(newer, settings().stripe_api_base, timeout))


class _KeyRefused(Unavailable):
    """No use in repeating it soon: somebody must mend the key first."""


def _key(*, refresh: bool = False) -> str:
    """The secret's key. Raises Unavailable where there is none, and where it is another stage's: a live key
    in a stage that takes test events would charge people who never get what they paid for.
    """
    arn = settings().stripe_api_key_secret_arn
    if arn is None:
        raise _KeyRefused("Payments are not set up here: no Stripe API key is configured.", retry_after=3600)
    key = _read_key(arn, refresh=refresh)
    if not isinstance(key, str) or not key:
        fault = 'the Stripe API key\'s secret must be {"key": "sk_…"}'
    elif ("_live_" in key) is not settings().livemode:
        fault = f"the Stripe API key is not for {settings().stage}: prod takes a live key, others a test key"
    else:
        return key
    _logger.error("%s", fault)
    raise _KeyRefused("Payments are not available at the moment.", retry_after=60)


def _read_key(arn: str, *, refresh: bool) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        value = secrets.get(arn, refresh=refresh)
    except (BotoCoreError, ClientError) as error:
        raise Unavailable("Payments are not available at the moment.") from error
    return value.get("key") if isinstance(value, dict) else None


@contextmanager
def _translated() -> Iterator[None]:
    import stripe

    try:
        yield
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        _logger.error("Stripe refuses the API key: %s", error.code or type(error).__name__)  # noqa: TRY400
        raise _KeyRefused("Payments are not available at the moment.", retry_after=60) from None
    except (stripe.InvalidRequestError, stripe.IdempotencyError) as error:
        raise Refused(
            error.http_status, error.code, getattr(error, "param", None), error.user_message
        ) from None
    except stripe.StripeError as error:
        _logger.warning("Stripe's API: %s %s", type(error).__name__, error.http_status or "")
        raise Unavailable("Stripe can't be reached at the moment. Repeat the request.") from error


@cache
def _client(key: str, base: str | None, timeout: float) -> "stripe.StripeClient":
    import stripe

    stripe.enable_telemetry = False  # it would write an id into the home directory
    return stripe.StripeClient(
        key,
        base_addresses={} if base is None else {"api": base},
        http_client=stripe.RequestsClient(timeout=(CONNECT_TIMEOUT, timeout)),
        max_network_retries=0,
    )
