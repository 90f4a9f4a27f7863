"""What db.py makes of each error of failures.DECISIONS: from a real server where one can be made to raise it,
and from a proxy that says it was one where none can.
"""

import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest
from local.postgres import Postgres
from psycopg.rows import DictRow, dict_row
from tests import kills
from tests.databases import Database, await_waiting
from tests.ledgers import Kept, assert_books_balance, entries, new_account
from tests.processes import race
from tests.tcp_proxy import Proxy
from tests.wire import Message, error_response

from backplane import config, db, failures, problems
from backplane.failures import Verdict

FATAL = ("08006", "08P01", "57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "53300")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Pauses between attempts take no time; in each the next of this list is done."""
    pending: list[Callable[[], object]] = []

    def pause(_: float) -> None:
        if pending:
            pending.pop(0)()

    monkeypatch.setattr(db, "time", SimpleNamespace(sleep=pause))  # not everyone's: servers are waited for
    return pending


@pytest.fixture
def notes(app_db: Database) -> Iterator[psycopg.Connection[DictRow]]:
    with app_db.connect() as owner:
        owner.execute("CREATE TABLE public.notes (text text); GRANT ALL ON public.notes TO backplane_app")
        yield owner


@contextmanager
def to(url: str) -> Iterator[None]:
    """backplane.db connects there."""
    before = os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = url
    config.settings.cache_clear()
    db.reset()
    try:
        yield
    finally:
        db.reset()
        os.environ.pop("DATABASE_URL")
        if before:
            os.environ["DATABASE_URL"] = before
        config.settings.cache_clear()


def texts(owner: psycopg.Connection[DictRow]) -> list[str]:
    return [row["text"] for row in owner.execute("SELECT text FROM public.notes ORDER BY text")]


def noting(*then: Callable[[db.Tx], object]) -> tuple[Callable[[db.Tx], str], list[int]]:
    """Work that writes a note and then, the n-th time, does the n-th of these; and whose sessions did it."""
    sessions: list[int] = []

    def work(tx: db.Tx) -> str:
        sessions.append(tx.info.backend_pid)
        tx.execute("INSERT INTO public.notes VALUES ('once')")
        if len(sessions) <= len(then):
            then[len(sessions) - 1](tx)
        return "done"

    return work, sessions


# ---- the table ----


def raising(code: str) -> Callable[[db.Tx], object]:
    query = f"DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '{code}'; END $$"
    return lambda tx: tx.execute(query.encode())


@pytest.mark.usefixtures("pauses")
def test_an_error_in_the_work_is_repeated_here_or_elsewhere_or_refused_as_the_table_says(
    notes: psycopg.Connection[DictRow],
) -> None:
    codes = [code if len(code) == 5 else f"{code}006" for code in failures.DECISIONS]
    for code in codes:
        decision = failures.DECISIONS.get(code) or failures.DECISIONS[code[:2]]
        work, sessions = noting(raising(code))
        notes.execute("TRUNCATE public.notes")
        if decision.verdict is Verdict.REFUSE:
            with pytest.raises(problems.Unavailable) as refused:
                db.run(work)
            assert refused.value.headers()["retry-after"] == str(decision.retry_after)
            assert (len(sessions), texts(notes)) == (1, []), code
        else:
            assert db.run(work) == "done"
            same = decision.verdict is Verdict.REPEAT
            assert (len(sessions), len(set(sessions)), texts(notes)) == (2, 1 if same else 2, ["once"]), code


@pytest.mark.parametrize("code", FATAL)
def test_a_session_that_is_ended_has_done_nothing_before_commit_and_who_knows_what_at_it(
    app_db: Database, notes: psycopg.Connection[DictRow], pauses: list[Callable[[], object]], code: str
) -> None:
    def at(word: bytes) -> Callable[[Message], bytes | None]:
        def answer(message: Message) -> bytes | None:
            if word not in message.data:
                return None
            proxy.answer = None
            return error_response(code)

        return answer

    with Proxy(app_db.app) as proxy, to(proxy.url):
        db.connection()
        work, sessions = noting()
        proxy.answer = at(b"INSERT")
        if failures.DECISIONS.get(code) and failures.DECISIONS[code].verdict is Verdict.REFUSE:
            with pytest.raises(problems.Unavailable):
                db.run(work)
        else:
            assert db.run(work) == "done"
        assert texts(notes) == ["once"] * (len(sessions) - 1)

        work, sessions = noting()
        proxy.answer = at(b"COMMIT\0")
        with pytest.raises(db.CommitUnknown):
            db.run(work)
        assert len(sessions) == 1

        notes.execute("TRUNCATE public.notes")
        proxy.answer = at(b"INSERT")
        with pytest.raises(db.CommitUnknown):
            db.call("INSERT INTO public.notes VALUES (%(text)s)", {"text": "a call"})
        assert texts(notes) == []
        proxy.answer = at(b"SELECT")
        if code == "25P04":
            with pytest.raises(problems.Unavailable):
                db.call("SELECT 1 AS one", repeatable=True)
        else:
            assert db.call("SELECT 1 AS one", repeatable=True) == {"one": 1}
    assert not pauses


# ---- real ones ----


@pytest.mark.usefixtures("pauses")
def test_a_write_that_was_overtaken_is_repeated(notes: psycopg.Connection[DictRow]) -> None:
    notes.execute("INSERT INTO public.notes VALUES ('overtaken')")

    def work(tx: db.Tx) -> None:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        tx.execute("SELECT * FROM public.notes")
        if not seen:
            notes.execute("UPDATE public.notes SET text = 'meanwhile'")
        seen.append(tx.info.backend_pid)
        tx.execute("UPDATE public.notes SET text = text || ', then this'")

    seen: list[int] = []
    db.run(work)
    assert texts(notes) == ["meanwhile, then this"]
    assert len(seen) == 2
    assert len(set(seen)) == 1


@pytest.mark.usefixtures("pauses")
def test_a_deadlock_is_resolved_by_repeating(app_db: Database, notes: psycopg.Connection[DictRow]) -> None:
    notes.execute("INSERT INTO public.notes VALUES ('a'), ('b')")
    query = "UPDATE public.notes SET text = text WHERE text = %s"
    attempts: list[int] = []
    with app_db.connect() as other:
        other.execute("SET deadlock_timeout = '1h'")  # it is ours to notice
        other.execute("BEGIN")
        other.execute(query, ["b"])
        crossing = threading.Thread(target=lambda: other.execute(query, ["a"]))

        def work(tx: db.Tx) -> None:
            attempts.append(tx.info.backend_pid)
            if len(attempts) == 1:
                tx.execute(query, ["a"])
                crossing.start()
                await_waiting(notes, 1)
                tx.execute(query, ["b"])
            crossing.join(60)  # it has what it waited for
            other.execute("COMMIT")
            tx.execute(query, ["a"])

        db.run(work)
    assert len(attempts) == 2
    assert len(set(attempts)) == 1


def test_a_role_with_too_many_connections_waits_for_one_and_is_told_to_come_again(
    app_db: Database, notes: psycopg.Connection[DictRow], pauses: list[Callable[[], object]]
) -> None:
    db.reset()
    notes.execute("ALTER ROLE backplane_app CONNECTION LIMIT 1")
    try:
        with app_db.connect("backplane_app") as occupant:
            with pytest.raises(problems.Unavailable, match="can't be reached") as refused:
                db.run(lambda tx: tx.execute("SELECT 1"))
            assert refused.value.headers()["retry-after"]
            pauses.append(occupant.close)
            work, _ = noting()
            assert db.run(work) == "done"
    finally:
        notes.execute("ALTER ROLE backplane_app CONNECTION LIMIT -1")
    assert texts(notes) == ["once"]


def test_the_writer_that_became_a_reader_is_left_for_the_one_its_name_leads_to_now(
    app_db: Database,
    notes: psycopg.Connection[DictRow],
    pauses: list[Callable[[], object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leads_to = ["127.0.0.2"]
    resolve = socket.getaddrinfo

    def resolved(host: str, *arguments: Any, **options: Any) -> Any:
        return resolve(leads_to[0] if host == "writer.example" else host, *arguments, **options)

    def fail_over() -> None:
        notes.execute("ALTER ROLE backplane_app RESET default_transaction_read_only")
        leads_to[0] = "127.0.0.3"

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    pauses.append(fail_over)
    with Proxy(app_db.app, address="127.0.0.2") as old:
        port = urlsplit(old.url).port or 0
        with Proxy(app_db.app, address="127.0.0.3", port=port) as new:
            notes.execute("ALTER ROLE backplane_app SET default_transaction_read_only = on")
            try:
                with to(old.url.replace("127.0.0.2", "writer.example")):
                    work, sessions = noting()
                    assert db.run(work) == "done"
            finally:
                fail_over()
            assert (len(sessions), texts(notes)) == (2, ["once"])
            assert any(b"INSERT" in flight for flight in old.said)
            assert any(b"INSERT" in flight for flight in new.said)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(
    "spoil",
    ["ALTER TABLE public.notes ADD COLUMN later text", "SELECT 1"],
    ids=["a migration changed its answer", "a pooler gave another session"],
)
def test_a_prepared_statement_that_is_of_no_use_any_more_is_forgotten_with_its_session(
    notes: psycopg.Connection[DictRow], monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    monkeypatch.setenv("DATABASE_PREPARE_THRESHOLD", "0")
    config.settings.cache_clear()
    db.reset()
    notes.execute("INSERT INTO public.notes VALUES ('kept')")
    query = "SELECT * FROM public.notes WHERE text = %(text)s"
    for _ in range(2):
        assert db.call(query, {"text": "kept"}) == {"text": "kept"}
    pid = db.connection().info.backend_pid
    notes.execute(spoil.encode())
    if spoil == "SELECT 1":
        db.connection().pgconn.exec_(b"DEALLOCATE ALL")  # behind psycopg's back
    found = db.call(query, {"text": "kept"})
    assert found is not None
    assert found["text"] == "kept"
    assert db.connection().info.backend_pid != pid
    config.settings.cache_clear()


# ---- a server that goes and comes back ----


@dataclass(frozen=True)
class Own:
    """A server that may be stopped, with a login of no powers and a table for it."""

    server: Postgres

    def connect(self) -> psycopg.Connection[DictRow]:
        return psycopg.connect(self.server.url(), autocommit=True, row_factory=dict_row)

    def end(self, how: str) -> None:
        pid = self.server.pid
        assert pid is not None
        match how:
            case "fast":
                self.server.stop()
            case "immediate":
                os.kill(pid, signal.SIGQUIT)
                self.server.stop()
            case "crash":
                with self.connect() as victim:
                    os.kill(victim.info.backend_pid, signal.SIGKILL)
                    with suppress(psycopg.OperationalError):
                        victim.execute("SELECT pg_sleep(60)")

    def come_back(self) -> None:
        self.server.start()
        for _ in range(3000):
            with suppress(psycopg.OperationalError), self.connect():
                return
            threading.Event().wait(0.01)
        raise AssertionError("the server does not come back")


@pytest.fixture(scope="module")
def own(new_server_folder: Callable[[], Path]) -> Iterator[Own]:
    server = Postgres(new_server_folder(), settings={"fsync": "off"})
    made = Own(server.start())
    with made.connect() as superuser:
        superuser.execute(
            """
            CREATE ROLE plain LOGIN PASSWORD 'plain';
            CREATE TABLE public.notes (text text);
            GRANT ALL ON public.notes TO plain;
            """
        )
    yield made
    server.forget()


@pytest.mark.parametrize("how", ["fast", "immediate", "crash"])
def test_work_that_a_restart_interrupts_is_done_once_when_the_server_is_back(
    own: Own, pauses: list[Callable[[], object]], how: str
) -> None:
    def interrupted(tx: db.Tx) -> None:
        own.end(how)
        for _ in range(100_000):  # after a crash the session hears of its end when the server comes to it
            tx.execute("SELECT 1")

    with own.connect() as superuser:
        superuser.execute("TRUNCATE public.notes")
    with to(own.server.url(user="plain", password="plain")):
        work, sessions = noting(interrupted)
        pauses.extend([lambda: None, own.come_back])  # the second attempt finds nobody, or a server not ready
        assert db.run(work) == "done"
    assert len(sessions) == 2 or how == "crash"
    with own.connect() as superuser:
        assert texts(superuser) == ["once"]


def test_a_commit_that_stands_though_its_session_was_ended_is_unknown(own: Own) -> None:
    with own.connect() as superuser, to(own.server.url(user="plain", password="plain")):
        superuser.execute("TRUNCATE public.notes")
        superuser.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        superuser.execute("SELECT pg_reload_conf()")
        work, sessions = noting(lambda _: superuser.execute("SELECT pg_sleep(0.05)"))
        ending = threading.Thread(target=end_what_waits_for_a_standby, args=(own,))
        ending.start()
        try:
            with pytest.raises(db.CommitUnknown):
                db.run(work)
        finally:
            ending.join(60)
            superuser.execute("ALTER SYSTEM RESET synchronous_standby_names")
            superuser.execute("SELECT pg_reload_conf()")
        assert (len(sessions), texts(superuser)) == (1, ["once"])


def end_what_waits_for_a_standby(own: Own) -> None:
    with own.connect() as killer:
        for _ in range(6000):
            ended = killer.execute(
                """
                SELECT pg_terminate_backend(pid)
                FROM pg_stat_activity
                WHERE usename = 'plain' AND wait_event = 'SyncRep'
                """
            )
            if ended.rowcount:
                return
            killer.execute("SELECT pg_sleep(0.01)")


# ---- a storm ----

DEBITS = 40  # of each process
DEBITING = f"""
import sys
from uuid import UUID
from backplane import db, ledger, problems

name, organization_id = sys.argv[1:]
db.connection()
print("ready", flush=True)
sys.stdin.readline()
for number in range({DEBITS}):
    while True:
        try:
            made, _ = ledger.debit(
                UUID(organization_id), "ai_text_chat", 1, key=f"{{name}}-{{number}}", actor="user:1"
            )
        except problems.Unavailable:
            continue  # as who holds the key may
        break
    print(made.id)
"""


@dataclass(frozen=True)
class Booked:
    """How many debits stand by now."""

    owner: psycopg.Connection[DictRow]
    organization_id: UUID

    def __len__(self) -> int:
        row = self.owner.execute(
            "SELECT count(*) AS n FROM credits.entries WHERE kind = 'debit' AND organization_id = %s",
            [self.organization_id],
        ).fetchone()
        return row["n"] if row else 0


def test_debits_of_processes_whose_sessions_are_ended_all_the_time_are_each_booked_once(
    system_db: Database,
) -> None:
    organization_id = new_account(system_db, 1000)
    over = threading.Event()
    killed: list[int] = []
    with system_db.connect() as owner:
        done = Booked(owner, organization_id)
        storm = threading.Thread(
            target=lambda: killed.append(
                kills.amid(system_db, "backplane_system", done, over, random.Random(1))
            )
        )
        storm.start()
        try:
            answered = race(DEBITING, *([f"process-{number}", str(organization_id)] for number in range(3)))
        finally:
            over.set()
            storm.join(60)
        booked = [entry for entry in entries(Kept(owner), organization_id) if entry["kind"] == "debit"]
        assert_books_balance(Kept(owner), organization_id)
    assert killed[0] > 0, "how many is a matter of how fast the debits are"
    assert sorted(word for words in answered for word in words) == sorted(
        str(entry["id"]) for entry in booked
    )
    assert len(booked) == 3 * DEBITS
