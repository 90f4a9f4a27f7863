"""KMS keys for tests, in the AWS that a test process has."""

from typing import Any


def make_key(kms: Any) -> str:
    """A new key's ARN."""
    arn: str = kms.create_key(Description="encrypts fields")["KeyMetadata"]["Arn"]
    return arn
