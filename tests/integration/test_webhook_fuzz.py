"""What strangers may send to the senders' URLs: it is refused or recorded, and never breaks a function."""

import base64
import json
import os
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import build_webhook
import clerk_webhook
import pytest
import stripe_webhook
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests import build_callbacks
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.deploys import deploy
from tests.ledgers import Kept, rows
from tests.senders import (
    CLERK_SECRET,
    STRIPE_SECRET,
    Answer,
    call,
    clerk_user,
    http_event,
    stripe_event,
    stripe_signature,
    svix_headers,
)

from backplane import db, integrations, secrets
from backplane.integrations import WebhookIntegration
from backplane.problems import CONTENT_TYPE

TIMED = ("stripe", "clerk")  # a signature of theirs is good for a while
BUILDERS = ("eas", "vercel", "github")
SENDERS = (*TIMED, *BUILDERS)
HANDLERS: dict[str, Any] = {
    "stripe": stripe_webhook.handler,
    "clerk": clerk_webhook.handler,
    **dict.fromkeys(BUILDERS, build_webhook.handler),
}
OTHER_SECRET = {
    "stripe": "whsec_other",
    "clerk": "whsec_" + base64.b64encode(b"another secret, 24 bytes").decode(),
    **dict.fromkeys(BUILDERS, "another webhook secret"),
}
SECRET = {"stripe": STRIPE_SECRET, "clerk": CLERK_SECRET, **dict.fromkeys(BUILDERS, build_callbacks.SECRET)}
# Integrations of an organisation that has a deployment of the name that is told of.
INTEGRATIONS = {sender: uuid4() for sender in BUILDERS}
MEGABYTE = 1024 * 1024

every_sender = pytest.mark.parametrize("sender", SENDERS)
fuzz = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def database(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """One database for all examples: what one leaves behind is part of the next one's world."""
    name = f"webhook_fuzz_{os.getpid()}"
    create_database(server_url, name, template)
    urls = [on(server_url, name, user=role, password=role_passwords[role]) for role in ROLES]
    made = Database(name, on(server_url, name), *urls)
    organization_id = deploy(made, build_callbacks.BUILD).organization_id
    for sender, integration_id in INTEGRATIONS.items():
        rows(
            made,
            """
            INSERT INTO deploys.integrations (id, organization_id, scope, type)
            VALUES (%s, %s, 'organization', %s)
            """,
            integration_id,
            organization_id,
            build_callbacks.TYPES[sender],
        )
    yield made
    drop_database(server_url, name)


def know(patch: pytest.MonkeyPatch, sender: str, *known: str) -> None:
    """The secrets that stand for a sender, wherever they are kept."""
    if sender in TIMED:
        patch.setattr(
            secrets, "get", lambda arn, *, refresh=False: {"key": "k"} if arn == "hash" else list(known)
        )
        return

    def webhook_of(_: db.Tx, provider: str, integration_id: UUID) -> WebhookIntegration:
        kind = integrations.TYPE_OF_PROVIDER[provider]
        return WebhookIntegration(integration_id, uuid4(), None, kind, known)

    patch.setattr(integrations, "webhook_of", webhook_of)
    build_webhook._known.clear()


@pytest.fixture(autouse=True)
def builders_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, BUILDERS[0], build_callbacks.SECRET)


@pytest.fixture
def world(database: Database) -> Iterator[Kept]:
    """The functions connect to it; what looks behind them keeps its connection."""
    with database.as_role("backplane_system"), database.connect() as connection:
        yield Kept(connection)


def an_event(sender: str, event_id: str = "evt_1") -> bytes:
    told: dict[str, Any] = {
        "stripe": stripe_event("customer.created", {}, event_id=event_id),
        "clerk": clerk_user("user_1"),
        "eas": build_callbacks.eas_build(),
        "vercel": build_callbacks.vercel_event(),
        "github": build_callbacks.github_status(),
    }[sender]
    return json.dumps(told).encode()


def signed(sender: str, body: bytes, *, secret: str | None = None, skew: float = 0.0) -> dict[str, str]:
    at = time.time() + skew
    secret = secret or SECRET[sender]
    if sender == "stripe":
        return {"stripe-signature": stripe_signature(body, secret, at)}
    if sender == "clerk":
        return svix_headers(body, "msg_fuzz", secret, at)
    return build_callbacks.signed(sender, body, secret, delivery="d-fuzz")


