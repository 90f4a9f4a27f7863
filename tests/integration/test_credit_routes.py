"""Holds, settles, releases, refunds, adjustments and audits over HTTP events: answers, refusals, replays."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.callers import ROOT, Customer, debit, mint, moment, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import assert_books_balance, entries, pass_holds_expiry, rows
from tests.senders import Answer

SERVER_SCOPES = ["credits:refund", "credits:settle", "credits:spend", "read"]


@dataclass(frozen=True)
class Server:
    """The SaaS's own server: a service key that acts for one organisation."""

    credential: str
    organization_id: UUID

    def post(self, path: str, key: str | None = None, **body: Any) -> Answer:
        return send(
            "POST",
            f"/v1/credits{path}",
            self.credential,
            key=key or str(uuid4()),
            body=body,
            organization=self.organization_id,
        )

    def release(self, hold_id: str, key: str | None = None) -> Answer:
        path = f"/v1/credits/holds/{hold_id}/release"
        key = key or str(uuid4())
        return send("POST", path, self.credential, key=key, organization=self.organization_id)

    def balance(self) -> tuple[int, int, int]:
        body = send("GET", "/v1/credits", self.credential, organization=self.organization_id).body
        return body["available"], body["held"], body["debt"]


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up()


@pytest.fixture
def server(app_db: Database, ada: Customer) -> Server:
    """Acts for Ada's organisation, which has its 100 credits."""
    return Server(mint(app_db, None, SERVER_SCOPES), ada.organization_id)


def held(server: Server, quantity: int = 10) -> str:
    hold_id: str = server.post("/holds", operation="ai_text_chat", quantity=quantity).body["id"]
    return hold_id


def spent(server: Server, quantity: int = 10) -> str:
    debit_id: str = server.post("/debits", operation="ai_text_chat", quantity=quantity).body["id"]
    return debit_id


def adjust(credential: str, organization_id: object, key: str = "key-1", **body: Any) -> Answer:
    path = f"/v1/admin/credits/{organization_id}/adjustments"
    return send("POST", path, credential, key=key, body={"reason": "a gift"} | body)


def assert_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


def assert_replayed(again: Answer, first: Answer) -> None:
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers


# ---- answers ----


def test_a_hold_answers_what_is_held_and_until_when(ada: Customer, server: Server) -> None:
    request = {"operation": "ai_image_generation", "quantity": 2, "details": {"a": 1}}
    answer = send("POST", "/v1/credits/holds", ada.token, key="key-1", body=request)
    assert answer.status == 201
    assert set(answer.body) == {"id", "amount", "state", "expires_at"}
    assert (answer.body["amount"], answer.body["state"]) == (10, "open")
    assert server.balance() == (90, 10, 0)
    newest = send("GET", "/v1/credits/entries", ada.token).body["items"][0]
    age = moment(answer.body["expires_at"]) - moment(newest["created_at"])
    assert 890 < age.total_seconds() < 910
    assert (newest["kind"], newest["amount"], newest["held_after"]) == ("hold", 0, 10)
    assert newest["source_id"] == answer.body["id"]


def test_a_settle_answers_what_was_used_and_a_debit_that_can_be_refunded(
    app_db: Database, server: Server
) -> None:
    hold_id = held(server, 10)
    answer = server.post(f"/holds/{hold_id}/settle", quantity=4)
    assert answer.status == 200
    debit_id = answer.body.pop("debit_id")
    assert answer.body == {"id": hold_id, "state": "settled", "amount_settled": 4, "amount_released": 6}
    assert server.balance() == (96, 0, 0)

    refunded = server.post(f"/debits/{debit_id}/refunds", amount=3, reason="it failed")
    assert refunded.status == 201
    UUID(refunded.body.pop("id"))
    assert refunded.body == {"debit_id": debit_id, "amount": 3, "refunded_total": 3}
    assert server.post(f"/debits/{debit_id}/refunds", reason="it failed").body["refunded_total"] == 4
    assert server.balance() == (100, 0, 0)
    assert_books_balance(app_db, server.organization_id)


def test_a_settle_without_a_measure_takes_all_that_was_held(server: Server) -> None:
    assert server.post(f"/holds/{held(server)}/settle").body["amount_settled"] == 10
    without_a_body = send(
        "POST",
        f"/v1/credits/holds/{held(server)}/settle",
        server.credential,
        key=str(uuid4()),
        organization=server.organization_id,
    )
    assert without_a_body.body["amount_settled"] == 10


