"""Database roles and migrations: invoked after each deployment, and by `make migrate`.

    {} or {"action": "up"}   makes the roles, applies what is pending
    {"action": "status"}     changes nothing

Both answer {ok, applied[], current, latest, pending[], drifted[], out_of_order[], unknown[]}, where
`applied` is what this invocation applied. A failure is raised, so that the invocation counts as failed.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import monitoring
import psycopg
import runner
from psycopg.rows import DictRow

from backplane import roles, secrets
from backplane.config import Settings, settings
from backplane.connect import connect

_logger = logging.getLogger("backplane.migrate")


class Context(Protocol):
    def get_remaining_time_in_millis(self) -> int: ...


@dataclass(frozen=True)
class Outcome:
    applied: list[str]  # by this run
    status: runner.Status

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.status.ok,
            "applied": self.applied,
            "current": self.status.current,
            "latest": self.status.latest,
            "pending": list(self.status.pending),
            "drifted": list(self.status.drifted),
            "out_of_order": list(self.status.out_of_order),
            "unknown": list(self.status.unknown),
        }


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    action = event.get("action", "up")
    if action not in {"up", "status"}:
        raise ValueError(f"unknown action {action!r}: it is up or status")
    with connect(settings(), direct=True, allow_owner=True) as connection:
        if action == "status":
            return Outcome([], runner.status(connection)).as_json()
        # Half of the time to wait for a running backup, half to work.
        wait = min(runner.MAINTENANCE_WAIT, context.get_remaining_time_in_millis() / 2000)
        outcome = migrate(connection, role_passwords(settings()), wait=wait)
        roles.ensure_tokens(connection, settings().database_iam_resource_id)
    _logger.info("migrated", extra={"applied": outcome.applied, "current": outcome.status.current})
    return outcome.as_json()


def migrate(
    connection: psycopg.Connection[DictRow],
    passwords: Mapping[str, str],
    *,
    wait: float = runner.MAINTENANCE_WAIT,
) -> Outcome:
    """Make the roles, with these passwords, and apply what is pending, on the owner's connection.

    Raises roles.RolesError and runner.MigrationError.
    """
    roles.ensure_roles(connection, passwords)
    monitoring.ensure(connection)
    applied = runner.up(connection, wait=wait)
    return Outcome(applied, runner.status(connection))


def role_passwords(settings: Settings) -> dict[str, str]:
    """The passwords that Secrets Manager holds for the roles; a role without a secret is left out."""
    arns = {
        "backplane_app": settings.app_database_secret_arn,
        "backplane_system": settings.system_database_secret_arn,
        "backplane_backup": settings.backup_database_secret_arn,
    }
    return {role: secrets.get(arn)["password"] for role, arn in arns.items() if arn}
