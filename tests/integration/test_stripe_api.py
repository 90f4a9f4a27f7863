"""Talking to Stripe: the SDK against a Stripe API of our own, in good times and in bad ones."""

import subprocess
import sys
from typing import Any

import pytest
from tests.stripe_api import FakeStripe

from backplane import config, secrets, stripe_api
from backplane.problems import Unavailable


def test_an_object_comes_as_plain_json(stripe: FakeStripe) -> None:
    stripe.subscriptions["sub_1"] = {"id": "sub_1", "items": {"data": [{"id": "si_1"}]}}
    assert stripe_api.get(stripe_api.path("subscriptions", "sub_1")) == stripe.subscriptions["sub_1"]


def test_what_stripe_does_not_know_is_said_to_be_missing(stripe: FakeStripe) -> None:
    with pytest.raises(stripe_api.Refused) as refused:
        stripe_api.get(stripe_api.path("subscriptions", "sub_none"))
    assert (refused.value.status, refused.value.missing) == (404, True)


@pytest.mark.parametrize("identifier", ["../events", "sub_1?expand[]=x", "@elsewhere.example", "sub 1", "é"])
def test_an_id_from_outside_does_not_lead_elsewhere(stripe: FakeStripe, identifier: str) -> None:
    with pytest.raises(stripe_api.Refused) as refused:
        stripe_api.get(stripe_api.path("subscriptions", identifier))
    assert refused.value.missing
    [asked] = stripe.asked
    assert asked.path.startswith("/v1/subscriptions/")
    assert asked.params == {}


@pytest.mark.parametrize("trouble", ["rate_limit", "error", "hang"])
def test_trouble_on_the_way_passes_by_itself(
    stripe: FakeStripe, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_api, "READ_TIMEOUT", 0.2)
    stripe.subscriptions["sub_1"] = {"id": "sub_1"}
    stripe.trouble.append(trouble)
    with pytest.raises(Unavailable):
        stripe_api.get(stripe_api.path("subscriptions", "sub_1"))
    assert stripe_api.get(stripe_api.path("subscriptions", "sub_1")) == {"id": "sub_1"}
    assert len(stripe.asked) == 2, "a request is not repeated while somebody waits"


def test_nobody_at_the_address_passes_by_itself(stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", "http://127.0.0.1:9")
    config.settings.cache_clear()
    with pytest.raises(Unavailable):
        stripe_api.get("/v1/events")


def test_a_post_under_one_key_is_made_once_and_another_is_refused(stripe: FakeStripe) -> None:
    stripe.add_customer("cus_1")
    params = {"customer": "cus_1", "return_url": "https://app.example.com"}
    made = [stripe_api.post("/v1/billing_portal/sessions", params, idempotency_key="key-1") for _ in range(2)]
    assert made[0] == made[1]
    with pytest.raises(stripe_api.Refused):
        stripe_api.post(
            "/v1/billing_portal/sessions",
            params | {"return_url": "https://b.example"},
            idempotency_key="key-1",
        )


def test_a_key_that_was_rolled_is_read_anew(stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[bool] = []

    def read(arn: str, *, refresh: bool = False) -> Any:
        reads.append(refresh)
        return {"key": "sk_test_new" if refresh else "sk_test_old"}

    monkeypatch.setattr(secrets, "get", read)
    stripe.key = "sk_test_new"
    stripe.subscriptions["sub_1"] = {"id": "sub_1"}
    assert stripe_api.get("/v1/subscriptions/sub_1") == {"id": "sub_1"}
    assert reads == [False, True]


def test_a_key_that_stripe_refuses_is_unavailable_and_is_not_shown(
    stripe: FakeStripe, caplog: pytest.LogCaptureFixture
) -> None:
    stripe.key = "sk_test_other"
    with pytest.raises(Unavailable) as refused:
        stripe_api.get("/v1/events")
    assert "sk_test" not in refused.value.detail + caplog.text
    assert "refuses the API key" in caplog.text


@pytest.mark.parametrize(
    ("stage", "key"), [("prod", "sk_test_1"), ("dev", "sk_live_1"), ("dev", "rk_live_1"), ("dev", "")]
)
def test_another_stages_key_is_not_used(
    stripe: FakeStripe, monkeypatch: pytest.MonkeyPatch, stage: str, key: str
) -> None:
    """A live key in a stage that takes test events would charge people who never get what they paid for."""
    monkeypatch.setenv("STAGE", stage)
    config.settings.cache_clear()
    monkeypatch.setattr(secrets, "get", lambda *_, **__: {"key": key})
    with pytest.raises(Unavailable):
        stripe_api.get("/v1/events")
    assert stripe.asked == []


def test_without_a_key_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    config.settings.cache_clear()
    assert not stripe_api.configured()
    with pytest.raises(Unavailable):
        stripe_api.get("/v1/events")


def test_a_webhook_function_starts_without_the_sdk() -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
import stripe_webhook
raise SystemExit("stripe" in sys.modules or "boto3" in sys.modules or "requests" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