def post(sender: str, event: dict[str, Any], world: Kept) -> Answer:
    count = "SELECT count(*) AS n FROM platform.webhook_inbox"
    before = rows(world, count)
    if sender in BUILDERS:
        event["rawPath"] = f"/webhooks/{sender}/{INTEGRATIONS[sender]}"
    answer = call(HANDLERS[sender], event)
    after = rows(world, count)
    assert answer.status in {200, 400, 413}, answer
    assert answer.headers["x-request-id"]
    if answer.status != 200:
        assert after == before
        assert answer.headers["content-type"] == CONTENT_TYPE
        assert answer.body["code"] in {"invalid_signature", "invalid_payload", "too_large"}
        assert answer.body["detail"]
        told = json.dumps(answer.body)
        assert SECRET[sender] not in told
        assert "Traceback" not in told
    return answer


def request(body: bytes, headers: dict[str, str], *, base64_encoded: bool = True) -> dict[str, Any]:
    event = http_event("POST", "/webhooks/x", headers=headers, base64_encoded=base64_encoded)
    text = base64.b64encode(body).decode() if base64_encoded else body.decode("utf-8", "surrogateescape")
    return event | {"body": text}


# ---- anything at all ----

_NAMES = st.sampled_from(
    [
        "stripe-signature",
        "Stripe-Signature",
        "svix-id",
        "SVIX-ID",
        "svix-timestamp",
        "svix-signature",
        "expo-signature",
        "x-vercel-signature",
        "x-hub-signature-256",
        "x-github-delivery",
        "host",
        "",
    ]
)
_CHARACTERS = st.characters(codec=None, exclude_categories=())  # lone surrogates and NULs too
_VALUES = st.one_of(
    st.text(_CHARACTERS, max_size=40),
    st.from_regex(r"\A(t=-?[0-9]{0,25},?)?(v[01]=[0-9a-fé]{0,70},?){0,3}\Z"),
    st.from_regex(r"\A(sha(1|256)=)?[0-9a-f]{38,66}\Z"),
    st.from_regex(r"\A(v1a?,[A-Za-z0-9+/=]{0,50} ?){0,4}\Z"),
    st.integers().map(str),
    st.sampled_from(
        ["9" * 400, "v1," * 2000, "t=1,v1=" + "0" * 64, "٣" * 10, "1e9", "0x10", "nan", "\r\nx: y"]
    ),
)
_BODIES = st.one_of(
    st.none(),
    st.binary(max_size=200).map(lambda data: base64.b64encode(data).decode()),
    st.text(_CHARACTERS, max_size=200),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=9).map(
        json.dumps
    ),
)


@every_sender
@given(
    headers=st.one_of(st.none(), st.dictionaries(_NAMES, _VALUES, max_size=6)),
    body=_BODIES,
    base64_encoded=st.booleans(),
)
@example(headers={f"x-{n}": "y" * 100 for n in range(5000)}, body="{}", base64_encoded=False)
@example(headers={"stripe-signature": "," * 4000, "svix-signature": " " * 4000}, body="", base64_encoded=True)
@fuzz
def test_what_nobody_signed_is_refused(
    webhook_secrets: None,
    world: Kept,
    *,
    sender: str,
    headers: dict[str, str] | None,
    body: str | None,
    base64_encoded: bool,
) -> None:
    event = http_event("POST", "/webhooks/x")
    event |= {"headers": headers, "body": body, "isBase64Encoded": base64_encoded}
    assert post(sender, event, world).status == 400


# ---- signed, and odd ----


_NAMES_OF_BUILDERS = (
    "status",
    "deployment_status",
    "deployment",
    "state",
    "payload",
    "artifacts",
    "metadata",
)


def _odd_json() -> st.SearchStrategy[bytes]:
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),  # NaN and the infinities too
        st.text(_CHARACTERS, max_size=12),
        st.sampled_from(["user.created", "customer.created", "evt_1", "\x00", "\ud800"]),
        st.sampled_from(["finished", "deployment.succeeded", "success", build_callbacks.BUILD, 10**30]),
    )
    names = st.one_of(
        st.sampled_from(["id", "type", "data", "object", "created", "timestamp", *_NAMES_OF_BUILDERS]),
        st.text(max_size=5),
    )
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5)
    )
    return values.map(lambda value: json.dumps(value).encode())


