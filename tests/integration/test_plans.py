"""GET /v1/plans: a fresh stack's price list, for everybody."""

from typing import Any

import pytest
from tests.callers import send
from tests.databases import Database
from tests.ledgers import rows

MIB, GIB = 1024**2, 1024**3
UNLIMITED = -1

# tier: credits a period, and what the products allow (messages a day and a month, projects, deployments;
# sites and their bytes; workflows, executions a month and their bytes)
TIERS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "free": (100, (10, 100, 3, 1), (1, 100 * MIB), (5, 1000, 100 * MIB)),
    "starter": (500, (10, 100, 3, 1), (3, 5 * GIB), (5, 1000, 100 * MIB)),
    "pro": (1000, (100, 1000, 50, 10), (10, 50 * GIB), (50, 50_000, 10 * GIB)),
    "super": (10_000, (1000, 10_000, UNLIMITED, UNLIMITED), (10, 50 * GIB), (50, 50_000, 10 * GIB)),
    "enterprise": (
        50_000,
        (1000, 10_000, UNLIMITED, UNLIMITED),
        (UNLIMITED, UNLIMITED),
        (UNLIMITED, UNLIMITED, UNLIMITED),
    ),
}
FREE = {"basic-templates", "public-sharing"}
PRO = FREE | {"all-templates", "private-projects", "integrations", "priority-support"}
SUPER = PRO | {"everything", "white-label", "custom-templates", "dedicated-support"}
FEATURES = {"free": FREE, "starter": FREE, "pro": PRO, "super": SUPER, "enterprise": SUPER}


@pytest.fixture
def catalog(app_db: Database) -> dict[str, Any]:
    answer = send("GET", "/v1/plans")  # without a token
    assert answer.status == 200
    body: dict[str, Any] = answer.body
    return body


def test_every_tier_is_there_from_the_lowest_on(catalog: dict[str, Any]) -> None:
    assert [plan["tier"] for plan in catalog["plans"]] == list(TIERS)
    assert [plan["key"] for plan in catalog["plans"]] == list(TIERS)
    assert [plan["clerk_plan_id"] for plan in catalog["plans"]] == [f"cplan_{tier}" for tier in TIERS]
    assert {plan["currency"] for plan in catalog["plans"]} == {"usd"}


def test_every_plan_but_the_free_one_has_a_monthly_and_a_yearly_price(catalog: dict[str, Any]) -> None:
    for plan in catalog["plans"]:
        assert plan["prices"] == (
            []
            if plan["tier"] == "free"
            else [
                {"price_id": f"price_{plan['tier']}_monthly", "interval": "month"},
                {"price_id": f"price_{plan['tier']}_yearly", "interval": "year"},
            ]
        )
        assert isinstance(plan["price_monthly_minor"], int)
    assert [plan["price_monthly_minor"] for plan in catalog["plans"]][:3] == [0, 2900, 4900]


@pytest.mark.parametrize("tier", TIERS)
def test_a_plan_gives_its_credits_limits_and_features(catalog: dict[str, Any], tier: str) -> None:
    plan = next(plan for plan in catalog["plans"] if plan["tier"] == tier)
    credits_a_period, app, site, workflow = TIERS[tier]
    assert plan["credits"] == credits_a_period
    assert plan["limits"] == {
        "app.messages_per_day": app[0],
        "app.messages_per_month": app[1],
        "app.projects": app[2],
        "app.deployments": app[3],
        "site.projects": site[0],
        "site.storage_bytes": site[1],
        "workflow.workflows": workflow[0],
        "workflow.executions_per_month": workflow[1],
        "workflow.storage_bytes": workflow[2],
    }
    assert set(plan["features"]) == FEATURES[tier]


def test_packs_are_for_sale(catalog: dict[str, Any]) -> None:
    assert [(pack["id"], pack["credits"], pack["price_id"]) for pack in catalog["packs"]] == [
        ("pack_500", 500, "price_pack_500"),
        ("pack_2000", 2000, "price_pack_2000"),
    ]


def test_what_is_withdrawn_is_not_shown(app_db: Database) -> None:
    rows(app_db, "UPDATE billing.plans SET active = false WHERE key = 'super'")
    rows(app_db, "UPDATE billing.credit_packs SET active = false WHERE id = 'pack_500'")
    body = send("GET", "/v1/plans").body
    assert "super" not in [plan["key"] for plan in body["plans"]]
    assert [pack["id"] for pack in body["packs"]] == ["pack_2000"]


@pytest.mark.usefixtures("app_db")
def test_a_bad_token_does_not_close_what_is_public() -> None:
    assert send("GET", "/v1/plans", "nonsense").status == 200


@pytest.mark.usefixtures("app_db")
def test_the_price_list_takes_no_parameters_and_no_orders() -> None:
    assert send("GET", "/v1/plans", query={"tier": "pro"}).status == 422
    refused = send("POST", "/v1/plans", body={})
    assert (refused.status, refused.headers["allow"]) == (405, "GET")
