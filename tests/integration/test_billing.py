"""Billing over HTTP: what is shown of a subscription, and the way to Stripe's checkout and portal."""

import json
from typing import Any

import pytest
from tests.callers import Customer, mint, moment, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import (
    DAY,
    FIRST,
    SECOND,
    checkout_session,
    invoice,
    post_stripe,
    stripe_event,
    subscription,
)
from tests.stripe_api import FakeStripe

from backplane import config, stripe_api

APP = "https://app.example.com"
URLS = {"success_url": f"{APP}/thanks?session={{CHECKOUT_SESSION_ID}}", "cancel_url": f"{APP}/prices"}
PRO = {"price_id": "price_pro_monthly", **URLS}
PACK = {"pack_id": "pack_500", **URLS}
PORTAL = {"return_url": f"{APP}/account"}


@pytest.fixture
def ada(app_db: Database, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up()


@pytest.fixture
def shop(ada: Customer, stripe: FakeStripe) -> FakeStripe:
    """Stripe as it knows our price list."""
    stripe.add_price("price_pro_monthly")
    stripe.add_price("price_pack_500", recurring=False)
    return stripe


def checkout(customer: Customer, body: dict[str, Any], *, key: str | None = None) -> Any:
    return send("POST", "/v1/billing/checkout", customer.token, body=body, key=key)


def tell(database: Database, *events: dict[str, Any]) -> None:
    """Stripe's webhooks, which are applied under another login."""
    with database.as_role("backplane_system"):
        for event in events:
            assert post_stripe(event).body["status"] in {"processed", "stale"}


def told(kind: str, *, created: int = FIRST, **fields: Any) -> dict[str, Any]:
    return stripe_event(f"customer.subscription.{kind}", subscription(**fields), created=created)


def linked(database: Database, customer: Customer, shop: FakeStripe) -> None:
    """The customer's checkout has come: Stripe's cus_1 pays for his organisation."""
    shop.add_customer("cus_1")
    session = checkout_session(client_reference_id=str(customer.organization_id))
    tell(database, stripe_event("checkout.session.completed", session))


# ---- what is shown ----


def test_without_a_subscription_the_plan_is_free_and_inactive(ada: Customer) -> None:
    answer = send("GET", "/v1/subscription", ada.token)
    assert (answer.status, answer.body) == (
        200,
        {
            "tier": "free",
            "status": "inactive",
            "price_id": None,
            "current_period_end": None,
            "cancels_at_period_end": False,
            "canceled_at": None,
            "provider": None,
            "events": [],
        },
    )


def test_a_subscription_is_shown_with_what_was_last_told_of_it(app_db: Database, ada: Customer) -> None:
    session = checkout_session(client_reference_id="user_ada")
    tell(
        app_db,
        stripe_event("checkout.session.completed", session),
        told("created"),
        *(told("updated", created=FIRST + second) for second in range(1, 12)),
        told("updated", created=FIRST + 60, cancel_at=SECOND, canceled_at=FIRST + 60),
    )
    body = send("GET", "/v1/subscription", ada.token).body
    events = body.pop("events")
    assert moment(body.pop("current_period_end")).timestamp() == SECOND
    assert moment(body.pop("canceled_at")).timestamp() == FIRST + 60
    assert body == {
        "tier": "pro",
        "status": "active",
        "price_id": "price_pro_monthly",
        "cancels_at_period_end": True,
        "provider": "stripe",
    }
    times = [moment(event["occurred_at"]).timestamp() - FIRST for event in events]
    assert times == [60, 11, 10, 9, 8, 7, 6, 5, 4, 3]
    assert (events[0]["type"], events[0]["plan"], events[0]["status"]) == (
        "customer.subscription.updated",
        "pro",
        "active",
    )


def test_what_has_ended_is_shown_as_the_last_state_of_a_free_plan(app_db: Database, ada: Customer) -> None:
    session = checkout_session(client_reference_id="user_ada")
    end = told("deleted", created=FIRST + 60, status="canceled", canceled_at=FIRST + 60)
    tell(app_db, stripe_event("checkout.session.completed", session), end)
    body = send("GET", "/v1/subscription", ada.token).body
    assert (body["tier"], body["status"], body["provider"]) == ("free", "canceled", "stripe")


# ---- checkout ----


def test_a_plans_checkout_names_the_organisation_wherever_events_look(
    app_db: Database, ada: Customer, shop: FakeStripe
) -> None:
    answer = checkout(ada, PRO)
    assert answer.status == 200
    assert list(answer.body) == ["url"]
    assert answer.body["url"].startswith("https://checkout.stripe.com/")
    organization = str(ada.organization_id)
    [asked] = shop.asked
    assert asked.params == {
        "mode": "subscription",
        "line_items[0][price]": "price_pro_monthly",
        "line_items[0][quantity]": "1",
        "client_reference_id": organization,
        "metadata[organization_id]": organization,
        "subscription_data[metadata][organization_id]": organization,
        **URLS,
    }


def test_what_a_checkout_made_is_understood_when_its_events_come(
    app_db: Database, ada: Customer, shop: FakeStripe
) -> None:
    """From the button to the credits: a plan, and a pack beside it."""
    checkout(ada, PRO)
    checkout(ada, PACK)
    plan, pack = shop.sessions.values()
    bought = {"customer": "cus_9", "payment_status": "paid", "status": "complete"}
    tell(
        app_db,
        stripe_event("checkout.session.completed", plan | bought | {"subscription": "sub_1"}),
        stripe_event("invoice.paid", invoice(customer="cus_9")),
        stripe_event("checkout.session.completed", pack | bought | {"payment_intent": "pi_9"}),
    )
    assert send("GET", "/v1/credits", ada.token).body["available"] == 100 + 1000 + 500


def test_a_pack_is_paid_once_and_makes_a_customer(ada: Customer, shop: FakeStripe) -> None:
    assert checkout(ada, PACK).status == 200
    [asked] = shop.asked
    assert asked.params["mode"] == "payment"
    assert asked.params["metadata[pack_id]"] == "pack_500"
    assert asked.params["payment_intent_data[metadata][pack_id]"] == "pack_500"
    assert asked.params["customer_creation"] == "always"


@pytest.mark.parametrize("body", [PRO, PACK])
def test_the_organisations_customer_is_used_again(
    app_db: Database, ada: Customer, shop: FakeStripe, body: dict[str, Any]
) -> None:
    linked(app_db, ada, shop)
    assert checkout(ada, body).status == 200
    assert shop.asked[-1].params["customer"] == "cus_1"
    assert "customer_creation" not in shop.asked[-1].params


@pytest.mark.parametrize("body", [PRO, PACK])
def test_a_customer_that_stripe_knows_no_more_does_not_stop_a_purchase(
    app_db: Database, ada: Customer, shop: FakeStripe, body: dict[str, Any]
) -> None:
    linked(app_db, ada, shop)
    shop.customers["cus_1"]["deleted"] = True
    assert checkout(ada, body, key="key-1").status == 200
    assert "customer" not in shop.asked[-1].params


def test_a_second_subscription_is_not_sold_beside_the_first(
    app_db: Database, ada: Customer, shop: FakeStripe
) -> None:
    linked(app_db, ada, shop)
    tell(app_db, told("created"))
    refused = checkout(ada, PRO)
    assert (refused.status, refused.body["code"]) == (409, "invalid_state")
    assert "portal" in refused.body["detail"]
    assert checkout(ada, PACK).status == 200
    tell(app_db, told("deleted", created=FIRST + 60, status="canceled"))
    assert checkout(ada, PRO).status == 200


@pytest.mark.parametrize(
    ("body", "change"),
    [
        (PRO | {"price_id": "price_of_tomorrow"}, None),
        (PACK | {"pack_id": "pack_9"}, None),
        (PRO | {"price_id": "price_pack_500"}, None),
        (PRO, "UPDATE billing.plans SET active = false WHERE key = 'pro' RETURNING 1"),
        (PACK, "UPDATE billing.credit_packs SET active = false WHERE id = 'pack_500' RETURNING 1"),
        (PACK, "UPDATE billing.credit_packs SET price_id = NULL WHERE id = 'pack_500' RETURNING 1"),
    ],
)
def test_what_is_not_for_sale_cannot_be_bought(
    app_db: Database, ada: Customer, shop: FakeStripe, body: dict[str, Any], change: str | None
) -> None:
    if change is not None:
        rows(app_db, change)
    refused = checkout(ada, body)
    assert (refused.status, refused.body["errors"][0]["type"]) == (422, "not_for_sale")
    assert shop.asked == []


@pytest.mark.parametrize("known", [{"price_pro_monthly": False}, {}])
def test_a_price_that_stripe_does_not_sell_is_refused_as_ours_is(
    ada: Customer, stripe: FakeStripe, known: dict[str, bool]
) -> None:
    for price_id, active in known.items():
        stripe.add_price(price_id, active=active)
    refused = checkout(ada, PRO)
    assert (refused.status, refused.body["errors"][0]["loc"]) == (422, ["body", "price_id"])


@pytest.mark.parametrize(
    "body",
    [URLS, PRO | PACK, {"price_id": "price_pro_monthly"}, PRO | {"quantity": 5}, PRO | {"price_id": ""}],
)
def test_a_checkout_is_for_one_thing_and_has_two_ways_back(
    ada: Customer, shop: FakeStripe, body: dict[str, Any]
) -> None:
    assert checkout(ada, body).status == 422
    assert shop.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/thanks",
        "https://app.example.com.evil.example/",
        "https://app.example.com@evil.example/",
        "https://evil.example\\@app.example.com/",
        "https://app.example.com\\.evil.example/",
        "http://app.example.com/",
        "https://app.example.com:8443/",
        "//app.example.com/",
        "/thanks",
        "javascript:alert(1)",
        "https://app.example.com/ ok",
        "https://app.example.com/\nok",
        "https://[app.example.com/",
        "https://app.example.com/" + "x" * 2048,
    ],
)
def test_nobody_is_sent_back_to_another_place(ada: Customer, shop: FakeStripe, url: str) -> None:
    shop.add_customer("cus_1")
    for name in ("success_url", "cancel_url"):
        refused = checkout(ada, PRO | {name: url})
        assert (refused.status, refused.body["errors"][0]["loc"][-1]) == (422, name)
    assert send("POST", "/v1/billing/portal", ada.token, body={"return_url": url}).status == 422
    assert shop.asked == []


