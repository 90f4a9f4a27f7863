"""Clerk's lives, drawn, cut short, shuffled and repeated, end where an oracle says that knows no order;
and a deletion that dies before any of its statements is done whole by the next delivery.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import DictRow
from tests.databases import Database
from tests.deliveries import processes
from tests.kills import Killed, at_statement
from tests.senders import (
    FIRST,
    SECOND,
    THIRD,
    clerk_item,
    clerk_membership,
    clerk_organization,
    clerk_payer,
    clerk_subscription,
    clerk_user,
    post_clerk,
)
from tests.traces import MARK, plant

from backplane import db

pytestmark = pytest.mark.usefixtures("webhook_secrets")

T0 = FIRST * 1000
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Drawn:
    """What became true at Clerk, each life in its order, and the deliveries of it."""

    names: list[str]  # the user's, one an event
    user_deleted: bool
    organization_told: bool
    organization_deleted: bool
    memberships: list[str]  # kinds, in order
    items: list[str]  # statuses, in order; `renewed` is active with the next period
    seed: list[int]  # the order of delivery, with repetitions


@st.composite
def _drawn(draw: st.DrawFn) -> Drawn:
    items = ["incomplete", "active", "renewed", "canceled", "ended"][: draw(st.integers(0, 5))]
    memberships = draw(
        st.sampled_from([[], ["created"], ["created", "updated"], ["created", "deleted"],
                         ["created", "deleted", "created"], ["created", "updated", "deleted"]])
    )  # fmt: skip
    names = draw(st.lists(st.sampled_from(["Ada", "Grace", "Edith"]), min_size=1, max_size=3))
    user_deleted, told, closed = (draw(st.booleans()) for _ in range(3))
    count = len(names) + user_deleted + told + (told and closed) + len(memberships) + len(items)
    once = draw(st.permutations(range(count)))
    again = draw(st.lists(st.integers(0, count - 1), max_size=4))
    places = [draw(st.integers(0, count)) for _ in again]
    seed = list(once)
    for place, index in zip(places, again, strict=True):
        seed.insert(place, index)
    return Drawn(names, user_deleted, told, told and closed, memberships, items, seed)


def events(drawn: Drawn, n: int) -> list[dict[str, Any]]:
    user, organization, item = f"user_m{n}", f"org_m{n}", f"csub_item_m{n}"
    told = [
        clerk_user(
            user,
            kind="updated" if step else "created",
            first_name=name,
            email=f"m{n}@example.com",
            updated_at=T0 + step,
        )
        for step, name in enumerate(drawn.names)
    ]
    if drawn.user_deleted:
        told.append(clerk_user(user, kind="deleted", updated_at=T0 + 10))
    if drawn.organization_told:
        told.append(clerk_organization(organization, created_by=None))
    if drawn.organization_deleted:
        told.append(clerk_organization(organization, kind="deleted", updated_at=T0 + 10))
    for step, kind in enumerate(drawn.memberships):
        role = "org:viewer" if kind == "updated" else "org:editor"
        told.append(clerk_membership(user, organization, kind=kind, role=role, updated_at=T0 + step))
    for step, status in enumerate(drawn.items):
        start, end = (FIRST, SECOND) if step < 2 else (SECOND, THIRD)
        told.append(
            clerk_item(
                item,
                payer=user,
                kind="updated" if status == "renewed" else status,
                status="active" if status == "renewed" else status,
                start=start,
                end=end,
                updated_at=T0 + step,
            )
        )
    return told


def expected(drawn: Drawn) -> dict[str, Any]:
    last = drawn.items[-1] if drawn.items else None
    ours = {"renewed": "active", "canceled": "active", "ended": "canceled"}
    member = (
        drawn.organization_told
        and not drawn.organization_deleted
        and not drawn.user_deleted
        and bool(drawn.memberships)
        and drawn.memberships[-1] != "deleted"
    )
    granted = len({"active", "renewed"} & set(drawn.items))
    live = granted and last != "ended"
    return {
        "name": None if drawn.user_deleted else drawn.names[-1],
        "organization": None if not drawn.organization_told else not drawn.organization_deleted,
        "role": None if not member else "viewer" if drawn.memberships[-1] == "updated" else "editor",
        "status": None if last is None else ours.get(last, last),
        "grants": granted,
        "credits": 100 + 1000 * bool(live),
    }


def ended(database: Database, n: int) -> DictRow:
    with database.connect() as connection:
        row = connection.execute(
            """
            SELECT u.first_name AS name,
                   (SELECT deleted_at IS NULL FROM tenancy.organizations WHERE clerk_id = 'org_m' || %(n)s)
                       AS organization,
                   (SELECT m.role::text
                    FROM tenancy.organization_members AS m
                    JOIN tenancy.organizations AS o ON o.id = m.organization_id
                    WHERE o.clerk_id = 'org_m' || %(n)s) AS role,
                   (SELECT status::text FROM billing.subscriptions
                    WHERE provider_subscription_id = 'csub_item_m' || %(n)s) AS status,
                   (SELECT count(*) FROM credits.grants
                    WHERE provider_subscription_id = 'csub_item_m' || %(n)s) AS grants,
                   (SELECT a.available
                    FROM credits.accounts AS a
                    JOIN tenancy.organizations AS o ON o.id = a.organization_id
                    WHERE o.personal_user_id = u.id) AS credits
            FROM identity.users AS u
            WHERE u.clerk_id = 'user_m' || %(n)s
            """,
            {"n": str(n)},
        ).fetchone()
    assert row is not None
    return row


@given(drawn=_drawn())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_with_repetitions_ends_where_the_oracle_says(system_db: Database, drawn: Drawn) -> None:
    n = next(_numbers)
    told = events(drawn, n)
    for index in drawn.seed:
        answer = post_clerk(told[index], f"msg_m{n}_{index}")
        assert (answer.status, answer.body["status"] != "quarantined") == (200, True)
    want, got = expected(drawn), ended(system_db, n)
    if drawn.user_deleted:  # what he paid for before depends on how far it came, and is over anyway
        assert got["status"] in {None, "canceled"}
        want = {name: want[name] for name in ("name", "organization", "role")}
    assert {name: got[name] for name in want} == want


@pytest.mark.timeout(300)
def test_lives_delivered_by_four_at_once_end_where_the_oracle_says(system_db: Database) -> None:
    with processes(4, system_db) as send:

        @given(drawn=_drawn())
        @settings(max_examples=15, deadline=None, derandomize=True)
        def run(drawn: Drawn) -> None:
            n = next(_numbers)
            told = events(drawn, n)
            for http_status, word in send([told[index] for index in drawn.seed]):
                assert (http_status, word != "quarantined") == (200, True)
            want, got = expected(drawn), ended(system_db, n)
            if drawn.user_deleted:
                want = {name: want[name] for name in ("name", "organization", "role")}
            assert {name: got[name] for name in want} == want

        run()


LIFE = {
    "user": clerk_user("user_1", email="m0@example.com"),
    "organization": clerk_organization("org_1", created_by=None),
    "membership": clerk_membership("user_1", "org_1", role="org:editor"),
    "item": clerk_item("csub_item_1", payer="user_1"),
    "renewal": clerk_item(
        "csub_item_1", payer="user_1", kind="updated", start=SECOND, end=THIRD, updated_at=T0 + 1
    ),
    "subscription": clerk_subscription(
        clerk_item("csub_item_1", status="past_due", start=SECOND, end=THIRD, updated_at=T0 + 2),
        kind="pastDue",
        updated_at=T0 + 2,
    ),
    "payment": {
        "type": "paymentAttempt.updated",
        "object": "event",
        "data": {
            "id": "payatt_1",
            "object": "commerce_payment_attempt",
            "status": "failed",
            "payer": clerk_payer("user_1"),
            "updated_at": T0 + 2,
        },
        "timestamp": T0 + 2,
    },
    "leaving": clerk_membership("user_1", "org_1", kind="deleted", updated_at=T0 + 3),
    "end": clerk_item("csub_item_1", payer="user_1", kind="ended", status="ended", updated_at=T0 + 3),
    "closing": clerk_organization("org_1", kind="deleted", updated_at=T0 + 4),
}
STATE = """
    SELECT (SELECT count(*) FROM platform.webhook_inbox) AS inbox,
           (SELECT count(*) FROM platform.outbox) AS told,
           (SELECT count(*) FROM identity.users) AS users,
           (SELECT count(*) FROM tenancy.organizations WHERE deleted_at IS NULL) AS organizations,
           (SELECT count(*) FROM tenancy.organization_members) AS members,
           (SELECT string_agg(status::text || as_of, ',') FROM billing.subscriptions) AS subscriptions,
           (SELECT string_agg(remaining::text, ',' ORDER BY id) FROM credits.grants) AS grants
