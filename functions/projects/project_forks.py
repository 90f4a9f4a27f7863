"""Forks: a project of one's own, made of what one may read of another."""

import project_rows
from project_requests import Changes, NewProject, Title
from project_views import ProjectDetails, PublicProject

from backplane import api, db, messages
from backplane.access import Access
from backplane.auth import Caller
from backplane.problems import Forbidden


class Fork(api.Body):
    title: Title | None = None  # None: the source's
    is_public: bool | None = None  # None: as for a new project
    include_messages: bool = False


def fork(tx: db.Tx, caller: Caller, source: Access, wanted: Fork) -> ProjectDetails:
    """Takes over what the project is, and of one's own or a shared one also its configuration, and the
    messages where they are wanted. Its keys, its domains and its people stay with the source.

    Raises NotFound, Forbidden (the messages of a public project), FeatureNotInPlan, PlanLimitReached.
    """
    original: PublicProject
    if source.standing == "public":
        if wanted.include_messages:
            raise Forbidden("This project is public, its messages are not: fork it without them.")
        original, said = project_rows.read_public(tx, source.project_id), []
    else:
        original = project_rows.read(tx, source.project_id, None)
        said = messages.all_of(tx, source.project_id) if wanted.include_messages else []
    db.enter(tx, caller.organization_id)
    made = project_rows.create(
        tx,
        caller,
        NewProject.model_validate(
            {
                "title": wanted.title or original.title,
                "description": original.description,
                "kind": original.kind,
                "template": original.template and original.template.model_dump(),
                "features": original.features,
                "tags": original.tags,
                "is_public": wanted.is_public,
            }
        ),
        forked_from=source.project_id,
    )
    if isinstance(original, ProjectDetails):
        taken = {"config": original.config}
        if original.app is not None:
            taken["app"] = original.app.model_dump()
        project_rows.change(tx, caller, made.id, Changes.model_validate(taken))
    messages.append(tx, made.id, said, created_by=caller.user_id)
    return project_rows.read(tx, made.id, caller.user_id)
