"""Code and template are edited while the stack runs, also under load; processes are killed under load."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from local.children import started_at
from tests.e2e.local_cloud import TOYS, Answer, Toys, request, start_toys, until

FAILED = {"message": "Internal Server Error"}

HANDLER = """
import toy_shared
{above}

def handler(event, context):
    return {{"statusCode": 200, "body": "{word} " + toy_shared.WORD}}
"""


class Editable:
    """The toys, on a copy of their files."""

    def __init__(self, toys: Toys, folder: Path) -> None:
        self.toys = toys
        self.template = folder / "template.yaml"
        self.code = folder / "functions" / "toy" / "toy.py"
        self.layer = folder / "layers" / "shared" / "toy_shared" / "__init__.py"

    def write(self, word: str, above: str = "") -> None:
        """In place, as most editors and every redirection do: empty first, then whole."""
        self.code.write_text(HANDLER.format(word=word, above=above))

    def ask(self) -> Answer:
        return request(self.toys.api_url, "POST", "/toy")

    def told(self) -> str:
        answer = self.ask()
        assert answer.status == 200, answer.body
        return answer.body.decode()

    def change(self, before: str, after: str) -> None:
        text = self.template.read_text()
        assert before in text
        self.template.write_text(text.replace(before, after, 1))

    def begin(self, threads: ThreadPoolExecutor, seconds: float) -> tuple[Future[Answer], int]:
        """A request that takes so long, and the process it runs in."""
        file = self.template.with_name("pid")
        file.unlink(missing_ok=True)
        answer = threads.submit(self.toys.order, do="pid", seconds=seconds, file=str(file))
        until(lambda: file.exists() and file.read_text().endswith("\n"), "it runs")
        return answer, int(file.read_text())

    def report(self, path: str = "/toy") -> Answer:
        return self.toys.order(path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editable]:
    folder = tmp_path_factory.mktemp("editable")
    shutil.copytree(TOYS.parent, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    with start_toys(folder, folder / "app" / "template.yaml") as toys:
        yield Editable(toys, folder / "app")


@pytest.fixture
def toys(running: Editable) -> Iterator[Editable]:
    """With its files as they were."""
    files = (running.template, running.code, running.layer)
    texts = [file.read_text() for file in files]
    running.layer.write_text('WORD = "layer"\n')
    yield running
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    assert running.report().status == 200


@contextmanager
def load(toys: Editable, clients: int = 6) -> Iterator[list[Answer]]:
    """Requests without a pause until the end of the block; their answers."""
    answers: list[Answer] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(toys.ask())

    with ThreadPoolExecutor(clients) as threads:
        asking = [threads.submit(ask) for _ in range(clients)]
        try:
            until(lambda: len(answers) > clients, "the load is on")
            yield answers
        finally:
            stop.set()
        for each in asking:
            each.result()


# ---- code ----


def test_changed_code_answers_the_next_request(toys: Editable) -> None:
    for word in ("one", "two", "six"):  # of one length, within a second: the bytecode's name is the same
        toys.write(word)
        assert toys.told() == f"{word} layer"


def test_a_changed_layer_answers_the_next_request(toys: Editable) -> None:
    toys.write("word")
    for word in ("upper", "lower"):
        toys.layer.write_text(f'WORD = "{word}"\n')
        assert toys.told() == f"word {word}"


def test_a_new_module_and_a_file_put_in_anothers_place_count(toys: Editable) -> None:
    toys.write("old")
    assert toys.told() == "old layer"
    extra = toys.code.with_name("extra.py")
    extra.write_text("")
    beside = toys.code.with_name("toy.py.new")
    beside.write_text(HANDLER.format(word="moved", above="import extra"))
    beside.rename(toys.code)
    try:
        assert toys.told() == "moved layer"
    finally:
        extra.unlink()


def test_unchanged_code_keeps_its_environment(toys: Editable) -> None:
    pid = toys.report().json()["pid"]
    toys.code.with_name("__pycache__").mkdir(exist_ok=True)
    toys.code.with_name(".toy.py.swp").write_text("an editor's")

    assert toys.report().json()["pid"] == pid


def test_what_runs_ends_on_the_code_it_began_with(toys: Editable) -> None:
    with ThreadPoolExecutor(1) as threads:
        running, pid = toys.begin(threads, seconds=1)
        toys.write("new")
        assert toys.told() == "new layer"
        answer = running.result()

    assert answer.status == 200
    assert answer.json()["pid"] == pid
    until(lambda: started_at(pid) is None, "its environment ends after it")


@pytest.mark.parametrize(
    ("above", "told"),
    [
        ("def broken(:", "invalid syntax"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("from toy_shared import nothing_there", "nothing_there"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
    ],
)
def test_broken_code_is_a_500_with_the_traceback_in_the_terminal_until_it_is_mended(
    toys: Editable, capfd: pytest.CaptureFixture[str], above: str, told: str
) -> None:
    toys.write("broken", above)
    for _ in range(2):
        answer = toys.ask()
        assert (answer.status, answer.json()) == (500, FAILED)
    seen = ""

    def printed() -> bool:
        nonlocal seen
        seen += capfd.readouterr().out
        return told in seen and "toy.py" in seen and "line 3" in seen.lower()

    until(printed, "the traceback is in the terminal")
    toys.write("mended")
    assert toys.told() == "mended layer"


def test_editing_under_load_fails_no_request(toys: Editable) -> None:
    toys.write("word 0")
    with load(toys) as answers:
        for number in range(1, 9):
            toys.write(f"word {number}")
            if number % 2:
                toys.layer.write_text(f'WORD = "layer {number}"\n')
            time.sleep(0.15)
        toys.layer.write_text('WORD = "layer"\n')
        toys.write("last")
        assert toys.told() == "last layer"

    assert Counter(answer.status for answer in answers).keys() == {200}


def test_a_file_written_piece_by_piece_under_load_fails_no_request(toys: Editable) -> None:
    toys.write("before")
    text = HANDLER.format(word="after", above="")
    with load(toys) as answers:
        with toys.code.open("w") as file:
            for start in range(0, len(text), 20):
                file.write(text[start : start + 20])
                file.flush()
                time.sleep(0.02)
        assert toys.told() == "after layer"

    assert Counter(answer.status for answer in answers).keys() == {200}


def test_files_that_never_rest_do_not_stop_the_code_before_from_serving(toys: Editable) -> None:
    toys.write("calm")
    assert toys.told() == "calm layer"
    stop = threading.Event()

    def scribble() -> None:
        notes = toys.code.with_name("notes.txt")
        while not stop.is_set():
            notes.write_text(str(time.monotonic()))
            time.sleep(0.01)
        notes.unlink()

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        assert toys.told() == "calm layer"
    finally:
        stop.set()
        writer.join()


# ---- processes ----


def test_an_idle_process_that_is_killed_costs_no_request(toys: Editable) -> None:
    for _ in range(3):
        pid = toys.report().json()["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: started_at(pid) is None, "it is gone")  # type: ignore[misc]
        assert toys.ask().status == 200


def test_a_killed_process_costs_the_request_in_it(toys: Editable) -> None:
    with ThreadPoolExecutor(1) as threads:
        running, pid = toys.begin(threads, seconds=1.5)
        os.kill(pid, signal.SIGKILL)
        answer = running.result()

    assert (answer.status, answer.json()) == (500, FAILED)
    assert toys.ask().status == 200


def test_killing_processes_under_load_fails_no_more_requests_than_processes(toys: Editable) -> None:
    killed = 0
    with load(toys) as answers:
        for _ in range(8):
            with suppress(ProcessLookupError, ValueError, KeyError):
                os.kill(toys.report().json()["pid"], signal.SIGKILL)
                killed += 1
            time.sleep(0.1)
    counts = Counter(answer.status for answer in answers)

    assert killed
    assert counts.keys() <= {200, 500}
    assert counts[500] <= killed
    assert toys.ask().status == 200


# ---- the template ----


def test_a_changed_variable_timeout_and_memory_apply(toys: Editable) -> None:
    toys.change("NUMBER: !Ref Number", 'NUMBER: "8"\n          ADDED: !GetAtt Queue.Arn')
    toys.change("Timeout: 2", "Timeout: 9")
    toys.change("MemorySize: 256", "MemorySize: 320")
    report = toys.report().json()

    assert report["environment"]["NUMBER"] == "8"
    assert report["environment"]["ADDED"].startswith("arn:aws:sqs:")
    assert "PASSWORD_ARN" in report["environment"]
    assert 2000 < report["remaining"] <= 9000
    assert report["memory"] == "320"


def test_a_variable_that_is_taken_out_is_gone(toys: Editable) -> None:
    assert "CHOSEN" in toys.report().json()["environment"]
    toys.change("          CHOSEN: !If [IsLocal, here, there]\n", "")

    assert "CHOSEN" not in toys.report().json()["environment"]


def test_routes_and_cors_apply(toys: Editable) -> None:
    toys.change("Path: /toy}", "Path: /renamed}")
    toys.change("AllowHeaders: [content-type]", "AllowHeaders: [content-type, x-new]")

    assert toys.report("/renamed").status == 200
    assert toys.report("/toy").status == 404
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    answer = request(toys.toys.api_url, "OPTIONS", "/renamed", headers=preflight)
    assert answer.headers["access-control-allow-headers"] == "content-type,x-new"


def test_a_new_queue_and_a_new_function_are_made(toys: Editable) -> None:
    function = """
  Second:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: functions/second
      Handler: second.handler
      Runtime: python3.13
      Environment: {Variables: {QUEUE_URL: !Ref Added}}
      Events:
        Get: {Type: HttpApi, Properties: {ApiId: !Ref Api, Method: GET, Path: /second}}

  Added: {Type: AWS::SQS::Queue}