def test_a_release_takes_no_fields(server: Server) -> None:
    hold_id = held(server)
    refused = server.post(f"/holds/{hold_id}/release", amount=5)
    assert (refused.status, refused.body["errors"][0]["type"]) == (422, "extra_forbidden")
    assert server.post(f"/holds/{hold_id}/release").status == 200, "an empty object is no field"


def test_a_release_answers_what_came_back(server: Server) -> None:
    hold_id = held(server)
    answer = server.release(hold_id)
    assert answer.status == 200
    assert answer.body == {"id": hold_id, "state": "released", "amount_released": 10}
    assert server.balance() == (100, 0, 0)


def test_an_adjustment_answers_what_it_left(app_db: Database, ada: Customer, server: Server) -> None:
    admin = token(ROOT)
    answer = adjust(admin, ada.organization_id, amount=50)
    assert answer.status == 201
    UUID(answer.body.pop("id"))
    moment(answer.body.pop("created_at"))
    assert answer.body == {"amount": 50, "reason": "a gift", "available_after": 150, "debt_after": 0}
    refused = adjust(admin, ada.organization_id, key="key-2", amount=-151)
    assert_problem(refused, 402, "insufficient_credits")
    owed = adjust(admin, ada.organization_id, key="key-2", amount=-151, allow_debt=True)
    assert (owed.body["available_after"], owed.body["debt_after"]) == (0, 1)
    assert server.balance() == (0, 0, 1)
    actors = rows(
        app_db,
        "SELECT DISTINCT actor FROM platform.audit_log WHERE action = 'credits.adjusted'",
    )
    assert actors == [{"actor": f"user:{sign_up(ROOT).user_id}"}]
    assert_books_balance(app_db, ada.organization_id)


def test_an_audit_answers_that_the_books_are_sound(ada: Customer, server: Server) -> None:
    spent(server)
    held(server, 20)
    answer = send("GET", "/v1/credits/audit", ada.token)
    assert answer.status == 200
    assert answer.body == {
        "ok": True,
        "available": 70,
        "held": 20,
        "debt": 0,
        "entries_sum": 90,
        "entries": 3,
        "versions_gapless": True,
    }


# ---- repetitions ----


def test_every_mutation_answers_its_first_result_again(app_db: Database, server: Server) -> None:
    settled, released, debited = held(server), held(server), spent(server)
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/holds", {"operation": "ai_text_chat", "quantity": 3, "expires_in": 60}),
        (f"/holds/{settled}/settle", {"amount": 12}),
        (f"/debits/{debited}/refunds", {"amount": 2, "reason": "it failed"}),
    ]
    for path, body in requests:
        first = server.post(path, key="key-1", **body)
        assert_replayed(server.post(path, key="key-1", **body), first)
    first = server.release(released, key="key-1")
    assert_replayed(server.release(released, key="key-1"), first)
    admin = token(ROOT)
    first = adjust(admin, server.organization_id, amount=5)
    assert_replayed(adjust(admin, server.organization_id, amount=5), first)
    assert server.balance() == (100 - 12 - 10 + 2 - 3 + 5, 3, 0)
    assert_books_balance(app_db, server.organization_id)


def test_another_request_under_a_used_key_conflicts(app_db: Database, server: Server) -> None:
    settled, released, other, debited = held(server), held(server), held(server), spent(server)
    requests: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("/holds", {"operation": "ai_text_chat"}, {"expires_in": 60}),
        (f"/holds/{settled}/settle", {"amount": 2}, {"amount": 3}),
        (f"/debits/{debited}/refunds", {"reason": "it failed"}, {"amount": 1}),
    ]
    for path, body, change in requests:
        assert server.post(path, key="key-1", **body).status in {200, 201}
        assert_problem(server.post(path, key="key-1", **body | change), 409, "idempotency_conflict")
    server.release(released, key="key-1")
    assert_problem(server.release(other, key="key-1"), 409, "idempotency_conflict")
    adjust(token(ROOT), server.organization_id, amount=5)
    again = adjust(token(ROOT), server.organization_id, amount=6)
    assert_problem(again, 409, "idempotency_conflict")
    assert_books_balance(app_db, server.organization_id)


