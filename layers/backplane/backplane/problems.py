"""Errors a caller may see: one hierarchy, each class knowing its status and code.

Raise one where the error is found; the edge (api.py, webhooks.py) turns it into
`application/problem+json` (RFC 9457). Whatever else is raised is a 500 without detail.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

CONTENT_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818  RFC 9457's word
    """An error that becomes an answer. `detail` tells the caller what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.retry_after = retry_after  # seconds

    def body(self, request_id: str) -> dict[str, Any]:
        """The members of the problem+json object; `errors` only where there are any."""
        body: dict[str, Any] = {
            "type": f"urn:backplane:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        return body | ({"errors": self.errors} if self.errors else {})

    def headers(self) -> dict[str, str]:
        headers = {"content-type": CONTENT_TYPE, "cache-control": "no-store"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers

    def response(self, request_id: str) -> dict[str, Any]:
        """An API Gateway payload 2.0 answer."""
        return {
            "statusCode": self.status,
            "headers": self.headers() | {"x-request-id": request_id},
            "body": json.dumps(self.body(request_id), separators=(",", ":")),
            "isBase64Encoded": False,
        }


class BadRequest(Problem):
    """The request cannot be understood: `detail` says what of it."""

    status, code = 400, "bad_request"


class InvalidPayload(BadRequest):
    """The body is not JSON, or JSON that cannot be stored."""

    code = "invalid_payload"


class InvalidSignature(BadRequest):
    """None of the secrets signed this body, or not within five minutes."""

    code = "invalid_signature"


class Unauthorized(Problem):
    """The credential is missing, wrong, or not valid any more."""

    status, code = 401, "unauthorized"

    def headers(self) -> dict[str, str]:
        return super().headers() | {"www-authenticate": "Bearer"}


class InsufficientCredits(Problem):
    """Fewer credits are available than this takes."""

    status, code = 402, "insufficient_credits"


class Forbidden(Problem):
    """The caller is known and may not do this: `detail` says what it takes."""

    status, code = 403, "forbidden"


class PlanLimitReached(Forbidden):
    """A count that only grows smaller by deleting: projects, bytes."""

    code = "plan_limit_reached"


class FeatureNotInPlan(Forbidden):
    """The organisation's plan does not include this."""

    code = "feature_not_in_plan"


class NotFound(Problem):
    """There is no such thing, or it is another organisation's."""

    status, code = 404, "not_found"


class MethodNotAllowed(Problem):
    """The path takes other methods, which `Allow` names."""

    status, code = 405, "method_not_allowed"


class Conflict(Problem):
    """Something that there is already stands against this."""

    status, code = 409, "conflict"


class InvalidState(Conflict):
    """What is asked for is right, and not now or not any more: `detail` says in what state things are."""

    code = "invalid_state"


class GenerationInProgress(Conflict):
    """Another generation works on the project. Wait for its end."""

    code = "generation_in_progress"


class IdempotencyConflict(Conflict):
    """The Idempotency-Key was used for another request."""

    code = "idempotency_conflict"


class IdempotencyInProgress(Conflict):
    """The first request with this Idempotency-Key is still under way. Repeat it in a moment."""

    code = "idempotency_in_progress"


class TooLarge(Problem):
    """More bytes than are taken, or given, at once."""

    status, code = 413, "too_large"


class UnsupportedMediaType(Problem):
    """The body must be application/json."""

    status, code = 415, "unsupported_media_type"


class Unprocessable(Problem):
    """The request is well formed and not valid: `errors` says where and why."""

    status, code = 422, "invalid_request"


class QuotaExhausted(Problem):
    """A count that starts anew with its period; `retry_after` says when."""

    status, code = 429, "quota_exhausted"


class Unavailable(Problem):
    """A passing cause. Safe to repeat with the same Idempotency-Key."""

    status, code = 503, "unavailable"

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


class Internal(Problem):
    """A defect of ours. The cause is in the log under the request id, never in the answer."""

    def __init__(self) -> None:
        super().__init__("Something failed on our side. Quote the request_id to support.")
