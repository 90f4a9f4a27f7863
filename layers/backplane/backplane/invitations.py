"""Invitations: a token that its inviter passes on, kept as a hash, good for one person and for a while.

The token says what it invites to, `bpi_<kind>_<secret>`, so that one route accepts every kind.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, LiteralString, get_args
from uuid import UUID

from pydantic import BaseModel, Field

from backplane import audit_log, db, members, subscriptions
from backplane.auth import Caller
from backplane.keys import ALPHABET, SECRET_LENGTH, hash_secret
from backplane.problems import Forbidden, InvalidState, NotFound, PlanLimitReached
from backplane.scopes import Role

Kind = Literal["project", "organization"]

DEFAULT_SECONDS: Final = 7 * 86_400
MAX_SECONDS: Final = 30 * 86_400
FORGOTTEN: Final = 30  # days after the end of one that nobody accepted: until then it is listed as expired

# Deliberately loose: who can read mail sent there decides, not we.
Email = Annotated[str, Field(max_length=254, pattern=r"^[^\s@]+@[^\s@]+\.[^\s@]+$")]

ExpiresIn = Annotated[int, Field(ge=60, le=MAX_SECONDS)]  # seconds
State = Literal["pending", "expired", "accepted"]

# What has become of an invitation, of a row with `accepted_at, expires_at`.
STATE: Final = """
    CASE WHEN accepted_at IS NOT NULL THEN 'accepted'
         WHEN expires_at <= clock_timestamp() THEN 'expired'
         ELSE 'pending' END AS state
"""

_FORM = re.compile(rf"bpi_({'|'.join(get_args(Kind))})_([0-9A-Za-z]{{{SECRET_LENGTH}}})")


@dataclass(frozen=True, slots=True)
class Invitation:
    """`token` is shown to the inviter once and kept nowhere."""

    kind: Kind
    token: str = field(repr=False)
    token_hash: bytes = field(repr=False)


class Accepted(BaseModel):
    kind: Kind
    organization_id: UUID
    project_id: UUID | None  # of a project's
    role: Role


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


def accept(tx: db.Tx, caller: Caller, token: str) -> Accepted:
    """Lets the caller in. Accepting twice is no error. Raises NotFound, InvalidState (expired), Forbidden (a
    key is nobody; another address was invited), PlanLimitReached (of members).
    """
    invitation = read(token)
    if caller.user_id is None:
        raise Forbidden("An invitation is for a person: accept it with a session token.")
    if invitation.kind == "project":
        return _accept_share(tx, caller.user_id, invitation)
    return _accept_membership(tx, caller.user_id, invitation)


def _accept_share(tx: db.Tx, user_id: UUID, invitation: Invitation) -> Accepted:
    """Opens a project to whoever was given the token."""
    row = _refuse(
        tx.execute("SELECT * FROM projects.accept_share(%s, %s)", [invitation.token_hash, user_id]).fetchone()
    )
    return Accepted.model_validate({"kind": invitation.kind, **row})


def _accept_membership(tx: db.Tx, user_id: UUID, invitation: Invitation) -> Accepted:
    """Makes the caller a member, unless another address than his was invited."""
    found = tx.execute("SELECT tenancy.find_invitation(%s) AS id", [invitation.token_hash]).fetchone()
    if found is None or found["id"] is None:
        raise unknown()
    organization_id: UUID = found["id"]
    db.enter(tx, organization_id)
    plan = subscriptions.entitlement(tx, organization_id)
    answered = tx.execute(
        """
        SELECT *
        FROM tenancy.accept_invitation(%(token_hash)s, %(user_id)s, %(organization_id)s, %(plan_id)s)
        """,
        {
            "token_hash": invitation.token_hash,
            "user_id": user_id,
            "organization_id": organization_id,
            "plan_id": plan.plan_id,
        },
    ).fetchone()
    row = _refuse(answered)
    if row["outcome"] == "full":
        raise PlanLimitReached(
            f"The organisation's plan {plan.current.tier} allows {row['most']} members, and it has as many."
            " Ask its owner to remove one or to choose a higher plan, and accept again."
        )
    if row["outcome"] == "joined":
        audit_log.write(
            tx,
            "invitation.accepted",
            actor=f"user:{user_id}",
            target=f"invitation:{row['invitation_id']}",
            organization_id=organization_id,
            details={"role": row["role"]},
        )
        members.tell(tx, "created", organization_id, user_id, row["role"])
    return Accepted(kind=invitation.kind, organization_id=organization_id, project_id=None, role=row["role"])


def _refuse(row: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What an SQL function made of an acceptance, if it is none of the refusals that all kinds know."""
    if row is None or row["outcome"] == "unknown":
        raise unknown()
    if row["outcome"] == "expired":
        raise InvalidState("The invitation has expired. Ask for a new one.")
    if row["outcome"] == "address":
        raise Forbidden(
            "Another address than yours was invited. Sign in with that one, or ask to have yours invited."
        )
    return row


def unknown() -> NotFound:
    return NotFound("There is no such invitation, or it was withdrawn or used. Ask for a new one.")


def purge(tx: db.Tx, *, limit: int) -> int:
    """Forgets invitations that ended so long ago, and with them whose address it was. Answers how many."""
    return sum(_purge(tx, table, limit) for table in ("projects.shares", "tenancy.invitations"))


def _purge(tx: db.Tx, table: LiteralString, limit: int) -> int:
    return tx.execute(
        f"""
        DELETE FROM {table}
        WHERE accepted_at IS NULL -- still, and not invited anew meanwhile
          AND expires_at < statement_timestamp() - make_interval(days => %(days)s)
          AND id IN (
              SELECT id
              FROM {table}
              WHERE accepted_at IS NULL
                AND expires_at < statement_timestamp() - make_interval(days => %(days)s)
              ORDER BY expires_at
              LIMIT %(limit)s
          )
        """,
        {"days": FORGOTTEN, "limit": limit},
    ).rowcount