def test_every_mutation_needs_a_key(ada: Customer, server: Server) -> None:
    some = uuid4()
    paths = ["/holds", f"/holds/{some}/settle", f"/holds/{some}/release", f"/debits/{some}/refunds"]
    for path in paths:
        body: dict[str, Any] | None = None if path.endswith("release") else {}
        answer = send(
            "POST", f"/v1/credits{path}", server.credential, body=body, organization=ada.organization_id
        )
        assert_problem(answer, 422, "invalid_request")
        assert ["header", "idempotency-key"] in [error["loc"] for error in answer.body["errors"]]


# ---- refusals ----


def test_what_is_closed_one_way_is_not_closed_another(app_db: Database, server: Server) -> None:
    settled, released, expired = held(server), held(server), held(server)
    server.post(f"/holds/{settled}/settle", amount=1)
    server.release(released)
    pass_holds_expiry(app_db, UUID(expired))
    assert_problem(server.release(settled), 409, "invalid_state")
    assert_problem(server.post(f"/holds/{settled}/settle", amount=2), 409, "invalid_state")
    assert_problem(server.post(f"/holds/{released}/settle"), 409, "invalid_state")
    assert_problem(server.post(f"/holds/{expired}/settle"), 409, "invalid_state")
    assert server.release(expired).body["state"] == "expired"
    assert server.balance() == (99, 0, 0)


def test_more_than_the_debit_is_not_refunded(server: Server) -> None:
    debit_id = spent(server, 5)
    refused = server.post(f"/debits/{debit_id}/refunds", amount=6, reason="it failed")
    assert_problem(refused, 409, "invalid_state")
    server.post(f"/debits/{debit_id}/refunds", reason="it failed")
    refused = server.post(f"/debits/{debit_id}/refunds", reason="it failed")
    assert_problem(refused, 409, "invalid_state")


def test_what_is_short_is_refused_and_not_remembered(server: Server) -> None:
    refused = server.post("/holds", key="key-1", operation="ai_text_chat", quantity=101)
    assert_problem(refused, 402, "insufficient_credits")
    hold_id = held(server, 90)
    refused = server.post(f"/holds/{hold_id}/settle", key="key-1", amount=101)
    assert_problem(refused, 402, "insufficient_credits")
    adjust(token(ROOT), server.organization_id, amount=1)
    assert server.post(f"/holds/{hold_id}/settle", key="key-1", amount=101).status == 200


def test_another_organisations_holds_and_debits_are_not_found(app_db: Database, server: Server) -> None:
    bob = sign_up("user_bob")
    theirs = Server(server.credential, bob.organization_id)
    hold_id, debit_id = held(theirs), spent(theirs)
    for answer in (
        server.post(f"/holds/{hold_id}/settle"),
        server.release(hold_id),
        server.post(f"/debits/{debit_id}/refunds", reason="it failed"),
        server.post(f"/debits/{hold_id}/refunds", reason="it failed"),
        server.post(f"/holds/{uuid4()}/settle"),
    ):
        assert_problem(answer, 404, "not_found")
    assert theirs.balance() == (80, 10, 0)
    assert_problem(adjust(token(ROOT), uuid4(), amount=1), 404, "not_found")


def test_customers_hold_and_the_saas_settles_and_refunds(app_db: Database, ada: Customer) -> None:
    """A customer who could settle, release or refund would run for free."""
    everything = mint(app_db, ada.organization_id, SERVER_SCOPES)
    for credential in (ada.token, everything):
        answer = send(
            "POST", "/v1/credits/holds", credential, key=str(uuid4()), body={"operation": "ai_text_chat"}
        )
        assert answer.status == 201
        hold_id, debit_id = answer.body["id"], debit(ada.token, key=str(uuid4())).body["id"]
        requests: list[tuple[str, dict[str, Any] | None]] = [
            (f"holds/{hold_id}/settle", {"amount": 0}),
            (f"holds/{hold_id}/release", None),
            (f"debits/{debit_id}/refunds", {"reason": "please"}),
        ]
        for path, body in requests:
            refused = send("POST", f"/v1/credits/{path}", credential, key="key-1", body=body)
            assert_problem(refused, 403, "forbidden")
        assert_problem(adjust(credential, ada.organization_id, amount=1000), 403, "forbidden")
    assert {entry["kind"] for entry in entries(app_db, ada.organization_id)} == {"grant", "hold", "debit"}


