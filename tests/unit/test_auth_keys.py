"""API keys: how they are made, and which of them still open anything."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from backplane import db, keys
from backplane.problems import Unauthorized
from backplane.scopes import SCOPES_OF_KEY, SERVER_SCOPES, KeyKind

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
KEY_ID = UUID("00000000-0000-7000-8000-00000000000a")
ORGANIZATION_ID = UUID("00000000-0000-7000-8000-0000000000aa")
# Fixed, not minted anew: the test workers must all collect the same tests.
MINTED = keys.KeyMaterial(
    kind="organization",
    key=f"bp_AbCdEf012345_{'s' * 43}",
    prefix="AbCdEf012345",
    secret_hash=keys.hash_secret("s" * 43),
)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": KEY_ID,
        "kind": "organization",
        "organization_id": ORGANIZATION_ID,
        "secret_hash": MINTED.secret_hash,
        "scopes": ["read", "credits:spend"],
        "expires_at": None,
        "revoked_at": None,
        "organization_state": "active",
        "use_is_due": False,
    } | changes


def stored(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any] | None) -> list[Any]:
    """Makes the look-up answer a row; returns the prefixes it is asked for."""
    asked: list[Any] = []

    def call(query: str, params: dict[str, Any], *, repeatable: bool) -> dict[str, Any] | None:
        assert "platform.find_api_key" in query
        assert repeatable  # a look-up
        asked.append(params["prefix"])
        return found

    monkeypatch.setattr(db, "call", call)
    return asked


def verify(credential: str = MINTED.key) -> keys.ApiKey:
    return keys.verify(credential, now=NOW.timestamp())


@pytest.mark.parametrize("kind", ["organization", "service"])
def test_a_minted_key_names_its_prefix_and_hides_its_secret(kind: KeyKind) -> None:
    minted = keys.mint_key(kind)
    form = re.fullmatch(r"bp_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})", minted.key)
    assert form is not None
    assert minted.kind == kind
    assert minted.prefix == form[1]
    assert minted.secret_hash == hashlib.sha256(form[2].encode()).digest()
    assert form[2] not in repr(minted)


def test_a_secret_holds_256_bits() -> None:
    assert len(set(keys.ALPHABET)) ** keys.SECRET_LENGTH >= 2**256


def test_no_two_keys_are_alike() -> None:
    minted = [keys.mint_key("service") for _ in range(100)]
    assert len({key.prefix for key in minted}) == len({key.key for key in minted}) == 100


def test_a_live_key_opens_its_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stored(monkeypatch, row())
    key = verify()
    assert asked == [MINTED.prefix]
    assert (key.id, key.kind, key.organization_id) == (KEY_ID, "organization", ORGANIZATION_ID)
    assert key.scopes == {"read", "credits:spend"}
    assert MINTED.secret_hash.hex() not in repr(key)
    assert repr(MINTED.secret_hash) not in repr(key)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "not valid"),
        (row(secret_hash=keys.hash_secret("another")), "not valid"),
        (row(secret_hash=keys.hash_secret("another"), revoked_at=NOW), "not valid"),
        (row(revoked_at=NOW - timedelta(seconds=1)), "revoked"),
        (row(revoked_at=NOW + timedelta(days=1)), "revoked"),
        (row(expires_at=NOW), "expired"),
        (row(organization_state="deleted"), "organisation"),
        (row(organization_state="unknown"), "organisation"),
        (row(organization_state=None), "organisation"),
    ],
    ids=[
        "unknown prefix",
        "wrong secret",
        "wrong secret of a revoked key",
        "revoked",
        "revoked by a clock ahead of ours",
        "expired this instant",
        "organisation deleted",
        "organisation unknown",
        "organisation missing",
    ],
)
def test_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any] | None, says: str) -> None:
    stored(monkeypatch, found)
    with pytest.raises(Unauthorized, match=says):
        verify()


@pytest.mark.parametrize(
    "credential",
    [
        "bp_",
        "bp_short_secret",
        MINTED.key[:-1],
        MINTED.key + "A",
        MINTED.key + "\n",
        MINTED.key.replace("bp_", "BP_"),
        "bp_" + "é" * 12 + "_" + "a" * 43,
        f"{MINTED.key},{MINTED.key}",
    ],
)
def test_a_malformed_key_is_refused_without_a_look_up(
    monkeypatch: pytest.MonkeyPatch, credential: str
) -> None:
    asked = stored(monkeypatch, row())
    with pytest.raises(Unauthorized):
        verify(credential)
    assert asked == []


def test_an_unknown_prefix_costs_a_comparison_too(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr("backplane.keys.hmac.compare_digest", compare)
    stored(monkeypatch, None)
    with pytest.raises(Unauthorized):
        verify()
    assert [len(right) for _, right in compared] == [32]


def test_a_key_lives_until_the_instant_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    stored(monkeypatch, row(expires_at=NOW + timedelta(microseconds=1)))
    assert verify().id == KEY_ID


def test_an_organisation_key_never_carries_a_servers_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    stored(monkeypatch, row(scopes=["read", "admin", "billing:manage", *SERVER_SCOPES]))
    assert verify().scopes == {"read"}


def test_a_service_key_may_carry_a_servers_scopes_and_no_administrators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = row(kind="service", organization_id=None, organization_state=None)
    stored(monkeypatch, service | {"scopes": ["admin", "members:manage", *SCOPES_OF_KEY["service"]]})
    key = verify()
    assert key.kind == "service"
    assert key.organization_id is None
    assert key.scopes == SCOPES_OF_KEY["service"]
