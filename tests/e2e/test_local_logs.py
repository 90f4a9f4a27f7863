"""What a person reads in the terminal, what is kept as JSON, and what appears in neither."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local import terminal
from local.children import Children
from local.runtime import Runtime
from tests.e2e.local_cloud import ROOT, Cloud, Toys, until

NUMBER = r"[\d.]+"


@pytest.fixture
def runtime(toys: Toys, tmp_path: Path) -> Iterator[Runtime]:
    """The toy's, with no environment yet."""
    children = Children(tmp_path / "processes")
    runtime = Runtime([toys.function], children, tmp_path)
    yield runtime
    runtime.close()
    children.close()


def invoke(runtime: Runtime, request_id: str, **order: object) -> None:
    outcome = runtime.invoke("toy", json.dumps(order).encode(), request_id=request_id)
    assert outcome.report is not None
    outcome.report.result(30)


def told(capfd: pytest.CaptureFixture[str], request_id: str) -> str:
    """What the terminal has had, once it has the invocation's line."""
    heard = ""

    def listen() -> bool:
        nonlocal heard
        heard += capfd.readouterr().out
        return request_id in heard and heard.endswith("\n")

    until(listen, "the line is printed")
    return heard


def test_an_invocation_is_a_line_with_its_cold_start_and_its_memory(
    runtime: Runtime, capfd: pytest.CaptureFixture[str]
) -> None:
    invoke(runtime, "cold-1")
    cold = told(capfd, "cold-1")
    invoke(runtime, "warm-1")
    warm = told(capfd, "warm-1")

    assert re.search(rf"\d\d:\d\d:\d\d  toy +cold-1  ok +{NUMBER} ms  init {NUMBER} ms  \d+ MB\n$", cold)
    assert re.search(rf"\d\d:\d\d:\d\d  toy +warm-1  ok +{NUMBER} ms  \d+ MB\n$", warm)


def test_a_traceback_is_readable_under_its_line(runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    invoke(runtime, "raises-1", do="raise")
    lines = told(capfd, "raises-1").splitlines()

    assert "error" in lines[0]
    assert "make logs F=toy" in lines[0]
    assert lines[1].strip() == "ValueError: the secret detail"
    assert re.search(r'^ +File ".*toy\.py", line \d+, in handler$', lines[2])
    assert lines[3].strip() == 'raise ValueError("the secret detail")'
    assert not any("{" in line for line in lines)


@pytest.mark.parametrize(
    ("order", "status"), [({"do": "exit"}, "crash"), ({"do": "sleep", "seconds": 60}, "timeout")]
)
def test_a_call_that_ends_badly_has_its_line_too(
    runtime: Runtime, capfd: pytest.CaptureFixture[str], order: dict[str, object], status: str
) -> None:
    invoke(runtime, "ends-1", **order)

    assert re.search(rf"toy +ends-1  {status} +{NUMBER} ms", told(capfd, "ends-1"))


def test_a_log_is_json_throughout(runtime: Runtime, tmp_path: Path) -> None:
    invoke(runtime, "json-1", do="print", text="hello")
    invoke(runtime, "json-2", do="raise")
    lines = [json.loads(line) for line in (tmp_path / "toy.log").read_text().splitlines()]
    reports = [line["record"] for line in lines if line.get("type") == "platform.report"]

    assert {"printed": "hello"} in lines
    assert [report["requestId"] for report in reports] == ["json-1", "json-2"]
    assert {"durationMs", "initDurationMs", "maxMemoryUsedMB"} == reports[0]["metrics"].keys()
    assert "initDurationMs" not in reports[1]["metrics"]
    assert any(line.get("errorType") == "ValueError" for line in lines)


def test_no_secret_is_in_the_terminal_or_in_a_log(
    runtime: Runtime, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_hidden", set())
    terminal.hide(["the secret detail", "short"])
    invoke(runtime, "hide-1", do="raise")
    invoke(runtime, "hide-2", do="print", text="a short one, and the secret detail of it")
    heard = told(capfd, "hide-2")
    log = (tmp_path / "toy.log").read_text()

    assert "ValueError: ***" in heard
    assert "a short one, and *** of it" in log
    assert "the secret detail" not in heard + log


def test_an_environments_reports_come_in_the_order_of_its_invocations(runtime: Runtime) -> None:
    orders = [{"do": "print", "text": str(number)} for number in range(20)]
    outcomes = [runtime.invoke("toy", json.dumps(order).encode()) for order in orders]
    reports = [outcome.report.result(30) for outcome in outcomes if outcome.report]

    assert [report.lines for report in reports] == [
        (json.dumps({"printed": str(number)}),) for number in range(20)
    ]


def test_the_stack_hides_its_own_secrets(stack: Cloud) -> None:
    stack.request("GET", "/health")
    secrets = json.loads((stack.data / "secrets.json").read_text())
    passwords = [json.loads(value)["password"] for value in secrets.values() if '"password"' in value]
    logs = "".join(file.read_text() for file in (stack.data / "logs").glob("*.log"))

    assert passwords
    for secret in [*passwords, secrets["stripe_webhook_secret"], secrets["service_key"]]:
        assert secret not in logs
        assert secret not in stack.output


def test_make_logs_is_json_through_a_pipe_and_readable_on_a_terminal(stack: Cloud) -> None:
    stack.request("GET", "/health")
    piped = follow(stack, "health", os.pipe())
    person = follow(stack, "health", pty.openpty())
    everything = follow(stack, "", os.pipe())

    assert all(json.loads(line) for line in piped.splitlines())
    assert "durationMs" in person
    assert '"durationMs"' not in person
    assert re.search(r"^health +\{", everything, re.MULTILINE)
    assert re.search(r"^migrate +\{", everything, re.MULTILINE)


def follow(stack: Cloud, function: str, ends: tuple[int, int]) -> str:
    """What `make logs` shows of what is there already."""
    reader, writer = ends
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "local.logs", function],
        cwd=ROOT,
        env=stack.environment(),
        stdout=writer,
    )
    os.close(writer)
    try:
        heard = b""
        while b"durationMs" not in heard or (not function and b"migrate" not in heard):
            heard += os.read(reader, 65536)
        return heard.decode().rpartition("\n")[0]
    finally:
        process.kill()
        process.wait()
        os.close(reader)
