"""The run's secrets: made once, kept for their owner alone."""

import json
from pathlib import Path

from local.credentials import Credentials


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    first = Credentials(tmp_path / "secrets.json").clerk_webhook_secret()

    assert Credentials(tmp_path / "secrets.json").clerk_webhook_secret() == first
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_generated_secret_is_as_the_template_asks(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "secrets.json")
    wanted = {"SecretStringTemplate": '{"a": 1}', "GenerateStringKey": "b", "PasswordLength": 12}
    made = json.loads(credentials.secret_string("Made", {"GenerateSecretString": wanted}))

    assert made["a"] == 1
    assert len(made["b"]) == 12
    assert len(credentials.secret_string("Bare", {"GenerateSecretString": {"PasswordLength": 9}})) == 9


def test_a_given_secret_is_taken_as_it_is(tmp_path: Path) -> None:
    assert Credentials(tmp_path / "secrets.json").secret_string("Given", {"SecretString": "x"}) == "x"
