"""backplane.db: what happens to work when the database, the network or the work itself fails."""

import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import DictRow
from tests.databases import Database
from tests.tcp_proxy import Cut, Proxy

from backplane import bounded, config, db, deadline, problems, slow_log

ORGANIZATION = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
USER = UUID("01890a5d-ac96-774b-bcce-b302099a8058")


@pytest.fixture
def notes(database: Database) -> Iterator[psycopg.Connection[DictRow]]:
    """The owner's connection to a database with a table anybody may write, and the role app."""
    with database.connect() as owner:
        owner.execute(
            """
            CREATE TABLE public.notes (text text CONSTRAINT once UNIQUE DEFERRABLE INITIALLY DEFERRED);
            GRANT ALL ON public.notes TO backplane_app;
            """
        )
        with database.as_role("backplane_app"):
            yield owner


@pytest.fixture
def proxy(
    notes: psycopg.Connection[DictRow], database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """backplane.db connects through it as backplane_app, to the database with the notes."""
    assert notes.info.dbname == database.name
    with Proxy(database.app) as proxy:
        use_url(monkeypatch, proxy.url)
        yield proxy
        db.reset()


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted instead of slept."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def use_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    config.settings.cache_clear()
    db.reset()


def value(query: bytes) -> object:
    row = db.call(query)
    return next(iter(row.values())) if row else None


def texts(owner: psycopg.Connection[DictRow]) -> list[str]:
    return [row["text"] for row in owner.execute("SELECT text FROM public.notes ORDER BY text")]


def write(text: str) -> Callable[[db.Tx], None]:
    def work(tx: db.Tx) -> None:
        tx.execute("INSERT INTO public.notes VALUES (%(text)s)", {"text": text})

    return work


def failing(code: str, times: int, attempts: list[int]) -> Callable[[db.Tx], str]:
    """Work that writes, fails with an SQLSTATE so many times, and then succeeds."""

    def work(tx: db.Tx) -> str:
        attempts.append(tx.info.backend_pid)
        write(f"attempt {len(attempts)}")(tx)
        if len(attempts) <= times:
            tx.execute(f"DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '{code}'; END $$".encode())
        return "done"

    return work


# ---- transactions and whom they belong to ----


@pytest.mark.usefixtures("app_db")
def test_a_transaction_knows_its_organisation_and_user() -> None:
    query = "SELECT current_setting('app.organization_id') AS o, current_setting('app.user_id') AS u"
    with db.transaction(organization_id=ORGANIZATION, user_id=USER) as tx:
        assert tx.execute(query).fetchone() == {"o": str(ORGANIZATION), "u": str(USER)}


@pytest.mark.usefixtures("app_db")
def test_the_next_transaction_on_the_connection_does_not_know_them() -> None:
    query = b"SELECT concat(current_setting('app.organization_id', true), current_setting('lock_timeout'))"
    pid = value(b"SELECT pg_backend_pid()")
    with db.transaction(organization_id=ORGANIZATION):
        pass
    assert value(query) == "10s"
    with pytest.raises(ZeroDivisionError), db.transaction(organization_id=ORGANIZATION):
        raise ZeroDivisionError
    assert value(query) == "10s"
    with pytest.raises(psycopg.errors.DivisionByZero), db.transaction(organization_id=ORGANIZATION) as tx:
        tx.execute("SELECT 1 / 0")
    assert value(query) == "10s"
    assert value(b"SELECT pg_backend_pid()") == pid


@pytest.mark.usefixtures("app_db")
def test_an_organisation_is_a_uuid_and_nothing_else() -> None:
    with (
        pytest.raises(ValueError, match="badly formed"),
        db.transaction(organization_id="'; DROP TABLE x; --"),  # type: ignore[arg-type]
    ):
        pass


def test_an_exception_rolls_back_and_passes_through_unrepeated(notes: psycopg.Connection[DictRow]) -> None:
    attempts: list[int] = []

    def work(tx: db.Tx) -> None:
        attempts.append(1)
        write("gone")(tx)
        raise problems.InsufficientCredits("too few")

    with pytest.raises(problems.InsufficientCredits):
        db.run(work)
    assert (texts(notes), len(attempts)) == ([], 1)


@pytest.mark.usefixtures("app_db")
def test_transactions_do_not_nest() -> None:
    with (
        db.transaction() as tx,
        pytest.raises(RuntimeError, match="don't nest"),
    ):
        db.run(lambda inner: inner)
    assert tx.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_swallowed_error_does_not_pass_for_a_commit(notes: psycopg.Connection[DictRow]) -> None:

    def work(tx: db.Tx) -> None:
        write("gone")(tx)
        with suppress(psycopg.errors.DivisionByZero):
            tx.execute("SELECT 1 / 0")

    with pytest.raises(RuntimeError, match="its error was swallowed"):
        db.run(work)
    assert texts(notes) == []
    assert value(b"SELECT 1") == 1


def test_a_savepoint_confines_an_error(notes: psycopg.Connection[DictRow]) -> None:
    with db.transaction() as tx:
        write("kept")(tx)
        with pytest.raises(psycopg.errors.DivisionByZero), tx.transaction():
            tx.execute("SELECT 1 / 0")
    assert texts(notes) == ["kept"]


@pytest.mark.usefixtures("app_db")
def test_a_transaction_ended_by_the_work_itself_is_reported() -> None:
    with pytest.raises(RuntimeError, match="ended by someone else"), db.transaction() as tx:
        tx.execute("COMMIT")


def test_a_constraint_checked_at_commit_is_the_works_own_error(notes: psycopg.Connection[DictRow]) -> None:
    db.run(write("twice"))
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.run(write("twice"))
    assert texts(notes) == ["twice"]


# ---- round trips ----


def test_begin_with_all_its_settings_is_one_round_trip(proxy: Proxy) -> None:
    db.connection()
    before = proxy.flights
    with db.transaction(organization_id=ORGANIZATION, user_id=USER) as tx:
        assert proxy.flights == before + 1
        tx.execute("SELECT 1")
    assert proxy.flights == before + 3  # BEGIN with its settings, SELECT, COMMIT


def test_a_call_is_one_round_trip(proxy: Proxy) -> None:
    db.connection()
    before = proxy.flights
    assert db.call("SELECT %(n)s::int AS n", {"n": 1}) == {"n": 1}
    assert proxy.flights == before + 1


def test_a_live_connection_is_checked_without_a_word(proxy: Proxy) -> None:
    session = db.connection()
    before = proxy.flights
    assert db.connection() is session
    assert proxy.flights == before


def test_the_role_is_asked_for_once_a_process(proxy: Proxy) -> None:
    for _ in range(3):
        value(b"SELECT 1")
        db.reset()
    assert sum(b"rolbypassrls" in flight for flight in proxy.said) == 1


# ---- connections that die ----


def test_a_connection_that_died_while_idle_is_replaced_unnoticed(notes: psycopg.Connection[DictRow]) -> None:
    pid = db.connection().info.backend_pid
    notes.execute("SELECT pg_terminate_backend(%(pid)s, 5000)", {"pid": pid})
    assert value(b"SELECT pg_backend_pid()") != pid


def test_a_line_cut_while_idle_is_noticed(proxy: Proxy) -> None:
    proxy.cut = Cut(b"SELECT 1", heard=True)
    session = db.connection()
    with pytest.raises(db.CommitUnknown):
        value(b"SELECT 1")
    assert session.closed
    assert value(b"SELECT 2") == 2


def test_a_message_from_the_server_is_no_death(notes: psycopg.Connection[DictRow]) -> None:
    session = db.connection()
    session.execute("LISTEN news")
    notes.execute("NOTIFY news")
    notes.execute("SELECT pg_sleep(0.1)")  # let it arrive: the socket is readable now
    assert db.connection() is session
    assert value(b"SELECT 1") == 1


def test_work_is_repeated_when_its_connection_is_ended_by_an_administrator(
    notes: psycopg.Connection[DictRow],
) -> None:
    pids: list[int] = []

    def work(tx: db.Tx) -> None:
        pids.append(tx.info.backend_pid)
        write("once")(tx)
        if len(pids) == 1:
            notes.execute("SELECT pg_terminate_backend(%(pid)s, 5000)", {"pid": pids[0]})
        tx.execute("SELECT 1")

    db.run(work)
    assert len(set(pids)) == 2
    assert texts(notes) == ["once"]


def test_work_is_repeated_when_the_line_is_cut_before_commit(
    proxy: Proxy, notes: psycopg.Connection[DictRow]
) -> None:
    proxy.cut = Cut(b"INSERT", heard=True)
    db.run(write("once"))
    assert texts(notes) == ["once"]


def test_a_process_that_ends_says_so(proxy: Proxy) -> None:
    program = "from backplane import db; db.call('SELECT 1')"
    paths = os.pathsep.join(path for path in sys.path if path)
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": paths})
    farewell = struct.pack("!ci", b"X", 4)
    for _ in range(3000):
        if proxy.said[-1].endswith(farewell):
            return
        time.sleep(0.01)
    raise AssertionError("it went without a word")


# ---- retries ----


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_a_conflict_repeats_the_whole_transaction_on_the_same_connection(
    notes: psycopg.Connection[DictRow], no_sleep: list[float], code: str
) -> None:
    attempts: list[int] = []
    assert db.run(failing(code, 2, attempts)) == "done"
    assert texts(notes) == ["attempt 3"]
    assert len(set(attempts)) == 1
    assert len(no_sleep) == 2


@pytest.mark.parametrize("code", ["25006", "57P01", "57P03", "08006"])
@pytest.mark.usefixtures("no_sleep")
def test_a_failover_repeats_it_on_a_new_connection(notes: psycopg.Connection[DictRow], code: str) -> None:
    attempts: list[int] = []
    assert db.run(failing(code, 1, attempts)) == "done"
    assert texts(notes) == ["attempt 2"]
    assert len(set(attempts)) == 2


@pytest.mark.usefixtures("no_sleep")
def test_attempts_run_out(notes: psycopg.Connection[DictRow]) -> None:
    attempts: list[int] = []
    with pytest.raises(problems.Unavailable, match="too busy") as gave_up:
        db.run(failing("40001", 99, attempts))
    assert len(attempts) == db.ATTEMPTS
    assert gave_up.value.headers()["retry-after"]
    assert texts(notes) == []


@pytest.mark.usefixtures("notes")
def test_no_attempt_begins_that_the_invocation_has_no_time_for() -> None:
    attempts: list[int] = []

    def work(tx: db.Tx) -> None:
        attempts.append(1)
        db.set_deadline(db.MARGIN)  # time is up
        failing("40001", 99, [])(tx)

    with pytest.raises(problems.Unavailable):
        db.run(work)
    assert attempts == [1]


@pytest.mark.usefixtures("app_db")
def test_transaction_is_one_attempt_and_still_says_unavailable() -> None:
    with pytest.raises(problems.Unavailable), db.transaction() as tx:
        tx.execute("DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '40001'; END $$")


@pytest.mark.usefixtures("app_db")
def test_an_unavailable_of_the_work_itself_is_not_repeated() -> None:
    attempts: list[int] = []

    def work(_: db.Tx) -> None:
        attempts.append(1)
        raise problems.Unavailable("the provider is down")

    with pytest.raises(problems.Unavailable, match="the provider is down"):
        db.run(work)
    assert attempts == [1]


@pytest.mark.usefixtures("no_sleep")
def test_a_call_that_the_server_refused_in_passing_is_repeated(
    notes: psycopg.Connection[DictRow],
) -> None:
    notes.execute(
        """
        CREATE SEQUENCE public.tries;
        GRANT ALL ON SEQUENCE public.tries TO backplane_app;
        CREATE FUNCTION public.unlucky() RETURNS bigint LANGUAGE plpgsql AS $$
        DECLARE n bigint := nextval('public.tries');
        BEGIN
            IF n < 3 THEN RAISE EXCEPTION 'made up' USING ERRCODE = '40001'; END IF;
            RETURN n;
        END $$;
        GRANT EXECUTE ON FUNCTION public.unlucky() TO backplane_app;
        """
    )
    assert value(b"SELECT public.unlucky()") == 3


# ---- commits that nobody answered ----


@pytest.mark.parametrize(("heard", "kept"), [(True, ["once"]), (False, [])])
def test_a_commit_without_an_answer_is_unknown_and_not_repeated(
    proxy: Proxy, notes: psycopg.Connection[DictRow], heard: bool, kept: list[str]
) -> None:
    attempts: list[int] = []

    def work(tx: db.Tx) -> None:
        attempts.append(1)
        write("once")(tx)

    proxy.cut = Cut(b"COMMIT\0", heard)
    with pytest.raises(db.CommitUnknown, match="same Idempotency-Key"):
        db.run(work)
    assert (texts(notes), len(attempts)) == (kept, 1)
    db.run(write("next"))  # and the process goes on


def test_a_call_without_an_answer_is_unknown_and_not_repeated(
    proxy: Proxy, notes: psycopg.Connection[DictRow]
) -> None:
    proxy.cut = Cut(b"INSERT", heard=True)
    with pytest.raises(db.CommitUnknown):
        db.call("INSERT INTO public.notes VALUES ('once')")
    assert texts(notes) == ["once"]


# ---- time ----


@pytest.mark.usefixtures("app_db")
def test_a_statement_ends_with_the_invocations_time() -> None:
    db.connection()
    db.set_deadline(db.MARGIN + 0.2)
    with pytest.raises(problems.Unavailable):
        db.run(lambda tx: tx.execute("SELECT pg_sleep(30)"))
    db.set_deadline(30)
    assert value(b"SELECT 1") == 1


def test_a_locked_row_is_waited_for_briefly_and_once(
    notes: psycopg.Connection[DictRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "LOCK_TIMEOUT", 0.05)
    db.run(write("locked"))
    attempts: list[int] = []

    def work(tx: db.Tx) -> None:
        attempts.append(1)
        tx.execute("DELETE FROM public.notes")

    with notes.transaction():
        notes.execute("SELECT FROM public.notes FOR UPDATE")
        with pytest.raises(problems.Unavailable):
            db.run(work)
    assert attempts == [1]


def test_an_invocation_does_not_inherit_the_last_ones_transaction(
    notes: psycopg.Connection[DictRow],
) -> None:
    cut_off = db.transaction(organization_id=ORGANIZATION)
    write("gone")(cut_off.__enter__())
    db.set_deadline(30)
    assert value(b"SELECT current_setting('app.organization_id', true)") is None
    assert texts(notes) == []


def test_work_that_took_too_long_is_not_saved_where_nobody_could_hear_of_it(
    notes: psycopg.Connection[DictRow],
) -> None:
    def work(tx: db.Tx) -> None:
        write("late")(tx)
        deadline.begin(db.MARGIN - bounded.GRACE)  # as time goes by

    with pytest.raises(problems.Unavailable, match="ran out of time before its work was saved"):
        db.run(work)
    assert texts(notes) == []


@pytest.mark.parametrize("seconds", [db.MIN_BUDGET, 0.0519, 0.999, 7.0, 900.0])
def test_however_little_time_is_left_it_bounds_each_statement_lock_and_silence(
    app_db: Database, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    assert app_db
    monkeypatch.setattr(db, "remaining", lambda: seconds)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    query = "SELECT name, setting::int AS milliseconds FROM pg_settings WHERE name = ANY(%s)"
    with db.transaction() as tx:
        found = {row["name"]: row["milliseconds"] for row in tx.execute(query, [list(names)])}
    milliseconds = int(seconds * 1000)
    assert milliseconds > 0
    assert found == {
        "statement_timeout": milliseconds,
        "lock_timeout": min(milliseconds, 5000),
        "idle_in_transaction_session_timeout": min(milliseconds, 60_000),
    }


def test_without_time_nothing_is_sent(proxy: Proxy) -> None:
    db.connection()
    before = proxy.flights
    db.set_deadline(db.MARGIN)
    with pytest.raises(problems.Unavailable, match="ran out of time"):
        db.run(write("late"))
    with pytest.raises(problems.Unavailable, match="ran out of time"):
        value(b"SELECT 1")
    assert proxy.flights == before


# ---- the connection ----


@pytest.mark.usefixtures("app_db")
def test_a_server_that_is_not_there_is_unavailable_after_bounded_attempts(
    monkeypatch: pytest.MonkeyPatch, no_sleep: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    use_url(monkeypatch, "postgresql://backplane_app:hidden@127.0.0.1:1/nowhere")
    with pytest.raises(problems.Unavailable, match="can't be reached"):
        db.run(write("x"))
    assert len(no_sleep) == db.ATTEMPTS - 1
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(("threshold", "prepared"), [("", 0), ("2", 1)])
@pytest.mark.usefixtures("app_db")
def test_statements_are_prepared_only_where_configured(
    monkeypatch: pytest.MonkeyPatch, threshold: str, prepared: int
) -> None:
    monkeypatch.setenv("DATABASE_PREPARE_THRESHOLD", threshold)
    config.settings.cache_clear()
    db.reset()
    for _ in range(8):
        with db.transaction(organization_id=ORGANIZATION) as tx:
            tx.execute("SELECT %(n)s::int", {"n": 1})
    query = "SELECT count(*) AS n FROM pg_prepared_statements"
    assert db.connection().execute(query, prepare=False).fetchone() == {"n": prepared}


# ---- the log ----


@pytest.mark.usefixtures("app_db")
def test_a_slow_statement_is_logged_without_its_parameters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    db.connection()
    monkeypatch.setattr(slow_log, "SLOW", -1.0)
    with caplog.at_level(logging.WARNING, logger="backplane.db"):
        db.call("SELECT %(email)s::text", {"email": "a@example.com"})
        db.call(
            sql.SQL("SELECT {}, {}").format(sql.Literal("a@example.com"), sql.Identifier("oid"))
            + sql.SQL(" FROM pg_class")
        )
    logged = [vars(record) for record in caplog.records if record.message == "slow statement"]
    assert [record["sql"] for record in logged] == [
        "SELECT %(email)s::text",
        'SELECT ?, "oid" FROM pg_class',
    ]
    assert all(record["seconds"] >= 0 for record in logged)
    assert "a@example.com" not in caplog.text


@pytest.mark.usefixtures("app_db")
def test_a_fast_statement_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    value(b"SELECT 1")
    assert "slow statement" not in caplog.messages


@pytest.mark.usefixtures("app_db")
def test_at_debug_each_statement_is_logged_with_its_duration_and_without_its_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, logger="backplane.db"):
        db.call("SELECT %(email)s::text", {"email": "a@example.com"})
    (logged,) = (vars(record) for record in caplog.records if record.message == "statement")
    assert logged["sql"] == "SELECT %(email)s::text"
    assert logged["seconds"] > 0
    assert "a@example.com" not in caplog.text
