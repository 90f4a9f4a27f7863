"""Limits against the real database: counted once, refused in time, given back, however many race."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from tests.counters import DAY, MONTH, at_once, counters, live_in, plan_id, take_at, transaction, used
from tests.databases import Database
from tests.ledgers import new_account, rows

from backplane import db, limits
from backplane.problems import (
    FeatureNotInPlan,
    Forbidden,
    PlanLimitReached,
    Problem,
    QuotaExhausted,
    Unprocessable,
)

RACERS = 16
BYTES = "site.storage_bytes"
FREE_BYTES = 100 * 1024**2


@pytest.fixture
def acme(app_db: Database) -> UUID:
    """An organisation on the free plan: 10 messages a day, 100 a month, 3 projects."""
    return new_account(app_db)


def subscribe(database: Database, organization_id: UUID, plan: str) -> None:
    """To this plan and no other."""
    rows(
        database,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_1', id, 'active', '0.1' FROM billing.plans WHERE key = %s
        ON CONFLICT (provider, provider_subscription_id) DO UPDATE SET plan_id = EXCLUDED.plan_id
        """,
        organization_id,
        plan,
    )


def take(organization_id: UUID, key: str, quantity: int = 1) -> datetime:
    with db.transaction(organization_id=organization_id) as tx:
        return limits.take(tx, organization_id, key, quantity)


def take_together(organization_id: UUID, *keys: str, quantity: int = 1) -> datetime:
    with db.transaction(organization_id=organization_id) as tx:
        return limits.take_together(tx, organization_id, keys, quantity)


def give_back(organization_id: UUID, key: str, quantity: int = 1, **fields: Any) -> None:
    with db.transaction(organization_id=organization_id) as tx:
        limits.give_back(tx, organization_id, key, quantity, **fields)


def correct(organization_id: UUID, key: str, by: int) -> None:
    with db.transaction(organization_id=organization_id) as tx:
        limits.correct(tx, organization_id, key, by)


def seen(database: Database, organization_id: UUID, plan: str = "free") -> dict[str, limits.Limit]:
    """As GET /v1/me shows it."""
    plan_of_it = plan_id(database, plan)
    with db.transaction(organization_id=organization_id) as tx:
        return limits.usage(tx, organization_id, plan_of_it)


# ---- stocks ----


def test_a_stock_is_full_at_its_limit_and_has_room_again_after_a_deletion(
    app_db: Database, acme: UUID
) -> None:
    for _ in range(3):
        take(acme, "app.projects")
    with pytest.raises(PlanLimitReached, match=r"free allows 3 of app.projects: 3 are used") as refused:
        take(acme, "app.projects")
    assert (refused.value.status, refused.value.code) == (403, "plan_limit_reached")
    assert refused.value.retry_after is None
    give_back(acme, "app.projects")
    take(acme, "app.projects")
    assert used(app_db, acme, "app.projects") == 3
    assert len(counters(app_db, acme, "app.projects")) == 1


def test_bytes_are_counted_to_the_last_one(app_db: Database, acme: UUID) -> None:
    take(acme, BYTES, FREE_BYTES - 1)
    with pytest.raises(PlanLimitReached):
        take(acme, BYTES, 2)
    take(acme, BYTES, 1)
    with pytest.raises(PlanLimitReached):
        take(acme, BYTES)
    assert used(app_db, acme, BYTES) == FREE_BYTES


def test_more_than_any_limit_is_refused_and_not_too_large_to_count(app_db: Database, acme: UUID) -> None:
    take(acme, BYTES, 1)
    with pytest.raises(PlanLimitReached):
        take(acme, BYTES, 2**63 - 1)
    assert used(app_db, acme, BYTES) == 1


def test_what_is_unlimited_is_counted_too(app_db: Database, acme: UUID) -> None:
    subscribe(app_db, acme, "super")
    for _ in range(5):
        take(acme, "app.projects")
    assert used(app_db, acme, "app.projects") == 5
    assert seen(app_db, acme, "super")["app.projects"] == limits.Limit(limit=-1, used=5)


