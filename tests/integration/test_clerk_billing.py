"""Clerk's billing: items of subscriptions come, renew and end, in any order, each period credited once."""

import itertools
from typing import Any

import pytest
from psycopg.rows import DictRow
from tests.databases import Database
from tests.senders import (
    DAY,
    FIRST,
    SECOND,
    THIRD,
    clerk_item,
    clerk_organization,
    clerk_payer,
    clerk_subscription,
    clerk_user,
    post_clerk,
    post_stripe,
    stripe_event,
    subscription,
)

from backplane import db, subscriptions

pytestmark = pytest.mark.usefixtures("webhook_secrets")

SIGN_UP, STARTER, PRO, SUPER = 100, 500, 1000, 10_000
T0 = FIRST * 1000
_messages = itertools.count(1)


def status(event: dict[str, Any], message_id: str | None = None) -> str:
    answer = post_clerk(event, message_id or f"msg_b{next(_messages)}")
    assert answer.status == 200, answer.body
    return str(answer.body["status"])


def rows(database: Database, query: str, *params: object) -> list[DictRow]:
    with database.connect() as connection:
        return connection.execute(query, params).fetchall()


@pytest.fixture
def payer_db(system_db: Database) -> Database:
    """A database in which user_1 has signed up."""
    assert status(clerk_user("user_1")) == "processed"
    return system_db


def available(database: Database) -> int:
    [row] = rows(
        database,
        """
        SELECT b.available
        FROM credits.balances AS b
        JOIN tenancy.organizations AS o ON o.id = b.organization_id
        ORDER BY o.created_at
        LIMIT 1
        """,
    )
    return int(row["available"])


def grants(database: Database) -> dict[str, int]:
    """Plan credits granted, by item and period."""
    found = rows(database, "SELECT source_key, amount FROM credits.grants WHERE source = 'plan'")
    return {row["source_key"]: row["amount"] for row in found}


def stored(database: Database, item: str = "csub_item_1") -> DictRow:
    [row] = rows(
        database,
        """
        SELECT s.*, s.status::text, p.key AS plan
        FROM billing.subscriptions AS s
        JOIN billing.plans AS p ON p.id = s.plan_id
        WHERE s.provider_subscription_id = %s
        """,
        item,
    )
    return row


def current(database: Database) -> subscriptions.CurrentPlan:
    [organization] = rows(database, "SELECT id FROM tenancy.organizations ORDER BY created_at LIMIT 1")
    return db.run(lambda tx: subscriptions.entitlement(tx, organization["id"])).current


# ---- one item ----


def test_an_active_item_gives_its_plan_and_the_periods_credits_once(payer_db: Database) -> None:
    assert status(clerk_item(), "msg_1") == "processed"
    assert status(clerk_item(), "msg_1") == "duplicate"
    for kind in ("created", "updated"):
        status(clerk_item(kind=kind))
    assert status(clerk_subscription(clerk_item(), kind="active")) in {"processed", "stale"}
    assert grants(payer_db) == {f"clerk_item:csub_item_1:{T0}": PRO}
    assert available(payer_db) == SIGN_UP + PRO
    assert (current(payer_db).tier, current(payer_db).status) == ("pro", "active")
    assert (stored(payer_db)["provider"], stored(payer_db)["price_id"]) == ("clerk", "cplan_pro")
    assert rows(payer_db, "SELECT provider_customer_id FROM billing.customers") == [
        {"provider_customer_id": "cpayer_user_1"}
    ]


def test_a_renewal_is_the_same_item_with_another_period(payer_db: Database) -> None:
    status(clerk_item())
    renewed = clerk_item(kind="updated", start=SECOND, end=THIRD, updated_at=SECOND * 1000)
    assert [status(renewed), status(renewed)] == ["processed", "processed"]
    assert grants(payer_db) == {
        f"clerk_item:csub_item_1:{T0}": PRO,
        f"clerk_item:csub_item_1:{SECOND * 1000}": PRO,
    }
    assert available(payer_db) == SIGN_UP + PRO  # the first period's are over
    assert stored(payer_db)["current_period_end"].timestamp() == THIRD


LIFE = [
    clerk_item(kind="created", status="incomplete", updated_at=T0 - 2000),
    clerk_item(kind="active", updated_at=T0),
    clerk_item(kind="updated", start=SECOND, end=THIRD, updated_at=SECOND * 1000),
    clerk_item(kind="canceled", status="canceled", start=SECOND, end=THIRD, updated_at=(SECOND + DAY) * 1000),
    clerk_item(kind="ended", status="ended", start=SECOND, end=None, updated_at=THIRD * 1000),
]


