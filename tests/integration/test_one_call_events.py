"""A subscription's event as one statement, and all that takes more than that."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from tests.databases import Database, await_waiting
from tests.kills import at_statement
from tests.payers import Customer, linked_customer, new_customer, organization, rows, status
from tests.senders import FIRST, SECOND, stripe_event

from backplane.inbox import Event, Status
from backplane.senders import SENDERS

pytestmark = pytest.mark.usefixtures("webhook_secrets")


@pytest.fixture
def ada(system_db: Database) -> Customer:
    return linked_customer()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[Status | None]:
    """What became of each event that was tried at once."""
    became: list[Status | None] = []
    ours = SENDERS["stripe"]

    def noted(event: Event) -> Status | None:
        became.append(ours.at_once[event.type](event))
        return became[-1]

    watched = replace(ours, at_once=dict.fromkeys(ours.at_once, noted))
    monkeypatch.setitem(SENDERS, "stripe", watched)
    return became


def test_the_state_of_a_linked_customer_is_one_statement(ada: Customer) -> None:
    with at_statement(0, lambda: None) as said:
        assert status(ada.told("updated")) == "processed"
    assert len(said) == 1


def test_all_that_the_effect_writes_is_written(
    system_db: Database, ada: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two customers are told the same, one at once and one by the effect."""
    eve = linked_customer()
    for customer in (ada, eve):
        for kind, created, fields in (
            ("created", FIRST, {"status": "incomplete"}),
            ("updated", FIRST + 20, {"pause_collection": {"behavior": "void"}}),
            ("updated", FIRST + 10, {"status": "past_due", "cancel_at": FIRST + 99}),
        ):
            told = customer.told(kind, created=created, price="price_super_monthly", **fields)
            assert status(told) == ("stale" if created == FIRST + 10 else "processed")
        monkeypatch.setitem(SENDERS, "stripe", replace(SENDERS["stripe"], at_once={}))
    left, right = (written(system_db, customer) for customer in (ada, eve))
    assert left == right
    assert [len(part) for part in left] == [1, 3, 2, 3]


def written(database: Database, customer: Customer) -> list[list[dict[str, Any]]]:
    """A customer's rows in the four tables, without what is made for each row."""
    mine = organization(database, customer)
    names = {customer.id, customer.subscription, str(mine)}
    return [
        [_plain(row["row"], names) for row in rows(database, query, mine)]
        for query in (
            "SELECT to_jsonb(t) AS row FROM billing.subscriptions AS t WHERE organization_id = %s",
            """
            SELECT to_jsonb(t) AS row
            FROM billing.subscription_events AS t
            WHERE organization_id = %s
            ORDER BY occurred_at
            """,
            """
            SELECT to_jsonb(t) AS row
            FROM platform.outbox AS t
            WHERE organization_id = %s AND type = 'subscription.changed'
            ORDER BY payload ->> 'status'
            """,
            """
            SELECT to_jsonb(t) AS row
            FROM platform.webhook_inbox AS t
            WHERE organization_id = %s AND event_type LIKE 'customer.subscription.%%'
            ORDER BY occurred_at
            """,
        )
    ]


_CLOCKS = {"created_at", "updated_at", "received_at", "processed_at"}
_MADE = _CLOCKS | {"id", "subscription_id", "event_id", "provider_event_id", "body", "as_of"}


def _plain(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {
        name: _plain(value, names) if isinstance(value, dict) else value
        for name, value in row.items()
        if name not in _MADE and (isinstance(value, dict) or value not in names)
    }


@pytest.mark.parametrize(
    ("fields", "became"),
    [
        ({"price": "price_nobody_knows"}, "parked"),
        ({"metadata": {"organization_id": "user_unknown"}}, "parked"),
        ({"status": "canceled"}, "processed"),
        ({"status": "dancing"}, "quarantined"),
    ],
    ids=str,
)
def test_what_takes_more_is_left_to_the_effect(
    ada: Customer, at_once: list[Status | None], fields: dict[str, Any], became: str
) -> None:
    assert status(ada.told("created")) == "processed"
    assert status(ada.told("updated", created=SECOND, **fields)) == became
    assert at_once[0] == "processed"
    assert "processed" not in at_once[1:]


def test_what_an_unlinked_customer_has_waits_for_him(ada: Customer, at_once: list[Status | None]) -> None:
    assert status(new_customer().told("updated")) == "parked"
    assert at_once == [None]


def test_another_stages_event_is_only_recorded(ada: Customer, at_once: list[Status | None]) -> None:
    assert status(ada.told("updated") | {"livemode": True}) == "ignored"
    assert at_once == [None]


def test_a_repetition_and_what_a_deleted_customer_had_are_left_to_the_effect(
    ada: Customer, at_once: list[Status | None]
) -> None:
    told = ada.told("updated")
    assert [status(told), status(told)] == ["processed", "duplicate"]
    assert status(stripe_event("customer.deleted", {"id": ada.id, "object": "customer"})) == "processed"
    assert status(ada.told("updated", created=SECOND)) == "stale"
    assert at_once == ["processed", None, None]


def test_an_event_that_was_recorded_in_between_has_no_effect(system_db: Database, ada: Customer) -> None:
    """Under the id of another customer's, whose lock keeps nobody out: it waits, and is undone."""
    told = ada.told("updated")
    with system_db.connect() as other, system_db.connect() as watcher, ThreadPoolExecutor(1) as threads:
        other.execute("BEGIN")
        other.execute(
            """
            INSERT INTO platform.webhook_inbox (provider, event_id, event_type, status, occurred_at)
            VALUES ('stripe', %s, 'customer.subscription.updated', 'processed', now())
            """,
            [told["id"]],
        )
        answer = threads.submit(status, told)
        await_waiting(watcher, 1)
        other.execute("COMMIT")
        assert answer.result(60) == "duplicate"
    assert rows(system_db, "SELECT 1 FROM billing.subscriptions") == []
    assert rows(system_db, "SELECT 1 FROM billing.subscription_events") == []