def test_what_stands_after_a_downgrade_stays_and_grows_no_more(app_db: Database, acme: UUID) -> None:
    subscribe(app_db, acme, "pro")
    for _ in range(5):
        take(acme, "app.projects")
    subscribe(app_db, acme, "free")
    with pytest.raises(PlanLimitReached, match=r"allows 3 of app.projects: 5 are used"):
        take(acme, "app.projects")
    for _ in range(3):
        give_back(acme, "app.projects")
    take(acme, "app.projects")
    assert used(app_db, acme, "app.projects") == 3


def test_what_turned_out_larger_is_counted_above_the_limit(app_db: Database, acme: UUID) -> None:
    take(acme, BYTES, FREE_BYTES)
    correct(acme, BYTES, 5 * 1024**3)
    assert used(app_db, acme, BYTES) == FREE_BYTES + 5 * 1024**3
    correct(acme, BYTES, -(5 * 1024**3) - 1)
    take(acme, BYTES, 1)


def test_nothing_is_counted_below_nothing(app_db: Database, acme: UUID) -> None:
    give_back(acme, "app.projects")
    assert used(app_db, acme, "app.projects") == 0
    take(acme, "app.projects")
    give_back(acme, "app.projects", 7)
    assert used(app_db, acme, "app.projects") == 0
    correct(acme, BYTES, -5)
    assert used(app_db, acme, BYTES) == 0


def test_a_first_correction_is_counted(app_db: Database, acme: UUID) -> None:
    correct(acme, BYTES, 5)
    assert used(app_db, acme, BYTES) == 5


def test_what_is_rolled_back_was_not_counted(app_db: Database, acme: UUID) -> None:
    def take_and_fail(tx: db.Tx) -> None:
        limits.take(tx, acme, "app.projects")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.run(take_and_fail, organization_id=acme)
    assert used(app_db, acme, "app.projects") == 0


def test_nothing_counts_nothing_and_less_than_nothing_is_a_defect(app_db: Database, acme: UUID) -> None:
    take(acme, BYTES, 0)
    assert used(app_db, acme, BYTES) == 0
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        take(acme, BYTES, -1)
    with pytest.raises(ValueError, match="0 or more"):
        give_back(acme, BYTES, -1)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="a quota is counted"):
        correct(acme, DAY, 1)


def test_a_key_that_no_plan_names_is_a_defect(acme: UUID) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no plan names the limit"):
        take(acme, "app.nonsense")


def test_where_a_plan_does_not_name_a_key_the_next_lower_tier_does(app_db: Database, acme: UUID) -> None:
    subscribe(app_db, acme, "enterprise")
    rows(
        app_db,
        """
        DELETE FROM billing.plan_limits
        WHERE key = 'app.projects'
          AND plan_id IN (SELECT id FROM billing.plans WHERE key IN ('enterprise', 'super'))
        """,
    )
    assert seen(app_db, acme, "enterprise")["app.projects"].limit == 50  # pro's
    take(acme, "app.projects", 50)
    with pytest.raises(PlanLimitReached):
        take(acme, "app.projects")


# ---- quotas ----


def test_a_quota_is_exhausted_until_its_period_turns(app_db: Database, acme: UUID) -> None:
    before = datetime.now(UTC)
    take(acme, DAY, 10)
    with pytest.raises(QuotaExhausted, match=r"allows 10 of app.messages_per_day: 10 are used") as refused:
        take(acme, DAY)
    resets_at = counters(app_db, acme, DAY)[-1]["period_end"].astimezone(UTC)
    assert resets_at.time() == datetime.min.time()
    assert resets_at.isoformat() in refused.value.detail
    assert (refused.value.status, refused.value.code) == (429, "quota_exhausted")
    assert refused.value.retry_after is not None
    coming = datetime.now(UTC) + timedelta(seconds=refused.value.retry_after)
    assert resets_at <= coming <= resets_at + (datetime.now(UTC) - before) + timedelta(seconds=1)


def test_day_and_month_are_counted_together_or_not_at_all(app_db: Database, acme: UUID) -> None:
    take_together(acme, DAY, MONTH, quantity=10)
    with pytest.raises(QuotaExhausted, match=DAY):
        take_together(acme, MONTH, DAY)
    assert (used(app_db, acme, DAY), used(app_db, acme, MONTH)) == (10, 10)