@pytest.mark.parametrize("length", [3, 4, 5])
def test_a_life_ends_alike_in_every_order_with_repetitions(payer_db: Database, length: int) -> None:
    for number, order in enumerate(list(itertools.permutations(range(length)))[:: 1 if length < 5 else 7]):
        item = f"csub_item_{number}"
        for index in order:
            event = LIFE[index] | {"data": LIFE[index]["data"] | {"id": item}}
            assert status(event) in {"processed", "stale"}
            status(event)
        row = stored(payer_db, item)
        assert (row["status"], row["cancel_at_period_end"]) == [
            ("active", False),
            ("active", True),
            ("canceled", False),
        ][length - 3]
        assert {key for key in grants(payer_db) if f":{item}:" in key} == {
            f"clerk_item:{item}:{T0}",
            f"clerk_item:{item}:{SECOND * 1000}",
        }
        live = rows(
            payer_db,
            "SELECT remaining FROM credits.grants WHERE live AND provider_subscription_id = %s",
            item,
        )
        assert live == ([{"remaining": PRO}] if length < 5 else [])


def test_a_canceled_item_keeps_its_plan_and_credits_until_it_ends(payer_db: Database) -> None:
    status(clerk_item())
    status(clerk_item(kind="canceled", status="canceled", updated_at=T0 + 1))
    assert current(payer_db).tier == "pro"
    assert current(payer_db).cancels_at_period_end
    assert available(payer_db) == SIGN_UP + PRO
    status(clerk_item(kind="updated", updated_at=T0 + 2))  # he stays after all
    assert not current(payer_db).cancels_at_period_end
    status(clerk_item(kind="ended", status="ended", updated_at=T0 + 3))
    assert (current(payer_db).tier, current(payer_db).status) == ("free", "canceled")
    assert available(payer_db) == SIGN_UP


@pytest.mark.parametrize("spelling", ["past_due", "pastDue"])
def test_a_renewal_that_is_not_paid_keeps_the_plan_and_grants_when_it_is(
    payer_db: Database, spelling: str
) -> None:
    status(clerk_item())
    late = clerk_item(kind="pastDue", status=spelling, start=SECOND, end=THIRD, updated_at=SECOND * 1000)
    assert status(late) == "processed"
    assert (current(payer_db).tier, current(payer_db).status) == ("pro", "past_due")
    assert list(grants(payer_db).values()) == [PRO]
    status(clerk_item(kind="active", start=SECOND, end=THIRD, updated_at=(SECOND + DAY) * 1000))
    assert (current(payer_db).status, list(grants(payer_db).values())) == ("active", [PRO, PRO])


def test_a_first_payment_that_never_comes_gives_nothing(payer_db: Database) -> None:
    status(clerk_item(kind="incomplete", status="incomplete"))
    assert (current(payer_db).tier, current(payer_db).status) == ("free", "incomplete")
    status(clerk_item(kind="abandoned", status="abandoned", updated_at=T0 + 1))
    assert (current(payer_db).tier, current(payer_db).status) == ("free", "incomplete_expired")
    assert grants(payer_db) == {}


def test_a_trial_has_the_plan_and_its_trial_credits_and_then_the_plans(payer_db: Database) -> None:
    rows(payer_db, "UPDATE billing.plans SET trial_credits = 50 WHERE key = 'pro' RETURNING id")
    trial: dict[str, Any] = {"is_free_trial": True, "end": FIRST + 7 * DAY}
    status(clerk_item(**trial))
    assert (current(payer_db).tier, current(payer_db).status) == ("pro", "trialing")
    assert available(payer_db) == SIGN_UP + 50
    assert stored(payer_db)["trial_end"].timestamp() == FIRST + 7 * DAY
    assert status(clerk_item(kind="freeTrialEnding", updated_at=T0 + 1, **trial)) == "processed"
    [told] = rows(payer_db, "SELECT payload FROM platform.outbox WHERE type = 'subscription.trial_will_end'")
    assert told["payload"]["provider_subscription_id"] == "csub_item_1"
    status(clerk_item(kind="updated", start=FIRST + 7 * DAY, end=FIRST + 37 * DAY, updated_at=T0 + 2))
    assert current(payer_db).status == "active"
    assert available(payer_db) == SIGN_UP + PRO


