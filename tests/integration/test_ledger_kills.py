"""Whatever a session dies of, and wherever in an operation: repeated, it takes effect exactly once.

A trigger stands before and after each statement that writes, and at the commit, and ends its own
session at the one it is told. Replies are lost by a proxy, after the server's commit or before the
server hears.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import DictRow
from tests.databases import Database
from tests.ledgers import (
    Kept,
    assert_books_balance,
    debit,
    give,
    grants,
    hold,
    make_grant,
    new_account,
    pass_expiry,
    pass_holds_expiry,
    rows,
)
from tests.tcp_proxy import Cut, Proxy

from backplane import audits, corrections, db, holds, ledger

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Scene:
    """An account before an operation; `subject` is the hold, debit, grant or claw-back it is about."""

    organization_id: UUID
    subject: UUID | None = None


@dataclass(frozen=True)
class Operation:
    """`perform` answers the result, and whether the same had happened before."""

    name: str
    set: Callable[[Database], Scene]
    perform: Callable[[Scene], tuple[Any, bool]]
    last_word: bytes  # what the client says before it can only wait to hear of the commit

    def __str__(self) -> str:
        return self.name


# ---- the scenes: each operation by its longest way, over several grants, with something due or owed ----


def spent(database: Database) -> Scene:
    organization_id = new_account(database, 3)
    give(organization_id, 9)
    pass_expiry(database, give(organization_id, 5, expires_at=datetime.now(UTC) + HOUR))
    return Scene(organization_id)


def of_a_hold(database: Database) -> Scene:
    organization_id = new_account(database, 3, 9)
    return Scene(organization_id, hold(organization_id, 8))


def of_a_debit(database: Database) -> Scene:
    organization_id = new_account(database, 9)
    perishable = give(organization_id, 3, source="plan", expires_at=datetime.now(UTC) + HOUR)
    made, _ = debit(organization_id, quantity=8, key="earlier")
    pass_expiry(database, perishable)
    return Scene(organization_id, made.id)


def of_a_subscription(database: Database) -> Scene:
    organization_id = new_account(database, 3)
    give(organization_id, 5, source="plan", subscription="sub_1", period_end=datetime.now(UTC) + HOUR)
    return Scene(organization_id)


def in_debt(database: Database) -> Scene:
    organization_id = new_account(database, debt=4)
    give(organization_id, 9, source="plan", subscription="sub_1", period_end=datetime.now(UTC) + HOUR)
    return Scene(organization_id)


def of_a_grant(database: Database) -> Scene:
    organization_id = new_account(database, 9)
    debit(organization_id, quantity=4, key="earlier")
    return Scene(organization_id, grants(database, organization_id)[0]["id"])


def of_a_claw_back(database: Database) -> Scene:
    scene = of_a_grant(database)
    made, _ = claw_back(scene)
    give(scene.organization_id, 2)
    return Scene(scene.organization_id, made.id)


def all_due(database: Database) -> Scene:
    organization_id = new_account(database, 9)
    perishable = give(organization_id, 5, source="plan", expires_at=datetime.now(UTC) + HOUR)
    hold_id = hold(organization_id, 3)
    pass_holds_expiry(database, hold_id)
    pass_expiry(database, perishable)
    return Scene(organization_id)


# ---- the operations ----

KEY: dict[str, Any] = {"key": "key-1", "actor": "user:1"}


def hold_eight(scene: Scene) -> tuple[Any, bool]:
    return holds.hold(scene.organization_id, "ai_text_chat", 8, **KEY)


def debit_eight(scene: Scene) -> tuple[Any, bool]:
    return ledger.debit(scene.organization_id, "ai_text_chat", 8, **KEY)


def settle_at(amount: int) -> Callable[[Scene], tuple[Any, bool]]:
    return lambda scene: holds.settle(scene.organization_id, subject(scene), amount=amount, **KEY)


def release(scene: Scene) -> tuple[Any, bool]:
    return holds.release(scene.organization_id, subject(scene), **KEY)


def refund(scene: Scene) -> tuple[Any, bool]:
    return corrections.refund(scene.organization_id, subject(scene), amount=7, reason="it failed", **KEY)


def adjust_by(amount: int) -> Callable[[Scene], tuple[Any, bool]]:
    return lambda scene: corrections.adjust(
        scene.organization_id, amount, reason="by hand", allow_debt=True, **KEY
    )


def grant(scene: Scene) -> tuple[Any, bool]:
    given = make_grant(
        scene.organization_id,
        7,
        source="plan",
        source_key="invoice:in_1",
        subscription="sub_1",
        period_end=datetime.now(UTC) + 2 * HOUR,
    )
    grant_id, granted = db.run(lambda tx: ledger.grant(tx, given))
    return grant_id, not granted


def claw_back(scene: Scene) -> tuple[Any, bool]:
    made, first = db.run(
        lambda tx: corrections.claw_back(tx, subject(scene), key="refund:re_1", actor="stripe")
    )
    return made, not first


def restore(scene: Scene) -> tuple[Any, bool]:
    made, first = db.run(lambda tx: corrections.restore(tx, subject(scene), actor="stripe"))
    return made, not first


def end_subscription(scene: Scene) -> tuple[Any, bool]:
    def work(tx: db.Tx) -> bool:
        before = ledger.balance(tx, scene.organization_id).available
        ledger.end_subscription(tx, scene.organization_id, "stripe", "sub_1", actor="stripe")
        return ledger.balance(tx, scene.organization_id).available == before

    return None, db.run(work)


def book_due(scene: Scene) -> tuple[Any, bool]:
    return None, not audits.book_due(scene.organization_id)


def subject(scene: Scene) -> UUID:
    assert scene.subject is not None
    return scene.subject


COMMIT = b"COMMIT\0"
OPERATIONS = [
    Operation("debit", spent, debit_eight, b"credits.debit("),
    Operation("hold", spent, hold_eight, b"credits.hold("),
    Operation("settle below", of_a_hold, settle_at(5), b"credits.settle("),
    Operation("settle above", of_a_hold, settle_at(10), b"credits.settle("),
    Operation("release", of_a_hold, release, b"credits.release("),
    Operation("refund", of_a_debit, refund, b"credits.refund("),
    Operation("grant", in_debt, grant, COMMIT),
    Operation("end of a subscription", of_a_subscription, end_subscription, COMMIT),
    Operation("claw-back", of_a_grant, claw_back, COMMIT),
    Operation("restored claw-back", of_a_claw_back, restore, COMMIT),
    Operation("expiry", all_due, book_due, b"credits.book_due("),
    Operation("adjustment that gives", in_debt, adjust_by(7), b"credits.adjust("),
    Operation("adjustment that takes", of_a_debit, adjust_by(-7), b"credits.adjust("),
]


def effect(database: Kept, scene: Scene) -> dict[str, list[dict[str, Any]]]:
    """What stands after an operation, without ids and times: equal for equal effects."""
    queries = {
        "accounts": "SELECT available, held, debt, version, next_due_at IS NULL AS quiet"
        " FROM credits.accounts WHERE organization_id = %s",
        "entries": "SELECT version, kind, amount, available_after, held_after, debt_after, operation,"
        " quantity, split_part(idempotency_key, ':', 1) AS key, actor"
        " FROM credits.entries WHERE organization_id = %s ORDER BY version",
        "grants": "SELECT source, amount, remaining, live, lapsed, clawed_back, ended_at IS NULL AS running"
        " FROM credits.grants WHERE organization_id = %s ORDER BY created_at, id",
        "holds": "SELECT state, amount, amount_settled FROM credits.holds WHERE organization_id = %s",
        "refunds": "SELECT amount, refunded_total FROM credits.refunds WHERE organization_id = %s",
        "events": "SELECT type FROM platform.outbox WHERE organization_id = %s ORDER BY id",
        "record": "SELECT action FROM platform.audit_log WHERE organization_id = %s ORDER BY id",
    }
    return {name: rows(database, query, scene.organization_id) for name, query in queries.items()}


def undisturbed(database: Database, owner: Kept, operation: Operation) -> dict[str, list[dict[str, Any]]]:
    scene = operation.set(database)
    _, before = operation.perform(scene)
    assert not before
    return effect(owner, scene)


def assert_it_happened_once(
    owner: Kept, operation: Operation, scene: Scene, answer: Any, expected: dict[str, list[dict[str, Any]]]
) -> None:
    assert effect(owner, scene) == expected
    assert operation.perform(scene) == (answer, True)
    assert effect(owner, scene) == expected
    assert_books_balance(owner, scene.organization_id)


# ---- killed between every two statements ----


@dataclass(frozen=True)
class Boundaries:
    """The places between an operation's statements, numbered 1, 2, 3 … as they are passed."""

    owner: psycopg.Connection[DictRow]

    def end_the_session_at(self, number: int) -> None:
        """Counts anew. At 0 nobody dies."""
        self.owner.execute("SELECT setval('public.boundaries', 1, false)")
        self.owner.execute("UPDATE public.fatal SET boundary = %s", [number])

    def passed(self) -> int:
        row = self.owner.execute("SELECT last_value FROM public.boundaries WHERE is_called").fetchone()
        return row["last_value"] if row else 0