def test_a_refusal_leaves_nothing_even_if_its_caller_goes_on(app_db: Database, acme: UUID) -> None:
    take(acme, DAY, 10)
    with db.transaction(organization_id=acme) as tx:
        with pytest.raises(QuotaExhausted):
            limits.take_together(tx, acme, [DAY, MONTH])
        limits.take(tx, acme, "app.projects")
    assert [used(app_db, acme, key) for key in (DAY, MONTH, "app.projects")] == [10, 0, 1]


def test_of_several_that_are_exhausted_the_last_to_turn_is_named(app_db: Database, acme: UUID) -> None:
    now = datetime(2026, 3, 15, 12, tzinfo=UTC)
    for day in range(10):
        take_at(app_db, acme, now + timedelta(days=day), DAY, MONTH, quantity=10)
    refused = take_at(app_db, acme, now + timedelta(days=9), DAY, MONTH)
    assert (refused["refused_key"], refused["used"]) == (MONTH, 100)
    assert refused["resets_at"] == datetime(2026, 4, 1, tzinfo=UTC)
    stock = take_at(app_db, acme, now + timedelta(days=9), "app.projects", DAY, MONTH, quantity=101)
    assert (stock["refused_key"], stock["resets_at"]) == ("app.projects", None)


def test_a_new_day_is_a_new_counter_and_the_month_goes_on(app_db: Database, acme: UUID) -> None:
    last = datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC)
    assert take_at(app_db, acme, last, DAY, MONTH, quantity=10)["refused_key"] is None
    assert take_at(app_db, acme, last, DAY)["refused_key"] == DAY
    midnight = last + timedelta(microseconds=1)
    assert take_at(app_db, acme, midnight, DAY, MONTH, quantity=10)["refused_key"] is None
    assert [row["used"] for row in counters(app_db, acme, DAY)] == [10, 10]
    assert [row["used"] for row in counters(app_db, acme, MONTH)] == [10, 10]  # 1 March
    assert take_at(app_db, acme, midnight + timedelta(days=1), DAY, MONTH)["refused_key"] is None
    assert [row["used"] for row in counters(app_db, acme, MONTH)] == [10, 11]


def test_a_change_of_plan_changes_the_limit_and_not_the_count(app_db: Database, acme: UUID) -> None:
    now = datetime(2026, 3, 15, 12, tzinfo=UTC)
    take_at(app_db, acme, now, DAY, quantity=10)
    assert take_at(app_db, acme, now, DAY, quantity=90, plan="pro")["refused_key"] is None
    assert take_at(app_db, acme, now, DAY, plan="pro")["used"] == 100
    assert take_at(app_db, acme, now, DAY, plan="free")["used"] == 100  # refused, and the count stays
    assert take_at(app_db, acme, now, DAY, plan="super")["refused_key"] is None
    assert used(app_db, acme, DAY) == 101


def test_a_failed_generation_gives_its_count_back_to_the_period_it_was_taken_in(
    app_db: Database, acme: UUID
) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    take_at(app_db, acme, yesterday, DAY, quantity=4)
    today = take(acme, DAY, 3)
    give_back(acme, DAY, at=yesterday)
    assert [row["used"] for row in counters(app_db, acme, DAY)] == [3, 3]
    give_back(acme, DAY, at=today)
    assert [row["used"] for row in counters(app_db, acme, DAY)] == [3, 2]
    give_back(acme, DAY)
    assert [row["used"] for row in counters(app_db, acme, DAY)] == [3, 1]
    give_back(acme, DAY, at=yesterday - timedelta(days=7))  # nothing was counted then
    assert [row["used"] for row in counters(app_db, acme, DAY)] == [3, 1]


def test_what_is_used_is_shown_with_when_it_counts_anew(app_db: Database, acme: UUID) -> None:
    take_together(acme, DAY, MONTH, quantity=4)
    shown = seen(app_db, acme)
    assert (shown[DAY].limit, shown[DAY].used) == (10, 4)
    assert shown[DAY].resets_at == counters(app_db, acme, DAY)[0]["period_end"]
    assert (shown[MONTH].limit, shown[MONTH].used) == (100, 4)
    assert shown["app.projects"] == limits.Limit(limit=3, used=0, resets_at=None)


