"""Callbacks of the providers that build and deploy: how they are named, and what each does to a deployment.

A provider's event ids are its own, and another integration may be told of the same one: an event's id in the
inbox begins with its integration's. So a recorded event says whose it is when it is read back, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, StringConstraints, ValidationError

from backplane import deployments
from backplane.db import Tx
from backplane.deployments import Provider, Report
from backplane.inbox import Effect, Event, Outcome, Quarantine

MAX_KEY: Final = 200  # characters
MAX_TEXT: Final = 255  # characters of a name or a version
MAX_ERROR: Final = 10_000  # characters of what went wrong
# How long a callback waits to be claimed: providers tell of builds that nobody started here, too.
UNCLAIMED: Final = "interval '30 days'"

M = TypeVar("M", bound=BaseModel)


# ---- names and times ----


def event_id(integration_id: UUID, *parts: str) -> str:
    """What the inbox knows an event by: its integration, and what its provider tells events apart by."""
    key = ":".join(parts)
    if len(key) > MAX_KEY or not (key.isascii() and key.isprintable()):
        key = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{integration_id}:{key}"


def integration_of(event: Event) -> UUID:
    return UUID(event.id.partition(":")[0])


def moment(value: object) -> datetime:
    """ISO 8601, or milliseconds of the epoch. Raises ValueError for what is no time of this age."""
    try:
        told = datetime.fromisoformat(value) if isinstance(value, str) else _since_epoch(value)
        told = (told if told.tzinfo else told.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError("not a time") from None
    if not 2000 <= told.year < 9999:  # noqa: PLR2004  nothing was built before
        raise ValueError("not a time of this age")
    return told


def event(
    provider: Literal["eas", "vercel", "github"],
    identifier: str,
    kind: str,
    data: dict[str, Any],
    body: bytes,
    *,
    defect: str | None,
    told_at: tuple[str, object] | None,
    keep: Callable[[str, Mapping[str, Any]], bytes | None],
) -> Event:
    """What a body says, as an event of its kind.

    `told_at` names the field with its time and has its value; None: it has none, and happened now. `keep` is
    what the inbox keeps of a body that is understood; of one that is not it keeps all.
    """
    occurred_at = datetime.now(UTC)
    if told_at is not None:
        name, value = told_at
        try:
            occurred_at = moment(value)
        except ValueError:
            defect = defect or f"{name} is not a time"
    return Event(
        provider=provider,
        id=identifier,
        type=kind,
        occurred_at=occurred_at,
        data=data,
        body=body if defect else keep(kind, data),
        defect=defect,
    )


def _since_epoch(value: object) -> datetime:
    if type(value) is not int:
        raise ValueError("neither a text nor a whole number")
    return datetime.fromtimestamp(value / 1000, UTC)


# ---- what providers send, read with care ----


def _address(value: str) -> str:
    """Shown to people as a link, and some of them fetched."""
    if not value.startswith(("https://", "http://")) or not value.isprintable() or " " in value:
        raise ValueError("not a web address")
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]  # an id of a provider's
Text = Annotated[str, AfterValidator(lambda value: value[:MAX_TEXT])]
Error = Annotated[str, AfterValidator(lambda value: value[:MAX_ERROR])]
Address = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_address)]
Moment = Annotated[datetime, BeforeValidator(moment)]


def read(model: type[M], data: Any) -> M:
    """Raises Quarantine where it is not of the provider's shape."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise Quarantine(f"the body is not a {model.__name__}: {faults}") from error


# ---- what a callback does ----


@dataclass(frozen=True, slots=True)
class Told:
    """A report, and by which names of its provider's the deployment may be known that it is of."""

    report: Report
    names: tuple[str, ...]  # the one it waits for, last


@dataclass(frozen=True, slots=True)
class _Scope:
    """Whose deployments an integration may speak of."""

    organization_id: UUID
    project_id: UUID | None  # None: all of them


def effect(provider: Provider, tell: Callable[[Event], Told]) -> Effect:
    """The effect that brings what `tell` reads of an event to its deployment."""

    def advanced(tx: Tx, event: Event) -> Outcome:
        told = tell(event)
        scope = _scope(tx, integration_of(event))
        if scope is None:
            return Outcome("ignored", "its integration was deleted", _recorded(tx, event))
        organization_id = scope.organization_id
        for name in told.names:
            deployment_id = deployments.find(tx, organization_id, provider, name)
            if deployment_id is not None:
                break
        else:
            return _unclaimed(tx, event, organization_id, told.names[-1])
        if not _includes(tx, scope, deployment_id):
            return Outcome(
                "ignored", "its deployment is of another project than its integration", organization_id
            )
        match deployments.advance(tx, deployment_id, told.report):
            case "applied":
                return Outcome("processed", None, organization_id)
            case "stale":
                return Outcome("stale", "something newer is known of the deployment", organization_id)
            case "terminal":
                return Outcome("stale", "the deployment is over, and this adds nothing", organization_id)
            case "unknown":
                return Outcome("ignored", "it is of another deployment's job", organization_id)

    return advanced


def _scope(tx: Tx, integration_id: UUID) -> _Scope | None:
    row = tx.execute(
        """
        SELECT i.organization_id, i.project_id
        FROM deploys.integrations AS i
        JOIN tenancy.organizations AS o ON o.id = i.organization_id
        WHERE i.id = %s AND o.deleted_at IS NULL
        """,
        [integration_id],
    ).fetchone()
    return None if row is None else _Scope(**row)


def _recorded(tx: Tx, event: Event) -> UUID | None:
    """The organisation that it was recorded for: a body goes with the person whose own that was."""
    row = tx.execute(
        "SELECT organization_id FROM platform.webhook_inbox WHERE provider = %s AND event_id = %s",
        [event.provider, event.id],
    ).fetchone()
    return None if row is None else row["organization_id"]


def _includes(tx: Tx, scope: _Scope, deployment_id: UUID) -> bool:
    if scope.project_id is None:
        return True
    return (
        tx.execute(
            "SELECT 1 FROM deploys.deployments WHERE id = %s AND project_id = %s",
            [deployment_id, scope.project_id],
        ).fetchone()
        is not None
    )


def _unclaimed(tx: Tx, event: Event, organization_id: UUID, name: str) -> Outcome:
    """Parked until a deployment has the name, which `find` has locked; for so long, and no longer."""
    over = tx.execute(
        f"""
        SELECT 1
        FROM platform.webhook_inbox
        WHERE provider = %s AND event_id = %s AND received_at < clock_timestamp() - {UNCLAIMED}
        """.encode(),
        [event.provider, event.id],
    ).fetchone()
    if over is not None:
        return Outcome("ignored", f"no deployment has had {name} as its external_id", organization_id)
    return Outcome(
        "parked",
        f"no deployment has {name} as its external_id yet",
        organization_id,
        waiting_for=deployments.subject(organization_id, name),
    )
