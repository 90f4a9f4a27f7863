"""What the running stack says of itself, in `.local/stack.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from local.checkout import data
from local.credentials import write_private
from local.refusal import Refusal


@dataclass(frozen=True)
class Stack:
    api_url: str
    lambda_url: str
    aws_endpoint_url: str
    database_url: str  # of the application's role
    admin_database_url: str  # of the owner: sees every row
    stripe_webhook_secret: str
    clerk_webhook_secret: str
    service_key: str
    issuer: str
    signing_key_path: str
    functions: dict[str, str]  # folder → name for Invoke

    def write(self, file: Path) -> None:
        write_private(file, json.dumps(asdict(self), indent=2) + "\n")


def is_running() -> bool:
    """Whether stack.json is there and who wrote it still is: a killed stack leaves the file behind."""
    try:
        pid = int(data().lock.read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    return b"local.stack" in arguments and data().stack.exists()


def find() -> Stack:
    """The running stack. Raises Refusal where there is none."""
    if not is_running():
        raise Refusal("no local cloud is running here. Start one with `make dev`.")
    return read(data().stack)


def read(file: Path) -> Stack:
    """What a stack.json says. Raises Refusal where it is another version's."""
    try:
        return Stack(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        raise Refusal(f"{file} is not this version's. Stop the local cloud and start it again.") from None
