"""Private keys that never come into the database: each in a secret of its own in Secrets Manager.

A secret is written under a new name before the row that names it, and the one before is deleted after: a row
never names half of a key. What a cut leaves behind, secrets_upkeep deletes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID, uuid4

from backplane.config import settings
from backplane.problems import Unavailable

CONNECT_TIMEOUT: Final = 1.0  # seconds
READ_TIMEOUT: Final = 5.0
PAGE: Final = 100  # secrets that one call lists


class MissingKeyError(Exception):
    """The secret was deleted behind our back. The owner has to give the key again."""


@dataclass(frozen=True, slots=True)
class Stored:
    name: str
    created_at: datetime


def store(integration_id: UUID, private_key: str) -> str:
    """The name of a new secret. Raises Unavailable."""
    name = f"{_prefix()}{integration_id}/{uuid4()}"
    _call(
        "create_secret",
        Name=name,
        SecretString=private_key,
        Description="The private key of an integration",
    )
    return name


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


def stored() -> Iterator[list[Stored]]:
    """Every secret of ours, in parts. Raises Unavailable."""
    prefix = _prefix()
    further: dict[str, str] = {}
    while True:
        answer = _call(
            "list_secrets",
            Filters=[{"Key": "name", "Values": [prefix]}],
            MaxResults=PAGE,
            **further,
        )
        yield [
            Stored(each["Name"], each["CreatedDate"])
            for each in answer["SecretList"]
            if each["Name"].startswith(prefix)  # the filter knows no case
        ]
        if "NextToken" not in answer:
            return
        further = {"NextToken": answer["NextToken"]}


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
