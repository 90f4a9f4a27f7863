"""POST /webhooks/stripe: what is let in, what is refused, and that nothing validly signed breaks it."""

import base64
import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import stripe_webhook
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.rows import DictRow
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.senders import (
    FIRST,
    STRIPE_SECRET,
    Answer,
    call,
    charge,
    checkout_session,
    clerk_user,
    dispute,
    http_event,
    invoice,
    invoice_line,
    invoice_payment,
    post_clerk,
    post_stripe,
    refund,
    stripe_event,
    stripe_signature,
    subscription,
)

from backplane import config, secrets

MEGABYTE = 1024 * 1024


def post(
    body: bytes, *, signature: str | None = None, base64_encoded: bool = False, **signing: Any
) -> Answer:
    """Posts raw bytes, signed unless a signature is given."""
    header = stripe_signature(body, **signing) if signature is None else signature
    event = http_event("POST", "/webhooks/stripe", headers={"stripe-signature": header}, base64_encoded=True)
    event["body"] = base64.b64encode(body).decode()
    if not base64_encoded:
        event |= {"body": body.decode("utf-8", "surrogateescape"), "isBase64Encoded": False}
    return call(stripe_webhook.handler, event)


def inbox(database: Database) -> list[DictRow]:
    with database.connect() as connection:
        return connection.execute("SELECT * FROM platform.webhook_inbox ORDER BY received_at").fetchall()


