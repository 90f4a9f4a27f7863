"""`make invoke F=health [E=event.json]`: invoke a function of the running stack and print its answer."""

import argparse
import json
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local import checkout, running, sample
from local.aws import clients
from local.refusal import Refusal, exits


def main() -> int:
    parser = argparse.ArgumentParser(prog="make invoke", description=__doc__)
    parser.add_argument("function", nargs="?", default="", help="its folder's name in functions/")
    parser.add_argument("event", nargs="?", default="", help="a file; omitted: its sample in events/, or {}")
    arguments = parser.parse_args()
    stack = running.find()
    known = ", ".join(sorted(stack.functions))
    if arguments.function not in stack.functions:
        raise Refusal(f"which function? `make invoke F=…`, one of: {known}.")
    file = Path(arguments.event) if arguments.event else None
    failed, answer = invoke(stack, arguments.function, event_of(arguments.function, file))
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    return 1 if failed else 0


def event_of(function: str, file: Path | None) -> Any:
    """The file's event: a sample's `invoke`, or the whole file. Raises Refusal."""
    if file is None:
        usual = checkout.ROOT / "events" / f"{function}.json"
        return (sample.read(usual).invoke if usual.exists() else None) or {}
    try:
        written = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Refusal(f"{file} can't be read: {error}") from None
    return written["invoke"] if isinstance(written, dict) and "invoke" in written else written


def invoke(stack: running.Stack, function: str, event: Any) -> tuple[bool, Any]:
    """Whether it failed, and what it answered. Raises Refusal where the stack doesn't answer."""
    client = clients(stack.lambda_url, read_timeout=900)("lambda")  # seconds: the longest a function may take
    try:
        answer = client.invoke(FunctionName=stack.functions[function], Payload=json.dumps(event).encode())
    except (BotoCoreError, ClientError) as error:
        raise Refusal(f"{function} can't be invoked: {error}") from None
    return "FunctionError" in answer, json.loads(answer["Payload"].read() or b"null")


if __name__ == "__main__":
    exits(main)
