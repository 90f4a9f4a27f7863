"""The way to the database on AWS: TLS that proves who is there, and IAM tokens instead of passwords."""

import datetime as dt
import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import boto3
import psycopg
import pytest
from tests.databases import Database
from tests.ledgers import debit, new_account
from tests.pgbouncer import pgbouncer
from tests.tls_proxy import TlsProxy, TokenServer, certificate

from backplane import config, connect, db, problems, secrets

KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI"
Settle = Callable[..., config.Settings]


@pytest.fixture
def settle(database: Database, monkeypatch: pytest.MonkeyPatch) -> Settle:
    """Settings as template.yaml gives them: the database by its parts, at a port and with further fields."""
    login = psycopg.conninfo.conninfo_to_dict(database.system)
    monkeypatch.setattr(secrets, "get", lambda _arn, *, refresh=False: {"password": login["password"]})

    def made(port: int, authority: Path, **fields: str) -> config.Settings:
        monkeypatch.setenv("PGSSLROOTCERT", str(authority))
        values = {
            "host": "127.0.0.1",
            "port": str(port),
            "name": database.name,
            "user": "backplane_system",
            "secret_arn": "arn:secret",
        }
        for name, value in (values | fields).items():
            monkeypatch.setenv(f"DATABASE_{name.upper()}", value)
        config.settings.cache_clear()
        db.reset()
        return config.settings()

    return made


# ---- TLS ----


def test_the_server_that_proves_its_name_is_spoken_to_and_encrypted(
    settle: Settle, database: Database, tmp_path: Path
) -> None:
    public, private = certificate(tmp_path)
    with TlsProxy(database.system, public, private) as server:
        with connect.connect(settle(server.port, public)) as session:
            assert session.pgconn.ssl_in_use
        assert server.encrypted == 1


def test_a_pooler_with_tls_of_its_own_is_spoken_to_by_its_proven_name_and_not_in_the_clear(
    settle: Settle, database: Database, role_passwords: dict[str, str], tmp_path: Path
) -> None:
    public, private = certificate(tmp_path)
    with pgbouncer(database.owner, role_passwords, (public, private)) as server:
        settings = settle(server.port, public)
        assert db.call("SELECT current_user AS login") == {"login": "backplane_system"}
        assert db.connection().pgconn.ssl_in_use
        with pytest.raises(psycopg.OperationalError, match="SSL required"):
            connect.connect(settings.model_copy(update={"database_sslmode": "disable"}))
        other, _ = certificate(tmp_path, "127.0.0.8")
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            connect.connect(settle(server.port, other))


@dataclass(frozen=True)
class Unproven:
    address: str  # that its certificate is for
    trusted: str  # whose certificate is trusted
    why: str
    days: int = 1


@pytest.mark.parametrize(
    "server",
    [
        Unproven("127.0.0.9", "127.0.0.9", "does not match host name"),
        Unproven("127.0.0.1", "127.0.0.8", "certificate verify failed"),
        Unproven("127.0.0.1", "127.0.0.1", "certificate verify failed", days=-1),
    ],
    ids=["another's name", "another's authority", "expired"],
)
def test_a_server_that_cannot_prove_its_name_is_refused_with_the_reason(
    settle: Settle, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, server: Unproven
) -> None:
    authority, _ = certificate(tmp_path, server.trusted, days=server.days)
    public, private = certificate(tmp_path, server.address, days=server.days)
    with TlsProxy(database.system, public, private) as proxy:
        settings = settle(proxy.port, authority)
        with pytest.raises(psycopg.OperationalError, match=server.why):
            connect.connect(settings)
        db.set_deadline(db.MARGIN + 0.2)
        with pytest.raises(problems.Unavailable):
            db.connection()
    assert server.why in caplog.text
    assert str(secrets.get("arn:secret")["password"]) not in caplog.text


def test_a_server_without_tls_is_refused(settle: Settle, database: Database, tmp_path: Path) -> None:
    public, _ = certificate(tmp_path)
    port = urlsplit(database.system).port
    assert port is not None
    with pytest.raises(psycopg.OperationalError, match="does not support SSL, but SSL was required"):
        connect.connect(settle(port, public))


# ---- IAM tokens ----


def is_token(password: str, host: str, user: str) -> bool:
    """Whether AWS would take it: Signature Version 4 over the query, by its own rules and not botocore's."""
    parts = urlsplit(f"https://{password}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    signature = query.pop("X-Amz-Signature")
    date, region, service, end = query["X-Amz-Credential"].split("/")[1:]
    canonical = "\n".join(
        [
            "GET",
            "/",
            urlencode(sorted(query.items()), quote_via=quote, safe="-_.~"),
            f"host:{host}\n",
            "host",
            hashlib.sha256(b"").hexdigest(),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{date}/{region}/{service}/{end}\n{digest}"
    key = f"AWS4{SECRET}".encode()
    for part in (date, region, service, end, to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    age = dt.datetime.now(dt.UTC) - dt.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(
        tzinfo=dt.UTC
    )
    return (
        hmac.compare_digest(key.hex(), signature)
        and (parts.netloc, region, service, end) == (host, "eu-central-1", "rds-db", "aws4_request")
        and (query["Action"], query["DBUser"], query["X-Amz-Expires"]) == ("connect", user, "900")
        and age < dt.timedelta(seconds=900)
    )


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it found first
    connect._rds.cache_clear()
    monkeypatch.setattr(secrets, "get", None)  # there is no password to read


@pytest.mark.usefixtures("credentials")
def test_each_connection_signs_in_with_a_token_of_its_own_that_no_log_shows(
    settle: Settle, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    organization_id = new_account(database, 5)
    public, private = certificate(tmp_path)
    sent: list[tuple[str, str]] = []

    def check(user: str, password: str) -> bool:
        sent.append((user, password))
        return is_token(password, f"127.0.0.1:{server.port}", "backplane_system") and len(sent) != 2

    with TokenServer(database.system, public, private, check) as server:
        settle(server.port, public, iam_resource_id="cluster-ABC")
        debit(organization_id)
        db.connection().close()
        debit(organization_id)  # refused once, as where a token has just gone stale, and signed anew
        db.reset()
    assert [user for user, _ in sent] == ["backplane_system"] * 3
    assert server.encrypted == 3
    for _, token in sent:
        assert token not in caplog.text
        assert token.partition("X-Amz-Signature=")[2] not in caplog.text


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sslmode": "require"}, "set DATABASE_SSLMODE to verify-full, it is require"),
        ({"user": ""}, "set DATABASE_USER"),
    ],
)
def test_a_token_is_not_made_for_whoever_may_answer(
    settle: Settle, tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    public, _ = certificate(tmp_path)
    settings = settle(1, public, iam_resource_id="prx-1", **fields)
    with pytest.raises(RuntimeError, match=why):
        connect.connect(settings)


def test_the_way_around_a_pooler_is_by_password(settle: Settle, tmp_path: Path) -> None:
    public, _ = certificate(tmp_path)
    settings = settle(1, public, iam_resource_id="prx-1")
    assert connect.parameters(settings, direct=True)["password"] == secrets.get("arn:secret")["password"]
