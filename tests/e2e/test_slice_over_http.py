"""The main job over HTTP against the whole stack: signed webhooks in, exact debits out."""

import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests import build_callbacks
from tests.e2e.local_cloud import Answer, Cloud
from tests.senders import (
    checkout_session,
    clerk_user,
    invoice,
    stripe_event,
    stripe_signature,
    subscription,
    svix_headers,
)

T = TypeVar("T")
_numbers = itertools.count(1)


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def post_stripe(stack: Cloud, event: dict[str, Any], secret: str | None = None) -> Answer:
    body = json.dumps(event).encode()
    signature = stripe_signature(body, secret or stack.written["stripe_webhook_secret"])
    headers = {"content-type": "application/json; charset=utf-8", "Stripe-Signature": signature}
    return stack.request("POST", "/webhooks/stripe", body, headers)


def post_clerk(stack: Cloud, event: dict[str, Any], message_id: str) -> Answer:
    body = json.dumps(event).encode()
    headers = svix_headers(body, message_id, stack.written["clerk_webhook_secret"])
    return stack.request("POST", "/webhooks/clerk", body, {"content-type": "application/json"} | headers)


def debit(stack: Cloud, token: str, key: str, quantity: int = 1) -> Answer:
    return stack.request(
        "POST",
        "/v1/credits/debits",
        json.dumps({"operation": "ai_text_chat", "quantity": quantity}).encode(),
        {"authorization": f"Bearer {token}", "idempotency-key": key, "content-type": "application/json"},
    )


def get(stack: Cloud, path: str, token: str, **headers: str) -> Answer:
    return stack.request("GET", path, headers={"authorization": f"Bearer {token}"} | headers)


def sign_up(stack: Cloud) -> tuple[str, str]:
    """A new user by webhook: his Clerk id and a token of his."""
    user = f"user_e2e{uuid.uuid4().hex[:16]}"
    answer = post_clerk(stack, clerk_user(user, email=f"{user}@example.com"), f"msg_{user}")
    assert (answer.status, answer.json()["status"]) == (200, "processed")
    return user, stack.token(user)


