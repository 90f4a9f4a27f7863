"""GET /v1/me: who asks, where, and what the organisation has and may do."""

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.callers import ROOT, Customer, debit, mint, moment, send, sign_up, token, trust_our_tokens
from tests.counters import DAY, MONTH, live_in, take_at
from tests.databases import Database
from tests.ledgers import give, rows

from backplane import db

FREE_LIMITS = {
    "app.deployments": 1,
    "app.messages_per_day": 10,
    "app.messages_per_month": 100,
    "app.projects": 3,
    "site.projects": 1,
    "site.storage_bytes": 100 * 1024**2,
    "workflow.executions_per_month": 1000,
    "workflow.storage_bytes": 100 * 1024**2,
    "workflow.workflows": 5,
}
INACTIVE = {
    "tier": "free",
    "status": "inactive",
    "current_period_end": None,
    "cancels_at_period_end": False,
}


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up()


def me(credential: str, organization: object = None) -> dict[str, Any]:
    answer = send("GET", "/v1/me", credential, organization=organization)
    assert answer.status == 200, answer.body
    body: dict[str, Any] = answer.body
    return body


def subscribe(
    database: Database,
    customer: Customer,
    plan: str = "pro",
    status: str = "active",
    *,
    told_at: int = 1,
    **fields: Any,
) -> None:
    """A subscription as an event of that second leaves it."""
    columns = {
        "organization_id": customer.organization_id,
        "provider": "stripe",
        "provider_subscription_id": f"sub_{plan}_{told_at}",
        "status": status,
        "as_of": f"{int(status == 'canceled')}.{told_at:012d}.0.0.evt_{told_at}",
    } | fields
    rows(
        database,
        f"""
        INSERT INTO billing.subscriptions (plan_id, {", ".join(columns)})
        SELECT id, {", ".join(["%s"] * len(columns))} FROM billing.plans WHERE key = %s
        """,
        *columns.values(),
        plan,
    )


# ---- who ----


def test_a_new_user_finds_himself_in_his_own_organisation_on_the_free_plan(ada: Customer) -> None:
    body = me(ada.token)
    assert body["user"] == {
        "id": str(ada.user_id),
        "clerk_id": "user_ada",
        "email": None,
        "name": None,
        "role": "user",
    }
    assert body["organization"] == {
        "id": str(ada.organization_id),
        "name": "Personal",
        "is_personal": True,
    }
    assert body["role"] == "owner"
    assert body["plan"] == INACTIVE
    assert body["credits"] == {"available": 100, "held": 0, "debt": 0}
    assert {key: limit["limit"] for key, limit in body["limits"].items()} == FREE_LIMITS
    assert all(limit["used"] == 0 for limit in body["limits"].values())
    assert body["features"] == ["basic-templates", "public-sharing"]
    assert set(body) == {"user", "organization", "role", "plan", "credits", "limits", "features"}


def test_a_profile_that_is_known_is_shown(app_db: Database, ada: Customer) -> None:
    rows(
        app_db,
        "UPDATE identity.users SET email = 'ada@example.com', first_name = 'Ada', last_name = 'Lovelace'",
    )
    user = me(ada.token)["user"]
    assert (user["email"], user["name"]) == ("ada@example.com", "Ada Lovelace")
    rows(app_db, "UPDATE identity.users SET first_name = ' ', last_name = NULL")
    assert me(ada.token)["user"]["name"] is None


def test_a_token_of_an_organisation_acts_there(ada: Customer) -> None:
    owner = me(token(org_id="org_acme", org_slug="acme", org_role="org:admin"))
    viewer = me(token("user_vic", org_id="org_acme", org_role="org:viewer"))
    assert owner["organization"] == viewer["organization"]
    assert (owner["organization"]["name"], owner["organization"]["is_personal"]) == ("acme", False)
    assert (owner["role"], viewer["role"]) == ("owner", "viewer")
    assert owner["user"]["id"] == str(ada.user_id)
    assert viewer["credits"]["available"] == 0  # only personal organisations get sign-up credits


def test_a_key_has_no_user_and_no_role(app_db: Database, ada: Customer) -> None:
    organization = mint(app_db, ada.organization_id)
    service = mint(app_db, None)
    for body in (me(organization), me(service, ada.organization_id)):
        assert (body["user"], body["role"]) == (None, None)
        assert body["organization"]["id"] == str(ada.organization_id)
        assert body["credits"]["available"] == 100


def test_a_visiting_platform_admin_sees_the_organisation_as_himself(ada: Customer) -> None:
    body = me(token(ROOT), ada.organization_id)
    assert body["user"]["clerk_id"] == ROOT
    assert body["organization"]["id"] == str(ada.organization_id)
    assert body["role"] is None
    assert me(token(ROOT))["role"] == "owner"


def test_nobody_else_may_visit(app_db: Database, ada: Customer) -> None:
    other = sign_up("user_bob")
    refused = send("GET", "/v1/me", ada.token, organization=other.organization_id)
    assert (refused.status, refused.body["code"]) == (403, "forbidden")
    assert send("GET", "/v1/me").status == 401
    unreadable = mint(app_db, ada.organization_id, ["credits:spend"])
    assert send("GET", "/v1/me", unreadable).status == 403


# ---- the plan ----


def test_a_subscription_gives_its_plans_tier_limits_and_features(app_db: Database, ada: Customer) -> None:
    end = datetime(2030, 1, 31, tzinfo=UTC)
    subscribe(app_db, ada, "super", current_period_end=end)
    body = me(ada.token)
    assert (body["plan"]["tier"], body["plan"]["status"]) == ("super", "active")
    assert moment(body["plan"]["current_period_end"]) == end
    assert body["limits"]["app.projects"] == {"limit": -1, "used": 0, "resets_at": None}
    assert "white-label" in body["features"]