def assert_refused(answer: Answer, status: int, code: str, database: Database) -> None:
    assert (answer.status, answer.body["code"], answer.body["status"]) == (status, code, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.body["request_id"]
    assert answer.body["detail"]
    assert inbox(database) == []


BODY = json.dumps(stripe_event("customer.created", {}, event_id="evt_1")).encode()


# ---- let in ----


@pytest.mark.parametrize("base64_encoded", [False, True])
def test_a_signed_event_is_recorded_byte_by_byte(
    webhook_secrets: None, system_db: Database, base64_encoded: bool
) -> None:
    body = BODY.replace(b"{", b'{ "name": "Zo\xc3\xab",', 1)
    answer = post(body, base64_encoded=base64_encoded)
    assert (answer.status, answer.body) == (200, {"status": "ignored", "event_id": "evt_1"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert [bytes(row["body"]) for row in inbox(system_db)] == [body]


def test_each_secret_in_force_lets_in(
    webhook_secrets: None, system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "get", lambda _arn, *, refresh=False: ["whsec_new", "whsec_old"])
    assert post(BODY, secret="whsec_new").body["status"] == "ignored"
    assert post(BODY, secret="whsec_old").body["status"] == "duplicate"
    assert post(BODY, secret="whsec_older").status == 400
    both = (
        f"{stripe_signature(BODY, 'whsec_unknown')},{stripe_signature(BODY, 'whsec_old').partition(',')[2]}"
    )
    assert post(BODY, signature=both).body["status"] == "duplicate"


def test_a_body_of_a_megabyte_is_let_in_and_one_byte_more_is_not(
    webhook_secrets: None, system_db: Database
) -> None:
    padding = MEGABYTE - len(BODY)
    assert_refused(post(BODY + b" " * (padding + 1)), 413, "too_large", system_db)
    assert post(BODY + b" " * padding).body["status"] == "ignored"


# ---- refused ----


@pytest.mark.parametrize(
    "sign",
    [
        lambda: None,
        lambda: "",
        lambda: "garbage",
        lambda: "t=,v1=",
        lambda: "t=1,v1=é",
        lambda: stripe_signature(BODY, "whsec_wrong"),
        lambda: stripe_signature(BODY, at=time.time() - 3600),
        lambda: stripe_signature(BODY, at=time.time() + 3600),
        lambda: stripe_signature(BODY, at=time.time() + 31_536_000),
        lambda: stripe_signature(BODY + b" "),
        lambda: stripe_signature(BODY).replace("v1=", "v0="),
        lambda: stripe_signature(BODY).partition(",")[0] + ",v1=" + "é" * 64,
    ],
)
def test_what_the_secret_did_not_sign_is_refused_and_leaves_nothing(
    webhook_secrets: None, system_db: Database, sign: Callable[[], str | None]
) -> None:
    signature = sign()
    headers = {} if signature is None else {"stripe-signature": signature}
    answer = call(stripe_webhook.handler, http_event("POST", "/webhooks/stripe", body=BODY, headers=headers))
    assert_refused(answer, 400, "invalid_signature", system_db)


def test_a_body_changed_on_its_way_is_refused(webhook_secrets: None, system_db: Database) -> None:
    answer = post(BODY.replace(b"evt_1", b"evt_2"), signature=stripe_signature(BODY))
    assert_refused(answer, 400, "invalid_signature", system_db)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"evt_1"',
        b"null",
        b"not json",
        b"\xff\xfe",
        b'{"id": "\xff"}',
        b"[" * 200_000,
        b'{"a":' * 50_000,
        b'{"id": "evt_1", "type": "a", "created": ' + b"1" * 5000 + b"}",
        b'{"id": "evt_1", "type": "a", "created": NaN}',
        b'{"id": "evt_1", "created": 1}',
        b'{"type": "customer.created", "created": 1}',
        b'{"id": null, "type": "a"}',
        b'{"id": 1, "type": "a"}',
        b'{"id": {}, "type": "a"}',
        b'{"id": "", "type": "a"}',
        b'{"id": "' + b"e" * 256 + b'", "type": "a"}',
        b'{"id": "evt_\\u0000", "type": "a"}',
        b'{"id": "evt_\\ud800", "type": "a"}',
        b'{"id": "evt_1", "type": ["a"]}',
    ],
)
def test_a_signed_body_without_an_envelope_is_refused_and_leaves_nothing(
    webhook_secrets: None, system_db: Database, body: bytes
) -> None:
    assert_refused(post(body, base64_encoded=True), 400, "invalid_payload", system_db)


def test_what_is_announced_as_base64_and_is_not_is_refused(
    webhook_secrets: None, system_db: Database
) -> None:
    event = http_event("POST", "/webhooks/stripe", headers={"stripe-signature": "t=1"}) | {
        "body": "%%%",
        "isBase64Encoded": True,
    }
    assert_refused(call(stripe_webhook.handler, event), 400, "invalid_payload", system_db)


# ---- signed, recorded, and impossible ----


@pytest.mark.parametrize("created", [None, "1700000000", 1.5, -1, True, [], {}, 10**18, 10**400])
def test_an_event_of_no_known_time_is_quarantined(
    webhook_secrets: None, system_db: Database, created: object
) -> None:
    event = stripe_event("invoice.paid", invoice()) | {"created": created}
    assert post_stripe(event).body["status"] == "quarantined"
    assert "created" in inbox(system_db)[0]["reason"]


@pytest.mark.parametrize("escape", [r"\u0000", r"\ud800", r"\udc00\ud800"])
@pytest.mark.parametrize("where", ["value", "key", "deep", "unread"])
def test_text_that_cannot_be_stored_is_quarantined_and_its_bytes_kept(
    webhook_secrets: None, system_db: Database, escape: str, where: str
) -> None:
    checkout = stripe_event("checkout.session.completed", checkout_session(client_reference_id="user_1"))
    session = checkout["data"]["object"]
    match where:
        case "value":
            session["client_reference_id"] = "user_HERE"
        case "key":
            session["HERE"] = 1
        case "deep":
            session["metadata"] = {"a": [{"b": "HERE"}]}
        case _:
            checkout["request"] = {"id": "HERE"}
    body = json.dumps(checkout).replace("HERE", escape).encode()
    assert post(body).body["status"] == "quarantined"
    [row] = inbox(system_db)
    assert (row["status"], bytes(row["body"])) == ("quarantined", body)
    assert post(body).body["status"] == "duplicate"


@pytest.mark.parametrize(
    "data", [None, [], "x", 1, {}, {"object": None}, {"object": []}, {"object": "sub_1"}]
)
@pytest.mark.parametrize(
    "kind", ["checkout.session.completed", "customer.subscription.updated", "invoice.paid"]
)
def test_an_event_without_its_object_is_quarantined(
    webhook_secrets: None, system_db: Database, kind: str, data: object
) -> None:
    assert post_stripe(stripe_event(kind, {}) | {"data": data}).body["status"] == "quarantined"
    assert "data.object is not a" in inbox(system_db)[0]["reason"]


# ---- any change of a valid event, signed ----

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**20, 10**300, 253_402_300_799, 253_402_300_800]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(
        ["", "x" * 256, "é" * 9000, "\x00", "\ud800", "user_1", "org_1", "user_\x00", "pack_500"]
    ),
    st.sampled_from([[], {}, [None], [[]], [{}], {"id": None}, {"data": None}, {"data": [None]}, {"": ""}]),
)


def _events() -> list[dict[str, Any]]:
    price = "price_pro_monthly"
    sessions = [
        checkout_session(client_reference_id="user_1"),
        checkout_session(mode="payment", metadata={"pack_id": "pack_500"}, customer="cus_1"),
        checkout_session(metadata={"organization_id": "user_1"}, customer="cus_2"),
    ]
    states = [subscription(shape=shape) for shape in ("old", "new")]
    update = [invoice_line(price=price, amount=-5, proration=True), invoice_line(price="price_super_monthly")]
    yearly = [invoice_line(price="price_pro_yearly")]
    bills = [invoice(shape=shape) for shape in ("old", "new")]
    bills += [invoice(lines=update, reason="subscription_update"), invoice(lines=yearly)]
    return [
        *(stripe_event("checkout.session.completed", session) for session in sessions),
        *(stripe_event("customer.subscription.updated", state) for state in states),
        *(stripe_event("customer.subscription.deleted", state) for state in states),
        *(stripe_event("invoice.paid", bill) for bill in bills),
        *_taken_back(),
        stripe_event("invoice.payment_failed", invoice() | {"amount_due": 4900, "attempt_count": 1}),
        stripe_event("customer.deleted", {"id": "cus_9"}),
    ]