# ---- features ----


def test_a_feature_is_the_plans_or_refused(app_db: Database, acme: UUID) -> None:
    with db.transaction(organization_id=acme) as tx:
        limits.require_feature(tx, acme, "public-sharing")
        with pytest.raises(FeatureNotInPlan, match="free does not include private-projects") as refused:
            limits.require_feature(tx, acme, "private-projects")
    assert (refused.value.status, refused.value.code) == (403, "feature_not_in_plan")
    assert isinstance(refused.value, Forbidden)
    subscribe(app_db, acme, "pro")
    with db.transaction(organization_id=acme) as tx:
        limits.require_feature(tx, acme, "private-projects")


# ---- who races ----


def test_of_many_at_once_exactly_as_many_get_through_as_the_limit_allows(
    app_db: Database, acme: UUID
) -> None:
    def one(number: int) -> str | None:
        keys = [DAY, MONTH] if number % 2 else [MONTH, DAY]
        try:
            with transaction(app_db, acme) as tx:
                limits.take_together(tx, acme, keys)
        except Problem as problem:
            return problem.code
        return None

    outcomes = at_once(RACERS, one)
    assert outcomes.count(None) == 10
    assert outcomes.count("quota_exhausted") == RACERS - 10
    assert (used(app_db, acme, DAY), used(app_db, acme, MONTH)) == (10, 10)


def test_takes_and_returns_at_once_lose_nothing(app_db: Database, acme: UUID) -> None:
    take(acme, "app.projects", 3)

    def one(number: int) -> int:
        if number % 2:
            with transaction(app_db, acme) as tx:
                limits.give_back(tx, acme, "app.projects")
            return -1
        try:
            with transaction(app_db, acme) as tx:
                limits.take(tx, acme, "app.projects")
        except PlanLimitReached:
            return 0
        return 1

    # Three returns: with more, some would find nothing to take off.
    changes = at_once(6, one)
    assert used(app_db, acme, "app.projects") == 3 + sum(changes)


# ---- whose counters they are ----


def test_the_application_counts_for_its_organisation_only(app_db: Database, acme: UUID) -> None:
    other = new_account(app_db)
    for caller in (other, None):
        for attempt in (
            lambda tx: limits.take(tx, acme, "app.projects"),
            lambda tx: limits.give_back(tx, acme, "app.projects"),
            lambda tx: limits.correct(tx, acme, BYTES, 1),
            lambda tx: limits.change_timezone(tx, acme, "Europe/Berlin"),
        ):
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege, match="is not organisation"),
                db.transaction(organization_id=caller) as tx,
            ):
                attempt(tx)
    assert used(app_db, acme, "app.projects") == 0


def test_jobs_count_for_anybody(app_db: Database, acme: UUID) -> None:
    with app_db.as_role("backplane_system"), db.transaction() as tx:
        limits.take(tx, acme, "app.projects")
        limits.give_back(tx, acme, "app.projects")
        limits.change_timezone(tx, acme, "Europe/Berlin")


@pytest.mark.parametrize("role", ["backplane_app", "backplane_system"])
def test_nobody_changes_a_counter_by_hand(app_db: Database, acme: UUID, role: str) -> None:
    take(acme, "app.projects")
    by_night = ["DELETE FROM billing.usage_counters"] if role == "backplane_app" else []  # the upkeep forgets
    for statement in (
        *by_night,
        "UPDATE billing.usage_counters SET used = 0",
        "INSERT INTO billing.usage_counters SELECT id, 'a.b', '-infinity' FROM tenancy.organizations",
        "SELECT billing.take_at(NULL, NULL, '{}', 1, NULL)",
    ):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            app_db.as_role(role),
            db.transaction(organization_id=acme) as tx,
        ):
            tx.execute(statement.encode())


# ---- timezones ----