Outputs:"""
    folder = toys.code.parent.with_name("second")
    folder.mkdir()
    (folder / "second.py").write_text(
        "import os\n\ndef handler(e, c):\n    return {'url': os.environ['QUEUE_URL']}\n"
    )
    toys.change("\nOutputs:", function)
    url = request(toys.toys.api_url, "GET", "/second").json()["url"]

    assert "/backplane-local-Added-" in url
    toys.toys.client("sqs").send_message(QueueUrl=url, MessageBody="it is there")
    answer = toys.toys.lambda_client.invoke(FunctionName="second", Payload=b"{}")
    assert json.loads(answer["Payload"].read()) == {"url": url}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("Resources:", "Resources: [", "not valid YAML"),
        ("MemorySize:", "MemorySise:", "is not valid SAM"),
        ("!Ref Queue", "!Ref Nowhere", "refers to Nowhere"),
        ("!GetAtt Queue.Arn", "!GetAtt Queue.Colour", "Colour"),
        ("CodeUri: functions/toy", "CodeUri: functions/nowhere", "is not a folder"),
    ],
)
def test_a_broken_template_changes_nothing_and_the_terminal_says_why(
    toys: Editable, capfd: pytest.CaptureFixture[str], before: str, after: str, told: str
) -> None:
    pid = toys.report().json()["pid"]
    capfd.readouterr()
    text = toys.template.read_text()
    toys.change(before, after)

    assert toys.report().json()["pid"] == pid
    printed = capfd.readouterr().out
    assert "what was before goes on" in printed
    assert told in printed
    assert "Traceback" not in printed

    toys.template.write_text(text.replace("NUMBER: !Ref Number", 'NUMBER: "9"'))
    assert toys.report().json()["environment"]["NUMBER"] == "9", "the next one that is whole applies"


def test_a_template_that_is_being_replaced_is_waited_for(
    toys: Editable, capfd: pytest.CaptureFixture[str]
) -> None:
    text = toys.template.read_text()
    capfd.readouterr()
    toys.template.write_text("")
    time.sleep(0.1)
    assert toys.report().status == 200
    toys.template.unlink()
    time.sleep(0.1)
    assert toys.report().status == 200
    toys.template.write_text(text.replace("MemorySize: 256", "MemorySize: 384"))

    assert toys.report().json()["memory"] == "384"
    assert "not applied" not in capfd.readouterr().out


def test_without_a_request_a_change_is_applied_within_a_second_or_so(
    toys: Editable, capfd: pytest.CaptureFixture[str]
) -> None:
    toys.change("Timeout: 2", "Timeout: 3")
    seen: list[str] = []

    def applied() -> bool:
        seen.append(capfd.readouterr().out)
        return "template.yaml has changed and is applied." in "".join(seen)

    until(applied, "the change is applied")
    assert toys.toys.runtime.find("toy").timeout == 3


def test_a_template_edited_under_load_fails_no_request(toys: Editable) -> None:
    toys.write("word")
    with load(toys) as answers:
        for number in range(3, 7):
            toys.change(f"Timeout: {number - 1}", f"Timeout: {number}")
            until(lambda n=number: toys.toys.runtime.find("toy").timeout == n, "it applies")  # type: ignore[misc]

    assert Counter(answer.status for answer in answers).keys() == {200}
