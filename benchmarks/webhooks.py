"""What a Stripe event costs from its signature to its commit, and how that scales with processes.

The same signed `customer.subscription.updated`, each newer than the last, on one server, in turns:

- through the function's own handler, in process: verified, recorded, applied, its domain event written;
- its SQL alone: the statements that the handler sent, recorded and sent again by bare psycopg;
- @supabase/stripe-sync-engine's processWebhook, which stores the objects and keeps no account of events. It
  needs node and npm, and is left out, with a word, where they are missing.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import psycopg
from local.checkout import ROOT
from local.postgres import Postgres
from psycopg.rows import dict_row
from tests.databases import ROLES, create_database, on
from tests.overheard import hearing
from tests.senders import (
    CLERK_SECRET,
    FIRST,
    SECOND,
    STRIPE_SECRET,
    Context,
    checkout_session,
    clerk_user,
    http_event,
    post_clerk,
    post_stripe,
    stripe_event,
    stripe_signature,
    subscription,
)

from benchmarks import results

PEER = Path(__file__).parent / "stripe_sync_engine"
CUSTOMERS = 20  # a process's own, so that none waits for another's lock
ROUNDS = 6  # measured, after one that warms
EVENTS = {1: 150, 8: 40}  # of a round, a process
PASSWORD = "bench"  # noqa: S105  of a server that lives as long as this does

Signed = tuple[str, str]  # body and signature
Statements = list[tuple[Any, Any]]  # query and parameters


class Lane(Protocol):
    """One process of one way. `run` answers the seconds that each event took."""

    @property
    def pid(self) -> int: ...

    def run(self, events: Sequence[Any]) -> list[float]: ...


@dataclass(frozen=True)
class Round:
    rate: float  # events a second
    seconds: list[float]  # that each event took
    client: float  # seconds of processor time an event
    server: float


@dataclass
class Way:
    name: str
    lanes: Sequence[Lane]
    url: str  # of its database
    rounds: list[Round] = field(default_factory=list)

    def measure(self, parts: Sequence[Sequence[Any]]) -> None:
        """Gives each lane its part, all at once."""
        before = self._processor_time()
        with ThreadPoolExecutor(len(parts)) as pool:
            began = time.perf_counter()
            taken = list(pool.map(lambda lane, part: lane.run(part), self.lanes, parts))
            seconds = time.perf_counter() - began
        after = self._processor_time()
        events = sum(map(len, parts))
        client, server = ((now - then) / events for then, now in zip(before, after, strict=True))
        self.rounds.append(Round(events / seconds, [one for part in taken for one in part], client, server))

    def _processor_time(self) -> tuple[float, float]:
        """Seconds that the lanes, and their sessions at the server, have computed so far."""
        with psycopg.connect(self.url) as connection:
            sessions = connection.execute(
                """
                SELECT pid
                FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                  AND backend_type = 'client backend'
                """
            ).fetchall()
        return sum(_processor_time(lane.pid) for lane in self.lanes), sum(
            _processor_time(pid) for (pid,) in sessions
        )

    @property
    def rate(self) -> float:
        return statistics.median(one.rate for one in self.rounds[1:])

    @property
    def seconds(self) -> list[float]:
        return [one for part in self.rounds[1:] for one in part.seconds]

    @property
    def processor(self) -> str:
        client = statistics.median(one.client for one in self.rounds[1:])
        server = statistics.median(one.server for one in self.rounds[1:])
        return f"{client * 1000:.2f} + {server * 1000:.2f}"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="backplane-bench-") as folder, ExitStack() as stack:
        server = stack.enter_context(Postgres(Path(folder) / "server"))
        stack.callback(server.forget)
        url = server.url()
        _prepare(url)
        peer = _install_peer(Path(folder) / "peer")
        rows = []
        for count in EVENTS:
            rows += _measure(url, count, peer)
    missing = "" if peer else " Node or npm is missing: without the peer."
    results.write(
        "Webhooks: signature to commit",
        "`customer.subscription.updated`, each newer than the last; median of the rounds; an event's time as "
        "median / 99th percentile in ms; its processor time in ms, of the client + of its session at the "
        f"server.{missing}",
        ["processes", "way", "events/s", "of the peer's", "of its SQL's", "ms", "processor ms"],
        rows,
        notes="Each event was recorded, told and put into the history once, and of each subscription the "
        "newest state stands: the benchmark holds it against what it sent. The "
        "peer commits two or three times an event and neither recognises a repetition nor tells anybody; "
        "ours commits once. "
        "Processes, server and clients share the machine's cores.",
    )


def _measure(url: str, count: int, peer: Path | None) -> list[list[str]]:
    with ExitStack() as stack:
        name = f"bench_{count}"
        for suffix in ("", "_recorded", "_bare"):
            create_database(url, f"{name}{suffix}", "prepared")
        ours, recorder, bare = (
            [
                stack.enter_context(
                    _process(target, on(url, f"{name}{suffix}", user="backplane_system", password=PASSWORD))
                )
                for _ in range(count if suffix != "_recorded" else 1)
            ]
            for target, suffix in ((_handle, ""), (_record, "_recorded"), (_replay, "_bare"))
        )
        ways = [Way("handler", ours, on(url, name)), Way("its SQL alone", bare, on(url, f"{name}_bare"))]
        if peer is not None:
            create_database(url, f"{name}_peer")
            nodes = stack.enter_context(_peers(peer, on(url, f"{name}_peer"), count))
            ways.append(Way("stripe-sync-engine", nodes, on(url, f"{name}_peer")))
        for number in range(ROUNDS + 1):
            parts = [_events(lane, number, EVENTS[count]) for lane in range(count)]
            statements: list[Any] = [recorder[0].ask(part) for part in parts]
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                way.measure(statements if way.lanes is bare else parts)
        rounds = range(ROUNDS + 1)
        _check(on(url, name), [_events(lane, n, EVENTS[count]) for n in rounds for lane in range(count)])
    others = {way.name: way.rate for way in ways}
    return [
        [
            str(count),
            way.name,
            f"{way.rate:.0f}",
            f"{way.rate / others['stripe-sync-engine']:.2f}" if peer else "",
            f"{way.rate / others['its SQL alone']:.2f}",
            results.milliseconds(way.seconds),
            way.processor,
        ]
        for way in ways
    ]


# ---- the world ----


def _prepare(url: str) -> None:
    """A migrated database with customers who are linked to organisations."""
    sys.path[:0] = [str(ROOT / "functions" / name) for name in ("migrate", "stripe_webhook", "clerk_webhook")]
    import migrate

    create_database(url, "prepared")
    with psycopg.connect(on(url, "prepared"), autocommit=True, row_factory=dict_row) as connection:
        migrate.migrate(connection, dict.fromkeys(ROLES, PASSWORD))
    with _process(_link, on(url, "prepared", user="backplane_system", password=PASSWORD)) as links:
        links.ask(max(EVENTS))


def _events(lane: int, number: int, count: int) -> list[Signed]:
    """A round's events, newer than all before, of the lane's own customers."""
    signed = []
    for index in range(count):
        who = f"{lane}_{index % CUSTOMERS}"
        age = number * count + index
        state = subscription(id=f"sub_{who}", customer=f"cus_{who}", end=SECOND + age)
        event = stripe_event(
            "customer.subscription.updated",
            state,
            created=FIRST + age,
            event_id=f"evt_{lane}_{number}_{index}",
        )
        body = json.dumps(event)
        signed.append((body, stripe_signature(body.encode())))
    return signed


def _check(url: str, parts: Sequence[Sequence[Signed]]) -> None:
    """Raises AssertionError where an event was lost, or told twice, or not the newest state stands."""
    sent = [json.loads(body) for part in parts for body, _ in part]
    told = Counter(event["data"]["object"]["id"] for event in sent)
    newest = {}
    for event in sorted(sent, key=lambda event: int(event["created"])):
        state = event["data"]["object"]
        newest[state["id"]] = (state["items"]["data"][0]["current_period_end"], event["id"])
    once = Counter({event["id"]: 1 for event in sent})
    with psycopg.connect(url) as connection:
        recorded = connection.execute(
            """
            SELECT event_id
            FROM platform.webhook_inbox
            WHERE event_type = 'customer.subscription.updated' AND status = 'processed'
            """
        ).fetchall()
        history = connection.execute("SELECT provider_event_id FROM billing.subscription_events").fetchall()
        announced = connection.execute(
            """
            SELECT payload ->> 'provider_subscription_id'
            FROM platform.outbox
            WHERE type = 'subscription.changed'
            """
        ).fetchall()
        stands = connection.execute(
            """
            SELECT provider_subscription_id, extract(epoch FROM current_period_end)::bigint,
                   split_part(as_of, '.', 5)
            FROM billing.subscriptions
            """
        ).fetchall()
    for what, is_there, expected in (
        ("recorded", Counter(name for (name,) in recorded), once),
        ("in the history", Counter(name for (name,) in history), once),
        ("told", Counter(name for (name,) in announced), told),
        ("what stands", {name: (end, event_id) for name, end, event_id in stands}, newest),
    ):
        if is_there != expected:
            wrong = [
                name for name in is_there.keys() | expected.keys() if is_there.get(name) != expected.get(name)
            ]
            raise AssertionError(
                f"{what}: of {len(sent)} events these are not as they were sent: {wrong[:10]}"
            )


# ---- our processes ----


def _processor_time(pid: int) -> float:
    """Seconds that a process has computed, in all its threads: utime and stime of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Process:
    pipe: Connection
    pid: int

    def ask(self, work: Any) -> Any:
        self.pipe.send(work)
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self, events: Sequence[Any]) -> list[float]:
        taken: list[float] = self.ask(events)
        return taken


