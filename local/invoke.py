"""`make invoke F=health [E=event.json]`: invoke a function of the running stack; its log and its answer."""

import argparse
import base64
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local import checkout, invocation, running, sample
from local.aws import clients
from local.refusal import Refusal, exits

FRAME = ("START RequestId:", "END RequestId:", "REPORT RequestId:")


@dataclass(frozen=True)
class Answer:
    failed: bool
    value: Any
    log: list[str]


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
    answer = invoke(stack, arguments.function, event_of(arguments.function, file))
    # Apart from the answer, so that `make -s invoke F=… | jq` has only that.
    for line in answer.log:
        print(line, file=sys.stderr)
    sys.stderr.flush()
    print(json.dumps(answer.value, indent=2, ensure_ascii=False))
    return 1 if answer.failed else 0


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


def invoke(stack: running.Stack, function: str, event: Any) -> Answer:
    """Raises Refusal where the stack doesn't answer."""
    client = clients(stack.lambda_url, read_timeout=900)("lambda")  # seconds: the longest a function may take
    try:
        answer = client.invoke(
            FunctionName=stack.functions[function], Payload=json.dumps(event).encode(), LogType="Tail"
        )
    except (BotoCoreError, ClientError) as error:
        raise Refusal(f"{function} can't be invoked: {error}") from None
    return Answer(
        failed="FunctionError" in answer,
        value=json.loads(answer["Payload"].read() or b"null"),
        log=_readable(answer.get("LogResult", ""), function),
    )


def _readable(log_result: str, function: str) -> list[str]:
    """The call's log as a person reads it, from what Lambda's LogResult has: the last 4 KB."""
    lines = base64.b64decode(log_result).decode(errors="replace").splitlines()
    told = [text for line in lines if not line.startswith(FRAME) for text in invocation.readable(line)]
    report = [
        "  ".join([function, *line.split("\t")[1:]]).rstrip() for line in lines if line.startswith("REPORT")
    ]
    cut = [f"… (all of it: make logs F={function})"] if lines and not lines[0].startswith("START") else []
    return [*cut, *told, *report]


if __name__ == "__main__":
    exits(main)