@pytest.mark.parametrize("interval", ["year", "annual", None])
def test_a_year_is_credited_month_by_month(payer_db: Database, interval: str | None) -> None:
    assert status(clerk_item(end=FIRST + 365 * DAY, interval=interval)) == "processed"
    [grant] = rows(
        payer_db,
        "SELECT amount, period_end - to_timestamp(%s) AS length FROM credits.grants WHERE source = 'plan'",
        FIRST,
    )
    assert (grant["amount"], grant["length"].days in range(28, 32)) == (PRO, True)
    assert stored(payer_db)["current_period_end"].timestamp() == FIRST + 365 * DAY


def test_of_two_plans_the_new_one_stays_when_the_old_one_ends(payer_db: Database) -> None:
    status(clerk_item("csub_item_1", plan="starter"))
    status(clerk_item("csub_item_2", plan="super", updated_at=T0 + 1))
    status(clerk_item("csub_item_1", kind="ended", status="ended", plan="starter", updated_at=T0 + 1))
    assert (current(payer_db).tier, current(payer_db).status) == ("super", "active")
    assert available(payer_db) == SIGN_UP + SUPER


def test_the_free_plans_item_is_active_and_not_paid(payer_db: Database) -> None:
    status(clerk_item(plan="pro"))
    free: dict[str, Any] = {"plan": "free", "end": None}
    upcoming = clerk_item("csub_item_2", kind="upcoming", status="upcoming", updated_at=T0 + 1, **free)
    assert status(upcoming) == "ignored"
    assert current(payer_db).tier == "pro"
    status(clerk_item(kind="ended", status="ended", updated_at=T0 + 2))
    assert status(clerk_item("csub_item_2", updated_at=T0 + 2, **free)) == "ignored"
    assert (current(payer_db).tier, current(payer_db).status) == ("free", "canceled")
    assert available(payer_db) == SIGN_UP


def test_an_upcoming_item_is_nothing_yet(payer_db: Database) -> None:
    assert status(clerk_item(kind="upcoming", status="upcoming")) == "ignored"
    assert rows(payer_db, "SELECT 1 FROM billing.subscriptions") == []


@pytest.mark.parametrize("yearly_first", [True, False])
def test_who_pays_at_both_has_the_higher_plan(payer_db: Database, yearly_first: bool) -> None:
    def by_stripe() -> None:
        metadata = {"organization_id": "user_1"}
        event = subscription(price="price_super_monthly", metadata=metadata)
        post_stripe(stripe_event("customer.subscription.created", event))

    for pay in [lambda: status(clerk_item()), by_stripe][:: 1 if yearly_first else -1]:
        pay()
    assert current(payer_db).tier == "super"
    status(clerk_item(plan="enterprise", item_id="csub_item_2"))
    assert current(payer_db).tier == "enterprise"


# ---- subscriptions that carry items ----


@pytest.mark.parametrize("kind", ["created", "updated", "active", "pastDue"])
def test_a_subscriptions_items_are_applied_with_its_payer(payer_db: Database, kind: str) -> None:
    free = clerk_item("csub_item_2", plan="free", status="upcoming", end=None)
    assert status(clerk_subscription(clerk_item(), free, kind=kind)) == "processed"
    assert list(grants(payer_db).values()) == [PRO]
    [event] = rows(payer_db, "SELECT event_type, plan_key, status FROM billing.subscription_events")
    assert event == {"event_type": f"subscription.{kind}", "plan_key": "pro", "status": "active"}


def test_a_carried_item_of_an_unknown_plan_does_not_hold_up_the_others(payer_db: Database) -> None:
    unknown = clerk_item("csub_item_2", plan="addon")
    assert status(clerk_subscription(unknown, clerk_item())) == "processed"
    assert list(grants(payer_db).values()) == [PRO]
    assert status(clerk_subscription(unknown)) == "parked"
    assert status(clerk_subscription()) == "ignored"


# ---- whose ----


def test_an_item_waits_for_its_payer(system_db: Database) -> None:
    assert status(clerk_item()) == "parked"
    assert status(clerk_user("user_1")) == "processed"
    assert list(grants(system_db).values()) == [PRO]
    assert status(clerk_item("csub_item_2", payer="org_1", plan="super")) == "parked"
    assert status(clerk_organization()) == "processed"
    assert sorted(grants(system_db).values()) == [PRO, SUPER]
    [account] = rows(
        system_db,
        """
        SELECT a.available
        FROM credits.accounts AS a
        JOIN tenancy.organizations AS o ON o.id = a.organization_id
        WHERE o.clerk_id = 'org_1'
        """,
    )
    assert account["available"] == SUPER


