"""Projects of the caller's organisation, those shared with him, and what others made public."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import project_lists
import project_rows
from aws_lambda_powertools.event_handler.openapi.params import Query
from project_requests import Changes, Kind, NewProject
from project_views import Project, ProjectDetails, PublicProject

from backplane import access, api, auth, db

router = api.Router()

SearchText = Annotated[str, Query(min_length=1, max_length=200, pattern=r"\S")]


@router.post("/v1/projects", scope="projects:write", status_code=201)
def create(body: NewProject, caller: api.Caller) -> api.Response[ProjectDetails]:
    made = db.run(
        lambda tx: project_rows.create(tx, caller, body),
        organization_id=caller.organization_id,
        user_id=caller.user_id,
    )
    return api.answer(made, status_code=201)


@router.get("/v1/projects", scope="read")
def projects(
    caller: api.Caller,
    *,
    q: SearchText | None = None,
    favorite: bool | None = None,
    deleted: bool = False,
    kind: Kind | None = None,
    sort: Literal["created", "updated"] = "created",
    limit: api.Limit = 20,
    cursor: api.Cursor = None,
) -> api.Page[Project]:
    wanted = project_lists.Wanted(q=q, favorite=favorite, deleted=deleted, kind=kind)
    organization_id, user_id = caller.organization_id, caller.user_id

    def read(tx: db.Tx) -> list[Project]:
        if sort == "created":
            before = api.decode_cursor(cursor, UUID)
            return project_lists.by_creation(
                tx, organization_id, user_id, wanted, before=before, limit=limit + 1
            )
        moment = api.decode_cursor(cursor, tuple[datetime, UUID])
        return project_lists.by_change(tx, organization_id, user_id, wanted, before=moment, limit=limit + 1)

    items = db.run(read, organization_id=organization_id, user_id=user_id)
    return api.page(items, limit, lambda last: last.id if sort == "created" else (last.updated_at, last.id))


@router.get("/v1/projects/<project_id>", scope="read")
def project(project_id: UUID, caller: api.Caller) -> ProjectDetails | PublicProject:
    found = access.find(caller, project_id)
    if found.standing == "public":
        return db.run(
            lambda tx: project_rows.read_public(tx, project_id), organization_id=caller.organization_id
        )
    return db.run(
        lambda tx: project_rows.read(tx, project_id, caller.user_id), organization_id=found.organization_id
    )


@router.patch("/v1/projects/<project_id>", scope="read")
def change(project_id: UUID, body: Changes, caller: api.Caller) -> ProjectDetails:
    """A favourite is the reader's own; everything else takes `projects:write`."""
    scope = "read" if body.model_fields_set == {"is_favorite"} else "projects:write"
    auth.require(caller, scope)
    found = access.require(caller, project_id, scope)
    return db.run(
        lambda tx: project_rows.change(tx, caller, project_id, body), organization_id=found.organization_id
    )


@router.delete("/v1/projects/<project_id>", scope="projects:write")
def delete(project_id: UUID, caller: api.Caller) -> None:
    found = access.require_manager(caller, project_id)
    db.run(lambda tx: project_rows.delete(tx, project_id), organization_id=found.organization_id)


@router.post("/v1/projects/<project_id>/restore", scope="projects:write")
def restore(project_id: UUID, caller: api.Caller) -> ProjectDetails:
    found = access.require_manager(caller, project_id)
    return db.run(
        lambda tx: project_rows.restore(tx, caller, project_id), organization_id=found.organization_id
    )


handler = api.lambda_handler(router)
