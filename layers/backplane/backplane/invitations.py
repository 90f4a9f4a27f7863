"""Invitations: a token that its inviter passes on, kept as a hash, good for one person and for a while.

The token says what it invites to, `bpi_<kind>_<secret>`, so that one route accepts every kind.
"""

import re
import secrets
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from backplane import db
from backplane.keys import ALPHABET, SECRET_LENGTH, hash_secret
from backplane.problems import NotFound

Kind = Literal["project"]

DEFAULT_SECONDS: Final = 7 * 86_400
MAX_SECONDS: Final = 30 * 86_400
FORGOTTEN: Final = 30  # days after the end of one that nobody accepted: until then it is listed as expired

_FORM = re.compile(rf"bpi_({'|'.join(get_args(Kind))})_([0-9A-Za-z]{{{SECRET_LENGTH}}})")


@dataclass(frozen=True, slots=True)
class Invitation:
    """`token` is shown to the inviter once and kept nowhere."""

    kind: Kind
    token: str = field(repr=False)
    token_hash: bytes = field(repr=False)


def mint(kind: Kind) -> Invitation:
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH))
    return Invitation(kind, f"bpi_{kind}_{secret}", hash_secret(secret))


def read(token: str) -> Invitation:
    """Raises NotFound for what is no token of ours."""
    form = _FORM.fullmatch(token)
    if form is None:
        raise unknown()
    kind: Kind = next(kind for kind in get_args(Kind) if kind == form[1])
    return Invitation(kind, token, hash_secret(form[2]))


def unknown() -> NotFound:
    return NotFound("There is no such invitation, or it was withdrawn or used. Ask for a new one.")


def purge(tx: db.Tx, *, limit: int) -> int:
    """Forgets invitations that ended so long ago, and with them whose address it was. Answers how many."""
    return tx.execute(
        """
        DELETE FROM projects.shares
        WHERE accepted_at IS NULL -- still, and not invited anew meanwhile
          AND expires_at < clock_timestamp() - make_interval(days => %(days)s)
          AND id IN (
              SELECT id
              FROM projects.shares
              WHERE accepted_at IS NULL AND expires_at < clock_timestamp() - make_interval(days => %(days)s)
              ORDER BY expires_at
              LIMIT %(limit)s
          )
        """,
        {"days": FORGOTTEN, "limit": limit},
    ).rowcount