def test_an_event_without_a_payer_is_the_items_whose_other_events_name_him(payer_db: Database) -> None:
    renewed = clerk_item(payer=None, kind="updated", start=SECOND, end=THIRD, updated_at=SECOND * 1000)
    assert status(renewed) == "parked"
    assert status(clerk_item()) == "processed"
    assert len(grants(payer_db)) == 2
    ended = clerk_item(payer=None, kind="ended", status="ended", updated_at=THIRD * 1000)
    assert status(ended | {"data": ended["data"] | {"plan": None, "plan_id": None}}) == "processed"
    assert stored(payer_db)["status"] == "canceled"


@pytest.mark.parametrize("payer", ["user_1", "org_1"])
def test_what_a_deleted_payer_had_is_over_and_late_events_are_stale(system_db: Database, payer: str) -> None:
    status(clerk_user("user_1"))
    status(clerk_organization())
    status(clerk_item(payer=payer))
    gone = clerk_user("user_1", kind="deleted") if payer == "user_1" else clerk_organization(kind="deleted")
    assert status(gone) == "processed"
    assert stored(system_db)["status"] == "canceled"
    renewed = clerk_item(payer=payer, start=SECOND, end=THIRD, updated_at=SECOND * 1000)
    assert status(renewed) == "stale"
    assert status(clerk_item("csub_item_2", payer=payer)) == "stale"
    assert len(grants(system_db)) == 1


def test_an_unknown_plan_gives_nothing_until_it_is_known(payer_db: Database) -> None:
    assert status(clerk_item(plan="gold"), "msg_gold") == "parked"
    assert (current(payer_db).tier, grants(payer_db)) == ("free", {})
    rows(payer_db, "UPDATE billing.plans SET clerk_plan_id = 'cplan_gold' WHERE key = 'super' RETURNING id")
    assert status(clerk_item(plan="gold"), "msg_gold") == "processed"
    assert list(grants(payer_db).values()) == [SUPER]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"plan_id": None, "plan": {"slug": "super"}}, [SUPER]),
        ({"plan_id": "", "plan": {"id": "cplan_super"}}, [SUPER]),
        ({"plan": None}, [PRO]),
        ({"plan_id": "cplan_other", "plan": {"slug": "pro"}}, None),  # the id says that it is another
        ({"plan_id": None, "plan": None}, None),
    ],
)
def test_a_plan_is_known_by_its_id_and_by_its_slug_where_there_is_none(
    payer_db: Database, fields: dict[str, Any], expected: list[int] | None
) -> None:
    event = clerk_item()
    assert status(event | {"data": event["data"] | fields}) == ("processed" if expected else "parked")
    assert list(grants(payer_db).values()) == (expected or [])


# ---- payments ----


@pytest.mark.parametrize(("state", "told"), [("pending", 0), ("paid", 0), ("failed", 1)])
def test_a_failed_payment_is_told(payer_db: Database, state: str, told: int) -> None:
    data = {
        "id": "pa_1",
        "status": state,
        "payer": clerk_payer("user_1"),
        "subscription_items": [{"id": "csub_item_1", "status": "active"}],
    }
    event = {"type": "paymentAttempt.updated", "data": data, "timestamp": FIRST}
    assert status(event) == "processed"
    events = rows(payer_db, "SELECT payload FROM platform.outbox WHERE type = 'payment.failed'")
    assert len(events) == told
    assert grants(payer_db) == {}


# ---- what cannot be ----


@pytest.mark.parametrize(
    "fields",
    [
        {"id": None},
        {"id": ""},
        {"status": None},
        {"status": "on_fire"},
        {"period_start": "today"},
        {"period_end": -1},
        {"payer": "user_1"},
        {"payer": {"user_id": "ada"}},
        {"plan_id": 7},
    ],
)
def test_an_impossible_item_is_quarantined(payer_db: Database, fields: dict[str, Any]) -> None:
    event = clerk_item()
    assert status(event | {"data": event["data"] | fields}) == "quarantined"


@pytest.mark.parametrize(
    "fields",
    [
        {"is_free_trial": None},
        {"interval": 1},
        {"interval": None, "period_end": None},
        {"period_start": FIRST},  # in seconds
        {"payer": {"user_id": "user_1", "organization_id": None}},
        {"payer": {"user_id": "user_1"}},
        {"seats": {"quantity": 5}, "a field of tomorrow": [1]},
    ],
)
def test_what_may_differ_is_taken(payer_db: Database, fields: dict[str, Any]) -> None:
    event = clerk_item()
    assert status(event | {"data": event["data"] | fields}) == "processed"
    assert list(grants(payer_db).values()) == [PRO]
