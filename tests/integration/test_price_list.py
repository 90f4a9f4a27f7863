"""Plans and prices as platform admins keep them: whole or not at all, and never to a customer's harm."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.callers import ROOT, Customer, debit, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows

NEW = {
    "key": "team",
    "tier": "pro",
    "name": "Team",
    "credits": 3000,
    "prices": [{"price_id": "price_team_monthly", "interval": "month"}],
    "limits": {"app.projects": -1},
    "features": ["all-templates", "private-projects"],
    "price_monthly_minor": 9900,
}


@pytest.fixture
def root(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Customer]:
    """A platform admin; the function's login is the system's."""
    trust_our_tokens(monkeypatch)
    with database.as_role("backplane_system"):
        yield sign_up(ROOT)


def make(root: Customer, **fields: Any) -> Any:
    return send("POST", "/v1/admin/plans", root.token, body=NEW | fields)


def change(root: Customer, key: str, /, **fields: Any) -> Any:
    return send("PATCH", f"/v1/admin/plans/{key}", root.token, body=fields)


def plan(root: Customer, key: str) -> dict[str, Any]:
    items = send("GET", "/v1/admin/plans", root.token).body["items"]
    [found] = [item for item in items if item["key"] == key]
    return dict(found)


# ---- plans ----


def test_every_plan_is_listed_for_sale_or_not_part_by_part(root: Customer) -> None:
    assert change(root, "super", active=False).status == 200
    keys, cursor = [], None
    while True:
        query = {"limit": "2"} | ({} if cursor is None else {"cursor": cursor})
        part = send("GET", "/v1/admin/plans", root.token, query=query).body
        keys += [item["key"] for item in part["items"]]
        if (cursor := part["next_cursor"]) is None:
            break
    assert keys == ["enterprise", "free", "pro", "starter", "super"]
    assert plan(root, "super")["active"] is False


def test_a_new_plan_is_for_sale_at_once(root: Customer) -> None:
    made = make(root)
    assert made.status == 201
    assert {name: made.body[name] for name in NEW} == NEW
    [shown] = [each for each in send("GET", "/v1/plans").body["plans"] if each["key"] == "team"]
    assert (shown["credits"], shown["prices"]) == (3000, NEW["prices"])


@pytest.mark.parametrize(
    "taken",
    [
        {"key": "pro"},
        {"prices": [{"price_id": "price_pro_monthly", "interval": "month"}]},
        {"clerk_plan_id": "cplan_pro"},
        {"clerk_slug": "pro"},
    ],
)
def test_what_is_another_plans_is_refused_and_nothing_is_half_done(
    root: Customer, taken: dict[str, Any]
) -> None:
    before = send("GET", "/v1/plans").body
    assert make(root, **taken).status == 409
    assert send("GET", "/v1/plans").body == before


def test_a_change_leaves_alone_what_it_does_not_name(root: Customer) -> None:
    before = plan(root, "pro")
    changed = change(root, "pro", credits=1500, rollover="capped", rollover_cap=500)
    assert changed.status == 200
    after = plan(root, "pro")
    assert after == changed.body
    assert after | {"updated_at": None} == before | {
        "credits": 1500,
        "rollover": "capped",
        "rollover_cap": 500,
        "updated_at": None,
    }


def test_lists_and_maps_are_replaced_whole(root: Customer) -> None:
    prices = [
        {"price_id": "price_pro_monthly", "interval": "month"},
        {"price_id": "price_pro_2027", "interval": "year"},
    ]
    change(root, "pro", prices=prices, limits={"app.projects": 5}, features=["one", "one", "two"])
    after = plan(root, "pro")
    assert after["prices"] == prices
    assert (after["limits"], after["features"]) == ({"app.projects": 5}, ["one", "two"])


@pytest.mark.parametrize(
    "fields",
    [
        {"credits": -1},
        {"price_monthly_minor": -1},
        {"price_yearly_minor": -4900},
        {"trial_credits": -1},
        {"credits": 10**10},
        {"credits": "100"},
        {"credits": None},
        {"name": " "},
        {"currency": "dollars"},
        {"tier": "gold"},
        {"limits": {"app.projects": -2}},
        {"limits": {"projects": 1}},
        {"features": ["No Spaces"]},
        {"prices": [{"price_id": "", "interval": "month"}]},
        {"prices": [{"price_id": "price_1", "interval": "week"}]},
        {"prices": [{"price_id": "price_1", "interval": "month"}] * 2},
        {"cta_url": "javascript:alert(1)"},
        {"rollover_cap": 5},
        {"rollover": "capped"},
        {"key": "another"},
        {"id": "00000000-0000-0000-0000-000000000000"},
    ],
)
def test_what_a_plan_cannot_be_is_refused(root: Customer, fields: dict[str, Any]) -> None:
    before = plan(root, "pro")
    assert change(root, "pro", **fields).status == 422
    assert plan(root, "pro") == before


def test_a_plan_that_is_not_there_cannot_be_changed(root: Customer) -> None:
    assert change(root, "gold", credits=1).status == 404


def test_the_last_free_plan_stays(root: Customer) -> None:
    for fields in ({"active": False}, {"tier": "pro"}):
        refused = change(root, "free", **fields)
        assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    assert plan(root, "free")["active"] is True


def test_a_price_that_is_paid_stays(root: Customer, database: Database) -> None:
    rows(
        database,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, price_id, status, as_of)
        SELECT %s, 'stripe', 'sub_1', id, 'price_pro_yearly', 'active', '0.1'
        FROM billing.plans
        WHERE key = 'pro'
        RETURNING 1
        """,
        root.organization_id,
    )
    without = [{"price_id": "price_pro_monthly", "interval": "month"}]
    refused = change(root, "pro", prices=without)
    assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    assert "price_pro_yearly" in refused.body["detail"]
    assert len(plan(root, "pro")["prices"]) == 2
    rows(database, "UPDATE billing.subscriptions SET status = 'canceled' RETURNING 1")
    assert change(root, "pro", prices=without).status == 200


