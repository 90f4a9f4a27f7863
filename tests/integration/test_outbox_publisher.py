"""The outbox publisher: at least once, counted per organisation, nothing lost to a refusal or a crash."""

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import boto3
import outbox_publisher
import pytest
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws
from tests import events_page
from tests.databases import Database
from tests.kills import Killed, at_statement, end_the_session
from tests.senders import invoke

from backplane import config, db, outbox


class Queue:
    """What a consumer of the bus receives."""

    def __init__(self) -> None:
        self._sqs = boto3.client("sqs")
        self._url = self._sqs.create_queue(QueueName="consumer")["QueueUrl"]
        arn = "arn:aws:sqs:us-east-1:123456789012:consumer"
        events = boto3.client("events")
        events.create_event_bus(Name="bus")
        pattern = json.dumps({"source": ["backplane"]})
        events.put_rule(Name="all", EventBusName="bus", EventPattern=pattern, State="ENABLED")
        events.put_targets(Rule="all", EventBusName="bus", Targets=[{"Id": "queue", "Arn": arn}])

    def received(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while batch := self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages"):
            messages += [json.loads(message["Body"]) for message in batch]
            for message in batch:
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return messages


@pytest.fixture
def queue(system_db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("EVENT_BUS_NAME", "bus")
    config.settings.cache_clear()
    outbox_publisher._bus.cache_clear()
    with mock_aws():
        yield Queue()
    outbox_publisher._bus.cache_clear()
    config.settings.cache_clear()


def organization(database: Database) -> UUID:
    with database.connect() as connection:
        row = connection.execute(
            "INSERT INTO tenancy.organizations (name) VALUES ('o') RETURNING id"
        ).fetchone()
    assert row is not None
    identifier: UUID = row["id"]
    return identifier


def write(organization_id: UUID | None, *numbers: int) -> None:
    def work(tx: db.Tx) -> None:
        for number in numbers:
            outbox.append(tx, "test.happened", organization_id=organization_id, payload={"number": number})

    db.run(work)


def publish() -> Any:
    return invoke(outbox_publisher.handler, {})


def unpublished(database: Database) -> list[dict[str, Any]]:
    with database.connect() as connection:
        return connection.execute(
            "SELECT * FROM platform.outbox WHERE published_at IS NULL ORDER BY id"
        ).fetchall()


def test_events_reach_the_bus_once_in_order_and_counted_per_organisation(
    system_db: Database, queue: Queue
) -> None:
    first, second = organization(system_db), organization(system_db)
    write(first, 1, 2)
    write(second, 1)
    write(first, 3)
    assert publish() == {"ok": True, "published": 4, "failed": 0}
    received = queue.received()
    assert {message["source"] for message in received} == {"backplane"}
    assert {message["detail-type"] for message in received} == {"test.happened"}
    for organization_id, numbers in ((first, [1, 2, 3]), (second, [1])):
        details = [m["detail"] for m in received if m["detail"]["organization_id"] == str(organization_id)]
        details.sort(key=lambda detail: detail["sequence"])
        assert [detail["sequence"] for detail in details] == numbers
        assert [detail["data"]["number"] for detail in details] == numbers
    assert publish() == {"ok": True, "published": 0, "failed": 0}
    assert queue.received() == []


def test_the_count_goes_on_where_it_stood(system_db: Database, queue: Queue) -> None:
    organization_id = organization(system_db)
    write(organization_id, 1)
    publish()
    write(organization_id, 2, 3)
    publish()
    assert sorted(message["detail"]["sequence"] for message in queue.received()) == [1, 2, 3]


def test_an_event_without_an_organisation_goes_out_uncounted(system_db: Database, queue: Queue) -> None:
    write(None, 1)
    assert publish()["published"] == 1
    (message,) = queue.received()
    assert (message["detail"]["organization_id"], message["detail"]["sequence"]) == (None, None)


def test_more_than_a_round_goes_out_in_one_run(
    system_db: Database, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_publisher, "ROUND", 7)
    write(organization(system_db), *range(25))
    assert publish()["published"] == 25
    assert len(queue.received()) == 25


def test_what_the_bus_refuses_is_kept_and_tried_again_while_the_rest_goes_out(
    system_db: Database, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(organization(system_db), 1, 2, 3)
    bus = outbox_publisher._bus()

    def throttled(Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803  boto3's name
        kept = [entry for entry in Entries if '"number":2' not in entry["Detail"]]
        answer = bus.__class__.put_events(bus, Entries=kept)
        refused = {"ErrorCode": "ThrottlingException", "ErrorMessage": "slow down"}
        return {"FailedEntryCount": 1, "Entries": [answer["Entries"][0], refused, answer["Entries"][1]]}

    with monkeypatch.context() as patched:
        patched.setattr(bus, "put_events", throttled)
        assert publish() == {"ok": False, "published": 2, "failed": 1}
    (kept,) = unpublished(system_db)
    assert (kept["attempts"], kept["error"]) == (1, "ThrottlingException: slow down")
    assert kept["next_attempt_at"] > kept["created_at"]
    assert publish()["published"] == 0, "not before its time"
    with system_db.connect() as connection:
        connection.execute("UPDATE platform.outbox SET next_attempt_at = clock_timestamp()")
    assert publish() == {"ok": True, "published": 1, "failed": 0}
    assert sorted(message["detail"]["sequence"] for message in queue.received()) == [1, 2, 3]


def test_nothing_is_lost_while_the_bus_is_away(
    system_db: Database, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(organization(system_db), 1, 2)

    def away(**_: Any) -> dict[str, Any]:
        raise EndpointConnectionError(endpoint_url="https://events")

    with monkeypatch.context() as patched:
        patched.setattr(outbox_publisher._bus(), "put_events", away)
        assert publish() == {"ok": False, "published": 0, "failed": 2}
    assert [row["attempts"] for row in unpublished(system_db)] == [1, 1]


def test_a_crash_after_publishing_repeats_the_event_with_its_number(
    system_db: Database, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization_id = organization(system_db)
    write(organization_id, 1)
    put = outbox_publisher._put

    def crash(batch: Any) -> Any:
        put(batch)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(outbox_publisher, "_put", crash)
        with pytest.raises(KeyboardInterrupt):
            publish()
    write(organization_id, 2)
    publish()
    details = [message["detail"] for message in queue.received()]
    assert sorted((detail["sequence"], detail["data"]["number"]) for detail in details) == [
        (1, 1),
        (1, 1),
        (2, 2),
    ]
    assert len({detail["id"] for detail in details}) == 2, "consumers tell the repetition by its id"


def test_a_publisher_killed_anywhere_loses_no_event_and_counts_none_twice(
    system_db: Database, queue: Queue
) -> None:
    """Before each statement, and between PutEvents and what records it, with other events coming after."""

    def strike() -> None:
        end_the_session(system_db)
        raise Killed

    first, second = organization(system_db), organization(system_db)
    received: list[dict[str, Any]] = []
    written = 0
    for number in itertools.count(1):
        write(first, written, written + 1)
        write(second, written)
        with at_statement(number, strike) as said, suppress(Killed):
            publish()
        db.reset()
        write(first, written + 2)
        written += 3
        assert publish()["failed"] == 0
        received += [message["detail"] for message in queue.received()]
        assert unpublished(system_db) == []
        if len(said) < number:
            break
    assert number > 5
    for organization_id, every in (
        (first, list(range(written))),
        (second, [n for n in range(written) if n % 3 == 0]),
    ):
        ours = [detail for detail in received if detail["organization_id"] == str(organization_id)]
        once = {detail["sequence"]: detail["data"]["number"] for detail in ours}
        assert [once[sequence] for sequence in sorted(once)] == every
        assert sorted(once) == list(range(1, len(every) + 1)), "no gap"
        assert len({detail["id"] for detail in ours}) == len(every), "an id is an event"
        assert len({(detail["id"], detail["sequence"]) for detail in ours}) == len(every)


def test_one_publisher_at_a_time(system_db: Database, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_publisher, "PATIENCE", 0.1)
    write(organization(system_db), 1)
    with system_db.connect() as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", [outbox_publisher.LOCK])
        assert publish() == {"ok": True, "published": 0, "failed": 0}
    assert publish()["published"] == 1


def test_batches_keep_to_eventbridges_bounds() -> None:
    def event(size: int) -> outbox_publisher.Event:
        return outbox_publisher.Event(uuid4(), "test.happened", {"Detail": "x" * size})

    events = [event(1) for _ in range(25)] + [event(100_000) for _ in range(5)] + [event(300_000), event(1)]
    batches = list(outbox_publisher.batches(events))
    assert [e.id for batch in batches for e in batch] == [e.id for e in events]
    assert all(len(batch) <= 10 for batch in batches)
    assert all(len(b) == 1 or sum(e.size for e in b) <= outbox_publisher.MAX_BYTES for b in batches)
    # No batch could have taken the next one's first event.
    for batch, following in pairwise(batches):
        full = len(batch) == 10
        assert full or sum(e.size for e in batch) + following[0].size > outbox_publisher.MAX_BYTES


def test_the_page_of_events_lists_what_the_code_writes() -> None:
    """And no other: what is written and not listed fails the test that wrote it (conftest.py)."""
    root = Path(__file__).resolve().parents[2]
    sources = [
        *(root / "layers" / "backplane" / "backplane").glob("*.py"),
        *(root / "functions").glob("*/*.py"),
        *(root / "functions" / "migrate" / "migrations").glob("*.sql"),
    ]
    text = "\n".join(source.read_text() for source in sources)
    for name in events_page.events():
        family, _, _ = name.partition(".")
        assert f'"{name}"' in text or f"'{name}'" in text or f'"{family}.{{' in text, name


def test_the_page_gives_every_field_a_type_and_every_type_a_field() -> None:
    used = {field for declared in events_page.events().values() for field in declared}
    assert used == set(events_page.fields())


@pytest.mark.parametrize(
    ("event_type", "data", "fault"),
    [
        ("user.created", {"user_id": str(UUID(int=1)), "organization_id": str(UUID(int=2))}, None),
        ("user.created", {"user_id": str(UUID(int=1))}, "lacks organization_id"),
        ("user.deleted", {"user_id": 1}, "user_id is 1"),
        ("user.deleted", {"user_id": str(UUID(int=1)), "email": "a@b.c"}, "has email"),
        ("user.renamed", {}, "no user.renamed"),
        ("subscription.trial_will_end", {"provider": "paypal"}, "provider is 'paypal'"),
    ],
)
def test_an_event_is_held_against_the_page(event_type: str, data: dict[str, Any], fault: str | None) -> None:
    """As every event is that a test's code writes: see conftest.py."""
    found = events_page.faults(event_type, data)
    assert (fault is None and found == []) or any(str(fault) in one for one in found)
