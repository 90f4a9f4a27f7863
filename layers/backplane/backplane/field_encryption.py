"""Fields that a dump of the database does not tell: KMS envelope encryption, by the AWS Encryption SDK.

A ciphertext is bound to its place: table, column, row and organisation are the encryption context, which
KMS and the message authenticate. Moved to another row, it can't be read. docs/decisions/field-encryption.md
says why so.

The SDK is imported by the first call, so that functions start without it.
"""

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, Final, Never
from uuid import UUID

from backplane.config import settings
from backplane.problems import Unavailable

# Data keys that were decrypted are used again: so many, for so long. Then a key that KMS disabled is obeyed.
CACHED_KEYS: Final = 1000
CACHE_SECONDS: Final = 300.0
CONNECT_TIMEOUT: Final = 1.0  # seconds
READ_TIMEOUT: Final = 2.0

# What KMS answers where the key itself is the matter; a person has to mend it.
_KEY_ERRORS: Final = frozenset(
    {
        "AccessDeniedException",
        "DisabledException",
        "InvalidKeyUsageException",
        "KMSInvalidStateException",  # waiting for its deletion, or without material
        "NotFoundException",
    }
)
_CIPHERTEXT_ERRORS: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a ciphertext stands, and nowhere else."""

    table: str  # with its schema
    column: str
    row_id: UUID
    organization_id: UUID

    @property
    def context(self) -> dict[str, str]:
        """The encryption context. CloudTrail shows it: ids only. template.yaml's policies name its keys."""
        return {
            "table": self.table,
            "column": self.column,
            "row": str(self.row_id),
            "organization": str(self.organization_id),
        }

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of the row {self.row_id}"


class UnreadableFieldError(Exception):
    """A ciphertext is not to be read here and now. It says where and why, never what."""


class MisplacedFieldError(UnreadableFieldError):
    """It was encrypted for another table, column, row or organisation."""


class DamagedFieldError(UnreadableFieldError):
    """It was cut off or changed, or never was a ciphertext of ours."""


class FieldKeyError(UnreadableFieldError):
    """The key is not configured, disabled, deleted, or not ours to use."""


def encrypt(plaintext: bytes, place: Place) -> bytes:
    """Under a new data key. Raises FieldKeyError, and Unavailable where KMS can't be reached."""
    from aws_encryption_sdk import Algorithm, EncryptionSDKClient

    ciphertext, _ = EncryptionSDKClient(max_encrypted_data_keys=1).encrypt(
        source=plaintext,
        key_provider=_provider((key_arn(),)),
        encryption_context=place.context,
        # Without a signature, which is for those who may read and not write: here they are the same.
        algorithm=Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
    )
    return bytes(ciphertext)


def decrypt(ciphertext: bytes, place: Place) -> bytes:
    """Raises MisplacedFieldError, DamagedFieldError, FieldKeyError; Unavailable without KMS."""
    from aws_encryption_sdk import EncryptionSDKClient
    from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError, DecryptKeyError
    from cryptography.exceptions import InvalidTag

    arns = tuple(dict.fromkeys((key_arn(), *settings().former_field_keys)))
    source = BytesIO(ciphertext)
    try:
        plaintext, header = EncryptionSDKClient(max_encrypted_data_keys=1).decrypt(
            source=source, materials_manager=_materials(arns)
        )
    except UnreadableFieldError as error:
        raise type(error)(f"{place}: {error}") from None
    except DecryptKeyError:
        raise FieldKeyError(f"{place}: it names a key that is not among those configured") from None
    except (AWSEncryptionSDKClientError, InvalidTag, ValueError, ArithmeticError) as error:
        raise DamagedFieldError(f"{place}: it is damaged ({type(error).__name__})") from None
    if source.tell() != len(ciphertext):
        raise DamagedFieldError(f"{place}: something follows it")
    if header.encryption_context != place.context:
        raise MisplacedFieldError(f"{place}: it was encrypted for another place")
    return bytes(plaintext)


def key_arn() -> str:
    """The key that encrypts. Raises FieldKeyError where none is configured."""
    arn = settings().field_key_arn
    if arn is None or ":key/" not in arn:
        raise FieldKeyError("FIELD_KEY_ARN must be the ARN of a KMS key, not of an alias")
    return arn


def forget() -> None:
    """Forgets the data keys and clients that are kept."""
    _materials.cache_clear()
    _provider.cache_clear()


@cache
def _materials(arns: tuple[str, ...]) -> Any:
    from aws_encryption_sdk import CachingCryptoMaterialsManager, LocalCryptoMaterialsCache

    return CachingCryptoMaterialsManager(
        master_key_provider=_provider(arns),
        cache=LocalCryptoMaterialsCache(CACHED_KEYS),
        max_age=CACHE_SECONDS,
    )


@cache
def _provider(arns: tuple[str, ...]) -> Any:
    """KMS keys, by ARN: an alias can't decrypt, since what it points to may change."""
    import botocore.session
    from aws_encryption_sdk import StrictAwsKmsMasterKeyProvider
    from botocore.config import Config

    session = botocore.session.get_session()
    session.set_default_client_config(
        Config(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, retries={"total_max_attempts": 2})
    )
    # The SDK makes one error of all that KMS answers; here they are still apart.
    session.register("after-call.kms", _translate)
    session.register("after-call-error.kms", _translate_failure)
    return StrictAwsKmsMasterKeyProvider(key_ids=arns, botocore_session=session)


def _translate(**answer: Any) -> None:
    code = answer["parsed"].get("Error", {}).get("Code")
    if code in _KEY_ERRORS:
        raise FieldKeyError(f"KMS does not give the key: {code}")
    if code in _CIPHERTEXT_ERRORS:
        raise DamagedFieldError("KMS does not know the data key as its own")
    if code is not None:
        _unavailable()


def _translate_failure(**failure: Any) -> None:
    from botocore.exceptions import BotoCoreError

    if isinstance(failure["exception"], BotoCoreError):
        _unavailable()


def _unavailable() -> Never:
    raise Unavailable("Secrets can't be read or written at the moment. Repeat the request.")