@pytest.mark.parametrize("url", [APP, f"{APP}/a/b?c=d#e", "https://APP.example.com/x"])
def test_every_page_of_an_allowed_origin_is_a_way_back(ada: Customer, shop: FakeStripe, url: str) -> None:
    assert checkout(ada, PRO | {"success_url": url}).status == 200


# ---- once ----


def test_a_checkout_repeated_under_its_key_is_the_same_one(ada: Customer, shop: FakeStripe) -> None:
    first, again = (checkout(ada, PRO, key="key-1") for _ in range(2))
    assert first.body == again.body
    assert again.headers["idempotent-replayed"] == "true"
    assert len(shop.sessions) == 1
    assert checkout(ada, PACK, key="key-1").body["code"] == "idempotency_conflict"
    assert checkout(ada, PRO, key="key-2").body != first.body
    assert checkout(ada, PRO).body != checkout(ada, PRO).body


def test_a_checkout_that_was_cut_off_after_stripe_made_it_is_not_made_twice(
    app_db: Database, ada: Customer, shop: FakeStripe
) -> None:
    checkout(ada, PRO, key="key-1")
    rows(app_db, "DELETE FROM platform.idempotency_keys RETURNING 1")  # the answer was never remembered
    assert checkout(ada, PRO, key="key-1").status == 200
    assert len(shop.sessions) == 1


