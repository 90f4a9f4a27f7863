"""What `.env` and the shell may replace."""

from pathlib import Path

import pytest
from local import checkout
from local.credentials import Credentials
from local.parameters import Senders, parameters


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in checkout.REPLACEABLE:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / ".env"
    monkeypatch.setenv("BACKPLANE_ENV_FILE", str(file))
    return file


@pytest.mark.usefixtures("env_file")
def test_without_a_file_nothing_is_replaced() -> None:
    assert checkout.overrides() == {}


def test_the_shell_wins_over_the_file_and_empty_means_unset(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file.write_text(
        "CLERK_ISSUER=https://file.example\nDATABASE_URL=\nSTRIPE_WEBHOOK_SECRET=whsec_file\n"
    )
    monkeypatch.setenv("CLERK_ISSUER", "https://shell.example")

    assert checkout.overrides() == {
        "CLERK_ISSUER": "https://shell.example",
        "STRIPE_WEBHOOK_SECRET": "whsec_file",
    }


def test_several_secrets_are_separated_by_commas_and_the_first_signs(tmp_path: Path) -> None:
    overrides = {"STRIPE_WEBHOOK_SECRET": "whsec_new, whsec_old", "CLERK_ISSUER": "https://my.example/"}
    senders = Senders.of(overrides, Credentials(tmp_path / "secrets.json"), "http://127.0.0.1:1")

    assert senders.stripe_secrets == ["whsec_new", "whsec_old"]
    assert senders.issuer == "https://my.example", "tokens name it without the slash"
    assert len(senders.clerk_secrets) == 1


def test_every_setting_that_can_be_replaced_is_in_the_example() -> None:
    example = (checkout.ROOT / ".env.example").read_text()

    assert [name for name in checkout.REPLACEABLE if f"\n#{name}=" not in example] == []


@pytest.mark.parametrize(("given", "parameter"), [({}, ""), ({"STRIPE_API_KEY": "sk_test_1"}, "arn:stripe")])
def test_without_a_stripe_key_there_is_no_secret_and_stripe_is_never_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], parameter: str
) -> None:
    secrets: dict[str, str] = {}

    def put(_: object, name: str, text: str) -> str:
        secrets[name] = text
        return f"arn:{name.partition('-')[0]}"

    monkeypatch.setattr("local.parameters.put_secret", put)
    senders = Senders.of(given, Credentials(tmp_path / "secrets.json"), "http://127.0.0.1:1")
    made = parameters(senders, "postgresql://localhost/backplane", 3000, lambda name: name)

    assert made["StripeApiKeySecretArn"] == parameter
    assert secrets.get("stripe-api-key") == ('{"key": "sk_test_1"}' if given else None)
