"""Supabase's access token, renewed before it is over by one process at a time.

A refresh token is good for one use, so whoever renews takes a lease on the row first, asks Supabase outside
of any transaction, and writes while the lease is still its own. The others go on with the token that stands,
or wait for the new one. A lease that its holder did not live to give back ends by itself; if the refresh
token was spent by then, Supabase refuses it, and the user has to connect again.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from psycopg.rows import DictRow

from backplane import db, field_encryption, integrations, outbox, supabase_api
from backplane.problems import InvalidState, NotFound, Unavailable

AHEAD: Final = 300  # seconds before its end that a token is renewed
LEASE: Final = 60  # seconds: far more than a renewal takes
PATIENCE: Final = 12.0  # seconds to wait for another process's renewal
PAUSE: Final = 0.1  # seconds between looks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Whose:
    """An integration, and as whom it is looked at."""

    id: UUID
    organization_id: UUID
    user_id: UUID | None


def access_token(whose: Whose) -> str:
    """One that is good for now. Raises NotFound where Supabase is not connected, InvalidState where it has to
    be connected again, Unavailable where it can't be renewed at the moment.
    """
    ends = time.monotonic() + min(PATIENCE, db.remaining())
    while True:
        lease = uuid4()
        taken = _run(whose, lambda tx: _take(tx, whose, lease))  # noqa: B023  at once
        if taken is not None:
            if token := _renew(whose, taken, lease):
                return token
        elif token := _standing(whose):
            return token
        if time.monotonic() > ends:
            raise Unavailable("Supabase's token is being renewed. Repeat the request.", retry_after=2)
        time.sleep(PAUSE)


def _standing(whose: Whose) -> str | None:
    """The token that stands, None where it is over and being renewed."""
    row = _run(whose, lambda tx: _read(tx, whose))
    if row is None:
        raise NotFound("Supabase is not connected. POST /v1/integrations/supabase/connect begins it.")
    if row["state"] != "active":
        raise _reconnect()
    return _secrets(row)["access_token"] if row["is_good"] else None


def _renew(whose: Whose, row: DictRow, lease: UUID) -> str | None:
    """The new token; None where somebody else wrote meanwhile."""
    try:
        tokens = supabase_api.refresh(_secrets(row)["refresh_token"])
    except supabase_api.Refused:
        _run(whose, lambda tx: _lose(tx, whose, lease))
        outbox.poke()
        raise _reconnect() from None
    except Unavailable:
        _run(whose, lambda tx: _give_back(tx, whose, lease))
        if row["is_good"]:
            return str(_secrets(row)["access_token"])
        raise
    except BaseException:
        _run(whose, lambda tx: _give_back(tx, whose, lease))
        raise
    sealed = seal(row, tokens)
    written = _run(whose, lambda tx: _write(tx, whose, lease, sealed, tokens.expires_in))
    return tokens.access_token if written else None


def seal(row: DictRow, tokens: supabase_api.Tokens) -> bytes:
    secrets = {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token}
    return field_encryption.encrypt(json.dumps(secrets).encode(), integrations.place(row, "secrets"))


def _secrets(row: DictRow) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        field_encryption.decrypt(bytes(row["secrets"]), integrations.place(row, "secrets"))
    )
    return found


_COLUMNS = "id, organization_id, state::text, secrets, tokens_expire_at > clock_timestamp() AS is_good"


def _take(tx: db.Tx, whose: Whose, lease: UUID) -> DictRow | None:
    """The row, where it is ours to renew now."""
    return tx.execute(
        f"""
        UPDATE deploys.integrations
        SET refresh_lease = %(lease)s,
            refresh_leased_until = clock_timestamp() + make_interval(secs => %(seconds)s)
        WHERE id = %(id)s
          AND state = 'active'
          AND tokens_expire_at <= clock_timestamp() + make_interval(secs => %(ahead)s)
          AND (refresh_leased_until IS NULL OR refresh_leased_until < clock_timestamp())
        RETURNING {_COLUMNS}
        """.encode(),
        {"id": whose.id, "lease": lease, "seconds": LEASE, "ahead": AHEAD},
    ).fetchone()


def _read(tx: db.Tx, whose: Whose) -> DictRow | None:
    return tx.execute(
        f"SELECT {_COLUMNS} FROM deploys.integrations WHERE id = %s".encode(), [whose.id]
    ).fetchone()


def _write(tx: db.Tx, whose: Whose, lease: UUID, sealed: bytes, expires_in: int) -> bool:
    written = tx.execute(
        """
        UPDATE deploys.integrations
        SET secrets = %(secrets)s,
            encryption_key = %(key)s,
            tokens_expire_at = clock_timestamp() + make_interval(secs => %(expires_in)s),
            refresh_lease = NULL,
            refresh_leased_until = NULL
        WHERE id = %(id)s AND refresh_lease = %(lease)s
        """,
        {
            "id": whose.id,
            "lease": lease,
            "secrets": sealed,
            "key": field_encryption.key_arn(),
            "expires_in": expires_in,
        },
    )
    return written.rowcount == 1


def _give_back(tx: db.Tx, whose: Whose, lease: UUID) -> None:
    tx.execute(
        """
        UPDATE deploys.integrations
        SET refresh_lease = NULL, refresh_leased_until = NULL
        WHERE id = %(id)s AND refresh_lease = %(lease)s
        """,
        {"id": whose.id, "lease": lease},
    )


def _lose(tx: db.Tx, whose: Whose, lease: UUID) -> None:
    """Supabase refused: said once, to those who hear events, and by the row's state from now on."""
    lost = tx.execute(
        """
        UPDATE deploys.integrations
        SET state = 'needs_reconnect', refresh_lease = NULL, refresh_leased_until = NULL
        WHERE id = %(id)s AND refresh_lease = %(lease)s
        """,
        {"id": whose.id, "lease": lease},
    )
    if lost.rowcount:
        outbox.append(
            tx,
            "integration.needs_reconnect",
            organization_id=whose.organization_id,
            payload={"integration_id": str(whose.id), "integration_type": "supabase"},
        )


def purge_states(tx: db.Tx, *, limit: int) -> int:
    """Forgets consents that were begun and are over. Answers how many, `limit` at most."""
    return tx.execute(
        """
        DELETE FROM deploys.oauth_states
        WHERE id IN (
            SELECT id
            FROM deploys.oauth_states
            WHERE expires_at < clock_timestamp()
            ORDER BY expires_at
            LIMIT %(limit)s
        )
        """,
        {"limit": limit},
    ).rowcount


def _run(whose: Whose, work: Callable[[db.Tx], T]) -> T:
    return db.run(work, organization_id=whose.organization_id, user_id=whose.user_id)


def _reconnect() -> InvalidState:
    return InvalidState(
        "Supabase does not let us in any more. Connect again by POST /v1/integrations/supabase/connect."
    )