@contextmanager
def boundaries(owner: psycopg.Connection[DictRow]) -> Iterator[Boundaries]:
    owner.execute(
        """
        CREATE SEQUENCE public.boundaries; -- a sequence, because it stays counted when a session dies
        CREATE TABLE public.fatal AS SELECT 0::bigint AS boundary;
        CREATE FUNCTION public.pass_boundary() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            IF nextval('public.boundaries') = (SELECT boundary FROM public.fatal) THEN
                PERFORM pg_terminate_backend(pg_backend_pid());
            END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON credits.entries
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.pass_boundary();
        """
    )
    written = owner.execute(
        """
        SELECT format('%I.%I', schemaname, tablename) AS name
        FROM pg_tables
        WHERE schemaname = 'credits' OR (schemaname = 'platform' AND tablename IN ('outbox', 'audit_log'))
        """
    ).fetchall()
    for table in written:
        for when in ("BEFORE", "AFTER"):
            owner.execute(
                f"CREATE TRIGGER {when}_statement {when} INSERT OR UPDATE OR DELETE ON {table['name']}"
                " FOR EACH STATEMENT EXECUTE FUNCTION public.pass_boundary()".encode()
            )
    yield Boundaries(owner)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_a_session_killed_between_any_two_statements_leaves_one_effect_when_repeated(
    system_db: Database, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the pause before the layer repeats
    with system_db.connect() as connection, boundaries(connection) as line:
        owner = Kept(connection)
        scene = operation.set(system_db)
        line.end_the_session_at(0)
        operation.perform(scene)
        count = line.passed()
        expected = effect(owner, scene)
        assert count > 4  # at least a balance and an entry, before and after
        for number in range(1, count + 1):
            scene = operation.set(system_db)
            session = db.connection().info.backend_pid
            line.end_the_session_at(number)
            answer, before = insist(operation, scene)
            assert not before
            assert line.passed() == number + count, "it died there, and went the whole way the second time"
            assert db.connection().info.backend_pid != session
            assert_it_happened_once(owner, operation, scene, answer, expected)


def insist(operation: Operation, scene: Scene) -> tuple[Any, bool]:
    """The layer repeats what it knows was not done; where it does not know, its caller does."""
    try:
        return operation.perform(scene)
    except db.CommitUnknown:
        return operation.perform(scene)


# ---- replies that are lost ----


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_after_a_lost_reply_the_same_request_answers_what_happened(
    system_db: Database, operation: Operation
) -> None:
    with system_db.connect() as connection, Proxy(system_db.system) as proxy:
        owner = Kept(connection)
        expected = undisturbed(system_db, owner, operation)
        for heard in (True, False):
            scene = operation.set(system_db)
            with replace(system_db, system=proxy.url).as_role("backplane_system"):
                proxy.cut = Cut(operation.last_word, heard)
                with pytest.raises(db.CommitUnknown):
                    operation.perform(scene)
                answer, before = operation.perform(scene)
                assert before == heard
                assert_it_happened_once(owner, operation, scene, answer, expected)