def _taken_back() -> list[dict[str, Any]]:
    """Of the pack that the test has bought, or of nothing known."""
    names = {"payment_intent": "pi_pack", "charge": "ch_pack"}
    lost = dispute("du_1", status="lost", amount=2000, **names)
    return [
        stripe_event(
            "charge.refunded", charge("ch_pack", refunded=500, amount=2000, payment_intent="pi_pack")
        ),
        stripe_event("charge.refunded", charge("ch_1", refunded=500, invoice="in_1")),
        stripe_event("refund.created", refund("re_1", amount=500, **names)),
        stripe_event("refund.failed", refund("re_1", amount=500, status="failed", **names)),
        stripe_event("charge.dispute.funds_withdrawn", lost | {"status": "needs_response"}),
        stripe_event("charge.dispute.closed", lost | {"status": "won"}),
        stripe_event("invoice_payment.paid", invoice_payment("in_1", "pi_1")),
    ]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from _places(part, (*path, key))


@st.composite
def _mutated(draw: st.DrawFn) -> dict[str, Any]:
    event: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(_events())))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(_places(event)) or [("type",)]))
        target: Any = event
        for step in way:
            target = target[step]
        if draw(st.booleans()):
            target[last] = copy.deepcopy(draw(_ODD))
        elif isinstance(target, dict):
            del target[last]
    return event


@pytest.fixture(scope="module")
def fuzzed(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """One database for all examples: what one leaves behind is part of the next one's world."""
    name = f"fuzzed_{os.getpid()}"
    create_database(server_url, name, template)
    urls = [on(server_url, name, user=role, password=role_passwords[role]) for role in ROLES]
    yield Database(name, on(server_url, name), *urls)
    drop_database(server_url, name)


@given(event=_mutated())
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(event=stripe_event("invoice.paid", invoice(lines=[invoice_line(start=FIRST, end=253_402_300_799)])))
@example(
    event=stripe_event(
        "customer.subscription.updated", subscription(price="".join(map(chr, range(32, 9000))))
    )
)
def test_no_signed_event_however_odd_breaks_the_function(
    webhook_secrets: None, fuzzed: Database, event: dict[str, Any]
) -> None:
    with fuzzed.as_role("backplane_system"):
        post_clerk(clerk_user("user_1"), "msg_1")
        link = checkout_session(client_reference_id="user_1")
        post_stripe(stripe_event("checkout.session.completed", link, event_id="evt_link"))
        pack = checkout_session(
            id="cs_pack", mode="payment", metadata={"pack_id": "pack_500"}, payment_intent="pi_pack"
        )
        post_stripe(stripe_event("checkout.session.completed", pack, event_id="evt_pack"))
        answer = post_stripe(event)
    assert answer.status in {200, 400}, answer.body
    if answer.status == 400:
        assert answer.body["code"] == "invalid_payload"


# ---- a rolled secret ----


class SecretsManager:
    """Answers as the service does, and counts how often it is asked."""

    def __init__(self, *values: str) -> None:
        self.values = list(values)
        self.reads = 0

    def get_secret_value(self, *, SecretId: str) -> dict[str, str]:  # noqa: N803  boto3's
        assert SecretId == "arn:stripe"
        self.reads += 1
        return {"SecretString": json.dumps(self.values)}


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> SecretsManager:
    manager = SecretsManager(STRIPE_SECRET)
    monkeypatch.setattr(secrets, "_client", lambda: manager)
    monkeypatch.setattr(secrets, "_values", {})
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET_ARN", "arn:stripe")
    config.settings.cache_clear()
    return manager


def test_a_secret_is_read_once_while_it_fits(manager: SecretsManager, system_db: Database) -> None:
    config.settings.cache_clear()
    assert [post(BODY).status for _ in range(3)] == [200] * 3
    assert manager.reads == 1


def test_a_secret_rolled_while_cached_is_read_again_once(
    manager: SecretsManager, system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(secrets.time, "monotonic", lambda: clock[0])  # type: ignore[attr-defined]
    assert post(BODY).status == 200
    manager.values = ["whsec_rolled"]
    clock[0] += secrets.MIN_REFRESH
    assert post(BODY, secret="whsec_rolled").status == 200
    assert manager.reads == 2
    assert post(BODY, secret="whsec_rolled").status == 200
    assert manager.reads == 2


def test_forgers_cannot_make_us_read_the_secret_at_will(manager: SecretsManager, system_db: Database) -> None:
    assert [post(BODY, secret="whsec_forged").status for _ in range(5)] == [400] * 5
    assert manager.reads == 1
