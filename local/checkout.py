"""Where this checkout keeps what: the template, the functions, and the run's data under `.local/`.

BACKPLANE_LOCAL_DATA names another data folder, BACKPLANE_ENV_FILE another `.env` and
BACKPLANE_TEMPLATE another template, so that a test's stack shares nothing with the developer's.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parent.parent

# What `.env` may replace; a variable of the shell wins over it.
REPLACEABLE = (
    "DATABASE_URL",
    "DATABASE_DIRECT_URL",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_API_KEY",
    "STRIPE_API_BASE",
    "CLERK_WEBHOOK_SECRET",
    "CLERK_ISSUER",
    "CLERK_JWT_KEY",
    "PLATFORM_ADMINS",
    "SUPABASE_CLIENT_ID",
    "SUPABASE_CLIENT_SECRET",
    "SUPABASE_REDIRECT_URI",
)


@dataclass(frozen=True)
class Data:
    """The files of one local cloud."""

    folder: Path

    @property
    def stack(self) -> Path:
        """What callers read: written when everything answers, removed when it stops."""
        return self.folder / "stack.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def processes(self) -> Path:
        """A line for each process the run has started: what a killed run has left behind."""
        return self.folder / "processes"

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets.json"

    @property
    def signing_key(self) -> Path:
        return self.folder / "signing_key.pem"

    @property
    def ports(self) -> Path:
        return self.folder / "ports.json"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def aws(self) -> Path:
        """S3 objects and KMS keys."""
        return self.folder / "aws"

    @property
    def pgtools(self) -> Path:
        return self.folder / "pgtools"

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    def forget(self) -> None:
        """Delete these files, and nothing else that is in the folder (tests have theirs there)."""
        for file in (self.stack, self.processes, self.secrets, self.signing_key, self.ports):
            file.unlink(missing_ok=True)
        for folder in (self.logs, self.postgres, self.pgtools, self.aws, *self.folder.glob("aws.damaged-*")):
            shutil.rmtree(folder, ignore_errors=True)


def template() -> Path:
    """BACKPLANE_TEMPLATE names another, beside its functions."""
    return Path(os.environ.get("BACKPLANE_TEMPLATE") or ROOT / "template.yaml").resolve()


def data() -> Data:
    return Data(Path(os.environ.get("BACKPLANE_LOCAL_DATA") or ROOT / ".local").resolve())


def overrides() -> Mapping[str, str]:
    """What the developer set in the shell or in `.env`, by name; empty means unset."""
    file = Path(os.environ.get("BACKPLANE_ENV_FILE") or ROOT / ".env")
    written = dotenv_values(file) if file.is_file() else {}
    found = {name: os.environ.get(name) or written.get(name) or "" for name in REPLACEABLE}
    return {name: value for name, value in found.items() if value}
