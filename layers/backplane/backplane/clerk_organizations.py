"""What Clerk's events of organisations and memberships do.

Invitations have no effect here: Clerk keeps and sends its own, and who accepts one comes as a membership.
"""

from uuid import UUID

from backplane import audit_log, identity, inbox, members, outbox
from backplane.clerk_objects import DeletedOrganization, Membership, Organization, as_of, read
from backplane.db import Tx
from backplane.inbox import Event, Outcome, Park, Quarantine
from backplane.scopes import role_named


def organization_saved(tx: Tx, event: Event) -> Outcome:
    """Makes or updates the organisation. Its creator owns it."""
    organization = read(Organization, event)
    subject = identity.organization_subject(organization.id)
    inbox.lock(tx, subject)
    organization_id, created = identity.open_organization(tx, organization.id, organization.name)
    # Whoever tells it, and however late: an organisation is created by one user once.
    tx.execute(
        "UPDATE tenancy.organizations SET owner_clerk_id = %s WHERE id = %s AND owner_clerk_id IS NULL",
        [organization.created_by, organization_id],
    )
    members.settle_owner(tx, organization_id)
    if not _update(tx, organization, as_of(event, organization.updated_at)):
        reason = "a newer state of the organisation stands, or it was deleted"
        return Outcome("stale", reason, organization_id)
    if not created:
        _tell(tx, "organization.updated", organization_id)
    arrived = (subject,) if organization.slug is None else (subject, _slug_subject(organization.slug))
    return Outcome("processed", None, organization_id, arrived)


def organization_deleted(tx: Tx, event: Event) -> Outcome:
    """Closes the organisation for good; the tombstone keeps late events out."""
    deleted = read(DeletedOrganization, event)
    clerk_id = deleted.id or _id_of_slug(tx, deleted, event)
    subject = identity.organization_subject(clerk_id)
    inbox.lock(tx, subject)
    row = tx.execute(
        """
        INSERT INTO tenancy.organizations AS o (clerk_id, name, deleted_at)
        VALUES (%(clerk_id)s, 'Deleted', %(deleted_at)s)
        ON CONFLICT (clerk_id) DO UPDATE
        SET deleted_at = EXCLUDED.deleted_at
        WHERE o.deleted_at IS NULL
        RETURNING id
        """,
        {"clerk_id": clerk_id, "deleted_at": event.occurred_at},
    ).fetchone()
    if row is None:
        return Outcome("stale", "the organisation was deleted before")
    organization_id: UUID = row["id"]
    identity.close(tx, organization_id)
    members.clear(tx, organization_id)
    audit_log.write(
        tx,
        "organization.deleted",
        actor="clerk",
        target=f"organization:{organization_id}",
        organization_id=organization_id,
        details={"event_id": event.id},
    )
    _tell(tx, "organization.deleted", organization_id)
    return Outcome("processed", None, organization_id, (subject,))


def membership_saved(tx: Tx, event: Event) -> Outcome:
    """Makes or changes a membership, once both its user and its organisation are known."""
    membership = read(Membership, event)
    found = _both(tx, membership)
    if isinstance(found, Outcome):
        return found
    organization_id, user_id = found
    changed_at = membership.updated_at or event.occurred_at
    saved = members.save(
        tx,
        members.Membership(
            organization_id=organization_id,
            user_id=user_id,
            role=role_named(membership.role),
            joined_at=membership.created_at or changed_at,
            changed_at=changed_at,
            as_of=as_of(event, membership.updated_at),
        ),
    )
    if not saved:
        return Outcome("stale", "a newer state of the membership stands, or it has ended", organization_id)
    return Outcome("processed", None, organization_id)


def membership_deleted(tx: Tx, event: Event) -> Outcome:
    """Ends a membership. It may be told before the membership was."""
    membership = read(Membership, event)
    found = _both(tx, membership)
    if isinstance(found, Outcome):
        return found
    organization_id, user_id = found
    # The object is the last that was, so its time may be that of its last change.
    removed_at = max(membership.updated_at or event.occurred_at, event.occurred_at)
    done = members.remove(
        tx, organization_id, user_id, removed_at=removed_at, as_of=as_of(event, membership.updated_at)
    )
    if done == "stale":
        return Outcome("stale", "a newer membership stands, or this one ended before", organization_id)
    return Outcome("processed", None, organization_id)


# ---- storing ----


