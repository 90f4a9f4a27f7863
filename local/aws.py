"""AWS for the stack: moto's server as a child, and the clients that talk to it."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from local.checkout import ROOT
from local.children import Children

REGION = "us-east-1"  # the runtime emulator writes it into a function's ARN, whatever we say
ACCOUNT = "123456789012"  # moto's
STACK_NAME = "backplane-local"

# What SDKs need to be told, in functions and here alike.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}

INVOCATIONS = f"{STACK_NAME}-invocations"  # a queue of what the bus has for functions: {function, event}
SAVE_TIMEOUT = 20  # seconds

Client = Callable[[str], Any]


def start(
    children: Children,
    listener: socket.socket,
    log: Path,
    *,
    state: Path | None = None,
    cleanup: ExitStack | None = None,
) -> str:
    """Start moto on the listener; its URL. Requests wait in the socket's backlog until it is up.

    S3 objects and KMS keys outlive it in the folder `state`, all of them where `cleanup` ends it.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = children.spawn(
            [
                *(sys.executable, "-m", "local.aws_server", str(listener.fileno())),
                *([state] if state else []),
            ],
            env={
                **CREDENTIALS,
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": str(ROOT),
                # The functions' code stays in its folders; in moto's Lambda is only their configuration.
                "VALIDATE_LAMBDA_S3": "false",
                "MOTO_IAM_LOAD_MANAGED_POLICIES": "false",
            },
            cwd=ROOT,
            stdout=descriptor,
            pass_fds=(listener.fileno(),),
        )
    finally:
        os.close(descriptor)
    if cleanup:
        cleanup.callback(_stop, process)
    url = f"http://{listener.getsockname()[0]}:{listener.getsockname()[1]}"
    listener.close()  # moto's alone from now on: when it ends, so does the port
    return url


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let it save what has changed last."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(SAVE_TIMEOUT)


def clients(url: str, *, read_timeout: float = 60) -> Client:
    """A function that makes a client of a service, as `clients(url)("lambda")`."""
    import boto3  # costs a quarter of a second, while moto starts
    from botocore.config import Config

    session: Any = boto3.Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
    )
    config = Config(connect_timeout=5, read_timeout=read_timeout, retries={"total_max_attempts": 1})
    return lambda service: session.client(service, endpoint_url=url, config=config)