@pytest.mark.parametrize(
    ("status", "tier"),
    [
        ("trialing", "pro"),
        ("active", "pro"),
        ("past_due", "pro"),
        ("paused", "pro"),
        ("canceled", "free"),
        ("unpaid", "free"),
        ("incomplete", "free"),
        ("incomplete_expired", "free"),
    ],
)
def test_the_tier_is_free_once_a_subscription_gives_nothing(
    app_db: Database, ada: Customer, status: str, tier: str
) -> None:
    subscribe(app_db, ada, "pro", status)
    body = me(ada.token)
    assert (body["plan"]["tier"], body["plan"]["status"]) == (tier, status)
    assert body["limits"]["app.projects"]["limit"] == (50 if tier == "pro" else 3)
    assert ("private-projects" in body["features"]) == (tier == "pro")


def test_the_best_subscription_that_counts_is_the_plan(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, ada, "starter", told_at=3)
    subscribe(app_db, ada, "pro", "past_due", told_at=1)
    subscribe(app_db, ada, "enterprise", "canceled", told_at=2)
    plan = me(ada.token)["plan"]
    assert (plan["tier"], plan["status"]) == ("pro", "past_due")


def test_the_last_of_several_that_ended_is_told(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, ada, "enterprise", "canceled", told_at=1)
    subscribe(app_db, ada, "starter", "unpaid", told_at=2)
    plan = me(ada.token)["plan"]
    assert (plan["tier"], plan["status"]) == ("free", "unpaid")


@pytest.mark.parametrize(
    ("fields", "cancels"),
    [
        ({}, False),
        ({"cancel_at_period_end": True}, True),
        ({"cancel_at": datetime(2030, 1, 31, tzinfo=UTC)}, True),
    ],
)
def test_a_coming_end_is_told_by_the_flag_or_the_date(
    app_db: Database, ada: Customer, fields: dict[str, Any], cancels: bool
) -> None:
    subscribe(app_db, ada, **fields)
    assert me(ada.token)["plan"]["cancels_at_period_end"] is cancels


def test_a_subscription_to_the_free_plan_is_free(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, ada, "free", provider="clerk")  # Clerk has one for everybody
    assert me(ada.token)["plan"] == INACTIVE | {"status": "active"}


def test_the_end_of_a_subscription_to_the_free_plan_leaves_it_free(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, ada, "free", "canceled", provider="clerk")
    assert me(ada.token)["plan"] == INACTIVE | {"status": "canceled"}


def test_another_organisations_subscription_is_not_ours(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, sign_up("user_bob"), "enterprise")
    assert me(ada.token)["plan"] == INACTIVE


# ---- credits and limits ----


def test_credits_are_those_of_the_ledger(app_db: Database, ada: Customer) -> None:
    debit(ada.token, key="key-1", quantity=30)
    with app_db.as_role("backplane_system"):
        give(ada.organization_id, 500)
    assert me(ada.token)["credits"] == {"available": 570, "held": 0, "debt": 0}
    rows(app_db, "UPDATE credits.accounts SET held = 5, debt = 7")
    assert me(ada.token)["credits"] == {"available": 570, "held": 5, "debt": 7}


@pytest.mark.parametrize("timezone", ["UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati"])
def test_periods_turn_at_the_organisations_midnight(app_db: Database, ada: Customer, timezone: str) -> None:
    live_in(app_db, ada.organization_id, timezone)
    zone = ZoneInfo(timezone)
    midnight = time(tzinfo=zone)
    for _ in range(3):  # once more where midnight passed between two clocks
        today = datetime.now(zone).date()
        yesterday = datetime.combine(today, midnight) - timedelta(microseconds=1)
        for at, keys, quantity in (
            (yesterday, [DAY, MONTH], 9),
            (datetime.now(zone), [DAY, MONTH], 4),
            (datetime.now(zone), ["app.projects"], 2),
        ):
            take_at(app_db, ada.organization_id, at, *keys, quantity=quantity)
        limits = me(ada.token)["limits"]
        if datetime.now(zone).date() == today:
            break
        rows(app_db, "DELETE FROM billing.usage_counters")
    per_day, per_month = limits[DAY], limits[MONTH]
    assert (per_day["limit"], per_day["used"]) == (10, 4)
    assert moment(per_day["resets_at"]) == datetime.combine(today + timedelta(days=1), midnight)
    assert (per_month["limit"], per_month["used"]) == (100, 4 if today.day == 1 else 13)
    following = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    assert moment(per_month["resets_at"]) == datetime.combine(following, midnight)
    assert limits["app.projects"] == {"limit": 3, "used": 2, "resets_at": None}


# ---- times ----


def test_times_are_utc_whatever_the_servers_timezone(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, ada, current_period_end=datetime(2030, 7, 31, tzinfo=UTC))
    rows(app_db, f"ALTER DATABASE {app_db.name} SET timezone = 'America/New_York'")
    db.reset()
    assert moment(me(ada.token)["plan"]["current_period_end"]) == datetime(2030, 7, 31, tzinfo=UTC)
    moment(send("GET", "/v1/credits", ada.token).body["updated_at"])
    moment(debit(ada.token, key="key-1").body["created_at"])
    moment(send("GET", "/v1/credits/usage", ada.token).body["from"])