@pytest.mark.parametrize("name", ["Europe/Berlin", "Asia/Kathmandu", "UTC", "America/Argentina/Ushuaia"])
def test_a_timezone_is_one_of_ianas_names(app_db: Database, acme: UUID, name: str) -> None:
    with db.transaction(organization_id=acme) as tx:
        limits.change_timezone(tx, acme, name)
    assert rows(app_db, "SELECT timezone FROM tenancy.organizations WHERE id = %s", acme)[0] == {
        "timezone": name
    }


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mars/Olympus",
        "europe/berlin",
        "+02:00",
        "UTC+3",
        "<x>-5",
        "posix/Europe/Berlin",
        "Factory",
        "CEST",
    ],
)
def test_anything_else_is_no_timezone(app_db: Database, acme: UUID, name: str) -> None:
    with pytest.raises(Unprocessable, match="IANA") as refused, db.transaction(organization_id=acme) as tx:
        limits.change_timezone(tx, acme, name)
    assert refused.value.errors[0]["loc"] == ["body", "timezone"]
    assert rows(app_db, "SELECT timezone FROM tenancy.organizations WHERE id = %s", acme)[0] == {
        "timezone": "UTC"
    }


def test_an_unknown_organisation_is_a_defect(app_db: Database) -> None:
    with pytest.raises(psycopg.errors.NoDataFound):
        take(uuid4(), "app.projects")


NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "resets_at"),
    [
        ("Europe/Berlin", datetime(2026, 6, 16, 0, tzinfo=UTC)),  # there it is the 16th already at 22:00
        ("America/New_York", datetime(2026, 6, 16, 4, tzinfo=UTC)),
        ("Pacific/Kiritimati", datetime(2026, 6, 16, 0, tzinfo=UTC)),  # there it is the 16th now
        ("Etc/GMT+12", datetime(2026, 6, 16, 12, tzinfo=UTC)),
    ],
)
def test_after_a_change_of_timezone_a_day_goes_on_until_it_is_over_in_both(
    app_db: Database, acme: UUID, zone: str, resets_at: datetime
) -> None:
    take_at(app_db, acme, NOON, DAY, quantity=10)
    live_in(app_db, acme, zone)
    assert take_at(app_db, acme, NOON, DAY)["resets_at"] == resets_at
    assert take_at(app_db, acme, resets_at - timedelta(microseconds=1), DAY)["refused_key"] == DAY
    assert take_at(app_db, acme, resets_at, DAY, quantity=10)["refused_key"] is None
    live_in(app_db, acme, "UTC")  # and back: what was taken since is not forgotten
    assert take_at(app_db, acme, resets_at, DAY)["refused_key"] == DAY


def test_there_and_back_again_changes_nothing(app_db: Database, acme: UUID) -> None:
    take_at(app_db, acme, NOON, DAY, MONTH, quantity=6)
    live_in(app_db, acme, "Pacific/Kiritimati")
    take_at(app_db, acme, NOON, DAY, MONTH, quantity=4)
    live_in(app_db, acme, "UTC")
    refused = take_at(app_db, acme, NOON, DAY)
    assert (refused["used"], refused["resets_at"]) == (10, datetime(2026, 6, 16, tzinfo=UTC))
    assert take_at(app_db, acme, refused["resets_at"], DAY, MONTH)["refused_key"] is None
    assert used(app_db, acme, MONTH) == 11


def test_a_month_is_not_lost_and_not_won_by_moving_east(app_db: Database, acme: UUID) -> None:
    for day in range(10):
        take_at(app_db, acme, NOON + timedelta(days=day), DAY, MONTH, quantity=10)
    live_in(app_db, acme, "Europe/Berlin")
    for moment in (datetime(2026, 6, 30, 21, tzinfo=UTC), datetime(2026, 6, 30, 23, tzinfo=UTC)):
        assert take_at(app_db, acme, moment, MONTH)["resets_at"] == datetime(2026, 7, 1, tzinfo=UTC)
    july = datetime(2026, 7, 1, tzinfo=UTC)
    assert take_at(app_db, acme, july, MONTH, quantity=100)["refused_key"] is None
    assert take_at(app_db, acme, july, MONTH)["resets_at"] == datetime(2026, 7, 31, 22, tzinfo=UTC)
