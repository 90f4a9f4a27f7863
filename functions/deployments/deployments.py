"""Deployments: begun by callers, moved by their providers' callbacks, ended by either."""

from uuid import UUID

import deployment_changes
import deployment_requests as requests
import deployment_views as views

from backplane import access, api, db, paging
from backplane.deployment_reports import Status
from backplane.deployment_stats import COUNTS, DeploymentStats
from backplane.deployment_stats import stats as stats_of
from backplane.problems import Conflict, InvalidState, PlanLimitReached

WRITE = "deployments:write"

router = api.Router()


@router.post(
    "/v1/projects/<project_id>/deployments",
    scope=WRITE,
    status_code=201,
    raises=(Conflict, PlanLimitReached),
)
def start(
    project_id: UUID, body: requests.NewDeployment, caller: api.Caller, tx: api.Tx
) -> views.DeploymentDetails:
    """Begins a deployment of a project. It counts against the plan until it fails, is aborted or deleted.

    `external_id` is what the provider calls it: its callbacks find it by that.
    """
    found = access.enter(tx, caller, project_id, WRITE)
    return views.read(tx, deployment_changes.start(tx, found, caller, body))


@router.get("/v1/projects/<project_id>/deployments", scope="read")
def of_a_project(
    project_id: UUID,
    caller: api.Caller,
    tx: api.Tx,
    *,
    status: Status | None = None,
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[views.Deployment]:
    """A project's deployments, newest first, also where the project is deleted."""
    found = access.enter(tx, caller, project_id, "read", deleted=True)
    before = paging.decode_cursor(cursor, UUID)
    items = views.newest(
        tx, found.organization_id, project_id=project_id, status=status, before=before, limit=limit + 1
    )
    return paging.page(items, limit, lambda last: last.id)


@router.get("/v1/deployments", scope="read")
def of_the_organization(
    caller: api.Caller,
    tx: api.Tx,
    status: Status | None = None,
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[views.Deployment]:
    """The organisation's deployments, newest first."""
    before = paging.decode_cursor(cursor, UUID)
    items = views.newest(tx, caller.organization_id, status=status, before=before, limit=limit + 1)
    return paging.page(items, limit, lambda last: last.id)


@router.get("/v1/deployments/stats", scope="read")
def stats(caller: api.Caller, tx: api.Tx) -> DeploymentStats:
    """How the organisation's deployments went."""
    values = {"organization_id": caller.organization_id}
    row = tx.execute(f"SELECT {COUNTS} AS counts".encode(), values).fetchone()
    return stats_of(None if row is None else row["counts"])


@router.get("/v1/deployments/<deployment_id>", scope="read")
def deployment(deployment_id: UUID, caller: api.Caller, tx: api.Tx) -> views.DeploymentDetails:
    """A deployment with its builds and its history."""
    _enter(tx, caller, deployment_id, "read")
    return views.read(tx, deployment_id)


@router.post("/v1/deployments/<deployment_id>/builds", scope=WRITE, raises=(Conflict, InvalidState))
def link(
    deployment_id: UUID, body: requests.Builds, caller: api.Caller, tx: api.Tx
) -> views.DeploymentDetails:
    """Says what the provider calls the builds of a deployment that began without that.

    Several, such as one a platform, are named in one request: the deployment is over when all of them are.
    """
    found = _enter(tx, caller, deployment_id, WRITE)
    deployment_changes.link(tx, found, caller, deployment_id, body.builds)
    return views.read(tx, deployment_id)


@router.post("/v1/deployments/<deployment_id>/cancel", scope=WRITE, raises=(InvalidState,))
def cancel(deployment_id: UUID, caller: api.Caller, tx: api.Tx) -> views.DeploymentDetails:
    """Ends a deployment as aborted. What the provider does goes on there: stop it there, too."""
    _enter(tx, caller, deployment_id, WRITE)
    deployment_changes.cancel(tx, caller, deployment_id)
    return views.read(tx, deployment_id)


@router.post("/v1/deployments/<deployment_id>/complete", scope=WRITE, raises=(InvalidState,))
def complete(
    deployment_id: UUID, body: requests.Completion, caller: api.Caller, tx: api.Tx
) -> views.DeploymentDetails:
    """Ends a deployment by hand, successful or failed, with what came of it."""
    _enter(tx, caller, deployment_id, WRITE)
    deployment_changes.complete(tx, caller, deployment_id, body)
    return views.read(tx, deployment_id)


@router.delete("/v1/deployments/<deployment_id>", scope=WRITE, raises=(InvalidState,))
def delete(deployment_id: UUID, caller: api.Caller, tx: api.Tx) -> None:
    """Takes a deployment that is over out of the lists and off the plan's count."""
    _enter(tx, caller, deployment_id, WRITE)
    deployment_changes.delete(tx, caller, deployment_id)


def _enter(tx: db.Tx, caller: api.Caller, deployment_id: UUID, scope: str) -> access.Access:
    return access.enter(tx, caller, views.project_of(tx, deployment_id), scope, deleted=True)


handler = api.lambda_handler(router)
