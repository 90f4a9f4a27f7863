"""The caller's account: who he is, which organisation he acts in, what it has and may do."""

from uuid import UUID

from pydantic import BaseModel

from backplane import api, db, ledger, limits, subscriptions
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
