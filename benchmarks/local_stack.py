"""What the local cloud adds to a request, and how it scales with the pool of environments.

One request (`GET /v1/credits` with a session token) on one database, three ways: the handler called in this
process, which is the limit; through the Invoke API, which adds the runtime emulator; through the
gateway, which is what a browser or a sender meets.
"""

import http.client
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local.checkout import ROOT
from local.demo import scratch_stack
from local.story import Story
from local.story_rows import sign_up

from benchmarks import results

WARM = 50
REQUESTS = 400
PATH = "/v1/credits"
POOLS = (1, 2, 4)
CLIENTS = (1, 8, 32)


def main() -> None:
    layers: list[list[str]] = []
    scaling: list[list[str]] = []
    for pool in POOLS:
        os.environ["BACKPLANE_LOCAL_POOL"] = str(pool)
        with (
            tempfile.TemporaryDirectory(prefix="backplane-bench-") as folder,
            scratch_stack(Path(folder)) as stack,
        ):
            story = Story(stack)
            sign_up(story)
            if not layers:
                layers = measure_layers(story)
            scaling.append([str(pool), *(f"{throughput(story, clients):.0f}" for clients in CLIENTS)])
    results.write(
        "Local cloud: a request's way",
        "`GET /v1/credits` with a session token, one after the other; median / 99th percentile in ms.",
        ["way", "ms", "of it above the handler"],
        layers,
        notes="What the last row has above the first is the local cloud's own; on AWS it is AWS's.",
    )
    results.write(
        "Local cloud: requests a second by pool",
        "The same request through the gateway from several clients at once, by the number of a function's "
        "environments (BACKPLANE_LOCAL_POOL).",
        ["environments", *(f"{clients} clients" for clients in CLIENTS)],
        scaling,
        notes="Environments, gateway, database and clients share the machine's cores.",
    )


def measure_layers(story: Story) -> list[list[str]]:
    event = _event(story)
    ways: dict[str, Callable[[], object]] = {
        "handler in process": _in_process(story, event),
        "Invoke API and runtime emulator": _invoke(story, event),
        "gateway": _gateway(story),
    }
    for work in ways.values():
        for _ in range(WARM):
            work()
    # In turns, so that what else the machine does falls on all alike.
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REQUESTS):
        for way, work in ways.items():
            began = time.perf_counter()
            work()
            taken[way].append(time.perf_counter() - began)
    limit = sorted(next(iter(taken.values())))[REQUESTS // 2]
    return [
        [way, results.milliseconds(seconds), f"{(sorted(seconds)[REQUESTS // 2] - limit) * 1000:.2f}"]
        for way, seconds in taken.items()
    ]


def throughput(story: Story, clients: int) -> float:
    """Requests a second from so many clients at once, each on a connection of its own."""

    def client(_: int) -> None:
        ask = _gateway(story)
        for _ in range(each):
            ask()

    each = max(REQUESTS // clients, 20)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))  # every environment is warm
        began = time.perf_counter()
        list(pool.map(client, range(clients)))
    return each * clients / (time.perf_counter() - began)


def _event(story: Story) -> dict[str, Any]:
    return {
        "version": "2.0",
        "routeKey": f"ANY {PATH}",
        "rawPath": PATH,
        "rawQueryString": "",
        "headers": {"authorization": f"Bearer {story.token(story.user)}"},
        "requestContext": {
            "requestId": str(uuid.uuid4()),
            "stage": "$default",
            "http": {"method": "GET", "path": PATH, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"},
        },
        "isBase64Encoded": False,
    }


def _in_process(story: Story, event: dict[str, Any]) -> Callable[[], object]:
    os.environ |= {
        "DATABASE_URL": story.stack.database_url,
        "CLERK_ISSUER": story.stack.issuer,
        "ALLOWED_ORIGINS": "http://localhost:3000",
        "DATABASE_PREPARE_THRESHOLD": "5",
        "POWERTOOLS_LOG_LEVEL": "ERROR",
    }
    sys.path[:0] = [str(ROOT / "functions" / "credits")]
    import credits as function

    class Context:
        function_name = memory_limit_in_mb = invoked_function_arn = aws_request_id = "bench"

        def get_remaining_time_in_millis(self) -> int:
            return 15_000

    handler: Any = function.handler

    def work() -> None:
        answer = handler(event, Context())
        if answer["statusCode"] != http.client.OK:
            raise RuntimeError(answer["body"])

    return work


def _invoke(story: Story, event: dict[str, Any]) -> Callable[[], object]:
    name = story.stack.functions["credits"]
    payload = json.dumps(event).encode()
    return _asker(story.stack.lambda_url, "POST", f"/2015-03-31/functions/{name}/invocations", payload, {})


def _gateway(story: Story) -> Callable[[], object]:
    headers = {"authorization": f"Bearer {story.token(story.user)}"}
    return _asker(story.stack.api_url, "GET", PATH, None, headers)


def _asker(
    url: str, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> Callable[[], object]:
    """Asks again and again on one connection, which is kept alive."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def work() -> None:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(answer.decode())

    return work
