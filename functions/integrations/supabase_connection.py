"""Connecting Supabase: the user's consent there, begun here and finished by the code he comes back with.

`state` is kept as a hash and the PKCE verifier encrypted: for ten minutes, one use, and the user who began.
"""

import base64
import hashlib
import secrets
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import integration_changes
import integration_rows
from integration_changes import Asked, Wanted
from integration_rows import ChosenScope, Integration, Target
from psycopg.rows import DictRow
from pydantic import BaseModel, Field, SecretStr

from backplane import api, db, field_encryption, supabase_api, supabase_tokens
from backplane.auth import Caller
from backplane.field_encryption import Place
from backplane.problems import BadRequest, Forbidden, NotFound, Unavailable

MINUTES = 10  # from the beginning to the end
TABLE = "deploys.oauth_states"


class Consent(BaseModel):
    """`authorize_url` is shown once: send the user's browser there."""

    authorize_url: str | None = None
    expires_at: datetime


class Return(api.Body):
    """What Supabase added to the address that it sent the user back to."""

    code: Annotated[SecretStr, Field(min_length=1, max_length=2000)]
    state: Annotated[SecretStr, Field(min_length=1, max_length=200)]


class SupabaseProject(BaseModel):
    id: str
    name: str
    region: str | None


def begin(
    caller: Caller, commit: integration_changes.Commit, project_id: UUID | None, scope: ChosenScope
) -> Consent:
    """Raises FeatureNotInPlan, Forbidden, NotFound, Unavailable."""
    user_id = _person(caller)

    def admit(tx: db.Tx) -> tuple[Target, UUID]:
        integration_rows.require_feature(tx, caller)
        target = integration_rows.target(tx, caller, "supabase", project_id, scope)
        return target, integration_rows.new_id(tx)

    target, state_id = _in_tx(caller, admit)
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    url = supabase_api.authorize_url(state, challenge)
    place = Place(TABLE, "verifier", state_id, caller.organization_id)
    values = {
        "id": state_id,
        "state_hash": _hash(state),
        "organization_id": caller.organization_id,
        "user_id": user_id,
        "project_id": target.project_id,
        "is_users_own": target.user_id is not None,
        "verifier": field_encryption.encrypt(verifier.encode(), place),
        "minutes": MINUTES,
    }

    def keep(tx: db.Tx) -> Consent:
        row = tx.execute(
            """
            INSERT INTO deploys.oauth_states
                (id, state_hash, organization_id, user_id, project_id, is_users_own, verifier, expires_at)
            VALUES
                (%(id)s, %(state_hash)s, %(organization_id)s, %(user_id)s, %(project_id)s, %(is_users_own)s,
                 %(verifier)s, clock_timestamp() + make_interval(mins => %(minutes)s))
            RETURNING expires_at
            """,
            values,
        ).fetchone()
        if row is None:
            raise RuntimeError("an insert answers its row")
        return Consent(authorize_url=url, expires_at=row["expires_at"])

    consent: Consent = commit(keep)
    return consent


def finish(asked: Asked, body: Return) -> Integration:
    """Raises BadRequest where the state or the code is not good (any more), Unavailable, FeatureNotInPlan."""
    caller = asked.caller
    row = _in_tx(caller, lambda tx: _spend(tx, caller, body.state.get_secret_value()))
    place = Place(TABLE, "verifier", row["id"], row["organization_id"])
    verifier = field_encryption.decrypt(bytes(row["verifier"]), place).decode()
    scope: ChosenScope = "user" if row["is_users_own"] else "organization"
    target = _in_tx(
        caller, lambda tx: integration_rows.target(tx, caller, "supabase", row["project_id"], scope)
    )
    try:
        tokens = supabase_api.exchange(body.code.get_secret_value(), verifier)
    except supabase_api.Refused:
        raise BadRequest("Supabase does not take the code. Begin again.") from None
    wanted = Wanted(
        config=_organization(tokens.access_token),
        secrets={"access_token": tokens.access_token, "refresh_token": tokens.refresh_token},
        tokens_expire_in=tokens.expires_in,
        kept=frozenset({"organization_id"}),  # who connects again stays in the organisation that he was in
        action="connected",
    )
    return integration_changes.put(asked, target, wanted)


def projects(caller: Caller, project_id: UUID | None, scope: ChosenScope) -> list[SupabaseProject]:
    """Those that Supabase lists for the connection. Raises NotFound, InvalidState, Unavailable."""

    def find(tx: db.Tx) -> DictRow | None:
        target = integration_rows.target(tx, caller, "supabase", project_id, scope)
        return integration_rows.find(tx, target)

    row = _in_tx(caller, find)
    if row is None:
        raise NotFound("Supabase is not connected. POST /v1/integrations/supabase/connect begins it.")
    whose = supabase_tokens.Whose(row["id"], row["organization_id"], caller.user_id)
    try:
        found = supabase_api.projects(supabase_tokens.access_token(whose))
    except supabase_api.Refused:
        raise Unavailable("Supabase refuses to list the projects at the moment.") from None
    return [
        SupabaseProject(id=str(each.get("id")), name=str(each.get("name")), region=each.get("region"))
        for each in found
    ]


def _spend(tx: db.Tx, caller: Caller, state: str) -> DictRow:
    """The row of a state, which is good no second time whatever comes of it."""
    row = tx.execute(
        """
        DELETE FROM deploys.oauth_states
        WHERE state_hash = %(state_hash)s
          AND organization_id = %(organization_id)s
          AND user_id = %(user_id)s
        RETURNING id, organization_id, project_id, is_users_own, verifier,
                  expires_at > clock_timestamp() AS is_good
        """,
        {
            "state_hash": _hash(state),
            "organization_id": caller.organization_id,
            "user_id": _person(caller),
        },
    ).fetchone()
    if row is None or not row["is_good"]:
        raise BadRequest(
            f"You have not begun this connection here, or it is finished, or {MINUTES} minutes are over. "
            "Begin again."
        )
    return row


def _organization(access_token: str) -> dict[str, Any]:
    """The organisation that the user let us into; it can be asked for again where it is not known now."""
    try:
        found = supabase_api.organizations(access_token)
    except (supabase_api.Refused, Unavailable):
        return {}
    return {"organization_id": str(found[0]["id"])} if found and "id" in found[0] else {}


def _person(caller: Caller) -> UUID:
    if caller.user_id is None:
        raise Forbidden("Connecting Supabase takes a person's consent: sign in as one.")
    return caller.user_id


def _hash(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()


def _in_tx(caller: Caller, work: Any) -> Any:
    return db.run(work, organization_id=caller.organization_id, user_id=caller.user_id)
