"""Private keys that never come into the database: each in a secret of its own in Secrets Manager.

A secret has a new name, which is noted before it is stored; the integration's row comes after, and the secret
that it named before is deleted last. So a row never names half of a key, and what a cut leaves behind is
found among the noted names.
"""

from datetime import timedelta
from functools import cache
from typing import Any, Final
from uuid import UUID, uuid4

from backplane import db
from backplane.config import settings
from backplane.problems import Unavailable

CONNECT_TIMEOUT: Final = 1.0  # seconds
READ_TIMEOUT: Final = 5.0


class MissingKeyError(Exception):
    """The secret was deleted behind our back. The owner has to give the key again."""


def note(tx: db.Tx, organization_id: UUID, integration_id: UUID) -> str:
    """The name for a new secret, which is known from now on. To be committed before `store`."""
    name = f"{_prefix()}{integration_id}/{uuid4()}"
    tx.execute(
        "INSERT INTO deploys.private_keys (secret_name, organization_id) VALUES (%s, %s)",
        [name, organization_id],
    )
    return name


def store(name: str, private_key: str) -> None:
    """Raises Unavailable."""
    _call(
        "create_secret",
        Name=name,
        SecretString=private_key,
        Description="The private key of an integration",
    )


def read(name: str) -> str:
    """Raises MissingKeyError, Unavailable."""
    try:
        value: str = _call("get_secret_value", SecretId=name)["SecretString"]
    except _NotFoundError:
        raise MissingKeyError(f"there is no secret {name}") from None
    return value


def delete(name: str) -> None:
    """At once, without the weeks in which it could be brought back. Raises Unavailable."""
    try:
        _call("delete_secret", SecretId=name, ForceDeleteWithoutRecovery=True)
    except _NotFoundError:
        return


def forget(tx: db.Tx, name: str) -> None:
    """After `delete`."""
    tx.execute("DELETE FROM deploys.private_keys WHERE secret_name = %s", [name])


def strays(tx: db.Tx, *, older_than: timedelta, limit: int) -> list[str]:
    """Names that no integration has, the oldest first. A young one's row may be on its way."""
    rows = tx.execute(
        """
        SELECT k.secret_name
        FROM deploys.private_keys AS k
        WHERE k.created_at < clock_timestamp() - %(older_than)s
          AND NOT EXISTS (SELECT 1 FROM deploys.integrations AS i WHERE i.secret_name = k.secret_name)
        ORDER BY k.created_at
        LIMIT %(limit)s
        """,
        {"older_than": older_than, "limit": limit},
    ).fetchall()
    return [row["secret_name"] for row in rows]


class _NotFoundError(Exception):
    pass


def _prefix() -> str:
    """What the names begin with, and the functions' policies allow."""
    prefix = settings().integration_secrets_prefix
    if prefix is None:
        raise RuntimeError("INTEGRATION_SECRETS_PREFIX is not set: template.yaml does")
    return prefix


def _call(operation: str, **parameters: Any) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return getattr(_client(), operation)(**parameters)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            raise _NotFoundError from None
        raise Unavailable("Secrets Manager refuses at the moment. Repeat the request.") from error
    except BotoCoreError as error:
        raise Unavailable("Secrets Manager can't be reached at the moment. Repeat the request.") from error


@cache
def _client() -> Any:
    # boto3 costs more to import than the rest of a function: only those that need a key pay.
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, retries={"total_max_attempts": 3}
    )
    return boto3.client("secretsmanager", config=config)
