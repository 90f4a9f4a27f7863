"""Secrets from Secrets Manager, cached for five minutes and re-read when they turn out stale."""

import json
import time
from functools import cache
from typing import Any

MAX_AGE = 300.0  # seconds a value is served from memory
MIN_REFRESH = 15.0  # seconds between forced reads, so that forgers cannot make us read at will

_values: dict[str, tuple[float, Any]] = {}


def get(arn: str, *, refresh: bool = False) -> Any:
    """The secret's JSON value.

    `refresh` asks for a newer value than the cached one (after a signature or a password
    failed, as it does in a rotation); it is honoured at most every 15 seconds.
    Raises botocore.exceptions.ClientError where the secret cannot be read.
    """
    now = time.monotonic()
    if cached := _values.get(arn):
        age = now - cached[0]
        if age < (MIN_REFRESH if refresh else MAX_AGE):
            return cached[1]
    value = json.loads(_client().get_secret_value(SecretId=arn)["SecretString"])
    _values[arn] = (now, value)
    return value


def signing_secrets(arn: str | None, *, refresh: bool = False) -> list[str]:
    """A sender's endpoint secrets: a JSON list, so that a roll can hold the old and the new.

    Raises RuntimeError where none is configured: nothing can be verified then.
    """
    if arn is None:
        raise RuntimeError("no webhook secret is configured: set its ARN parameter in template.yaml")
    value = get(arn, refresh=refresh)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise RuntimeError(f"the secret {arn} must be a JSON list of strings")
    return value


@cache
def _client() -> Any:
    # boto3 costs more to import than the rest of a function: only those that need a secret pay.
    import boto3

    return boto3.client("secretsmanager")