def test_a_service_key_does_what_its_scopes_say(app_db: Database, ada: Customer, server: Server) -> None:
    hold_id, debit_id = held(server), spent(server)
    narrow = Server(mint(app_db, None, ["credits:settle"]), ada.organization_id)
    assert narrow.post("/holds", operation="ai_text_chat").status == 403
    assert narrow.post(f"/debits/{debit_id}/refunds", reason="it failed").status == 403
    assert narrow.post(f"/holds/{hold_id}/settle").status == 200
    assert adjust(server.credential, ada.organization_id, amount=1).status in {400, 403}


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/holds", {"operation": "nothing"}, ["body", "operation"]),
        ("/holds", {"operation": "ai_text_chat", "quantity": 0}, ["body", "quantity"]),
        ("/holds", {"operation": "ai_text_chat", "expires_in": 0}, ["body", "expires_in"]),
        ("/holds", {"operation": "ai_text_chat", "expires_in": 86_401}, ["body", "expires_in"]),
        ("/holds", {"operation": "ai_text_chat", "x": 1}, ["body", "x"]),
        ("/holds/{id}/settle", {"quantity": 1, "amount": 1}, ["body"]),
        ("/holds/{id}/settle", {"quantity": -1}, ["body", "quantity"]),
        ("/holds/{id}/settle", {"amount": -1}, ["body", "amount"]),
        ("/holds/{id}/settle", {"amount": 1.5}, ["body", "amount"]),
        ("/holds/{id}/settle", {"amount": 10**10}, ["body", "amount"]),
        ("/holds/1/settle", {}, ["path", "hold_id"]),
        ("/debits/{id}/refunds", {}, ["body", "reason"]),
        ("/debits/{id}/refunds", {"reason": " "}, ["body", "reason"]),
        ("/debits/{id}/refunds", {"reason": "x" * 501}, ["body", "reason"]),
        ("/debits/{id}/refunds", {"reason": "it failed", "amount": 0}, ["body", "amount"]),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    server: Server, path: str, body: dict[str, Any], place: list[str]
) -> None:
    answer = server.post(path.replace("{id}", str(uuid4())), **body)
    assert_problem(answer, 422, "invalid_request")
    assert [error["loc"] for error in answer.body["errors"]] == [place]


@pytest.mark.parametrize("amount", [0, 10**9 + 1, -(10**9) - 1, 1.5, "1", None])
def test_an_adjustment_of_nothing_or_of_too_much_is_refused(ada: Customer, amount: Any) -> None:
    answer = adjust(token(ROOT), ada.organization_id, amount=amount)
    assert_problem(answer, 422, "invalid_request")


# ---- whatever comes ----

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(
    st.sampled_from(["operation", "quantity", "amount", "expires_in", "reason", "details", "x"]),
    anything | st.integers(min_value=-2, max_value=120) | st.sampled_from(["ai_text_chat", "it failed"]),
)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    route=st.sampled_from(["/holds", "/holds/{hold}/settle", "/debits/{debit}/refunds"]),
    body=fields,
    key=st.text(max_size=10),
)
def test_whatever_is_posted_takes_effect_or_is_refused_without_a_trace(
    app_db: Database, server: Server, route: str, body: dict[str, Any], key: str
) -> None:
    known = {"hold": str(uuid4()), "debit": str(uuid4())}
    if adjust(token(ROOT), server.organization_id, key=str(uuid4()), amount=2).status == 201:
        known = {"hold": held(server, 1), "debit": spent(server, 1)}
    before = len(entries(app_db, server.organization_id))
    answer = send(
        "POST",
        f"/v1/credits{route.format(**known)}",
        server.credential,
        key=key,
        body=json.dumps(body),
        organization=server.organization_id,
    )
    booked = len(entries(app_db, server.organization_id)) - before
    if answer.status < 300:
        assert booked == ("idempotent-replayed" not in answer.headers)
    else:
        assert 400 <= answer.status < 500
        assert booked == 0
    assert_books_balance(app_db, server.organization_id)