def statuses(answers: Iterable[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


def test_a_user_who_signs_up_and_pays_has_his_plan_and_its_credits(stack: Cloud) -> None:
    user, token = sign_up(stack)
    customer, subscribed = f"cus_{user}", f"sub_{user}"
    session = checkout_session(customer=customer, client_reference_id=user, subscription=subscribed)
    told = subscription(customer=customer, id=subscribed)
    details = {
        "type": "subscription_details",
        "subscription_details": {"subscription": subscribed, "metadata": {}},
    }
    paid = invoice(id=f"in_{user}", customer=customer, parent=details)

    # Paid before the customer is linked: it waits, and the checkout brings it in.
    events = [
        stripe_event("invoice.paid", paid, event_id=f"evt_paid_{user}"),
        stripe_event("customer.subscription.created", told, event_id=f"evt_sub_{user}"),
        stripe_event("checkout.session.completed", session, event_id=f"evt_cs_{user}"),
    ]
    answers = [post_stripe(stack, event).json()["status"] for event in events]
    assert answers == ["parked", "parked", "processed"]

    me = get(stack, "/v1/me", token).json()
    assert me["plan"]["tier"] == "pro"
    assert me["credits"] == {"available": 1100, "held": 0, "debt": 0}


def test_an_integration_that_is_set_up_is_believed_by_its_secret_alone(stack: Cloud) -> None:
    """Encrypted by the stack's KMS key when it is made, and decrypted where its callback arrives."""
    user, token = sign_up(stack)
    subscribed = subscription(customer=f"cus_{user}", id=f"sub_{user}", metadata={"organization_id": user})
    told = stripe_event("customer.subscription.created", subscribed, event_id=f"evt_{user}")
    assert post_stripe(stack, told).json()["status"] == "processed"
    body = json.dumps({"config": {"access_token": "a-token-of-expos", "username": "ada"}}).encode()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    made = stack.request("PUT", "/v1/integrations/expo", body, headers)
    assert made.status == 200, made.body
    url, secret = made.json()["webhook_url"], made.json()["webhook_secret"]
    assert url.startswith(stack.written["api_url"])
    callback = json.dumps(build_callbacks.eas_build()).encode()
    answers = [
        stack.request("POST", urlsplit(url).path, callback, build_callbacks.signed("eas", callback, each))
        for each in (secret, "another-secret-of-somebody")
    ]
    assert [answer.status for answer in answers] == [200, 400]


def test_one_event_ten_times_at_once_counts_once(stack: Cloud) -> None:
    user, token = sign_up(stack)
    session = checkout_session(
        id=f"cs_{user}",
        mode="payment",
        customer=f"cus_{user}",
        client_reference_id=user,
        metadata={"pack_id": "pack_500"},
    )
    event = stripe_event("checkout.session.completed", session, event_id=f"evt_{user}")
    answers = at_once(10, lambda _: post_stripe(stack, event))
    assert statuses(answers) == {200: 10}
    assert Counter(answer.json()["status"] for answer in answers) == {"processed": 1, "duplicate": 9}
    assert get(stack, "/v1/credits", token).json()["available"] == 600


def test_hundreds_of_debits_at_once_take_exactly_what_there_is(stack: Cloud) -> None:
    _, token = sign_up(stack)
    keys = [f"debit-{n % 150}" for n in range(300)]  # each twice, and 50 more than the 100 credits pay
    answers = at_once(40, lambda worker: [debit(stack, token, key) for key in keys[worker::40]])
    flat = [answer for part in answers for answer in part]
    paid = {answer.json()["id"] for answer in flat if answer.status == 201}
    assert set(statuses(flat)) == {201, 402}
    assert len(paid) == 100
    assert get(stack, "/v1/credits", token).json()["available"] == 0
    assert get(stack, "/v1/credits/usage", token).json()["by_operation"] == [
        {"operation": "ai_text_chat", "credits": 100, "count": 100}
    ]


def test_a_replay_answers_the_first_result_even_when_nothing_is_left(stack: Cloud) -> None:
    _, token = sign_up(stack)
    first = debit(stack, token, "all of it", quantity=100)
    again = debit(stack, token, "all of it", quantity=100)
    assert (first.status, again.status) == (201, 201)
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert debit(stack, token, "all of it", quantity=99).json()["code"] == "idempotency_conflict"


def test_forgeries_are_refused_and_leave_nothing(stack: Cloud) -> None:
    user, token = sign_up(stack)
    session = checkout_session(mode="payment", client_reference_id=user, metadata={"pack_id": "pack_2000"})
    forged = post_stripe(stack, stripe_event("checkout.session.completed", session), secret="whsec_guessed")
    assert (forged.status, forged.json()["code"]) == (400, "invalid_signature")
    assert forged.headers["content-type"] == "application/problem+json"
    assert get(stack, "/v1/credits", token).json()["available"] == 100


def test_a_token_before_the_webhook_makes_the_user_once(stack: Cloud) -> None:
    user = f"user_e2e{uuid.uuid4().hex[:16]}"
    token = stack.token(user)
    first = at_once(8, lambda _: get(stack, "/v1/me", token))
    assert statuses(first) == {200: 8}
    event = clerk_user(user, email=f"{user}@example.com")
    assert post_clerk(stack, event, f"msg_{user}").json()["status"] == "processed"
    me = get(stack, "/v1/me", token).json()
    assert {answer.json()["user"]["id"] for answer in first} == {me["user"]["id"]}
    assert me["user"]["email"] == f"{user}@example.com"
    assert me["credits"]["available"] == 100


def test_nobody_reaches_another_organisation(stack: Cloud) -> None:
    _, alice = sign_up(stack)
    _, bob = sign_up(stack)
    theirs = get(stack, "/v1/me", alice).json()["organization"]["id"]
    refused = get(stack, "/v1/credits", bob, **{"x-organization-id": theirs})
    assert (refused.status, refused.json()["code"]) == (403, "forbidden")
    visiting = stack.request(
        "GET",
        "/v1/credits",
        headers={"authorization": f"Bearer {stack.written['service_key']}", "x-organization-id": theirs},
    )
    assert visiting.json()["available"] == 100


def test_bad_requests_say_what_to_do(stack: Cloud) -> None:
    _, token = sign_up(stack)
    headers = {"authorization": f"Bearer {token}", "idempotency-key": "k", "content-type": "application/json"}
    bodies = {
        b"{": 400,
        b"\xff\xfe": 400,
        b'{"operation": 5}': 422,
        b'{"operation": "ai_text_chat", "x": 1}': 422,
    }
    for body, status in bodies.items():
        answer = stack.request("POST", "/v1/credits/debits", body, headers)
        assert answer.status == status, body
        problem = answer.json()
        assert problem["detail"]
        assert problem["request_id"] == answer.headers["x-request-id"]
    assert get(stack, "/v1/credits", token).json()["available"] == 100
    too_large = stack.request("POST", "/v1/credits/debits", b"{" + b" " * (1024 * 1024) + b"}", headers)
    assert (too_large.status, too_large.json()["code"]) == (413, "too_large")


def test_the_stack_is_healthy(stack: Cloud) -> None:
    answer = stack.request("GET", "/health")
    assert answer.status == 200
    assert answer.json()["checks"]["migrations"]["current"] == answer.json()["checks"]["migrations"]["latest"]