# ---- what operations cost ----


def costs(root: Customer, body: Any) -> Any:
    return send("PUT", "/v1/admin/feature-costs", root.token, body=body)


def test_an_override_is_what_is_charged_and_the_rest_keeps_its_default(root: Customer) -> None:
    before = send("GET", "/v1/admin/feature-costs", root.token).body
    assert (before["ai_text_chat"], before["ai_image_generation"]) == (1, 5)
    answer = costs(root, {"ai_text_chat": 7, "video_generation": 50})
    assert (answer.status, answer.body) == (200, before | {"ai_text_chat": 7, "video_generation": 50})
    assert send("GET", "/v1/admin/feature-costs", root.token).body == answer.body
    assert debit(root.token, key="key-1").body["amount"] == 7
    assert costs(root, {}).body == before


@pytest.mark.parametrize(
    "body",
    [
        {"ai_text_chat": -1},
        {"ai_text_chat": 1.5},
        {"ai_text_chat": "1"},
        {"ai_text_chat": None},
        {"ai_text_chat": 10**10},
        {"admin_adjustment": 1},
        {"Not An Operation": 1},
        {"": 1},
        ["ai_text_chat"],
        {f"operation_{number}": 1 for number in range(201)},
    ],
)
def test_a_price_that_cannot_be_is_refused_and_nothing_changes(root: Customer, body: Any) -> None:
    before = send("GET", "/v1/admin/feature-costs", root.token).body
    assert costs(root, body).status == 422
    assert send("GET", "/v1/admin/feature-costs", root.token).body == before


# ---- who, and who did ----


def test_only_platform_admins_keep_the_price_list(root: Customer) -> None:
    owner = sign_up("user_ada")
    assert send("GET", "/v1/admin/plans", owner.token).status == 403
    assert send("POST", "/v1/admin/plans", owner.token, body=NEW).status == 403
    assert send("PATCH", "/v1/admin/plans/pro", owner.token, body={"credits": 10**9}).status == 403
    assert send("PUT", "/v1/admin/feature-costs", owner.token, body={"ai_text_chat": 0}).status == 403


def test_each_change_is_in_the_audit_log(root: Customer, database: Database) -> None:
    make(root)
    change(root, "team", credits=4000)
    costs(root, {"ai_text_chat": 2})
    written = rows(database, "SELECT actor, action, details FROM platform.audit_log ORDER BY id")
    assert [(row["actor"], row["action"]) for row in written[-3:]] == [
        (f"user:{root.user_id}", action)
        for action in ("plan.created", "plan.changed", "feature_costs.replaced")
    ]
    assert [row["details"] for row in written[-2:]] == [{"credits": 4000}, {"ai_text_chat": 2}]
