"""Idempotency keys: a POST that is repeated under its key takes effect once and answers the first result.

api.py claims the key before the route runs, and then remembers a 2xx for a day or gives the key back: in
the route's own transaction where it takes one (`tx: api.Tx`), so that no cut between the effect and its
answer lets a repetition do it twice; after it where the effect is another service's, which has the key too.
(Credits don't come here: the ledger remembers its keys with its entries, for ever.)
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from backplane import db
from backplane.problems import IdempotencyConflict, IdempotencyInProgress, Unavailable

PATIENCE = 10.0  # seconds to wait for the same request, under way elsewhere
GRACE = 5.0  # seconds a request may go on beyond its deadline

_REMEMBER = """
    SELECT platform.remember_answer(%(organization_id)s, %(route)s, %(key)s, %(id)s,
                                    %(status_code)s, %(body)s) AS remembered
"""

_logger = logging.getLogger("backplane.idempotency")


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that this request holds."""

    organization_id: UUID
    route: str  # POST /v1/projects
    key: str
    id: UUID


@dataclass(frozen=True, slots=True)
class Remembered:
    """The first answer."""

    status_code: int
    body: str


def request_hash(*parts: object) -> bytes:
    """What makes two requests the same: SHA-256 over their canonical JSON."""
    return hashlib.sha256(_CANONICAL.encode(parts).encode("utf-8", "surrogatepass")).digest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def claim(organization_id: UUID, route: str, key: str, request: bytes) -> Claim | Remembered:
    """The key, or what it answered before. `request` is the request's hash.

    Waits for the same request where it is under way. Raises IdempotencyConflict where the key belongs to
    another request, Conflict where the same one goes on and on.
    """
    made = Claim(organization_id, route, key, uuid4())
    gives_up = time.monotonic() + min(PATIENCE, db.remaining() / 2)
    pause = 0.02
    while True:
        row = _ask(
            """
            SELECT *
            FROM platform.claim_key(%(organization_id)s, %(route)s, %(key)s, %(request_hash)s, %(id)s,
                                    %(seconds)s)
            """,
            made,
            request_hash=request,
            seconds=max(db.remaining(), 0) + GRACE,
        )
        match row["outcome"]:
            case "claimed":
                return made
            case "replayed":
                return Remembered(row["status_code"], row["body"])
            case "conflict":
                raise IdempotencyConflict(
                    "This Idempotency-Key was used for another request."
                    " Send a new key, or repeat the first one."
                )
        if time.monotonic() + pause > gives_up:
            raise IdempotencyInProgress(
                "The first request with this Idempotency-Key is still under way. Repeat it in a moment.",
                retry_after=2,
            )
        time.sleep(pause)
        pause = min(pause * 2, 0.5)


def remember(tx: db.Tx, held: Claim, status_code: int, body: str, shown_once: Sequence[str] = ()) -> None:
    """Remembers a 2xx in the transaction of its effect, without the fields that are shown once.

    Raises Conflict where the request outlived its claim and the key is another's by now.
    """
    row = tx.execute(
        _REMEMBER, _params(held, status_code=status_code, body=_without(body, shown_once))
    ).fetchone()
    if row is None or not row["remembered"]:
        raise IdempotencyInProgress(
            "The request took too long, and a repetition of it has begun. Nothing was done by this one.",
            retry_after=2,
        )


def finish(held: Claim, status_code: int, body: str, *, shown_once: Sequence[str] = ()) -> None:
    """Remembers a 2xx, without the fields that are shown once; gives the key back after anything else.

    Never raises what passes: the answer stands, and the claim ends by itself.
    """
    try:
        if 200 <= status_code < 300:  # noqa: PLR2004  HTTP's
            _ask(_REMEMBER, held, status_code=status_code, body=_without(body, shown_once))
        else:
            _ask(
                "SELECT platform.release_key(%(organization_id)s, %(route)s, %(key)s, %(id)s)",
                held,
            )
    except Unavailable:
        _logger.warning("the answer to %s could not be remembered", held.route)


def purge(tx: db.Tx, *, limit: int) -> int:
    """Forgets at most `limit` keys whose day is over. Answers how many."""
    gone = tx.execute(
        """
        DELETE FROM platform.idempotency_keys
        WHERE expires_at <= statement_timestamp() -- still, where it was claimed anew meanwhile
          AND (organization_id, route, key) IN (
              SELECT organization_id, route, key
              FROM platform.idempotency_keys
              WHERE expires_at <= statement_timestamp()
              ORDER BY expires_at
              LIMIT %s)
        """,
        [limit],
    )
    return gone.rowcount


def _without(body: str, fields: Sequence[str]) -> str:
    if not fields:
        return body
    kept = {name: value for name, value in json.loads(body).items() if name not in fields}
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False)


def _ask(query: str, held: Claim, **more: object) -> Mapping[str, Any]:
    row = db.call(query, _params(held, **more))
    if row is None:
        raise RuntimeError("a function answers one row")
    return row


def _params(held: Claim, **more: object) -> dict[str, object]:
    return {
        "organization_id": held.organization_id,
        "route": held.route,
        "key": held.key,
        "id": held.id,
    } | more
