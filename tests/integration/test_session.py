"""Statements without a cursor: backplane.session."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from tests.databases import Database

from backplane import config, db, session

pytestmark = pytest.mark.usefixtures("app_db")


@pytest.fixture
def eager(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[session.Session]:
    """A session that prepares what it is asked a second time."""
    assert app_db
    monkeypatch.setenv("DATABASE_PREPARE_THRESHOLD", "1")
    config.settings.cache_clear()
    db.reset()
    yield db.connection()
    config.settings.cache_clear()


def prepared(asked: session.Session) -> list[str]:
    query = "SELECT statement FROM pg_prepared_statements ORDER BY prepare_time"
    return [row["statement"] for row in asked.execute(query, prepare=False)]


@pytest.mark.parametrize(
    ("query", "params", "rows"),
    [
        ("SELECT 1 AS one", None, [{"one": 1}]),
        (b"SELECT 1 AS one", {}, [{"one": 1}]),
        ("SELECT 'a%b' AS text", None, [{"text": "a%b"}]),
        ("SELECT '%(a)s 100%' AS text", None, [{"text": "%(a)s 100%"}]),
        ("SELECT 'a%%b' AS text, %(n)s::int AS n", {"n": 3}, [{"text": "a%b", "n": 3}]),
        (
            "SELECT %(b)s::int AS b, %(a)s::int AS a, %(b)s::int AS c",
            {"a": 1, "b": 2},
            [{"b": 2, "a": 1, "c": 2}],
        ),
        ("SELECT %(t)s::jsonb AS t", {"t": Jsonb({"é": [1, None]}), "more": 1}, [{"t": {"é": [1, None]}}]),
        ("SELECT n FROM generate_series(1, 3) AS n", None, [{"n": 1}, {"n": 2}, {"n": 3}]),
        ("SELECT 1 AS one WHERE false", None, []),
        (sql.SQL("SELECT {} AS {}").format(sql.Literal("x"), sql.Identifier("A b")), None, [{"A b": "x"}]),
    ],
)
def test_an_answer_is_a_cursors(
    query: Any, params: Any, rows: list[dict[str, Any]], eager: session.Session
) -> None:
    for _ in range(3):  # once as it is, once prepared, once more
        assert eager.ask(query, params) == rows
    assert eager.execute(query, params).fetchall() == rows


def test_a_text_is_taken_as_it_is_only_without_parameters(eager: session.Session) -> None:
    for _ in range(3):
        assert eager.ask("SELECT '%%' AS text") == [{"text": "%%"}]
        assert eager.ask("SELECT '%%' AS text", {}) == [{"text": "%"}]


def test_a_name_that_is_missing_is_told(eager: session.Session) -> None:
    with pytest.raises(KeyError, match="b"):
        eager.ask("SELECT %(a)s::int, %(b)s::int", {"a": 1})
    assert eager.ask("SELECT 1 AS one") == [{"one": 1}]


def test_each_combination_of_types_is_prepared_for_itself(eager: session.Session) -> None:
    query = "SELECT %(value)s AS value"
    for value in (1, 2, None, 3, "text", None, 2**40, "more", 2**41):
        assert eager.ask(query, {"value": value}) == [{"value": value}]
    assert prepared(eager) == ["SELECT $1 AS value"] * 3


def test_no_more_are_prepared_than_are_kept(eager: session.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST", 3)
    for number in [*range(5)] * 3:
        assert eager.ask(f"SELECT {number} AS n") == [{"n": number}]
    assert prepared(eager) == ["SELECT 0 AS n", "SELECT 1 AS n", "SELECT 2 AS n"]


def test_an_error_is_the_servers_and_the_session_goes_on(eager: session.Session) -> None:
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero") as raised:
            eager.ask("SELECT 1 / %(n)s AS n", {"n": 0})
        assert raised.value.diag.severity_nonlocalized == "ERROR"
    with pytest.raises(psycopg.errors.UndefinedTable):
        eager.ask("SELECT * FROM nowhere")
    with pytest.raises(psycopg.DataError, match="NUL"):
        eager.ask("SELECT %(text)s::text", {"text": "a\0b"})
    with pytest.raises(psycopg.errors.SyntaxError):
        eager.command(b"BEGIN; SELEC")
    eager.command(b"ROLLBACK")
    assert eager.ask("SELECT 6 / %(n)s AS n", {"n": 2}) == [{"n": 3}]


def test_columns_that_change_are_seen_before_a_statement_is_prepared(database: Database) -> None:
    asked = db.connection()  # prepares nothing
    with database.connect() as owner:
        owner.execute("CREATE VIEW public.seen AS SELECT 1 AS one, 2 AS two")
        owner.execute("GRANT SELECT ON public.seen TO backplane_app")
        assert asked.ask("SELECT * FROM public.seen") == [{"one": 1, "two": 2}]
        owner.execute("ALTER VIEW public.seen RENAME COLUMN one TO uno")
        assert asked.ask("SELECT * FROM public.seen") == [{"uno": 1, "two": 2}]


def test_a_transaction_that_is_rolled_back_leaves_what_is_prepared(eager: session.Session) -> None:
    """A cursor would deallocate them all, and a proxy would pin the session for it."""

    def fail(tx: db.Tx) -> None:
        tx.execute("SELECT 2 AS two", prepare=True)
        tx.execute("SELECT 1 / 0", prepare=False)

    for _ in range(3):
        db.call("SELECT %(n)s::int AS n", {"n": 1})
        with pytest.raises(psycopg.errors.DivisionByZero):
            db.run(fail)
    assert prepared(eager) == ["SELECT 2 AS two", "SELECT $1::int AS n"]
    assert db.connection() is eager


def test_what_psycopg_deallocates_is_prepared_anew(eager: session.Session) -> None:
    for _ in range(3):
        assert db.call("SELECT %(n)s::int AS n", {"n": 1}) == {"n": 1}
        with db.transaction() as tx:
            tx.execute("SELECT 2 AS two", prepare=True)
            with pytest.raises(psycopg.errors.DivisionByZero), tx.transaction():
                tx.execute("SELECT 1 / 0")


def test_a_signal_amid_a_statement_ends_the_session_and_not_the_next_one() -> None:
    interrupted = db.connection()
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        db.call("SELECT pg_sleep(20)")
    timer.join()
    assert db.call("SELECT 1 AS one") == {"one": 1}
    assert db.connection() is not interrupted
