"""What Clerk's events of users do: they come, change and go, with their personal organisations."""

from datetime import timedelta

from backplane import audit_log, erasure, identity, inbox, members, outbox
from backplane.clerk_objects import DeletedUser, User, as_of, read
from backplane.db import Tx
from backplane.erasure import Person
from backplane.inbox import Event, Outcome


def user_saved(tx: Tx, event: Event) -> Outcome:
    """Makes or updates the user; a new one gets his organisation and his sign-up credits."""
    user = read(User, event)
    subject = identity.user_subject(user.id)
    inbox.lock(tx, subject)
    email = user.email
    made = identity.provision_user(
        tx, user.id, email=email, first_name=user.first_name, last_name=user.last_name
    )
    if not _update(tx, user, event):
        return Outcome("stale", "a newer state of the user stands, or he was deleted", made.organization_id)
    if made.organization_id is not None:
        if not made.created and email is not None:
            identity.claim_sign_up(tx, made.organization_id, email)
        identity.name_personal_organization(tx, made.organization_id, user.first_name, user.last_name)
    return Outcome("processed", None, made.organization_id, (subject,))


def user_deleted(tx: Tx, event: Event) -> Outcome:
    """Erases the user and closes his personal organisation; the tombstone keeps late events out."""
    user = read(DeletedUser, event)
    subject = identity.user_subject(user.id)
    inbox.lock(tx, subject)
    row = tx.execute(
        """
        INSERT INTO identity.users AS u (clerk_id, is_active, deleted_at)
        VALUES (%(clerk_id)s, false, %(deleted_at)s)
        ON CONFLICT (clerk_id) DO UPDATE
        SET is_active = false, deleted_at = EXCLUDED.deleted_at
        WHERE u.deleted_at IS NULL
        RETURNING id
        """,
        {"clerk_id": user.id, "deleted_at": event.occurred_at},
    ).fetchone()
    if row is None:
        return Outcome("stale", "the user was deleted before")
    organization_id = identity.close_personal_organization(tx, row["id"], event.occurred_at)
    erasure.erase(tx, Person(row["id"], user.id, organization_id), actor="clerk")
    members.leave_all(tx, row["id"])
    audit_log.write(
        tx,
        "user.deleted",
        actor="clerk",
        target=f"user:{row['id']}",
        organization_id=organization_id,
        details={"event_id": event.id},
    )
    outbox.append(tx, "user.deleted", organization_id=organization_id, payload={"user_id": str(row["id"])})
    return Outcome("processed", None, organization_id, (subject,))


def _update(tx: Tx, user: User, event: Event) -> bool:
    """Stores the profile unless a newer one stands. Answers whether it did."""
    unlocks_after = user.lockout_expires_in_seconds
    updated = tx.execute(
        """
        UPDATE identity.users
        SET email = %(email)s,
            username = %(username)s,
            first_name = %(first_name)s,
            last_name = %(last_name)s,
            image_url = %(image_url)s,
            is_active = NOT %(banned)s,
            locked_until = CASE WHEN %(locked)s THEN coalesce(%(locked_until)s::timestamptz, 'infinity') END,
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
            "banned": user.banned,
            "locked": user.locked,
            # Clerk unlocks by time without telling it.
            "locked_until": None
            if unlocks_after is None
            else event.occurred_at + timedelta(seconds=unlocks_after),
            "last_login_at": user.last_sign_in_at,
            "as_of": as_of(event, user.updated_at),
        },
    )
    return updated.rowcount == 1