def _update(tx: Tx, organization: Organization, as_of: str) -> bool:
    """Stores the organisation's state unless a newer one stands. Answers whether it did."""
    standing = tx.execute(
        "SELECT 1 FROM tenancy.organizations WHERE clerk_id = %s AND deleted_at IS NULL AND as_of < %s",
        [organization.id, as_of],
    ).fetchone()
    if standing is None:
        return False
    slug = organization.slug
    if slug is not None and not _take_slug(tx, slug, organization.id, as_of):
        slug = None
    tx.execute(
        """
        UPDATE tenancy.organizations
        SET name = %(name)s,
            slug = %(slug)s,
            logo_url = %(logo_url)s,
            as_of = %(as_of)s
        WHERE clerk_id = %(clerk_id)s
        """,
        {
            "clerk_id": organization.id,
            "name": organization.name,
            "slug": slug,
            "logo_url": organization.image_url,
            "as_of": as_of,
        },
    )
    return True


def _take_slug(tx: Tx, slug: str, clerk_id: str, as_of: str) -> bool:
    """Frees a slug that another of Clerk's organisations had, whose newer event has not come yet.

    Clerk keeps slugs unique at any time, so of two that have one, the newer state is true. Answers
    False where the other's is newer, or where it is not Clerk's.
    """
    inbox.lock(tx, _slug_subject(slug))
    tx.execute(
        """
        UPDATE tenancy.organizations
        SET slug = NULL
        WHERE slug = %s AND deleted_at IS NULL AND clerk_id <> %s AND as_of < %s
        """,
        [slug, clerk_id, as_of],
    )
    other = tx.execute(
        """
        SELECT 1
        FROM tenancy.organizations
        WHERE slug = %s AND deleted_at IS NULL AND clerk_id IS DISTINCT FROM %s
        """,
        [slug, clerk_id],
    ).fetchone()
    return other is None


def _tell(tx: Tx, what: str, organization_id: UUID) -> None:
    outbox.append(
        tx, what, organization_id=organization_id, payload={"organization_id": str(organization_id)}
    )


# ---- finding ----


def _slug_subject(slug: str) -> str:
    """The name under which a deletion waits that knows the organisation by its slug only."""
    return f"clerk.organization_slug:{slug}"


def _id_of_slug(tx: Tx, deleted: DeletedOrganization, event: Event) -> str:
    """The Clerk id of a deleted organisation that is named by its slug only."""
    if deleted.slug is None:
        raise Quarantine("the deletion names no organisation, neither by id nor by slug")
    inbox.lock(tx, _slug_subject(deleted.slug))
    row = tx.execute(
        """
        SELECT clerk_id
        FROM tenancy.organizations
        WHERE slug = %s AND deleted_at IS NULL AND clerk_id IS NOT NULL
          -- Who has the slug now may not be who had it then. Some events' times are whole seconds.
          AND (as_of = '' OR left(as_of, 15)::bigint < %s)
        """,
        [deleted.slug, (int(event.occurred_at.timestamp()) + 1) * 1000],
    ).fetchone()
    if row is None:
        raise Park(_slug_subject(deleted.slug), f"no organisation of that time has the slug {deleted.slug}")
    clerk_id: str = row["clerk_id"]
    return clerk_id


def _both(tx: Tx, membership: Membership) -> tuple[UUID, UUID] | Outcome:
    """A membership's organisation, its row locked, and its user; or what to say of a tombstone.

    Raises Park for the one that is not known yet.
    """
    organization_subject = identity.organization_subject(membership.organization_id)
    inbox.lock(tx, organization_subject)
    organization = tx.execute(
        "SELECT id, deleted_at FROM tenancy.organizations WHERE clerk_id = %s FOR UPDATE",
        [membership.organization_id],
    ).fetchone()
    user_subject = identity.user_subject(membership.user_id)
    inbox.lock(tx, user_subject)
    user = tx.execute(
        "SELECT id, deleted_at FROM identity.users WHERE clerk_id = %s", [membership.user_id]
    ).fetchone()
    if organization is not None and organization["deleted_at"] is not None:
        return Outcome("stale", "the organisation was deleted", organization["id"])
    if user is not None and user["deleted_at"] is not None:
        return Outcome("stale", "the user was deleted", organization["id"] if organization else None)
    if organization is None:
        raise Park(organization_subject, f"{membership.organization_id} is not known yet")
    if user is None:
        raise Park(user_subject, f"{membership.user_id} is not known yet")
    return organization["id"], user["id"]
