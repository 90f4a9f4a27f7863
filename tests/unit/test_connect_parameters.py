"""connect.parameters: what libpq is told, from a URL or from parts and a secret."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from backplane import connect, secrets
from backplane.config import Settings

SECRET = {"username": "backplane_app", "password": "p@ss/word"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DATABASE_DIRECT_URL", "PGSSLROOTCERT", "AWS_LAMBDA_FUNCTION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(secrets, "get", lambda _arn, **_options: SECRET)


def test_a_url_is_used_as_given() -> None:
    settings = Settings(database_url=SecretStr("postgresql://u:p@h:6/d?sslmode=require&connect_timeout=9"))
    found = connect.parameters(settings)
    assert {name: found[name] for name in ("user", "password", "host", "port", "dbname")} == {
        "user": "u",
        "password": "p",
        "host": "h",
        "port": "6",
        "dbname": "d",
    }
    assert (found["sslmode"], found["connect_timeout"]) == ("require", "9")


def test_the_way_around_a_pooler_is_taken_only_when_asked_for() -> None:
    settings = Settings(
        database_url=SecretStr("postgresql://pooler/d"),
        database_direct_url=SecretStr("postgresql://direct/d"),
    )
    assert connect.parameters(settings)["host"] == "pooler"
    assert connect.parameters(settings, direct=True)["host"] == "direct"


def test_without_a_direct_url_the_only_url_is_direct() -> None:
    settings = Settings(database_url=SecretStr("postgresql://only/d"))
    assert connect.parameters(settings, direct=True)["host"] == "only"


def test_parts_and_a_secret_make_a_verified_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "authorities.pem"
    bundle.touch()
    monkeypatch.setattr(connect, "_AUTHORITIES", (tmp_path / "elsewhere.pem", bundle))
    found = connect.parameters(Settings(database_host="db.example.com", database_secret_arn="arn:secret"))
    assert (found["host"], found["port"], found["dbname"]) == ("db.example.com", 5432, "backplane")
    assert (found["user"], found["password"]) == ("backplane_app", "p@ss/word")
    assert (found["sslmode"], found["sslrootcert"]) == ("verify-full", str(bundle))


def test_where_no_bundle_is_found_openssl_is_left_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_AUTHORITIES", ())
    assert connect.parameters(Settings())["sslrootcert"] == "system"


def test_a_root_of_ones_own_replaces_the_public_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", "/opt/rds.pem")
    assert "sslrootcert" not in connect.parameters(Settings())


def test_a_lesser_sslmode_asks_for_no_authorities() -> None:
    found = connect.parameters(Settings(database_sslmode="require"))
    assert found["sslmode"] == "require"
    assert "sslrootcert" not in found


def test_the_configured_user_goes_before_the_secrets() -> None:
    settings = Settings(database_user="backplane_system", database_secret_arn="arn:secret")
    assert connect.parameters(settings)["user"] == "backplane_system"


def test_sessions_carry_the_functions_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect.parameters(Settings())["application_name"] == "backplane"
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "backplane-credits")
    assert connect.parameters(Settings())["application_name"] == "backplane-credits"


def test_connecting_takes_no_longer_than_the_invocation_has() -> None:
    assert connect.parameters(Settings(), timeout=3.7)["connect_timeout"] == 3