def test_a_key_is_the_organisations_own_at_stripe_too(ada: Customer, shop: FakeStripe) -> None:
    checkout(ada, PRO, key="key-1")
    assert checkout(sign_up("user_bob"), PRO, key="key-1").status == 200
    assert len(shop.sessions) == 2


# ---- the portal ----


def test_the_portal_opens_for_the_organisations_customer(
    app_db: Database, ada: Customer, shop: FakeStripe
) -> None:
    linked(app_db, ada, shop)
    answer = send("POST", "/v1/billing/portal", ada.token, body=PORTAL)
    assert answer.status == 200
    assert answer.body["url"].startswith("https://billing.stripe.com/")
    assert shop.asked[-1].params == {"customer": "cus_1", **PORTAL}


@pytest.mark.parametrize("gone", [False, True])
def test_who_has_bought_nothing_has_no_portal(
    app_db: Database, ada: Customer, shop: FakeStripe, gone: bool
) -> None:
    if gone:
        linked(app_db, ada, shop)
        shop.customers["cus_1"]["deleted"] = True
    refused = send("POST", "/v1/billing/portal", ada.token, body=PORTAL)
    assert (refused.status, refused.body["code"]) == (409, "invalid_state")


# ---- who, and what else can be in the way ----


@pytest.mark.parametrize("role", ["org:admin", "org:member", "org:viewer"])
def test_only_the_owner_pays(app_db: Database, ada: Customer, shop: FakeStripe, role: str) -> None:
    sign_up("user_owner", org_id="org_acme", org_role="org:admin")  # the first admin is the owner
    session = token("user_ada", org_id="org_acme", org_role=role)
    for path, body in (("checkout", PRO), ("portal", PORTAL)):
        assert send("POST", f"/v1/billing/{path}", session, body=body).status == 403
    assert send("GET", "/v1/subscription", session).status == 200
    key = mint(app_db, ada.organization_id, ["read", "projects:write"])
    assert send("POST", "/v1/billing/checkout", key, body=PRO).status == 403
    assert shop.asked == []