@contextmanager
def _process(target: Any, url: str) -> Iterator[Process]:
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_serve, args=(target, url, far), daemon=True)
    process.start()
    far.close()
    try:
        yield Process(near, process.ident or 0)
    finally:
        near.close()  # it ends when nobody asks any more
        process.join(10)
        process.kill()


def _serve(target: Any, url: str, pipe: Connection) -> None:
    """A process of a function, as Lambda has it: one event after the other."""
    sys.path[:0] = [str(ROOT / "functions" / name) for name in ("stripe_webhook", "clerk_webhook")]
    os.environ |= {
        "DATABASE_URL": url,
        "DATABASE_PREPARE_THRESHOLD": "5",
        "STRIPE_WEBHOOK_SECRET_ARN": "stripe",
        "CLERK_WEBHOOK_SECRET_ARN": "clerk",
        "HASH_KEY_SECRET_ARN": "hash",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    from backplane import secrets

    values: dict[str, Any] = {"stripe": [STRIPE_SECRET], "clerk": [CLERK_SECRET], "hash": {"key": "a key"}}
    secrets.get = lambda arn, *, refresh=False: values[arn]  # noqa: ARG005  there is nothing to refresh
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  a log is written, as in a function, and not kept
        sys.stdout = nowhere
        while True:
            try:
                work = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(target(work))
            except Exception as error:  # noqa: BLE001  whoever asked must hear of it
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _link(lanes: int) -> None:
    for lane in range(lanes):
        for number in range(CUSTOMERS):
            who = f"{lane}_{number}"
            post_clerk(clerk_user(f"user_{who}", email=f"{who}@example.com"), f"msg_{who}")
            session = checkout_session(client_reference_id=f"user_{who}", customer=f"cus_{who}")
            answer = post_stripe(stripe_event("checkout.session.completed", session))
            if answer.body["status"] != "processed":
                raise RuntimeError(f"{who} was not linked: {answer.body}")


def _handle(events: Sequence[Signed]) -> list[float]:
    import stripe_webhook

    handler: Any = stripe_webhook.handler
    requests = [
        http_event("POST", "/webhooks/stripe", body=body, headers={"stripe-signature": signature})
        for body, signature in events
    ]
    context = Context()
    taken = []
    for request in requests:
        began = time.perf_counter()
        answer = handler(request, context)
        taken.append(time.perf_counter() - began)
        if '"processed"' not in answer["body"]:
            raise RuntimeError(answer["body"])
    return taken


def _record(events: Sequence[Signed]) -> list[Statements]:
    """What the handler says to the database, event by event."""
    said: list[Statements] = []
    with hearing(lambda query, params: said[-1].append((query, params))):
        for event in events:
            said.append([])
            _handle([event])
    return said


def _replay(events: Sequence[Statements]) -> list[float]:
    from backplane import db

    connection = db.connection()
    taken = []
    for statements in events:
        began = time.perf_counter()
        for query, params in statements:
            cursor = psycopg.Cursor(connection)
            cursor.execute(query, params)
            if cursor.description:
                cursor.fetchall()
        taken.append(time.perf_counter() - began)
    return taken


# ---- the peer's ----


@dataclass
class Node:
    process: "subprocess.Popen[str]"

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, events: Sequence[Any]) -> list[float]:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the peer has no pipes")
        stdin.write(json.dumps(events) + "\n")
        stdin.flush()
        if not (line := stdout.readline()):
            raise RuntimeError(f"the peer ended with {self.process.wait()}; its words are above")
        taken: list[float] = json.loads(line)
        return taken


@contextmanager
def _peers(folder: Path, url: str, count: int) -> Iterator[list[Node]]:
    environment = os.environ | {"DATABASE_URL": url, "STRIPE_WEBHOOK_SECRET": STRIPE_SECRET}
    command = ["node", "process.cjs"]
    subprocess.run([*command, "migrate"], cwd=folder, env=environment, check=True)  # noqa: S603  ours
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    nodes = [
        Node(subprocess.Popen([*command, "run"], cwd=folder, env=environment, **pipes))  # noqa: S603
        for _ in range(count)
    ]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.process.kill()
            node.process.communicate()


def _install_peer(folder: Path) -> Path | None:
    """The folder in which it runs; None where it cannot be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        print("Node or npm is missing: the peer is left out.", flush=True)
        return None
    shutil.copytree(PEER, folder)
    installed = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--silent"],  # noqa: S607
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        print(f"The peer could not be installed and is left out:\n{installed.stderr[-500:]}", flush=True)
        return None
    return folder