@every_sender
@given(
    body=st.one_of(
        st.binary(max_size=300),
        _odd_json(),
        st.builds(
            lambda body, at, byte: body[: at % len(body)] + bytes([byte]) + body[at % len(body) + 1 :],
            st.sampled_from([an_event(sender) for sender in SENDERS]),
            st.integers(0, 10_000),
            st.integers(0, 255),
        ),
        st.builds(
            lambda body, length: body[: length % len(body)],
            st.sampled_from([an_event(sender) for sender in SENDERS]),
            st.integers(0, 10_000),
        ),
    ),
    base64_encoded=st.booleans(),
)
@example(body=b"[" * 500_000, base64_encoded=True)
@example(body=b'{"a":' * 100_000 + b"1" + b"}" * 100_000, base64_encoded=True)
@example(body=b"\xff\xfe{\x00}\x00", base64_encoded=True)
@example(body=b'\xef\xbb\xbf{"id": "evt_1", "type": "a"}', base64_encoded=True)
@example(body=b'{"id": "evt_1", "type": "a", "created": 1, "x": "\x00"}', base64_encoded=False)
@example(body=b'{"id": "evt_1", "type": "a", "n": ' + b"9" * 5000 + b"}", base64_encoded=False)
@example(body=b'{"id": "evt_1", "type": "a", "n": 1e999}', base64_encoded=False)
@fuzz
def test_whatever_is_signed_is_recorded_or_refused(
    webhook_secrets: None, world: Kept, sender: str, body: bytes, base64_encoded: bool
) -> None:
    try:
        body.decode()
    except UnicodeDecodeError:
        base64_encoded = True  # the gateway does so itself with what is no text
    post(sender, request(body, signed(sender, body), base64_encoded=base64_encoded), world)


# ---- signed by whom, when, and how often ----


@pytest.mark.parametrize("sender", TIMED)
@pytest.mark.parametrize("skew", [0, -290, 290, -310, 310, -86_400, 86_400, -(10**9), 10**9, 10**11])
def test_a_signature_is_good_for_five_minutes_to_either_side(
    webhook_secrets: None, world: Kept, sender: str, skew: int
) -> None:
    body = an_event(sender)
    answer = post(sender, request(body, signed(sender, body, skew=skew)), world)
    assert answer.status == (200 if abs(skew) < 300 else 400)


@every_sender
def test_any_of_several_secrets_lets_in_and_none_of_another(
    webhook_secrets: None, world: Kept, sender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = an_event(sender)
    known = [OTHER_SECRET[sender], SECRET[sender]]
    with monkeypatch.context() as rolled:
        know(rolled, sender, *known)
        for secret in known:
            assert post(sender, request(body, signed(sender, body, secret=secret)), world).status == 200
    build_webhook._known.clear()
    forged = signed(sender, body, secret=OTHER_SECRET[sender])
    assert post(sender, request(body, forged), world).status == 400


@every_sender
def test_a_header_sent_twice_is_joined_by_the_gateway_and_never_opens_more(
    webhook_secrets: None, world: Kept, sender: str
) -> None:
    """API Gateway joins equal headers with a comma."""
    body = an_event(sender)
    good, forged = signed(sender, body), signed(sender, body, secret=OTHER_SECRET[sender])
    for name in good:
        for first, second in ((good, good), (good, forged), (forged, good), (forged, forged)):
            headers = good | {name: f"{first[name]},{second[name]}"}
            answer = post(sender, request(body, headers), world)
            if first is forged and second is forged and "signature" in name:
                assert answer.status == 400


@every_sender
def test_the_names_of_headers_have_any_case(webhook_secrets: None, world: Kept, sender: str) -> None:
    body = an_event(sender)
    event = request(body, {})
    event["headers"] = {name.title(): value for name, value in signed(sender, body).items()}
    assert post(sender, event, world).status == 200


@every_sender
def test_a_body_means_the_same_with_base64_and_without(
    webhook_secrets: None, world: Kept, sender: str
) -> None:
    body = an_event(sender, "evt_encoding").replace(b"Ada", "Zoë".encode())
    for base64_encoded in (True, False):
        event = request(body, signed(sender, body), base64_encoded=base64_encoded)
        assert post(sender, event, world).status == 200


@every_sender
@pytest.mark.parametrize("size", [MEGABYTE + 1, 6 * MEGABYTE])
@pytest.mark.parametrize("base64_encoded", [True, False])
def test_a_body_of_more_than_a_megabyte_is_too_large_whoever_signed_it(
    webhook_secrets: None, world: Kept, sender: str, size: int, base64_encoded: bool
) -> None:
    body = an_event(sender).ljust(size)
    event = request(body, signed(sender, body), base64_encoded=base64_encoded)
    answer = post(sender, event, world)
    assert (answer.status, answer.body["code"]) == (413, "too_large")
