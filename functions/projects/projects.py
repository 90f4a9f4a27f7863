"""Projects of the caller's organisation, those shared with him, and what others made public."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import message_search
import project_activity
import project_forks
import project_lists
import project_rows
import project_shares
from aws_lambda_powertools.event_handler.openapi.params import Query
from project_requests import Changes, Kind, NewProject
from project_views import Project, ProjectDetails, PublicProject

from backplane import access, api, auth, messages, paging
from backplane.problems import Conflict, FeatureNotInPlan, Forbidden, InvalidState, PlanLimitReached

router = api.Router()

SearchText = Annotated[str, Query(min_length=1, max_length=200, pattern=r"\S")]


class NewMessage(api.Body, messages.NewMessage):
    pass


@router.post(
    "/v1/projects", scope="projects:write", status_code=201, raises=(FeatureNotInPlan, PlanLimitReached)
)
def create(body: NewProject, caller: api.Caller, tx: api.Tx) -> ProjectDetails:
    """Makes a project. Without `is_public` it is private where the plan allows that, and public else."""
    return project_rows.create(tx, caller, body)


@router.get("/v1/projects", scope="read")
def projects(
    caller: api.Caller,
    tx: api.Tx,
    *,
    q: SearchText | None = None,
    favorite: bool | None = None,
    deleted: bool = False,
    kind: Kind | None = None,
    tag: Annotated[str | None, Query(max_length=50)] = None,
    shared: bool = False,
    sort: Literal["created", "updated"] = "created",
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[Project]:
    """Projects of the organisation, or those shared with the caller, newest first."""
    wanted = project_lists.Wanted(q=q, favorite=favorite, deleted=deleted, kind=kind, tag=tag, shared=shared)
    whose = caller.organization_id, caller.user_id
    if sort == "created":
        before = paging.decode_cursor(cursor, UUID)
        items = project_lists.by_creation(tx, *whose, wanted, before=before, limit=limit + 1)
        return paging.page(items, limit, lambda last: last.id)
    changed = paging.decode_cursor(cursor, tuple[datetime, UUID])
    items = project_lists.by_change(tx, *whose, wanted, before=changed, limit=limit + 1)
    return paging.page(items, limit, lambda last: (last.updated_at, last.id))


@router.get("/v1/projects/search", scope="read")
def search(
    caller: api.Caller, q: SearchText, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[message_search.Found]:
    """Messages of the organisation's projects that hold the words."""
    after = paging.decode_cursor(cursor, message_search.Position)
    found = message_search.search(caller.organization_id, q, after=after, limit=limit + 1)
    return paging.page(found, limit, message_search.position)


@router.get("/v1/projects/stats", scope="read")
def stats(caller: api.Caller, tx: api.Tx, period: project_activity.Period = "30d") -> project_activity.Stats:
    """How many projects there are, were created and changed in a period, and how deployments went."""
    return project_activity.stats(tx, caller.organization_id, period)


@router.get("/v1/activity", scope="read")
def activity(
    caller: api.Caller, tx: api.Tx, limit: paging.Limit = 10, cursor: paging.Cursor = None
) -> paging.Page[project_activity.Activity]:
    """What happened lately, newest first."""
    before = paging.decode_cursor(cursor, UUID)
    found = project_activity.activity(tx, caller.organization_id, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.id)


@router.get("/v1/projects/<project_id>", scope="read")
def project(project_id: UUID, caller: api.Caller, tx: api.Tx) -> ProjectDetails | PublicProject:
    """A project. Others see of a public one neither its messages nor its configuration and keys."""
    if access.find(tx, caller, project_id).standing == "public":
        return project_rows.read_public(tx, project_id)
    return project_rows.read(tx, project_id, caller.user_id)


