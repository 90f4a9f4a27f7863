"""Asking a provider's API with a token: JSON, bounded in time and size, and why there is no answer."""

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from backplane import requests
from backplane.problems import InvalidPayload

TIMEOUT: Final = 5.0  # seconds, for connecting and for each read
LONGEST: Final = 10.0  # seconds for an answer as a whole
MAX_BYTES: Final = 2 * 1024**2
LONGEST_REST: Final = 3600.0  # seconds; who asks for a longer one is asked again all the same

M = TypeVar("M", bound=BaseModel)


class Unheard(Exception):  # noqa: N818  an outcome, not an error
    """The provider told nothing of a build. The reason is shown to the organisation's people: it names no
    token and quotes nothing but numbers.
    """

    def __init__(
        self, reason: str, *, passing: bool = False, unreachable: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passing = passing or unreachable  # it may well tell another time
        self.unreachable = unreachable  # for everybody: whoever asks now only waits
        self.retry_after = retry_after  # seconds in which it wants to be left alone


@dataclass(frozen=True, slots=True)
class Api:
    name: str  # as people call it
    base: str  # with its scheme

    def get(self, path: str, token: str, headers: Mapping[str, str] | None = None) -> Any:
        """Raises Unheard."""
        return self._ask("GET", path, token, None, headers or {})

    def post(self, path: str, token: str, body: Any) -> Any:
        """Raises Unheard."""
        data = json.dumps(body).encode()
        return self._ask("POST", path, token, data, {"content-type": "application/json"})

    def read(self, model: type[M], data: Any) -> M:
        """Raises Unheard where it is not of the shape that is documented."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise self.strange(f"an answer in which {place or 'the whole'} is not as documented") from error

    def strange(self, what: str) -> Unheard:
        return Unheard(f"{self.name} gave {what}", passing=True)

    def _ask(self, method: str, path: str, token: str, body: bytes | None, headers: Mapping[str, str]) -> Any:
        parts = urlsplit(self.base)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=TIMEOUT)
        sent = {"authorization": f"Bearer {token}", "accept": "application/json", "user-agent": "backplane"}
        try:
            connection.request(method, path, body, sent | dict(headers))
            with connection.getresponse() as response:
                data = _bounded(response, time.monotonic() + LONGEST)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{self.name} can't be reached ({type(error).__name__})"
            raise Unheard(reason, unreachable=True) from error
        finally:
            connection.close()
        self._check(response)
        try:
            return requests.parse_json(requests.text(data))
        except InvalidPayload as error:
            raise self.strange("an answer that is not JSON, or not to be stored") from error

    def _check(self, response: http.client.HTTPResponse) -> None:
        """Raises Unheard unless the answer is what was asked for."""
        status, headers = response.status, response.headers
        if status == http.client.OK:
            return
        out_of_calls = headers.get("x-ratelimit-remaining") == "0"  # GitHub says so with 403, too
        if status == http.client.TOO_MANY_REQUESTS or (
            status == http.client.FORBIDDEN and (out_of_calls or "retry-after" in headers)
        ):
            raise Unheard(f"{self.name} is asked too often", passing=True, retry_after=_rest(headers))
        if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
            raise Unheard(f"{self.name} refuses the token ({status})")
        if status in {http.client.NOT_FOUND, http.client.GONE}:
            raise Unheard(f"{self.name} shows no such build to the token ({status})")
        raise Unheard(f"{self.name} answers {status}", passing=True, retry_after=_rest(headers))


def _bounded(response: http.client.HTTPResponse, ends: float) -> bytes:
    """The body. Raises ValueError where it is too long or takes too long."""
    data = bytearray()
    while block := response.read1(65_536):
        data += block
        if len(data) > MAX_BYTES:
            raise ValueError("too long")
        if time.monotonic() > ends:
            raise TimeoutError
    return bytes(data)


def _rest(headers: Message) -> float:
    """Seconds: Retry-After in either of its forms, else until the window that some tell of is over."""
    after, reset = headers.get("retry-after"), headers.get("x-ratelimit-reset")
    try:
        if after is not None and after.strip().isdecimal():
            seconds = float(after)
        elif after is not None:
            seconds = (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds()
        else:
            seconds = float(reset or 0) - time.time()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_REST)
