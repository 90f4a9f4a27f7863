"""Organisations: made, changed and ended by those who may; their members, invitations and audit log.

A path that names an organisation is answered in it: the caller's role there counts (backplane.api).
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import organization_invitations
import organization_members
import organization_rows
from aws_lambda_powertools.event_handler.openapi.params import Query
from pydantic import Field

from backplane import api, audit_log, auth, invitations, paging
from backplane.problems import Conflict, InvalidState, PlanLimitReached

router = api.Router()

Name = Annotated[str | None, Query(max_length=100)]


@router.get("/v1/organizations", scope="read")
def organizations(
    caller: api.Caller, tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[organization_rows.Organization]:
    """The organisations that the caller is a member of, newest first; a key's own."""
    before = paging.decode_cursor(cursor, UUID)
    found = organization_rows.of_caller(tx, caller, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.id)


@router.post(
    "/v1/organizations", scope="account:manage", status_code=201, raises=(Conflict, PlanLimitReached)
)
def create(
    body: organization_rows.NewOrganization, caller: api.Caller, tx: api.Tx
) -> organization_rows.OrganizationDetails:
    """A new organisation, which the caller owns."""
    return organization_rows.create(tx, caller, body)


@router.get("/v1/organizations/<organization_id>", scope="read")
def organization(
    organization_id: UUID,  # noqa: ARG001  the caller acts there
    caller: api.Caller,
    tx: api.Tx,
) -> organization_rows.OrganizationDetails:
    """An organisation that the caller is a member of."""
    return organization_rows.read(tx, caller)


@router.patch(
    "/v1/organizations/<organization_id>", scope="organization:manage", raises=(Conflict, InvalidState)
)
def change(
    organization_id: UUID,  # noqa: ARG001
    body: organization_rows.Changes,
    caller: api.Caller,
    tx: api.Tx,
) -> organization_rows.OrganizationDetails:
    """Changes what the body names; the rest stays. Clerk keeps name, slug and logo of its organisations."""
    return organization_rows.change(tx, caller, body)


@router.delete("/v1/organizations/<organization_id>", scope="organization:delete", raises=(InvalidState,))
def delete(organization_id: UUID, caller: api.Caller, tx: api.Tx) -> None:  # noqa: ARG001
    """Ends an organisation for good: its members are out, its keys revoked, and what it made is erased."""
    organization_rows.delete(tx, caller)


@router.post(
    "/v1/organizations/<organization_id>/transfer", scope="organization:transfer", raises=(InvalidState,)
)
def transfer(
    organization_id: UUID,  # noqa: ARG001
    body: organization_members.Transfer,
    caller: api.Caller,
    tx: api.Tx,
) -> organization_members.Member:
    """Makes a member the owner in the caller's place, who stays as an admin."""
    return organization_members.transfer(tx, caller, body.user_id)


@router.get("/v1/organizations/<organization_id>/members", scope="read")
def members(
    organization_id: UUID,  # noqa: ARG001
    caller: api.Caller,
    tx: api.Tx,
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[organization_members.Member]:
    """The members, the newest first. Keys of the organisation do not see their addresses."""
    before = paging.decode_cursor(cursor, tuple[datetime, UUID])
    found = organization_members.newest(tx, caller, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: (last.joined_at, last.user_id))


@router.patch(
    "/v1/organizations/<organization_id>/members/<user_id>", scope="members:manage", raises=(InvalidState,)
)
def change_role(
    organization_id: UUID,  # noqa: ARG001
    user_id: UUID,
    body: organization_members.NewRole,
    caller: api.Caller,
    tx: api.Tx,
) -> organization_members.Member:
    """Gives a member another role, at most the caller's own. An organisation keeps an owner."""
    return organization_members.change_role(tx, caller, user_id, body.role)


@router.delete(
    "/v1/organizations/<organization_id>/members/<user_id>", scope="account:manage", raises=(InvalidState,)
)
def remove(organization_id: UUID, user_id: UUID, caller: api.Caller, tx: api.Tx) -> None:  # noqa: ARG001
    """Takes a member out, at once. Everybody may leave; removing others takes `members:manage`."""
    if user_id != caller.user_id:
        auth.require(caller, "members:manage")
    organization_members.remove(tx, caller, user_id)


@router.post(
    "/v1/organizations/<organization_id>/invitations",
    scope="members:manage",
    status_code=201,
    shown_once=("token",),
    raises=(Conflict, InvalidState),
)
def invite(
    organization_id: UUID,  # noqa: ARG001
    body: organization_invitations.NewInvitation,
    caller: api.Caller,
    tx: api.Tx,
) -> organization_invitations.NewlyInvited:
    """Invites somebody by email address. The invitation's `token` is shown this once: pass it on."""
    return organization_invitations.invite(tx, caller, body)


@router.get("/v1/organizations/<organization_id>/invitations", scope="members:manage")
def invited(
    organization_id: UUID,  # noqa: ARG001
    caller: api.Caller,
    tx: api.Tx,
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[organization_invitations.Invited]:
    """Who was invited, newest first, without the tokens."""
    before = paging.decode_cursor(cursor, UUID)
    found = organization_invitations.newest(tx, caller.organization_id, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.id)


@router.delete("/v1/organizations/<organization_id>/invitations/<invitation_id>", scope="members:manage")
def withdraw(
    organization_id: UUID,  # noqa: ARG001
    invitation_id: UUID,
    caller: api.Caller,
    tx: api.Tx,
) -> None:
    """Withdraws an invitation. Who has accepted it stays a member."""
    organization_invitations.withdraw(tx, caller, invitation_id)


@router.get("/v1/organizations/<organization_id>/audit-log", scope="audit:read")
def audit(
    organization_id: UUID,  # noqa: ARG001
    caller: api.Caller,
    tx: api.Tx,
    *,
    actor: Name = None,
    target: Name = None,
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[audit_log.AuditEntry]:
    """Who did what to whom in this organisation, newest first; of one `actor` or `target` where asked for."""
    before = paging.decode_cursor(cursor, tuple[datetime, UUID])
    entries = audit_log.newest_in(
        tx, caller.organization_id, actor=actor, target=target, before=before, limit=limit + 1
    )
    return paging.page(entries, limit, lambda last: (last.created_at, last.id))


class Acceptance(api.Body):
    token: str = Field(min_length=1, max_length=200)


@router.post("/v1/invitations/accept", scope="account:manage", raises=(InvalidState, PlanLimitReached))
def accept(body: Acceptance, caller: api.Caller, tx: api.Tx) -> invitations.Accepted:
    """Accepts an invitation, to a project or an organisation. It is for a person: send a session token."""
    return invitations.accept(tx, caller, body.token)


handler = api.lambda_handler(router)