"""


@pytest.mark.parametrize("dies", LIFE)
@pytest.mark.parametrize("parked", [False, True], ids=["in order", "what waits for it first"])
def test_an_event_that_dies_before_any_statement_has_done_nothing_and_the_next_delivery_does_it_whole(
    system_db: Database, dies: str, parked: bool
) -> None:
    def die() -> None:
        raise Killed

    def state() -> DictRow | None:
        with system_db.connect() as connection:
            return connection.execute(STATE).fetchone()

    names = list(LIFE)
    place = names.index(dies)
    for name in [*names[:place], *(names[place + 1 :] if parked else [])]:
        post_clerk(LIFE[name], f"msg_{name}")
    before = state()
    for number in itertools.count(1):
        try:
            with at_statement(number, die) as said:
                answer = post_clerk(LIFE[dies], f"msg_{dies}")
        except Killed:
            db.reset()
            assert state() == before
        else:
            assert len(said) < number
            break
    assert number > 3
    assert answer.body["status"] in {"processed", "stale"}
    once = state()
    assert post_clerk(LIFE[dies], f"msg_{dies}").body["status"] == "duplicate"
    assert state() == once != before


def test_a_deletion_that_dies_before_any_statement_is_done_whole_by_the_next(system_db: Database) -> None:
    """Nothing of it stands until all of it does."""

    def die() -> None:
        raise Killed

    plant(system_db, "user_1")
    deletion = clerk_user("user_1", kind="deleted")
    for number in itertools.count(1):
        try:
            with at_statement(number, die) as said:
                answer = post_clerk(deletion, "msg_gone")
        except Killed:
            db.reset()
            with system_db.connect() as connection:
                row = connection.execute(
                    "SELECT first_name, deleted_at FROM identity.users WHERE clerk_id = 'user_1'"
                ).fetchone()
            assert row == {"first_name": MARK, "deleted_at": None}
        else:
            assert len(said) < number
            assert answer.body["status"] == "processed"
            break
    with system_db.connect() as connection:
        assert connection.execute("SELECT count(*) AS n FROM platform.erasures").fetchone() == {"n": 1}
