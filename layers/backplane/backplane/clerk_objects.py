"""Clerk's objects as events carry them, down to what we use.

Times are milliseconds of the epoch, in some examples seconds. An id that is not used may be "" or
null, or left out. Unknown fields are ignored: billing is in beta.
"""

from datetime import UTC, datetime
from typing import Annotated, TypeVar

from pydantic import AliasChoices, AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from backplane import identity
from backplane.inbox import Event, Quarantine
from backplane.periods import YEAR_9999

# 1973 in milliseconds and 5138 in seconds: Clerk began between the two.
_LEAST_MILLISECONDS = 100_000_000_000

M = TypeVar("M", bound=BaseModel)


def moment(value: object) -> datetime | None:
    """Milliseconds of the epoch, or seconds, to a datetime. Raises ValueError."""
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < YEAR_9999 * 1000:
        raise ValueError("a time must be whole milliseconds of the epoch")
    return datetime.fromtimestamp(value / 1000 if value >= _LEAST_MILLISECONDS else value, UTC)


def milliseconds(value: datetime) -> int:
    return round(value.timestamp() * 1000)


def _unused(value: object) -> object:
    return None if value == "" else value


def _text(value: object) -> object:
    return value if isinstance(value, str) else None


Moment = Annotated[datetime | None, BeforeValidator(moment)]
UserId = Annotated[str, Field(pattern=r"^user_[A-Za-z0-9_-]{1,64}$")]
OrganizationId = Annotated[str, Field(pattern=r"^org_[A-Za-z0-9_-]{1,64}$")]
Identifier = Annotated[str, Field(min_length=1, max_length=255)]
Flag = Annotated[bool, BeforeValidator(lambda value: value or False)]
OptionalUserId = Annotated[Annotated[UserId | None, Field()], BeforeValidator(_unused)]
OptionalOrganizationId = Annotated[Annotated[OrganizationId | None, Field()], BeforeValidator(_unused)]
OptionalIdentifier = Annotated[Annotated[Identifier | None, Field()], BeforeValidator(_unused)]


class ClerkObject(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


# ---- users ----


class _Email(ClerkObject):
    id: str | None = None
    email_address: str = Field(min_length=1, max_length=320)


class User(ClerkObject):
    id: UserId
    email_addresses: Annotated[list[_Email], BeforeValidator(lambda value: value or [])] = []
    primary_email_address_id: str | None = None
    username: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    image_url: str | None = None
    banned: Flag = False
    locked: Flag = False
    lockout_expires_in_seconds: int | None = Field(default=None, ge=0, le=10**9)
    last_sign_in_at: Moment = None
    updated_at: Moment = None

    @property
    def email(self) -> str | None:
        """The primary address, else the first; phone-only users have none."""
        primary = (e for e in self.email_addresses if e.id == self.primary_email_address_id)
        chosen = next(primary, None) or next(iter(self.email_addresses), None)
        return None if chosen is None else identity.normalized_email(chosen.email_address)


class DeletedUser(ClerkObject):
    id: UserId


# ---- organisations ----


class Organization(ClerkObject):
    id: OrganizationId
    name: str = Field(min_length=1, max_length=1000)
    slug: Annotated[Annotated[str | None, Field(max_length=255)], BeforeValidator(_unused)] = None
    image_url: str | None = None
    created_by: OptionalUserId = None
    updated_at: Moment = None


class DeletedOrganization(ClerkObject):
    id: OptionalOrganizationId = None
    slug: OptionalIdentifier = None


class Membership(ClerkObject):
    organization_id: OrganizationId = Field(validation_alias=AliasPath("organization", "id"))
    user_id: UserId = Field(validation_alias=AliasPath("public_user_data", "user_id"))
    role: Identifier = "org:member"
    created_at: Moment = None
    updated_at: Moment = None


# ---- billing ----


class Plan(ClerkObject):
    id: OptionalIdentifier = None
    slug: OptionalIdentifier = None


class Payer(ClerkObject):
    id: OptionalIdentifier = None
    user_id: OptionalUserId = None
    organization_id: OptionalOrganizationId = None


class SubscriptionItem(ClerkObject):
    id: Identifier
    status: Identifier
    is_free_trial: Flag = False
    plan_id_: OptionalIdentifier = Field(default=None, alias="plan_id")
    plan: Plan | None = None
    payer: Payer | None = None
    interval: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None, validation_alias=AliasChoices("interval", "plan_period")
    )
    period_start: Moment = None
    period_end: Moment = None
    canceled_at: Moment = None
    ended_at: Moment = None
    updated_at: Moment = None

    @property
    def plan_id(self) -> str | None:
        return self.plan_id_ or (self.plan.id if self.plan is not None else None)

    @property
    def slug(self) -> str | None:
        return None if self.plan is None else self.plan.slug


class Subscription(ClerkObject):
    id: Identifier
    payer: Payer | None = None
    items: list[SubscriptionItem] = []
    updated_at: Moment = None


class _PaidItem(ClerkObject):
    id: OptionalIdentifier = None


class PaymentAttempt(ClerkObject):
    id: Identifier
    status: Identifier
    payer: Payer | None = None
    items: Annotated[list[_PaidItem], BeforeValidator(lambda value: value or [])] = Field(
        default=[], alias="subscription_items"
    )


# ---- reading ----


def read(model: type[M], event: Event) -> M:
    """The event's data. Raises Quarantine where it is not of Clerk's shape."""
    try:
        return model.model_validate(event.data.get("data"))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise Quarantine(f"data is not a {model.__name__}: {faults}") from error


def as_of(event: Event, changed_at: datetime | None) -> str:
    """A text that sorts as an object's states succeed each other: Clerk orders them by `updated_at`; of
    two that share it, an update is newer than a creation and a deletion than both, then what was
    told later.
    """
    rank = {"created": 0, "deleted": 2}.get(event.type.rpartition(".")[2], 1)
    changed = milliseconds(changed_at or event.occurred_at)
    return f"{changed:015d}.{rank}.{milliseconds(event.occurred_at):015d}.{event.id}"
