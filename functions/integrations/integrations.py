"""Integrations: what the organisation has set up at Expo, the app stores, Vercel, GitHub and others."""

from typing import Annotated, Any
from uuid import UUID

import integration_changes
import integration_configs
import integration_rows
import supabase_connection
from integration_changes import Asked
from integration_configs import AnyName, WebhookSecret
from integration_rows import ChosenScope, Integration
from pydantic import BaseModel, Field
from supabase_connection import Consent, Return, SupabaseProject

from backplane import api, db, paging
from backplane.auth import Caller
from backplane.problems import BadRequest, Conflict, FeatureNotInPlan, InvalidState

router = api.Router()


class Where(api.Body):
    """Whose: a project's where one is named, else the organisation's or the caller's own."""

    project_id: Annotated[UUID | None, Field(strict=False)] = None
    scope: ChosenScope = "organization"


class NewIntegration(Where):
    config: Annotated[dict[str, Any], Field(max_length=50, repr=False)]  # Powertools logs it at DEBUG
    active: bool = True


class Rotation(Where):
    webhook_secret: WebhookSecret | None = None  # where the service makes it; else one is made here


class SupabaseProjects(BaseModel):
    items: list[SupabaseProject]


@router.get("/v1/integrations", scope="read")
def listed(
    caller: api.Caller,
    tx: api.Tx,
    base_url: api.BaseUrl,
    *,
    type: AnyName | None = None,  # noqa: A002  the parameter's name
    project_id: UUID | None = None,
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[Integration]:
    """The organisation's integrations, its projects' and the caller's own, newest first, without secrets."""
    rows = integration_rows.newest(
        tx,
        caller.organization_id,
        type_=None if type is None else integration_configs.STORED[type],
        project_id=project_id,
        before=paging.decode_cursor(cursor, UUID),
        limit=limit + 1,
    )
    return paging.page([integration_rows.shown(row, base_url) for row in rows], limit, lambda last: last.id)


@router.put(
    "/v1/integrations/<integration_type>", scope="deployments:write", raises=(FeatureNotInPlan, Conflict)
)
def put(
    integration_type: str,
    body: NewIntegration,
    caller: api.Caller,
    commit: api.Commit,
    base_url: api.BaseUrl,
) -> Integration:
    """Sets up an integration, or replaces what stands. `webhook_secret` is shown once, if made here."""
    name = integration_configs.configured(integration_type)
    config = integration_configs.read(name, body.config)
    wanted = integration_changes.Wanted(
        config=config.public,
        secrets=config.secrets,
        private_key=_revealed(config, "private_key"),
        webhook_secret=_revealed(config, "webhook_secret"),
        state="active" if body.active else "disabled",
    )
    target = _target(caller, name, body.project_id, body.scope)
    return integration_changes.put(Asked(caller, commit, base_url), target, wanted)


@router.delete("/v1/integrations/<integration_type>", scope="deployments:write")
def delete(
    integration_type: str,
    caller: api.Caller,
    commit: api.Commit,
    *,
    project_id: UUID | None = None,
    scope: ChosenScope = "organization",
) -> None:
    """Deletes an integration with its secrets: its webhook answers 404 from then on."""
    target = _target(caller, integration_configs.named(integration_type), project_id, scope)
    secret_name = commit(lambda tx: integration_rows.delete(tx, target, caller))
    integration_changes.discard(caller, secret_name)


@router.post(
    "/v1/integrations/<integration_type>/rotate",
    scope="deployments:write",
    raises=(InvalidState, Conflict),
    shown_once=("webhook_secret",),
)
def rotate(
    integration_type: str,
    body: Rotation,
    caller: api.Caller,
    commit: api.Commit,
    base_url: api.BaseUrl,
) -> Integration:
    """A new webhook secret, shown this once. The one before is honoured for 24 hours more."""
    given = None if body.webhook_secret is None else body.webhook_secret.get_secret_value()
    target = _target(caller, integration_configs.named(integration_type), body.project_id, body.scope)
    return integration_changes.rotate(Asked(caller, commit, base_url), target, given)


@router.post(
    "/v1/integrations/supabase/connect",
    scope="deployments:write",
    raises=(FeatureNotInPlan,),
    shown_once=("authorize_url",),
)
def connect_supabase(body: Where, caller: api.Caller, commit: api.Commit) -> Consent:
    """Begins connecting Supabase: where the user gives his consent, within ten minutes."""
    return supabase_connection.begin(caller, commit, body.project_id, body.scope)


@router.post(
    "/v1/integrations/supabase/callback",
    scope="deployments:write",
    raises=(BadRequest, FeatureNotInPlan, Conflict),
)
def return_from_supabase(
    body: Return, caller: api.Caller, commit: api.Commit, base_url: api.BaseUrl
) -> Integration:
    """Finishes connecting Supabase, by what it added to the address that the user came back to."""
    return supabase_connection.finish(Asked(caller, commit, base_url), body)


@router.get("/v1/integrations/supabase/projects", scope="read", raises=(InvalidState,))
def supabase_projects(
    caller: api.Caller, *, project_id: UUID | None = None, scope: ChosenScope = "organization"
) -> SupabaseProjects:
    """The projects at Supabase that the connection reaches."""
    return SupabaseProjects(items=supabase_connection.projects(caller, project_id, scope))


def _target(
    caller: Caller, name: AnyName, project_id: UUID | None, scope: ChosenScope
) -> integration_rows.Target:
    return db.run(
        lambda tx: integration_rows.target(tx, caller, name, project_id, scope),
        organization_id=caller.organization_id,
        user_id=caller.user_id,
    )


def _revealed(config: integration_configs.Config, name: str) -> str | None:
    secret = getattr(config, name, None)
    return None if secret is None else secret.get_secret_value()


handler = api.lambda_handler(router)
