"""No statement of the functions leaves anything in its session, so that a pooler may stand in front."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.session_state import pins

ROOT = Path(__file__).resolve().parents[2]
# These have the direct way to the database, because what they do needs a session.
DIRECT = {"migrate", "backup", "restore_drill", "maintenance_lock.py", "restores.py", "roles.py"}


def statements() -> Iterator[tuple[str, str]]:
    """Every text in the code that could be SQL, and where it stands."""
    for folder in (ROOT / "layers" / "backplane" / "backplane", ROOT / "functions"):
        for path in sorted(folder.rglob("*.py")):
            if DIRECT.isdisjoint(path.parts):
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def test_no_statement_binds_its_session() -> None:
    assert [f"{place}: {found}" for place, text in statements() if (found := pins(text))] == []
    assert sum("SELECT" in text for _, text in statements()) > 100


@pytest.mark.parametrize(
    "text",
    [
        "SET statement_timeout = 5",
        "BEGIN; set search_path = public",
        "SELECT set_config(%s, %s, true)",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "LISTEN news",
        "CREATE TEMP TABLE t ()",
        "SELECT pg_try_advisory_lock(1)",
        "SELECT nextval('s')",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        f"SELECT '{'x' * 16384}'",
    ],
)
def test_what_binds_a_session_is_known(text: str) -> None:
    assert pins(text)


@pytest.mark.parametrize(
    "text",
    [
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 5; SET LOCAL app.user_id = 'x'",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "UPDATE t SET a = 1",
        "INSERT INTO t VALUES (1) ON CONFLICT DO UPDATE SET a = 2",
        "SELECT pg_advisory_xact_lock(1)",
        "SAVEPOINT s",
    ],
)
def test_what_ends_with_its_transaction_binds_nothing(text: str) -> None:
    assert pins(text) is None
