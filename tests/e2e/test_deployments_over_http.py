"""A build's life over HTTP against the whole stack: its callback comes first, and finds it all the same."""

import json
from typing import Any

from tests.build_callbacks import eas_build, signed
from tests.e2e.local_cloud import Answer, Cloud, until
from tests.e2e.test_slice_over_http import get, post_stripe, sign_up
from tests.senders import stripe_event, subscription


def post(stack: Cloud, path: str, token: str, body: Any, method: str = "POST") -> Answer:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    return stack.request(method, path, json.dumps(body).encode(), headers)


def test_a_callback_that_came_before_its_deployment_is_applied_when_that_begins(stack: Cloud) -> None:
    user, token = sign_up(stack)
    paying = subscription(customer=f"cus_{user}", id=f"sub_{user}", metadata={"organization_id": user})
    assert post_stripe(stack, stripe_event("customer.subscription.created", paying)).status == 200
    config = {"access_token": "a-token-that-nobody-takes", "username": "ada"}
    made = post(stack, "/v1/integrations/expo", token, {"config": config}, "PUT").json()
    callback = json.dumps(eas_build(f"build-of-{user}", status="errored")).encode()
    heard = stack.request(
        "POST", f"/webhooks/eas/{made['id']}", callback, signed("eas", callback, made["webhook_secret"])
    )
    assert heard.json()["status"] == "parked"

    project = post(stack, "/v1/projects", token, {"title": "Fitness"}).json()["id"]
    body = {"type": "eas-build", "platform": "android", "external_id": f"build-of-{user}"}
    begun = post(stack, f"/v1/projects/{project}/deployments", token, body)
    assert (begun.status, begun.json()["status"]) == (201, "in_progress")

    def over() -> Any:
        seen = get(stack, f"/v1/deployments/{begun.json()['id']}", token).json()
        return seen if seen["status"] == "failed" else None

    told = until(over, "the callback must be applied")
    assert told["error_log"] == "KEYSTORE_MISSING: The keystore is missing"
    assert [event["source"] for event in told["events"]] == ["user", "callback"]
    assert get(stack, f"/v1/projects/{project}", token).json()["status"] == "error"
    stats = get(stack, "/v1/deployments/stats", token).json()
    assert (stats["total"], stats["success_rate"]) == (1, 0.0)
