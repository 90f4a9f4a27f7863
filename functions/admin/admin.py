"""What platform admins do: webhooks replayed, users, audit log, backups, service keys, plans and prices."""

from typing import Annotated
from uuid import UUID

import backup_rows
import feature_costs
import people
import price_list
import service_keys
import webhook_rows
from aws_lambda_powertools.event_handler.openapi.params import Query
from pydantic import BaseModel

from backplane import api, audit_log, database_report, db, inbox_upkeep, ledger, paging
from backplane.inbox import Provider, Status
from backplane.problems import Conflict, InvalidState
from backplane.senders import SENDERS

router = api.Router()

EmailPrefix = Annotated[str | None, Query(min_length=1, max_length=320, description="How it begins.")]


class Replay(BaseModel):
    id: UUID
    status: Status  # what became of it now; duplicate: it was applied before, and nothing was done


@router.get("/v1/admin/webhooks", scope="admin")
def webhooks(
    tx: api.Tx,
    *,
    status: webhook_rows.Stored | None = None,
    provider: Provider | None = None,
    limit: paging.Limit = 20,
    cursor: paging.Cursor = None,
) -> paging.Page[webhook_rows.Webhook]:
    """Webhook events as they came, newest first."""
    before = paging.decode_cursor(cursor, UUID)
    items = webhook_rows.newest(tx, status=status, provider=provider, before=before, limit=limit + 1)
    return paging.page(items, limit, lambda last: last.id)


@router.get("/v1/admin/webhooks/<webhook_id>", scope="admin")
def webhook(webhook_id: UUID, caller: api.Caller, tx: api.Tx) -> webhook_rows.WholeWebhook:
    """With its body, which tells of people: who looked is in the audit log."""
    found = webhook_rows.find(tx, webhook_id)
    audit_log.write(tx, "webhook.shown", actor=caller.actor, target=f"webhook:{webhook_id}")
    return found


@router.post("/v1/admin/webhooks/<webhook_id>/replay", scope="admin", raises=(InvalidState,))
def replay(webhook_id: UUID, caller: api.Caller) -> Replay:
    """Applies it as if it had just come, unless it is applied already. Its attempts count from one."""

    def note(tx: db.Tx) -> None:
        webhook_rows.find(tx, webhook_id)
        audit_log.write(tx, "webhook.replayed", actor=caller.actor, target=f"webhook:{webhook_id}")

    db.run(note)  # by itself: the attempt is on record, whatever becomes of it
    return Replay(id=webhook_id, status=inbox_upkeep.retry(webhook_id, SENDERS, anew=True))


@router.get("/v1/admin/users", scope="admin")
def users(
    tx: api.Tx, *, email: EmailPrefix = None, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[people.User]:
    """Users, newest first."""
    before = paging.decode_cursor(cursor, UUID)
    return paging.page(
        people.newest_users(tx, email=email, before=before, limit=limit + 1), limit, lambda last: last.id
    )


@router.get("/v1/admin/audit-log", scope="admin")
def audit(
    tx: api.Tx, *, organization_id: UUID | None = None, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[audit_log.AuditEntry]:
    """Who did what to whom, newest first."""
    before = paging.decode_cursor(cursor, UUID)
    items = audit_log.newest(tx, organization_id=organization_id, before=before, limit=limit + 1)
    return paging.page(items, limit, lambda last: last.id)


@router.get("/v1/admin/erasures", scope="admin")
def erasures(
    tx: api.Tx, *, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[people.ErasureReport]:
    """What was erased of deleted users: numbers and pseudonymous ids."""
    before = paging.decode_cursor(cursor, UUID)
    return paging.page(
        people.newest_erasures(tx, before=before, limit=limit + 1), limit, lambda last: last.id
    )


@router.get("/v1/admin/backups", scope="admin")
def backups(
    tx: api.Tx, *, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[backup_rows.Backup]:
    """Backups, newest first, each with the verdict of the last drill."""
    before = paging.decode_cursor(cursor, UUID)
    return paging.page(backup_rows.newest(tx, before=before, limit=limit + 1), limit, lambda last: last.id)


@router.get("/v1/admin/database", scope="admin")
def database(tx: api.Tx) -> database_report.Report:
    """How the database is, and what is to be done about it. Of tenants there is nothing in it."""
    return database_report.read(tx)


@router.post("/v1/admin/service-keys", scope="admin", status_code=201, shown_once=("key",))
def create_service_key(
    body: service_keys.NewServiceKey, caller: api.Caller, tx: api.Tx
) -> api.Response[service_keys.CreatedServiceKey]:
    """Makes a key for your own servers. `key` is shown this once."""
    return api.answer(service_keys.create(tx, body, caller), status_code=201)


@router.get("/v1/admin/service-keys", scope="admin")
def list_service_keys(
    tx: api.Tx, *, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[service_keys.ServiceKey]:
    """Service keys, newest first, without their secrets."""
    before = paging.decode_cursor(cursor, UUID)
    return paging.page(service_keys.newest(tx, before=before, limit=limit + 1), limit, lambda last: last.id)


@router.delete("/v1/admin/service-keys/<key_id>", scope="admin")
def revoke_service_key(key_id: UUID, caller: api.Caller, tx: api.Tx) -> None:
    """Ends a service key: it is refused from the next request on."""
    service_keys.revoke(tx, key_id, caller)


@router.get("/v1/admin/plans", scope="admin")
def list_plans(
    tx: api.Tx, *, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[price_list.StoredPlan]:
    """Every plan, for sale or not, in order of their keys."""
    after = paging.decode_cursor(cursor, str)
    return paging.page(price_list.listed(tx, after=after, limit=limit + 1), limit, lambda last: last.key)


@router.post("/v1/admin/plans", scope="admin", status_code=201, raises=(Conflict, InvalidState))
def create_plan(
    body: price_list.NewPlan, caller: api.Caller, tx: api.Tx
) -> api.Response[price_list.StoredPlan]:
    """Makes a plan, for sale or not."""
    return api.answer(price_list.create(tx, body, caller), status_code=201)


@router.patch("/v1/admin/plans/<plan_key>", scope="admin", raises=(Conflict, InvalidState))
def change_plan(
    plan_key: str, body: price_list.PlanFields, caller: api.Caller, tx: api.Tx
) -> price_list.StoredPlan:
    """Changes what the body names of a plan; the rest stays."""
    return price_list.change(tx, plan_key, body, caller)


@router.get("/v1/admin/feature-costs", scope="admin")
def costs(tx: api.Tx) -> dict[str, int]:
    """What one unit of each operation costs, in credits."""
    return ledger.costs(tx)


@router.put("/v1/admin/feature-costs", scope="admin")
def replace_costs(body: feature_costs.FeatureCosts, caller: api.Caller, tx: api.Tx) -> dict[str, int]:
    """Puts these prices in the place of all that were set before. What is left out has its default."""
    return feature_costs.replace(tx, body, caller)


handler = api.lambda_handler(router)
