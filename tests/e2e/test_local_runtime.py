"""Execution environments: what a function sees, how many there are, and how they end."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from local.children import Children, StoppingError, end_leftovers, started_at
from local.environment import Outcome, Status
from local.pool import Pool, Throttled
from local.runtime import UnknownFunction
from tests.e2e.local_cloud import TOYS, Toys, until

LIMIT = 2


@pytest.fixture
def pool(toys: Toys, tmp_path: Path) -> Iterator[Pool]:
    """Two environments of the toy, of this test's own."""
    children = Children(tmp_path / "processes")
    pool = Pool(toys.function, children, tmp_path / "toy.log", LIMIT)
    yield pool
    pool.close()
    children.close()


def tell(pool: Pool, patience: float = 30, **order: Any) -> Outcome:
    return pool.invoke(json.dumps(order).encode(), "the-request", patience=patience)


def report(outcome: Outcome) -> dict[str, Any]:
    assert outcome.status is Status.OK, outcome
    told: dict[str, Any] = json.loads(outcome.payload)
    return told


def test_the_function_sees_lambdas_variables_and_the_templates(pool: Pool) -> None:
    seen = report(tell(pool))
    variables = seen["environment"]

    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == pool.function.name
    assert variables["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == seen["memory"] == "256"
    assert variables["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"  # the template's, whatever runs it here
    assert variables["AWS_REGION"] == "us-east-1"
    assert variables["STAGE"] == "local"
    assert seen["remaining"] <= 2000, "the template's timeout"
    assert seen["arn"].endswith(f":function:{pool.function.name}")


def test_nothing_of_our_own_environment_leaks_in(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TOYS.parents[3]))
    monkeypatch.setenv("A_SECRET_OF_THE_SHELL", "leaked")

    assert "A_SECRET_OF_THE_SHELL" not in report(tell(pool))["environment"]


def test_code_and_layers_are_importable_and_the_checkout_is_not(pool: Pool) -> None:
    assert tell(pool, do="import", module="toy_shared").status is Status.OK
    for module in ("local", "local.stack", "tests"):
        refused = tell(pool, do="import", module=module)
        assert refused.status is Status.ERROR
        assert json.loads(refused.payload)["errorType"] == "ModuleNotFoundError"


def test_the_path_is_the_functions_folder_and_its_layers(pool: Pool) -> None:
    checkout = TOYS.parents[3]
    ours = {
        path
        for path in report(tell(pool))["path"]
        if Path(path).is_relative_to(checkout) and ".venv" not in Path(path).parts
    }

    assert ours == {str(TOYS.parent / "functions" / "toy"), str(TOYS.parent / "layers" / "shared")}


def test_an_environment_is_used_again(pool: Pool) -> None:
    assert report(tell(pool))["pid"] == report(tell(pool))["pid"]


def test_an_exception_is_an_error_and_keeps_the_environment(pool: Pool) -> None:
    before = report(tell(pool))["pid"]
    failed = tell(pool, do="raise")

    assert failed.status is Status.ERROR
    assert json.loads(failed.payload)["errorMessage"] == "the secret detail"
    assert report(tell(pool))["pid"] == before


def test_a_timeout_ends_the_environment(pool: Pool) -> None:
    before = report(tell(pool))["pid"]
    late = tell(pool, do="sleep", seconds=60)

    assert late.status is Status.TIMEOUT
    assert "Task timed out after 2.00 seconds" in json.loads(late.payload)["errorMessage"]
    assert started_at(before) is None, "its process is gone"
    assert report(tell(pool))["pid"] != before


def test_a_process_that_ends_is_replaced(pool: Pool) -> None:
    before = report(tell(pool))["pid"]
    crashed = tell(pool, do="exit")

    assert crashed.status is Status.CRASH
    assert json.loads(crashed.payload)["errorType"] == "Runtime.ExitError"
    assert report(tell(pool))["pid"] != before


def test_requests_beyond_the_pool_wait_and_use_no_more_environments(pool: Pool) -> None:
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda _: tell(pool, do="sleep", seconds=0.05), range(24)))

    assert len({report(outcome)["pid"] for outcome in outcomes}) == LIMIT


def test_a_request_that_waits_too_long_is_throttled(pool: Pool) -> None:
    with ThreadPoolExecutor(LIMIT) as threads:
        busy = [threads.submit(tell, pool, do="sleep", seconds=1.5) for _ in range(LIMIT)]
        until(lambda: pool.busy == LIMIT, "both places are taken")
        with pytest.raises(Throttled):
            tell(pool, patience=0.01)
        assert [each.result().status for each in busy] == [Status.OK] * LIMIT

    assert tell(pool).status is Status.OK, "who was throttled holds no place"


def test_who_waits_for_a_crashed_environment_gets_a_new_one(pool: Pool) -> None:
    orders: list[dict[str, Any]] = [{"do": "exit"}] * 6 + [{}] * 6
    with ThreadPoolExecutor(len(orders)) as threads:
        outcomes = list(threads.map(lambda order: tell(pool, **order), orders))

    assert [outcome.status for outcome in outcomes] == [Status.CRASH] * 6 + [Status.OK] * 6
    assert pool.busy == 0


def test_what_a_function_prints_is_in_its_log_line_by_line(toys: Toys) -> None:
    toys.runtime.invoke("toy", json.dumps({"do": "print", "text": "hello"}).encode(), request_id="log-1")
    log = toys.logs / "toy.log"
    until(lambda: "log-1" in log.read_text(), "the report is written")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]

    assert {"printed": "hello"} in lines
    assert any(line.get("record", {}).get("requestId") == "log-1" for line in lines)
    assert "START RequestId" not in log.read_text()


def test_a_function_goes_by_its_folder_its_logical_id_and_its_name(toys: Toys) -> None:
    names = ("toy", "Toy", toys.function.name)

    assert {toys.runtime.find(name).name for name in names} == {toys.function.name}
    with pytest.raises(UnknownFunction):
        toys.runtime.find("nothing")


def test_closing_ends_every_process_and_starts_no_more(toys: Toys, tmp_path: Path) -> None:
    children = Children(tmp_path / "processes")
    pool = Pool(toys.function, children, tmp_path / "toy.log", LIMIT)
    pid = report(tell(pool))["pid"]
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(tell, pool, do="sleep", seconds=1.5)
        until(lambda: pool.busy, "it runs")
        children.close()
        error = running.exception()
    pool.close()

    assert error is None or isinstance(error, StoppingError)

    # The kernel ends it because its parent, the emulator, has ended.
    until(lambda: started_at(pid) is None, "the function's process ends")
    with pytest.raises(StoppingError):
        tell(pool)


def test_leftovers_are_ended_by_id_and_start(tmp_path: Path) -> None:
    record = tmp_path / "processes"
    children = Children(record)
    mine, other = (children.spawn(["/bin/sleep", "60"], env={}, cwd=tmp_path) for _ in range(2))
    written = record.read_text().splitlines()
    # The kernel gives ids again: the same id with another start is somebody else's process.
    record.write_text(f"{written[0]}\n{other.pid} 1\nnonsense\n")

    assert end_leftovers(record) == 1
    assert mine.wait(10) < 0
    time.sleep(0.05)
    assert other.poll() is None
    children.close()
