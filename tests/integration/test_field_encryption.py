"""Encrypted fields: readable in their place, under a key that is ours to use, and nowhere else."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from tests.keys import make_key

from backplane import config, field_encryption
from backplane.field_encryption import (
    DamagedFieldError,
    FieldKeyError,
    MisplacedFieldError,
    Place,
    UnreadableFieldError,
)
from backplane.problems import Unavailable

SECRET = b"what nobody else may read"
PLACE = Place("deploys.integrations", "secrets", UUID(int=1), UUID(int=2))


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def use(monkeypatch: pytest.MonkeyPatch, arn: str, *former: str) -> None:
    monkeypatch.setenv("FIELD_KEY_ARN", arn)
    monkeypatch.setenv("FORMER_FIELD_KEY_ARNS", ",".join(former))
    config.settings.cache_clear()


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that KMS is asked for from now on."""
    asked: list[str] = []
    translate = field_encryption._translate

    def seen(**answer: Any) -> None:
        asked.append(answer["model"].name)
        translate(**answer)

    monkeypatch.setattr(field_encryption, "_translate", seen)
    field_encryption.forget()
    return asked


def test_what_was_encrypted_reads_back_and_does_not_show(field_key: str) -> None:
    for plaintext in (SECRET, b"", b"\x00\xff" * 50_000):
        ciphertext = field_encryption.encrypt(plaintext, PLACE)
        assert field_encryption.decrypt(ciphertext, PLACE) == plaintext
        assert not plaintext or plaintext not in ciphertext
    assert field_encryption.encrypt(SECRET, PLACE) != field_encryption.encrypt(SECRET, PLACE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(PLACE, table="deploys.others"),
        replace(PLACE, column="webhook_secret"),
        replace(PLACE, row_id=UUID(int=3)),
        replace(PLACE, organization_id=UUID(int=3)),
    ],
    ids=["another table", "another column", "another row", "another organisation"],
)
def test_it_is_read_in_its_own_place_only(field_key: str, elsewhere: Place) -> None:
    ciphertext = field_encryption.encrypt(SECRET, PLACE)
    assert field_encryption.decrypt(ciphertext, PLACE) == SECRET
    with pytest.raises(MisplacedFieldError, match=f"{elsewhere.table}.{elsewhere.column}"):
        field_encryption.decrypt(ciphertext, elsewhere)


def test_wherever_it_is_changed_or_cut_off_it_is_refused(
    field_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    ciphertext = field_encryption.encrypt(SECRET, PLACE)
    changed = (
        ciphertext[:at] + bytes([ciphertext[at] ^ 1 << at % 8]) + ciphertext[at + 1 :]
        for at in range(0, len(ciphertext), 9)  # each is a call of KMS
    )
    cut = (ciphertext[:length] for length in range(0, len(ciphertext), 4))
    strange = (SECRET, ciphertext + b"\x00", ciphertext * 2)
    for each in itertools.chain(changed, cut, strange):
        with pytest.raises(UnreadableFieldError) as refusal:
            field_encryption.decrypt(each, PLACE)
        assert isinstance(refusal.value, DamagedFieldError | FieldKeyError)
        assert SECRET.decode() not in f"{refusal.getrepr(chain=True)}"
    for damaged in (ciphertext[:-1], ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), *strange):
        with pytest.raises(DamagedFieldError):
            field_encryption.decrypt(damaged, PLACE)
    assert SECRET.decode() not in caplog.text


def test_data_keys_are_decrypted_once_while_they_are_kept(
    field_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = calls(monkeypatch)
    ciphertexts = [field_encryption.encrypt(SECRET, replace(PLACE, row_id=UUID(int=n))) for n in range(3)]
    assert asked == ["GenerateDataKey"] * 3
    monkeypatch.setattr(field_encryption, "CACHED_KEYS", 2)
    for _ in range(5):
        field_encryption.decrypt(ciphertexts[0], replace(PLACE, row_id=UUID(int=0)))
    assert asked[3:] == ["Decrypt"]
    for number in (1, 2, 0):  # two are kept: the first is gone when it comes again
        field_encryption.decrypt(ciphertexts[number], replace(PLACE, row_id=UUID(int=number)))
    assert asked[3:] == ["Decrypt"] * 4


def test_a_data_key_is_not_kept_longer_than_it_may_be(
    field_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field_encryption, "CACHE_SECONDS", 1e-6)
    asked = calls(monkeypatch)
    ciphertext = field_encryption.encrypt(SECRET, PLACE)
    assert [field_encryption.decrypt(ciphertext, PLACE) for _ in range(2)] == [SECRET] * 2
    assert asked == ["GenerateDataKey", "Decrypt", "Decrypt"]


def disable(kms: Any, arn: str) -> None:
    kms.disable_key(KeyId=arn.rpartition("/")[2])


def delete(kms: Any, arn: str) -> None:
    kms.schedule_key_deletion(KeyId=arn.rpartition("/")[2])


@pytest.mark.parametrize("lose", [disable, delete])
def test_a_key_that_is_disabled_or_deleted_is_named_as_the_matter(
    field_key: str, kms: Any, lose: Callable[[Any, str], None]
) -> None:
    ciphertext = field_encryption.encrypt(SECRET, PLACE)
    lose(kms, field_key)
    with pytest.raises(FieldKeyError, match="KMS does not give the key"):
        field_encryption.decrypt(ciphertext, PLACE)
    with pytest.raises(FieldKeyError, match="KMS does not give the key"):
        field_encryption.encrypt(SECRET, PLACE)


def test_a_key_that_is_missing_or_not_configured_is_named_as_the_matter(
    field_key: str, kms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ciphertext = field_encryption.encrypt(SECRET, PLACE)
    use(monkeypatch, make_key(kms))
    with pytest.raises(FieldKeyError, match="not among those configured"):
        field_encryption.decrypt(ciphertext, PLACE)
    use(monkeypatch, f"{field_key[:-4]}0000")
    with pytest.raises(FieldKeyError, match="NotFoundException"):
        field_encryption.encrypt(SECRET, PLACE)
    for nothing in ("", "alias/fields"):
        use(monkeypatch, nothing)
        with pytest.raises(FieldKeyError, match="FIELD_KEY_ARN"):
            field_encryption.encrypt(SECRET, PLACE)
        with pytest.raises(FieldKeyError, match="FIELD_KEY_ARN"):
            field_encryption.decrypt(ciphertext, PLACE)


def test_under_a_new_key_what_the_former_encrypted_is_still_read(
    field_key: str, kms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = field_encryption.encrypt(SECRET, PLACE)
    use(monkeypatch, new := make_key(kms), field_key)
    later = field_encryption.encrypt(SECRET, PLACE)
    assert field_encryption.decrypt(former, PLACE) == field_encryption.decrypt(later, PLACE) == SECRET
    disable(kms, field_key)
    use(monkeypatch, new)
    assert field_encryption.decrypt(later, PLACE) == SECRET


def test_where_kms_cannot_be_reached_it_is_a_passing_cause(
    field_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ciphertext = field_encryption.encrypt(SECRET, PLACE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody listens there
    field_encryption.forget()
    with pytest.raises(Unavailable):
        field_encryption.decrypt(ciphertext, PLACE)
    with pytest.raises(Unavailable):
        field_encryption.encrypt(SECRET, PLACE)
