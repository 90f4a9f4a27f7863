"""Callers against the real database, as backplane_app sees it through its functions."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.databases import Database

from backplane import auth, config
from backplane.problems import BadRequest, Forbidden, NotFound, Unauthorized

ISSUER = "https://clerk.example.com"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
RACERS = 8


@pytest.fixture
def app_db(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("CLERK_ISSUER", ISSUER)
    monkeypatch.setenv("CLERK_JWT_KEY", PEM)
    monkeypatch.setenv("PLATFORM_ADMINS", "user_root")
    config.settings.cache_clear()
    yield app_db
    config.settings.cache_clear()


def token(user: str = "user_2abc", **claims: Any) -> str:
    now = time.time()
    session = {"iss": ISSUER, "sub": user, "iat": now, "exp": now + 60}
    return jwt.encode(session | claims, KEY, algorithm="RS256")


def call(credential: str, organization: object = None) -> auth.Caller:
    headers = {"authorization": f"Bearer {credential}"}
    if organization is not None:
        headers["x-organization-id"] = str(organization)
    return auth.authenticate(headers)


def rows(database: Database, query: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """What stands in the database behind row-level security."""
    with database.connect() as connection:
        cursor = connection.execute(query.encode(), params)
        return cursor.fetchall() if cursor.description else []


def change(database: Database, statement: str, *params: Any) -> None:
    with database.connect() as connection:
        assert connection.execute(statement.encode(), params).rowcount == 1


@pytest.fixture
def minted(app_db: Database) -> Callable[..., tuple[str, UUID]]:
    """Stores a new key and answers it with its id."""

    def mint(organization_id: UUID | None = None, scopes: Sequence[str] = ("read",)) -> tuple[str, UUID]:
        material = auth.mint_key("organization" if organization_id else "service")
        stored = rows(
            app_db,
            """
            INSERT INTO platform.api_keys (kind, organization_id, name, prefix, secret_hash, scopes)
            VALUES (%s, %s, 'test', %s, %s, %s)
            RETURNING id
            """,
            [material.kind, organization_id, material.prefix, material.secret_hash, list(scopes)],
        )
        return material.key, stored[0]["id"]

    return mint


# ---- first use ----


def what_was_made(database: Database) -> dict[str, Any]:
    return rows(
        database,
        """
        SELECT (SELECT count(*) FROM identity.users) AS users,
               (SELECT count(*) FROM tenancy.organizations) AS organizations,
               (SELECT array_agg(role::text) FROM tenancy.organization_members) AS roles,
               (SELECT count(*) FROM credits.grants) AS grants,
               (SELECT sum(available)::int FROM credits.accounts) AS credits
        """,
    )[0]


ONE_USER = {"users": 1, "organizations": 1, "roles": ["owner"], "grants": 1, "credits": 100}


def test_the_first_token_makes_the_user_and_the_second_finds_him(app_db: Database) -> None:
    first = call(token())
    assert what_was_made(app_db) == ONE_USER
    assert (first.role, first.is_platform_admin) == ("owner", False)
    assert call(token()) == first
    assert what_was_made(app_db) == ONE_USER


# A process each, as on Lambda: backplane.db keeps one connection a process.
RACER = """
import sys
from backplane import auth, db
credential = sys.argv[1]
db.connection()
print("ready", flush=True)
sys.stdin.readline()
caller = auth.authenticate({"authorization": "Bearer " + credential})
print(caller.user_id, caller.organization_id, caller.role)
"""


def test_eight_first_requests_at_once_make_one_user(app_db: Database) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, token(org_id="org_2abc", org_role="org:admin")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        for _ in range(RACERS)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=30)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert [racer.returncode for racer in racers] == [0] * RACERS
    assert len(set(answers)) == 1
    assert answers[0].split()[2] == "owner"
    assert what_was_made(app_db) == {
        "users": 1,
        "organizations": 2,  # the personal one and the token's
        "roles": ["owner", "owner"],
        "grants": 1,
        "credits": 100,
    }


def test_a_token_brings_its_organisation_and_the_membership(app_db: Database) -> None:
    admin = call(token(o={"id": "org_2abc", "rol": "admin", "slg": "acme"}, v=2))
    member = call(token("user_2def", org_id="org_2abc", org_role="org:member"))
    assert admin.organization_id == member.organization_id
    assert (admin.role, member.role) == ("owner", "member")
    assert call(token()).organization_id != admin.organization_id
    stored = rows(app_db, "SELECT name FROM tenancy.organizations WHERE clerk_id = 'org_2abc'")
    assert stored == [{"name": "acme"}]


@pytest.mark.usefixtures("app_db")
def test_a_demotion_at_clerk_counts_from_the_next_token() -> None:
    call(token(org_id="org_2abc", org_role="org:admin"))
    call(token("user_2def", org_id="org_2abc", org_role="org:admin"))
    demoted = call(token("user_2def", org_id="org_2abc", org_role="org:member"))
    assert demoted.role == "member"
    with pytest.raises(Forbidden, match="keys:manage"):
        auth.require(demoted, "keys:manage")


# ---- users who may not ----


def test_a_deleted_user_is_not_revived_by_a_late_token(app_db: Database) -> None:
    call(token())
    change(app_db, "UPDATE identity.users SET deleted_at = now(), email = NULL")
    with pytest.raises(Unauthorized, match="deleted"):
        call(token())
    with pytest.raises(Unauthorized, match="deleted"):
        call(token(org_id="org_2abc", org_role="org:admin"))
    assert what_was_made(app_db) == ONE_USER


def test_a_suspended_user_is_refused_from_the_next_request_on(app_db: Database) -> None:
    call(token())
    change(app_db, "UPDATE identity.users SET is_active = false")
    with pytest.raises(Forbidden, match="suspended"):
        call(token())
    change(app_db, "UPDATE identity.users SET is_active = true")
    assert call(token()).role == "owner"


def test_a_deleted_organisation_admits_nobody(app_db: Database) -> None:
    call(token(org_id="org_2abc", org_role="org:admin"))
    change(app_db, "UPDATE tenancy.organizations SET deleted_at = now() WHERE clerk_id = 'org_2abc'")
    with pytest.raises(Forbidden, match="organisation was deleted"):
        call(token(org_id="org_2abc", org_role="org:admin"))
    with pytest.raises(Forbidden, match="organisation was deleted"):
        call(token("user_2def", org_id="org_2abc", org_role="org:member"))
    assert call(token()).role == "owner"


# ---- keys ----


def test_an_organisation_key_acts_for_its_organisation(
    app_db: Database, minted: Callable[..., tuple[str, UUID]]
) -> None:
    organization_id = call(token()).organization_id
    key, key_id = minted(organization_id, ["read", "credits:spend"])
    caller = call(key)
    assert (caller.kind, caller.organization_id) == ("organization_key", organization_id)
    assert caller.actor == f"key:{key_id}"
    assert caller.scopes == {"read", "credits:spend"}
    with pytest.raises(Forbidden, match="its own"):
        call(key, organization_id)
    with app_db.connect("backplane_app") as connection:
        assert connection.execute("SELECT count(*) AS n FROM identity.users").fetchone() == {"n": 0}


def test_a_service_key_acts_for_the_organisation_it_names(
    app_db: Database, minted: Callable[..., tuple[str, UUID]]
) -> None:
    first, second = (call(token(user)).organization_id for user in ("user_2abc", "user_2def"))
    key, _ = minted(None, ["read", "credits:settle"])
    for organization_id in (first, second):
        caller = call(key, organization_id)
        assert (caller.kind, caller.organization_id) == ("service_key", organization_id)
    with pytest.raises(BadRequest, match="X-Organization-Id"):
        call(key)
    with pytest.raises(NotFound):
        call(key, UUID(int=7))
    change(app_db, "UPDATE tenancy.organizations SET deleted_at = now() WHERE id = %s", second)
    with pytest.raises(NotFound):
        call(key, second)
    assert call(key, first).organization_id == first


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE platform.api_keys SET revoked_at = now()", "revoked"),
        ("UPDATE platform.api_keys SET expires_at = now()", "expired"),
        ("UPDATE tenancy.organizations SET deleted_at = now()", "deleted"),
        ("UPDATE platform.api_keys SET secret_hash = sha256('another')", "not valid"),
        ("DELETE FROM platform.api_keys", "not valid"),
    ],
    ids=["revoked", "expired", "of a deleted organisation", "with another secret", "removed"],
)
def test_from_the_next_request_on_no_one_enters_with_a_key_that_is(
    app_db: Database, minted: Callable[..., tuple[str, UUID]], statement: str, says: str
) -> None:
    key, _ = minted(call(token()).organization_id)
    assert call(key).kind == "organization_key"
    change(app_db, statement)
    with pytest.raises(Unauthorized, match=says):
        call(key)


def test_an_expiry_that_is_still_to_come_admits(
    app_db: Database, minted: Callable[..., tuple[str, UUID]]
) -> None:
    key, _ = minted(call(token()).organization_id)
    change(app_db, "UPDATE platform.api_keys SET expires_at = now() + interval '1 hour'")
    assert call(key).kind == "organization_key"


# ---- platform admins ----


def test_a_platform_admin_is_stored_or_listed_and_may_look_everywhere(app_db: Database) -> None:
    customer = call(token("user_2def"))
    assert call(token("user_root"), customer.organization_id).is_platform_admin
    call(token())
    with pytest.raises(Forbidden):
        call(token(), customer.organization_id)
    change(app_db, "UPDATE identity.users SET role = 'super_admin' WHERE clerk_id = 'user_2abc'")
    visiting = call(token(), customer.organization_id)
    assert (visiting.organization_id, visiting.role) == (customer.organization_id, None)
    auth.require(visiting, "admin")
    with pytest.raises(NotFound):
        call(token(), UUID(int=7))


def test_no_secret_is_logged(
    app_db: Database, minted: Callable[..., tuple[str, UUID]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    session = token()
    key, _ = minted(call(session).organization_id)
    call(key)
    change(app_db, "UPDATE platform.api_keys SET revoked_at = now()")
    with pytest.raises(Unauthorized):
        call(key)
    logged = json.dumps([record.getMessage() for record in caplog.records])
    assert key.rpartition("_")[2] not in logged
    assert session not in logged


def test_knowing_who_calls_loads_neither_the_router_nor_the_sdk() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, backplane.auth; print(*sys.modules)"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    assert "jwt" in loaded
    assert not {"boto3", "botocore", "aws_lambda_powertools", "stripe"} & set(loaded)
