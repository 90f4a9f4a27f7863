"""Users and their organisations: made once, by whichever comes first, the token or the webhook."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from backplane import db, outbox, secrets, subscriptions
from backplane.config import settings


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the database knows of a session token's user and organisation."""

    user_id: UUID | None
    user_state: str  # unknown, active, inactive, deleted
    platform_role: str | None  # user, admin, super_admin
    organization_id: UUID | None  # None: not provisioned yet
    organization_state: str  # unknown, active, deleted
    member_role: str | None  # None: no membership yet, or none any more
    role_is_newer: bool = False  # than the token


@dataclass(frozen=True, slots=True)
class Provisioned:
    user_id: UUID
    organization_id: UUID | None  # the personal one; None only where it was erased with its user
    created: bool  # by this call


def user_subject(clerk_user_id: str) -> str:
    """The name under which events wait for a user, and the name of his lock."""
    return f"clerk.user:{clerk_user_id}"


def organization_subject(clerk_org_id: str) -> str:
    """The same of an organisation."""
    return f"clerk.organization:{clerk_org_id}"


def provision_user(
    tx: db.Tx, clerk_user_id: str, *, email: str | None, first_name: str | None, last_name: str | None
) -> Provisioned:
    """Makes the user with his personal organisation, owner membership and sign-up credits, once."""
    row = tx.execute(
        """
        SELECT *
        FROM identity.provision_user(
            %(clerk_user_id)s, %(email)s, %(email_hash)s, %(first_name)s, %(last_name)s)
        """,
        {
            "clerk_user_id": clerk_user_id,
            "email": email,
            "email_hash": None if email is None else email_hash(email),
            "first_name": first_name,
            "last_name": last_name,
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("identity.provision_user answers one row")
    if row["created"]:
        outbox.written()
    return Provisioned(**row)


def provision_from_token(
    clerk_user_id: str,
    *,
    email: str | None,
    name: str | None,
    clerk_org_id: str | None,
    org_slug: str | None,
    org_role: str | None,
    issued_at: datetime | None,
) -> Resolved:
    """Makes what a valid session token names and the database does not know yet, and resolves it.

    Idempotent and safe against the webhook that makes the same user at the same time.
    """

    def work(tx: db.Tx) -> Resolved:
        user = provision_user(tx, clerk_user_id, email=email, first_name=name, last_name=None)
        if clerk_org_id is not None:
            tx.execute(
                """
                SELECT tenancy.provision_organization(
                    %(clerk_org_id)s, %(name)s, %(user_id)s, %(role)s::tenancy.member_role,
                    %(issued_at)s::timestamptz)
                """,
                {
                    "clerk_org_id": clerk_org_id,
                    "name": org_slug or clerk_org_id,
                    "user_id": user.user_id,
                    "role": org_role or "viewer",
                    "issued_at": issued_at,
                },
            )
            outbox.written()  # of the organisation, if this made it
        row = tx.execute(
            "SELECT * FROM identity.resolve_caller(%s, %s, %s::timestamptz)",
            [clerk_user_id, clerk_org_id, issued_at],
        ).fetchone()
        if row is None:
            raise RuntimeError("identity.resolve_caller answers one row")
        return Resolved(**row)

    return db.run(work)


def open_organization(tx: db.Tx, clerk_org_id: str, name: str) -> tuple[UUID, bool]:
    """Makes a Clerk organisation with its credit account, once. Answers it, and whether this call did."""
    row = tx.execute("SELECT * FROM tenancy.open_organization(%s, %s)", [clerk_org_id, name]).fetchone()
    if row is None:
        raise RuntimeError("tenancy.open_organization answers one row")
    if row["created"]:
        outbox.written()
    return row["organization_id"], row["created"]


def close_personal_organization(tx: db.Tx, user_id: UUID, at: datetime) -> UUID | None:
    """A statement of its own: it sees the organisation of a user whom a token was just making."""
    row = tx.execute(
        """
        UPDATE tenancy.organizations
        SET deleted_at = %s
        WHERE personal_user_id = %s
        RETURNING id
        """,
        [at, user_id],
    ).fetchone()
    if row is None:
        return None
    organization_id: UUID = row["id"]
    close(tx, organization_id)
    return organization_id


def close(tx: db.Tx, organization_id: UUID) -> None:
    """Ends what a deleted organisation had: its keys open nothing, and what it paid for at Clerk, which
    deleted it, is over. Stripe tells of its own subscriptions.
    """
    subscriptions.cancel_all(tx, organization_id, "clerk")
    tx.execute(
        """
        UPDATE platform.api_keys
        SET revoked_at = clock_timestamp()
        WHERE organization_id = %s AND revoked_at IS NULL
        """,
        [organization_id],
    )


def claim_sign_up(tx: db.Tx, organization_id: UUID, email: str) -> None:
    """Ties an address that became known later to the organisation's sign-up credits, which end if
    another organisation had them for this address before.
    """
    tx.execute("SELECT credits.claim_sign_up(%s, %s)", [organization_id, email_hash(email)])


def name_personal_organization(
    tx: db.Tx, organization_id: UUID, first_name: str | None, last_name: str | None
) -> None:
    """Gives an organisation that a nameless token made its owner's name."""
    name = " ".join(part for part in (first_name, last_name) if part).strip()
    if name:
        tx.execute(
            "UPDATE tenancy.organizations SET name = %s WHERE id = %s AND name = 'Personal'",
            [name, organization_id],
        )


def email_hash(email: str) -> bytes:
    """A keyed hash that outlives the address itself (sign-up credits come once per address)."""
    arn = settings().hash_key_secret_arn
    if arn is None:
        raise RuntimeError("HASH_KEY_SECRET_ARN is not set: template.yaml's HashKey gives it")
    key = secrets.get(arn)["key"]
    return hmac.digest(key.encode(), normalized_email(email).encode(), hashlib.sha256)


def normalized_email(email: str) -> str:
    return email.strip().lower()
