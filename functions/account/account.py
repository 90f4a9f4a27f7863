"""The caller's account: who he is, where he acts, what he has and may do there; his settings, his keys."""

from uuid import UUID

import account_settings
import organization_keys
from pydantic import BaseModel

from backplane import api, db, ledger, limits, paging, subscriptions
from backplane.problems import NotFound

router = api.Router()


class User(BaseModel):
    id: UUID
    clerk_id: str
    email: str | None
    name: str | None
    role: str  # platform role


class Organization(BaseModel):
    id: UUID
    name: str
    is_personal: bool


class Credits(BaseModel):
    available: int
    held: int
    debt: int


class Me(BaseModel):
    user: User | None  # null for API keys
    organization: Organization
    role: str | None  # in the organisation; null for API keys and visiting platform admins
    plan: subscriptions.CurrentPlan
    credits: Credits
    limits: dict[str, limits.Limit]
    features: list[str]


@router.get("/v1/me", scope="read")
def me(caller: api.Caller) -> Me:
    """Who calls, in which organisation, what it has, and what its plan allows."""

    def read(tx: db.Tx) -> Me:
        entitlement = subscriptions.entitlement(tx, caller.organization_id)
        balance = ledger.balance(tx, caller.organization_id)
        return Me(
            user=None if caller.user_id is None else _user(tx, caller.user_id),
            organization=_organization(tx, caller.organization_id),
            role=caller.role,
            plan=entitlement.current,
            credits=Credits(available=balance.available, held=balance.held, debt=balance.debt),
            limits=limits.usage(tx, caller.organization_id, entitlement.plan_id),
            features=entitlement.features,
        )

    return db.run(read, organization_id=caller.organization_id, user_id=caller.user_id)


@router.get("/v1/settings", scope="account:manage")
def settings(caller: api.Caller, tx: api.Tx) -> account_settings.Settings:
    """The caller's own settings, wherever he acts."""
    return account_settings.read(tx, account_settings.person(caller))


@router.patch("/v1/settings", scope="account:manage")
def change_settings(
    body: account_settings.Changes, caller: api.Caller, tx: api.Tx
) -> account_settings.Settings:
    """Changes what the body names; the rest stays. The timezone is his personal organisation's, too."""
    return account_settings.change(tx, account_settings.person(caller), body)


@router.post("/v1/api-keys", scope="keys:manage", status_code=201, shown_once=("key",))
def create_key(
    body: organization_keys.NewKey, caller: api.Caller, tx: api.Tx
) -> organization_keys.CreatedKey:
    """A key of the organisation's. `key` is shown this once; without `scopes` it may read."""
    return organization_keys.create(tx, body, caller)


@router.get("/v1/api-keys", scope="keys:manage")
def list_keys(
    caller: api.Caller, tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[organization_keys.Key]:
    """The organisation's keys, newest first, the revoked ones too, without their secrets."""
    before = paging.decode_cursor(cursor, UUID)
    found = organization_keys.newest(tx, caller.organization_id, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.id)


@router.delete("/v1/api-keys/<key_id>", scope="keys:manage")
def revoke_key(key_id: UUID, caller: api.Caller, tx: api.Tx) -> None:
    """Ends a key: it is refused from the next request on."""
    organization_keys.revoke(tx, key_id, caller)


def _user(tx: db.Tx, user_id: UUID) -> User:
    row = tx.execute(
        """
        SELECT id, clerk_id, email, nullif(trim(concat_ws(' ', first_name, last_name)), '') AS name, role
        FROM identity.users
        WHERE id = %s
        """,
        [user_id],
    ).fetchone()
    if row is None:
        raise NotFound("This account does not exist any more.")
    return User.model_validate(row)


def _organization(tx: db.Tx, organization_id: UUID) -> Organization:
    row = tx.execute(
        """
        SELECT id, name, personal_user_id IS NOT NULL AS is_personal
        FROM tenancy.organizations
        WHERE id = %s
        """,
        [organization_id],
    ).fetchone()
    if row is None:
        raise NotFound("This organisation does not exist any more.")
    return Organization.model_validate(row)


handler = api.lambda_handler(router)
