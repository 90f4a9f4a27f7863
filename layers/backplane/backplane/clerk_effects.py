"""What Clerk's events do: users come, change and go, with their personal organisations."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from psycopg.types.json import Jsonb
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from backplane import identity, inbox, outbox, requests
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Quarantine
from backplane.periods import YEAR_9999

# 1973 in milliseconds and 5138 in seconds: Clerk began between the two.
_LEAST_MILLISECONDS = 100_000_000_000


def _milliseconds(value: object) -> object:
    """Milliseconds of the epoch, or seconds (the official examples mix them), to a datetime."""
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < YEAR_9999 * 1000:
        raise ValueError("a time must be whole milliseconds of the epoch")
    return datetime.fromtimestamp(value / 1000 if value >= _LEAST_MILLISECONDS else value, UTC)


Moment = Annotated[datetime | None, BeforeValidator(_milliseconds)]
UserId = Annotated[str, Field(pattern=r"^user_[A-Za-z0-9_-]{1,64}$")]


class _Email(BaseModel):
    id: str | None = None
    email_address: str = Field(min_length=1, max_length=320)


class User(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    id: UserId
    email_addresses: list[_Email] = []
    primary_email_address_id: str | None = None
    username: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    image_url: str | None = None
    banned: bool = False
    last_sign_in_at: Moment = None
    updated_at: Moment = None

    @property
    def email(self) -> str | None:
        """The primary address, else the first; phone-only users have none."""
        primary = (e for e in self.email_addresses if e.id == self.primary_email_address_id)
        chosen = next(primary, None) or next(iter(self.email_addresses), None)
        return None if chosen is None else identity.normalized_email(chosen.email_address)


class DeletedUser(BaseModel):
    id: UserId


def subject(clerk_user_id: str) -> str:
    """The name under which events wait for a user, and the name of his lock."""
    return f"clerk.user:{clerk_user_id}"


# ---- the events ----


def user_saved(tx: Tx, event: Event) -> Outcome:
    """Makes or updates the user; a new one gets his organisation and his sign-up credits."""
    user = _read(User, event)
    inbox.lock(tx, subject(user.id))
    email = user.email
    made = identity.provision_user(
        tx, user.id, email=email, first_name=user.first_name, last_name=user.last_name
    )
    if not _update(tx, user, as_of=_as_of(event, user)):
        return Outcome("stale", "a newer state of the user stands, or he was deleted", made.organization_id)
    if made.organization_id is not None:
        if not made.created and email is not None:
            identity.claim_sign_up(tx, made.organization_id, email)
        identity.name_personal_organization(tx, made.organization_id, user.first_name, user.last_name)
    return Outcome("processed", None, made.organization_id, (subject(user.id),))


def user_deleted(tx: Tx, event: Event) -> Outcome:
    """Erases the user and closes his personal organisation; the tombstone keeps late events out."""
    user = _read(DeletedUser, event)
    inbox.lock(tx, subject(user.id))
    row = tx.execute(
        """
        INSERT INTO identity.users AS u (clerk_id, is_active, deleted_at)
        VALUES (%(clerk_id)s, false, %(deleted_at)s)
        ON CONFLICT (clerk_id) DO UPDATE
        SET email = NULL, username = NULL, first_name = NULL, last_name = NULL, image_url = NULL,
            password_hash = NULL, is_active = false, deleted_at = EXCLUDED.deleted_at
        WHERE u.deleted_at IS NULL
        RETURNING id
        """,
        {"clerk_id": user.id, "deleted_at": event.occurred_at},
    ).fetchone()
    if row is None:
        return Outcome("stale", "the user was deleted before")
    organization_id = _close_personal_organization(tx, row["id"], event)
    tx.execute("DELETE FROM tenancy.organization_members WHERE user_id = %s", [row["id"]])
    tx.execute(
        """
        INSERT INTO platform.audit_log (organization_id, actor, action, target, details)
        VALUES (%s, 'clerk', 'user.deleted', %s, %s)
        """,
        [organization_id, f"user:{row['id']}", Jsonb({"event_id": event.id})],
    )
    outbox.append(tx, "user.deleted", organization_id=organization_id, payload={"user_id": str(row["id"])})
    return Outcome("processed", None, organization_id, (subject(user.id),))


EFFECTS: Mapping[str, inbox.Effect] = {
    "user.created": user_saved,
    "user.updated": user_saved,
    "user.deleted": user_deleted,
}


def _close_personal_organization(tx: Tx, user_id: UUID, event: Event) -> UUID | None:
    """A statement of its own: it sees the organisation of a user whom a token was just making."""
    row = tx.execute(
        """
        UPDATE tenancy.organizations
        SET name = 'Deleted', deleted_at = %s
        WHERE personal_user_id = %s
        RETURNING id
        """,
        [event.occurred_at, user_id],
    ).fetchone()
    if row is None:
        return None
    organization_id: UUID = row["id"]
    tx.execute(
        """
        UPDATE platform.api_keys
        SET revoked_at = clock_timestamp()
        WHERE organization_id = %s AND revoked_at IS NULL
        """,
        [organization_id],
    )
    return organization_id


def _update(tx: Tx, user: User, *, as_of: str) -> bool:
    """Stores the profile unless a newer one stands. Answers whether it did."""
    updated = tx.execute(
        """
        UPDATE identity.users
        SET email = %(email)s,
            username = %(username)s,
            first_name = %(first_name)s,
            last_name = %(last_name)s,
            image_url = %(image_url)s,
            is_active = %(is_active)s,
            last_login_at = %(last_login_at)s,
            as_of = %(as_of)s
        WHERE clerk_id = %(clerk_id)s AND deleted_at IS NULL AND as_of < %(as_of)s
        """,
        {
            "clerk_id": user.id,
            "email": user.email,
            "username": user.username,
            "first_name": user.first_name,
            "last_name": user.last_name,
            "image_url": user.image_url,
            "is_active": not user.banned,
            "last_login_at": user.last_sign_in_at,
            "as_of": as_of,
        },
    )
    return updated.rowcount == 1


def _as_of(event: Event, user: User) -> str:
    """Clerk orders a user's states by `updated_at`; of two that share it, the update is newer, then
    what was told later.
    """
    changed_at = user.updated_at or event.occurred_at
    milliseconds = int(changed_at.timestamp() * 1000)
    told = int(event.occurred_at.timestamp() * 1000)
    return f"{milliseconds:015d}.{int(event.type != 'user.created')}.{told:015d}.{event.id}"


# ---- reading ----


def parse(event_id: str, body: bytes) -> Event:
    """A verified body as an event. Its id is the `svix-id` header: the body has none.

    Raises InvalidPayload where it has no envelope to record it by.
    """
    data, defect = requests.parse_event(body)
    try:
        occurred_at = _milliseconds(data.get("timestamp"))
    except ValueError:
        occurred_at, defect = None, "timestamp is not a time"
    return Event(
        provider="clerk",
        id=event_id,
        type=requests.envelope_text(data, "type"),
        occurred_at=occurred_at if isinstance(occurred_at, datetime) else datetime.now(UTC),
        data=data,
        body=body,
        defect=defect,
    )


def _read(model: type[Any], event: Event) -> Any:
    """The event's data. Raises Quarantine where it is not of Clerk's shape."""
    try:
        return model.model_validate(event.data.get("data"))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise Quarantine(f"data is not a {model.__name__}: {faults}") from error