def test_without_a_stripe_key_paying_is_unavailable_and_looking_is_not(ada: Customer) -> None:
    config.settings.cache_clear()
    elsewhere = PRO | {"success_url": "https://elsewhere.example"}
    for path, body in (("checkout", PRO), ("checkout", elsewhere), ("portal", PORTAL)):
        refused = send("POST", f"/v1/billing/{path}", ada.token, body=body)
        assert (refused.status, refused.body["code"]) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) > 0
    assert send("GET", "/v1/subscription", ada.token).status == 200


@pytest.mark.parametrize("trouble", ["rate_limit", "error", "hang"])
def test_while_stripe_is_down_paying_is_unavailable_and_a_repetition_pays(
    ada: Customer, shop: FakeStripe, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_api, "WRITE_TIMEOUT", 0.3)
    shop.trouble.append(trouble)
    refused = checkout(ada, PRO, key="key-1")
    assert (refused.status, refused.body["code"]) == (503, "unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert checkout(ada, PRO, key="key-1").status == 200


def test_no_answer_shows_the_key(ada: Customer, shop: FakeStripe) -> None:
    shop.key = "sk_test_rolled"
    refused = checkout(ada, PRO)
    assert refused.status == 503
    assert "sk_test" not in json.dumps(refused.body)


def test_a_trial_or_a_period_does_not_matter_to_what_is_shown(app_db: Database, ada: Customer) -> None:
    session = checkout_session(client_reference_id="user_ada")
    trial = told("created", status="trialing", trial_end=FIRST + 14 * DAY, end=FIRST + 14 * DAY)
    tell(app_db, stripe_event("checkout.session.completed", session), trial)
    body = send("GET", "/v1/subscription", ada.token).body
    assert (body["tier"], body["status"]) == ("pro", "trialing")
