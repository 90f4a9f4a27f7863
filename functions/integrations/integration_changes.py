"""Integrations set up, changed, rotated: sealed outside of transactions, written if nobody was faster.

A private key is stored before the row that names it and the one before is deleted after, so that whatever
fails, a row names a whole key. What a cut leaves in Secrets Manager, secrets_upkeep deletes.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

import integration_rows
import psycopg
from aws_lambda_powertools import Logger
from integration_rows import Columns, Integration, RacedError, Target
from psycopg.rows import DictRow

from backplane import db, field_encryption, integrations, private_keys
from backplane.auth import Caller
from backplane.field_encryption import Place
from backplane.integrations import WebhookSecret
from backplane.problems import Conflict, InvalidState, Unavailable

ATTEMPTS = 3  # at writing while others write the same
MOST_SECRETS = 10  # of one webhook, honoured at once
SECRET_BYTES = 32

Commit: TypeAlias = Callable[[Callable[[db.Tx], Any]], Any]

logger = Logger(child=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that a change is made by."""

    caller: Caller
    commit: Commit
    base_url: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an integration is to be from now on."""

    config: Mapping[str, Any]
    secrets: Mapping[str, Any] = field(repr=False)
    private_key: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)  # None: the one that stands, or a new one
    state: integrations.State = "active"
    tokens_expire_in: int | None = None  # seconds
    kept: frozenset[str] = frozenset()  # fields of `config` whose stored value stands
    action: str | None = None  # for the audit log; None: created, or changed


def put(asked: Asked, target: Target, wanted: Wanted) -> Integration:
    """Makes or replaces it. Raises FeatureNotInPlan, InvalidState, Conflict, Unavailable."""
    return _repeated(lambda: _put(asked, target, wanted))


def rotate(asked: Asked, target: Target, given: str | None) -> Integration:
    """A new webhook secret; the one before is honoured for a day. Raises NotFound, InvalidState, Conflict."""
    return _repeated(lambda: _rotate(asked, target, given))


def _repeated(attempt: Callable[[], Integration]) -> Integration:
    for _ in range(ATTEMPTS):
        try:
            return attempt()
        except RacedError:
            continue
    raise Conflict(
        "The integration is being changed by others at the same time. Look, and repeat if need be."
    )


def _put(asked: Asked, target: Target, wanted: Wanted) -> Integration:
    caller = asked.caller
    read, integration_id = _in_tx(caller, lambda tx: _read(tx, caller, target))
    sealed = _seal(integration_id, target, wanted, read)

    def write(tx: db.Tx) -> Integration:
        integration_rows.require_feature(tx, caller)
        columns = sealed.columns(secret_name)
        if read is None:
            row = integration_rows.insert(tx, integration_id, target, columns)
        else:
            row = integration_rows.update(tx, read, columns)
        action = wanted.action or ("created" if read is None else "changed")
        integration_rows.note(tx, action, caller, row["id"], target)
        return integration_rows.shown(row, asked.base_url, webhook_secret=sealed.new_webhook_secret)

    with _stored(caller, integration_id, wanted.private_key) as secret_name:
        answer: Integration = asked.commit(write)
    if read is not None:
        discard(caller, read["secret_name"])
    return answer


def _rotate(asked: Asked, target: Target, given: str | None) -> Integration:
    caller = asked.caller
    read = _in_tx(caller, lambda tx: integration_rows.find(tx, target))
    if read is None:
        raise integration_rows.missing()
    if read["webhook_secrets"] is None:
        raise InvalidState("This integration has no webhook: there is nothing to rotate.")
    new = given or _new_secret()
    sealed = _encrypted(read["id"], target, "webhook_secrets", _rotated(read, new))

    def write(tx: db.Tx) -> Integration:
        row = integration_rows.rotate(tx, read, sealed, field_encryption.key_arn())
        integration_rows.note(tx, "rotated", caller, row["id"], target)
        return integration_rows.shown(row, asked.base_url, webhook_secret=None if given else new)

    answer: Integration = asked.commit(write)
    return answer


def discard(caller: Caller, secret_name: str | None) -> None:
    """Deletes a private key that no row names any more; secrets_upkeep does where this cannot."""
    if secret_name is None:
        return
    try:
        private_keys.delete(secret_name)
        _in_tx(caller, lambda tx: private_keys.forget(tx, secret_name))
    except (Unavailable, psycopg.Error):
        logger.warning(
            "a private key is left for secrets_upkeep to delete", secret=secret_name, exc_info=True
        )


# ---- sealing ----


@dataclass(frozen=True, slots=True)
class _Sealed:
    config: dict[str, Any]
    secrets: bytes | None
    webhook_secrets: bytes | None
    new_webhook_secret: str | None = field(repr=False)
    state: integrations.State
    tokens_expire_in: int | None

    def columns(self, secret_name: str | None) -> Columns:
        return Columns(
            config=self.config,
            secrets=self.secrets,
            secret_name=secret_name,
            webhook_secrets=self.webhook_secrets,
            state=self.state,
            encryption_key=field_encryption.key_arn() if self.secrets or self.webhook_secrets else None,
            tokens_expire_in=self.tokens_expire_in,
        )


def _seal(integration_id: UUID, target: Target, wanted: Wanted, read: DictRow | None) -> _Sealed:
    stored = {} if read is None else read["config"]
    kept = {name: stored[name] for name in wanted.kept if stored.get(name) is not None}
    webhook_secrets, new = _webhook_secrets(integration_id, target, wanted, read)
    return _Sealed(
        config={**wanted.config, **kept},
        secrets=_encrypted(integration_id, target, "secrets", dict(wanted.secrets))
        if wanted.secrets
        else None,
        webhook_secrets=webhook_secrets,
        new_webhook_secret=new,
        state=wanted.state,
        tokens_expire_in=wanted.tokens_expire_in,
    )


def _webhook_secrets(
    integration_id: UUID, target: Target, wanted: Wanted, read: DictRow | None
) -> tuple[bytes | None, str | None]:
    """The ciphertext, None where what stands stays; and the secret that was made here, if one was."""
    if target.type not in integrations.TYPE_OF_PROVIDER.values():
        return None, None
    if read is not None and read["webhook_secrets"] is not None:
        given = wanted.webhook_secret
        if given is None or given == integrations.webhook_secrets(read)[0].secret:
            return None, None
        rotated = _rotated(read, given)
        return _encrypted(integration_id, target, "webhook_secrets", rotated), None
    new = wanted.webhook_secret or _new_secret()
    first = [{"secret": new, "until": None}]
    return (
        _encrypted(integration_id, target, "webhook_secrets", first),
        None if wanted.webhook_secret else new,
    )


def _rotated(read: DictRow, new: str) -> list[dict[str, Any]]:
    """The new secret before those that are still honoured. Raises InvalidState where those are too many."""
    until = read["now"] + integrations.ROTATION
    before = [
        WebhookSecret(each.secret, until if each.until is None else each.until)
        for each in integrations.webhook_secrets(read)
        if each.secret != new
    ]
    if len(before) >= MOST_SECRETS:
        wait = min(each.until for each in before if each.until) - read["now"]
        raise InvalidState(
            f"The secret was rotated {MOST_SECRETS} times in a day, and all are still honoured. "
            f"Wait {wait // timedelta(minutes=1) + 1} minutes."
        )
    return [{"secret": new, "until": None}] + [
        {"secret": each.secret, "until": each.until.isoformat() if each.until else None} for each in before
    ]


def _encrypted(integration_id: UUID, target: Target, column: str, value: Any) -> bytes:
    place = Place(integrations.TABLE, column, integration_id, target.organization_id)
    return field_encryption.encrypt(json.dumps(value).encode(), place)


def _new_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


@contextmanager
def _stored(caller: Caller, integration_id: UUID, private_key: str | None) -> Iterator[str | None]:
    """The name of a private key's new secret, which goes again where the row that was to name it did not come
    about.
    """
    if private_key is None:
        yield None
        return
    name = _in_tx(caller, lambda tx: private_keys.note(tx, caller.organization_id, integration_id))
    try:
        private_keys.store(name, private_key)
        yield name
    except db.CommitUnknown:
        raise  # nobody knows yet whether a row names it
    except BaseException:
        discard(caller, name)
        raise


# ---- reading ----


def _read(tx: db.Tx, caller: Caller, target: Target) -> tuple[DictRow | None, UUID]:
    integration_rows.require_feature(tx, caller)
    row = integration_rows.find(tx, target)
    return row, integration_rows.new_id(tx) if row is None else row["id"]


def _in_tx(caller: Caller, work: Callable[[db.Tx], Any]) -> Any:
    return db.run(work, organization_id=caller.organization_id, user_id=caller.user_id)
