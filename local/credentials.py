"""The run's secrets: made once, kept in `.local/secrets.json`, so that a restart changes none."""

import base64
import json
import os
import secrets
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from local.refusal import Refusal

MIN_GENERATED = 20  # characters

# What Secrets Manager's ExcludePunctuation leaves out, and nothing else of it.
_LETTERS = string.ascii_letters + string.digits


class Credentials:
    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._values: dict[str, str] = json.loads(file.read_text())
        except FileNotFoundError:
            self._values = {}
        except ValueError:
            raise Refusal(
                f"{file} is damaged. Mend it, or start over with `make clean-local` (it deletes the data)."
            ) from None

    def get(self, name: str, make: Callable[[], str]) -> str:
        """The secret of that name, made on first use."""
        if name not in self._values:
            self._values[name] = make()
            write_private(self._file, json.dumps(self._values, indent=2) + "\n")
        return self._values[name]

    @property
    def known(self) -> Iterator[str]:
        """Every secret, those inside of JSON texts and of keys of the API too."""
        for value in self._values.values():
            yield value
            yield value.rpartition("_")[2]
            with suppress(ValueError, AttributeError):
                # A generated one; what stands beside it is a name.
                yield from (each for each in json.loads(value).values() if len(each) >= MIN_GENERATED)

    def stripe_webhook_secret(self) -> str:
        return self.get("stripe_webhook_secret", lambda: f"whsec_{_password(32)}")

    def clerk_webhook_secret(self) -> str:
        """As Svix makes them: the key is what follows the prefix, in base64."""
        return self.get(
            "clerk_webhook_secret", lambda: f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
        )

    def secret_string(self, logical_id: str, properties: Mapping[str, Any]) -> str:
        """The value of a template's AWS::SecretsManager::Secret, generated as it asks."""
        return self.get(f"template:{logical_id}", lambda: _secret_string(properties))


def write_private(file: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner alone."""
    partial = file.with_name(f"{file.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    partial.rename(file)


def _secret_string(properties: Mapping[str, Any]) -> str:
    if "SecretString" in properties:
        return str(properties["SecretString"])
    wanted: Mapping[str, Any] = properties.get("GenerateSecretString") or {}
    password = _password(int(wanted.get("PasswordLength", 32)))
    if "GenerateStringKey" not in wanted:
        return password
    template = json.loads(wanted.get("SecretStringTemplate") or "{}")
    return json.dumps(template | {wanted["GenerateStringKey"]: password})


def _password(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))