@router.patch("/v1/projects/<project_id>", scope="read", raises=(Conflict, FeatureNotInPlan, InvalidState))
def change(project_id: UUID, body: Changes, caller: api.Caller, tx: api.Tx) -> ProjectDetails:
    """Changes what the body names; the rest stays.

    A favourite is the reader's own; everything else takes `projects:write` too, and of a project shared with
    the caller `is_public` takes an admin's share.
    """
    scope = "read" if body.model_fields_set == {"is_favorite"} else "projects:write"
    auth.require(caller, scope)
    found = access.enter(tx, caller, project_id, scope)
    if found.standing == "editor" and "is_public" in body.model_fields_set:
        raise Forbidden(
            "This project is shared with you as editor: whether it is public is for an admin to say."
        )
    return project_rows.change(tx, caller, project_id, body)


@router.delete("/v1/projects/<project_id>", scope="projects:write", raises=(InvalidState,))
def delete(project_id: UUID, caller: api.Caller, tx: api.Tx) -> None:
    """Deletes a project. It can be restored."""
    access.enter_as_manager(tx, caller, project_id)
    project_rows.delete(tx, caller, project_id)


@router.post(
    "/v1/projects/<project_id>/restore", scope="projects:write", raises=(InvalidState, PlanLimitReached)
)
def restore(project_id: UUID, caller: api.Caller, tx: api.Tx) -> ProjectDetails:
    """Brings a deleted project back."""
    access.enter_as_manager(tx, caller, project_id, deleted=True)
    return project_rows.restore(tx, caller, project_id)


@router.post(
    "/v1/projects/<project_id>/fork",
    scope="projects:write",
    status_code=201,
    raises=(FeatureNotInPlan, PlanLimitReached),
)
def fork(
    project_id: UUID, body: project_forks.Fork, caller: api.Caller, commit: api.Commit
) -> ProjectDetails:
    """Copies a project with its files. Whoever may read one may fork it, into his own organisation."""
    return project_forks.fork(caller, project_id, body, commit)


@router.post("/v1/projects/<project_id>/messages", scope="projects:write", status_code=201)
def append(project_id: UUID, body: NewMessage, caller: api.Caller, tx: api.Tx) -> messages.Message:
    """Adds a message to a project's conversation."""
    access.enter(tx, caller, project_id, "projects:write")
    return messages.append(tx, project_id, [body], created_by=caller.user_id)[0]


@router.get("/v1/projects/<project_id>/messages", scope="read")
def conversation(
    project_id: UUID, caller: api.Caller, tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[messages.Message]:
    """A project's conversation, newest first."""
    access.enter(tx, caller, project_id, "read")
    before = paging.decode_cursor(cursor, int)
    found = messages.newest(tx, project_id, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.sequence)


@router.post(
    "/v1/projects/<project_id>/shares",
    scope="projects:write",
    status_code=201,
    shown_once=("token",),
    raises=(Conflict,),
)
def share(
    project_id: UUID, body: project_shares.NewShare, caller: api.Caller, tx: api.Tx
) -> project_shares.InvitedShare:
    """Invites somebody to a project by email address. The invitation's `token` is shown this once."""
    found = access.enter_as_manager(tx, caller, project_id)
    return project_shares.invite(tx, found, caller, body)


@router.get("/v1/projects/<project_id>/shares", scope="read")
def shares(
    project_id: UUID, caller: api.Caller, tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[project_shares.Share]:
    """With whom a project is shared, newest first."""
    access.enter(tx, caller, project_id, "read")
    before = paging.decode_cursor(cursor, UUID)
    found = project_shares.shares(tx, project_id, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.id)


@router.delete("/v1/projects/<project_id>/shares/<share_id>", scope="projects:write")
def unshare(project_id: UUID, share_id: UUID, caller: api.Caller, tx: api.Tx) -> None:
    """Ends a share, or an invitation to one."""
    access.enter_as_manager(tx, caller, project_id)
    project_shares.remove(tx, project_id, share_id)


handler = api.lambda_handler(router)
