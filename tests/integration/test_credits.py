"""The credits function over HTTP events: every answer and every refusal, against the real database."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb
from tests.callers import Customer, debit, mint, moment, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import assert_books_balance, entries, give, pass_expiry, rows
from tests.senders import Answer

DEFAULT_COSTS = {
    "ai_image_generation": 5,
    "ai_text_chat": 1,
    "feature_segmentation": 1,
    "flowchart_generation": 1,
    "plan_generation": 1,
    "prd_generation": 1,
    "project_creation": 1,
    "schema_generation": 1,
    "task_generation": 1,
    "workspace_blueprint": 1,
}


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up()


def top_up(database: Database, customer: Customer, amount: int, **fields: Any) -> UUID:
    with database.as_role("backplane_system"):
        return give(customer.organization_id, amount, **fields)


def set_costs(database: Database, costs: str) -> None:
    rows(database, "UPDATE platform.admin_settings SET feature_costs = %s", costs)


def set_balance(database: Database, customer: Customer, credits_left: int) -> None:
    spent = debit(customer.token, key=f"down to {credits_left}", quantity=100 - credits_left)
    assert spent.body["available_after"] == credits_left


def available(customer: Customer) -> int:
    left: int = send("GET", "/v1/credits", customer.token).body["available"]
    return left


def assert_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


# ---- the balance ----


def test_the_balance_tells_what_there_is_and_from_where(app_db: Database, ada: Customer) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    plan = top_up(app_db, ada, 500, source="plan", expires_at=expires_at)
    answer = send("GET", "/v1/credits", ada.token)
    assert answer.status == 200
    assert set(answer.body) == {"available", "held", "debt", "grants", "updated_at"}
    assert (answer.body["available"], answer.body["held"], answer.body["debt"]) == (600, 0, 0)
    first, second = answer.body["grants"]
    assert set(first) == {"id", "source", "amount", "remaining", "expires_at"}
    assert (first["id"], first["source"], first["amount"], first["remaining"]) == (
        str(plan),
        "plan",
        500,
        500,
    )
    assert moment(first["expires_at"]) == expires_at
    assert (second["source"], second["expires_at"]) == ("sign_up", None)
    assert moment(answer.body["updated_at"]) <= datetime.now(UTC) + timedelta(minutes=1)


def test_what_expired_a_moment_ago_is_not_in_the_balance(app_db: Database, ada: Customer) -> None:
    pass_expiry(app_db, top_up(app_db, ada, 500, expires_at=datetime.now(UTC) + timedelta(hours=1)))
    answer = send("GET", "/v1/credits", ada.token)
    assert answer.body["available"] == 100
    assert [grant["source"] for grant in answer.body["grants"]] == ["sign_up"]


# ---- debits ----


def test_a_debit_answers_what_it_took_and_what_is_left(app_db: Database, ada: Customer) -> None:
    answer = debit(ada.token, "ai_image_generation", key="key-1", quantity=3, details={"model": "é"})
    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    assert "idempotent-replayed" not in answer.headers
    body = answer.body
    assert UUID(body.pop("id")).version == 7
    moment(body.pop("created_at"))
    assert body == {
        "operation": "ai_image_generation",
        "quantity": 3,
        "unit_cost": 5,
        "amount": 15,
        "available_after": 85,
    }
    entry = entries(app_db, ada.organization_id)[-1]
    assert (entry["amount"], entry["details"], entry["idempotency_key"]) == (-15, {"model": "é"}, "key-1")
    assert entry["actor"] == f"user:{ada.user_id}"
    assert_books_balance(app_db, ada.organization_id)


def test_one_unit_is_debited_where_no_quantity_is_said(ada: Customer) -> None:
    assert debit(ada.token, key="key-1").body["quantity"] == 1
    assert available(ada) == 99


def test_a_replay_answers_the_first_result_though_the_balance_is_gone_and_the_price_changed(
    app_db: Database, ada: Customer
) -> None:
    first = debit(ada.token, key="key-1", quantity=10)
    set_costs(app_db, '{"ai_text_chat": 3}')
    assert debit(ada.token, key="key-2", quantity=30).body["available_after"] == 0
    again = debit(ada.token, key="key-1", quantity=10)
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    set_costs(app_db, '{"ai_text_chat": 1000000}')
    assert debit(ada.token, key="key-1", quantity=10).body == first.body
    assert_books_balance(app_db, ada.organization_id)


@pytest.mark.parametrize(
    "other",
    [
        {"quantity": 2},
        {"operation": "ai_image_generation"},
        {"details": {}},
        {"details": {"a": 2}},
    ],
)
def test_another_request_under_a_used_key_conflicts(
    app_db: Database, ada: Customer, other: dict[str, Any]
) -> None:
    request = {"operation": "ai_text_chat", "details": {"a": 1}}
    send("POST", "/v1/credits/debits", ada.token, key="key-1", body=request)
    answer = send("POST", "/v1/credits/debits", ada.token, key="key-1", body=request | other)
    assert_problem(answer, 409, "idempotency_conflict")
    assert available(ada) == 99
    assert_books_balance(app_db, ada.organization_id)


def test_a_key_is_the_organisations_whoever_of_it_repeats(app_db: Database, ada: Customer) -> None:
    key = mint(app_db, ada.organization_id, ["credits:spend"])
    first = debit(ada.token, key="key-1")
    assert debit(key, key="key-1").body == first.body
    other = sign_up("user_bob")
    assert debit(other.token, key="key-1").body["id"] != first.body["id"]


def test_a_refusal_is_not_remembered(app_db: Database, ada: Customer) -> None:
    refused = debit(ada.token, key="key-1", quantity=101)
    assert_problem(refused, 402, "insufficient_credits")
    assert "101" in refused.body["detail"]
    assert "100" in refused.body["detail"]
    top_up(app_db, ada, 1)
    answer = debit(ada.token, key="key-1", quantity=101)
    assert (answer.status, answer.body["available_after"]) == (201, 0)
    assert "idempotent-replayed" not in answer.headers
    assert_books_balance(app_db, ada.organization_id)


@pytest.mark.parametrize(
    "operation", ["nothing", "admin_adjustment", "AI_TEXT_CHAT", " ai_text_chat", "é", "'; --"]
)
def test_what_is_not_for_sale_is_refused(app_db: Database, ada: Customer, operation: str) -> None:
    set_costs(app_db, '{"admin_adjustment": 1}')
    answer = debit(ada.token, operation, key="key-1")
    assert_problem(answer, 422, "invalid_request")
    assert [error["loc"] for error in answer.body["errors"]] == [["body", "operation"]]
    assert "/v1/credits/costs" in answer.body["detail"]
    assert available(ada) == 100


@pytest.mark.parametrize(
    ("quantity", "status"),
    [
        *((1, 201), (100, 201), (101, 402), (1_000_000, 402), (1_000_001, 422)),
        *((0, 422), (-1, 422), (2**31, 422), (2**63, 422), (-(2**63), 422), (10**4000, 422)),
        *((1.0, 422), (1.5, 422), ("1", 422), (True, 422), (None, 422), ([1], 422)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_quantity_is_a_bounded_whole_number(
    app_db: Database, ada: Customer, quantity: Any, status: int
) -> None:
    assert debit(ada.token, key="key-1", quantity=quantity).status == status
    assert len(entries(app_db, ada.organization_id)) == 1 + (status == 201)


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"a": None, "b": [True, 1, 1.5, -1e-300, 10**300], "c": {"d": "\U0001f600"}},
        {"text": "x" * 4084},
        {"nested": json.loads("[" * 60 + "]" * 60)},
    ],
    ids=["empty", "every kind", "as large as may be", "deep"],
)
def test_details_are_kept_as_they_came(ada: Customer, details: dict[str, Any]) -> None:
    assert debit(ada.token, key="key-1", details=details).status == 201
    newest = send("GET", "/v1/credits/entries", ada.token, query={"limit": "1"}).body["items"][0]
    assert newest["details"] == details


def test_details_of_more_than_four_kibibytes_are_refused(ada: Customer) -> None:
    # jsonb writes numbers out: a page of these could not be answered any more.
    for details in ({"text": "x" * 4085}, {"text": "é" * 2043}, {"numbers": [1e308] * 14}):
        answer = debit(ada.token, key="key-1", details=details)
        assert_problem(answer, 422, "invalid_request")
        assert answer.body["errors"][0]["loc"] == ["body", "details"]
        assert "4096 bytes" in answer.body["errors"][0]["msg"]


@pytest.mark.parametrize("escape", [r"\u0000", r"\ud800"])
def test_details_that_cannot_be_stored_are_refused(ada: Customer, escape: str) -> None:
    for details in (f'{{"a": "{escape}"}}', f'{{"{escape}": 1}}'):
        body = f'{{"operation": "ai_text_chat", "details": {details}}}'
        answer = send("POST", "/v1/credits/debits", ada.token, key="key-1", body=body)
        assert_problem(answer, 400, "invalid_payload")
        assert "cannot be stored" in answer.body["detail"]
    assert available(ada) == 100


# ---- keys ----


@pytest.mark.parametrize(
    ("key", "status"),
    [
        *(("k", 201), ("k" * 255, 201), (" ", 201), ("~ !\"'\\;--", 201)),
        *(("", 422), ("k" * 256, 422), ("\x7f", 422), ("a\tb", 422), ("a\n", 422), ("é", 422)),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_key_is_1_to_255_printable_characters(
    app_db: Database, ada: Customer, key: str, status: int
) -> None:
    answer = debit(ada.token, key=key)
    assert answer.status == status
    if status == 201:
        assert debit(ada.token, key=key).body == answer.body
    else:
        assert answer.body["errors"][0]["loc"] == ["header", "idempotency-key"]
    assert len(entries(app_db, ada.organization_id)) == 1 + (status == 201)


@pytest.mark.parametrize("costs", ['{"ai_text_chat": 0, "video": 0}', "{}"], ids=["free", "gone"])
def test_a_replay_does_not_ask_for_the_price(app_db: Database, ada: Customer, costs: str) -> None:
    set_costs(app_db, '{"ai_text_chat": 2, "video": 3}')
    for operation in ("ai_text_chat", "video"):
        request = {"operation": operation, "quantity": 2}
        for path in ("debits", "holds"):
            set_costs(app_db, '{"ai_text_chat": 2, "video": 3}')
            first = send("POST", f"/v1/credits/{path}", ada.token, key=operation, body=request)
            set_costs(app_db, costs)
            again = send("POST", f"/v1/credits/{path}", ada.token, key=operation, body=request)
            assert (first.status, again.status, again.body) == (201, 201, first.body)
            assert again.headers["idempotent-replayed"] == "true"
    assert available(ada) == 80
    assert_books_balance(app_db, ada.organization_id)


# ---- prices ----


def costs(customer: Customer) -> dict[str, int]:
    prices: dict[str, int] = send("GET", "/v1/credits/costs", customer.token).body
    return prices


def test_the_price_list_names_every_operation_for_sale(ada: Customer) -> None:
    assert costs(ada) == DEFAULT_COSTS


@pytest.mark.parametrize(
    ("override", "cost"),
    [
        ("3", 3),
        ("0", 0),
        ("2.9", 2),
        ("0.5", 0),
        ("1e3", 1000),
        ("1000000000", 1_000_000_000),
        ("-1", 1),
        ("-0.1", 1),
        ("1e300", 1),
        ('"3"', 1),
        ('"NaN"', 1),
        ("null", 1),
        ("true", 1),
        ("[3]", 1),
        ('{"cost": 3}', 1),
    ],
)
def test_an_override_counts_where_it_is_a_sane_number(
    app_db: Database, ada: Customer, override: str, cost: int
) -> None:
    set_costs(app_db, f'{{"ai_text_chat": {override}}}')
    assert costs(ada) == DEFAULT_COSTS | {"ai_text_chat": cost}
    answer = debit(ada.token, key="key-1")
    if cost <= 100:
        assert (answer.body["unit_cost"], answer.body["available_after"]) == (cost, 100 - cost)
    else:
        assert_problem(answer, 402, "insufficient_credits")
    assert_books_balance(app_db, ada.organization_id)


def test_what_is_free_is_booked_even_on_an_empty_account(app_db: Database, ada: Customer) -> None:
    set_balance(app_db, ada, 0)
    set_costs(app_db, '{"ai_text_chat": 0}')
    answer = debit(ada.token, key="key-1", quantity=7)
    assert (answer.status, answer.body["amount"], answer.body["available_after"]) == (201, 0, 0)
    assert debit(ada.token, key="key-1", quantity=7).headers["idempotent-replayed"] == "true"
    assert_books_balance(app_db, ada.organization_id)


def test_an_override_may_name_a_new_operation(app_db: Database, ada: Customer) -> None:
    set_costs(app_db, Jsonb({"video": 20, "x" * 63: 1, "x" * 64: 1, "": 1}))  # type: ignore[arg-type]
    assert costs(ada) == DEFAULT_COSTS | {"video": 20, "x" * 63: 1}
    assert debit(ada.token, "video", key="key-1", quantity=2).body["amount"] == 40
    assert debit(ada.token, "x" * 63, key="key-2").status == 201


# ---- who may ----


def test_a_viewer_reads_and_does_not_spend(app_db: Database, ada: Customer) -> None:
    token(org_id="org_acme", org_role="org:admin")
    viewer = token("user_vic", org_id="org_acme", org_role="org:viewer")
    assert send("GET", "/v1/credits", viewer).status == 200
    for path in ("debits", "holds"):
        body = {"operation": "ai_text_chat"}
        answer = send("POST", f"/v1/credits/{path}", viewer, key="key-1", body=body)
        assert_problem(answer, 403, "forbidden")
        assert "`credits:spend`" in answer.body["detail"]


@pytest.mark.parametrize(
    ("scopes", "reads", "spends"), [(["read"], 200, 403), (["credits:spend"], 403, 201), ([], 403, 403)]
)
def test_a_key_does_what_its_scopes_say(
    app_db: Database, ada: Customer, scopes: list[str], reads: int, spends: int
) -> None:
    key = mint(app_db, ada.organization_id, scopes)
    for path in ("", "/costs", "/entries", "/usage"):
        assert send("GET", f"/v1/credits{path}", key).status == reads
    assert debit(key, key="key-1").status == spends


def test_only_who_may_name_an_organisation_spends_of_another(app_db: Database, ada: Customer) -> None:
    other = sign_up("user_bob")
    key = mint(app_db, ada.organization_id, ["credits:spend", "read"])
    for credential in (ada.token, key):
        for method, path in (("GET", ""), ("GET", "/entries"), ("GET", "/audit"), ("POST", "/debits")):
            body = {"operation": "ai_text_chat"} if method == "POST" else None
            answer = send(
                method,
                f"/v1/credits{path}",
                credential,
                key="key-1",
                body=body,
                organization=other.organization_id,
            )
            assert_problem(answer, 403, "forbidden")
    assert (available(ada), available(other)) == (100, 100)


def test_a_service_key_spends_for_the_organisation_it_names(app_db: Database, ada: Customer) -> None:
    key = mint(app_db, None, ["credits:spend", "read"])
    other = sign_up("user_bob")
    body = {"operation": "ai_text_chat"}
    for customer in (ada, other):
        spent = send(
            "POST", "/v1/credits/debits", key, body=body, key="key-1", organization=customer.organization_id
        )
        assert spent.status == 201
        assert available(customer) == 99
    assert_problem(send("POST", "/v1/credits/debits", key, body=body, key="key-2"), 400, "bad_request")
    assert send("POST", "/v1/credits/debits", None, body=body, key="key-2").status == 401


# ---- entries ----


def page(customer: Customer, **query: str) -> dict[str, Any]:
    answer = send("GET", "/v1/credits/entries", customer.token, query=query)
    assert answer.status == 200
    body: dict[str, Any] = answer.body
    return body


def test_an_entry_tells_what_happened(ada: Customer) -> None:
    made = debit(ada.token, key="key-1", quantity=2, details={"a": 1}).body
    newest, oldest = page(ada)["items"]
    moment(newest.pop("created_at"))
    assert newest == {
        "id": made["id"],
        "kind": "debit",
        "operation": "ai_text_chat",
        "amount": -2,
        "available_after": 98,
        "held_after": 0,
        "version": 2,
        "source_id": None,
        "details": {"a": 1},
    }
    grant = send("GET", "/v1/credits", ada.token).body["grants"][0]
    assert (oldest["kind"], oldest["amount"], oldest["source_id"]) == ("grant", 100, grant["id"])


def test_entries_come_newest_first_in_parts_that_stay_put_while_new_ones_come(ada: Customer) -> None:
    for number in range(6):
        debit(ada.token, key=f"key-{number}")
    first = page(ada, limit="3")
    debit(ada.token, key="a new one")
    second = page(ada, limit="3", cursor=first["next_cursor"])
    third = page(ada, limit="3", cursor=second["next_cursor"])
    versions = [[entry["version"] for entry in part["items"]] for part in (first, second, third)]
    assert versions == [[7, 6, 5], [4, 3, 2], [1]]
    assert third["next_cursor"] is None
    assert page(ada, limit="3", cursor=first["next_cursor"]) == second


def test_a_last_part_that_is_full_has_no_next(ada: Customer) -> None:
    for number in range(3):
        debit(ada.token, key=f"key-{number}")
    assert page(ada, limit="4")["next_cursor"] is None
    assert page(ada, limit="3")["next_cursor"] is not None
    assert len(page(ada)["items"]) == 4


def test_twenty_entries_come_where_no_limit_is_said(ada: Customer) -> None:
    for number in range(20):
        debit(ada.token, key=f"key-{number}")
    body = page(ada)
    assert (len(body["items"]), body["next_cursor"] is None) == (20, False)
    assert len(page(ada, limit="100")["items"]) == 21


@pytest.mark.parametrize("query", [{"cursor": "garbage"}, {"limit": "0"}, {"limit": "101"}, {"before": "1"}])
def test_a_list_asked_for_badly_is_refused(ada: Customer, query: dict[str, str]) -> None:
    answer = send("GET", "/v1/credits/entries", ada.token, query=query)
    assert_problem(answer, 422, "invalid_request")
    assert answer.body["errors"][0]["loc"] == ["query", *query]


def test_a_cursor_of_another_organisation_shows_nothing_of_it(ada: Customer) -> None:
    other = sign_up("user_bob")
    for number in range(3):
        debit(other.token, key=f"key-{number}")
    cursor = page(other, limit="1")["next_cursor"]
    mine = page(ada)["items"]
    assert page(ada, cursor=cursor)["items"] == [entry for entry in mine if entry["version"] < 4]


# ---- usage ----


def usage(customer: Customer, **query: str) -> dict[str, Any]:
    answer = send("GET", "/v1/credits/usage", customer.token, query=query)
    assert answer.status == 200
    body: dict[str, Any] = answer.body
    return body


def book_earlier(database: Database, customer: Customer, key: str, **ago: float) -> date:
    """Moves a debit into the past, around the trigger that forbids it. Answers its UTC day."""
    with database.connect() as connection:
        connection.execute("ALTER TABLE credits.entries DISABLE TRIGGER USER")
        row = connection.execute(
            """
            UPDATE credits.entries
            SET created_at = clock_timestamp() - %s
            WHERE organization_id = %s AND idempotency_key = %s
            RETURNING (created_at AT TIME ZONE 'UTC')::date AS day
            """,
            [timedelta(**ago), customer.organization_id, key],
        ).fetchone()
        connection.execute("ALTER TABLE credits.entries ENABLE TRIGGER USER")
    assert row is not None
    day: date = row["day"]
    return day


def test_nothing_used_is_an_empty_usage(ada: Customer) -> None:
    body = usage(ada)
    assert (body["by_operation"], body["by_day"]) == ([], [])
    assert moment(body["to"]) - moment(body["from"]) == timedelta(days=30)


def test_usage_is_the_sum_of_the_entries(app_db: Database, ada: Customer) -> None:
    debit(ada.token, key="key-1", quantity=3)
    debit(ada.token, key="key-2", quantity=4)
    debit(ada.token, "ai_image_generation", key="key-3", quantity=2)
    debit(ada.token, "prd_generation", key="key-4", quantity=7)
    earlier = book_earlier(app_db, ada, "key-2", days=2)
    other = sign_up("user_bob")
    debit(other.token, key="key-1", quantity=50)

    body = usage(ada)
    assert body["by_operation"] == [
        {"operation": "ai_image_generation", "credits": 10, "count": 1},
        {"operation": "ai_text_chat", "credits": 7, "count": 2},
        {"operation": "prd_generation", "credits": 7, "count": 1},
    ]
    assert body["by_day"][0] == {"day": earlier.isoformat(), "credits": 4}
    assert sum(day["credits"] for day in body["by_day"]) == 24
    booked = [entry for entry in entries(app_db, ada.organization_id) if entry["kind"] == "debit"]
    assert sum(used["credits"] for used in body["by_operation"]) == -sum(entry["amount"] for entry in booked)


def test_usage_begins_exactly_so_many_days_ago(app_db: Database, ada: Customer) -> None:
    for key, ago in (("inside", {"hours": 47.9}), ("outside", {"hours": 48.1})):
        debit(ada.token, key=key, quantity=5)
        book_earlier(app_db, ada, key, **ago)
    assert usage(ada, days="2")["by_operation"] == [{"operation": "ai_text_chat", "credits": 5, "count": 1}]
    assert usage(ada, days="3")["by_operation"] == [{"operation": "ai_text_chat", "credits": 10, "count": 2}]


@pytest.mark.parametrize("days", ["0", "367", "-1", "x", "", "1.5"])
def test_days_are_bounded(ada: Customer, days: str) -> None:
    answer = send("GET", "/v1/credits/usage", ada.token, query={"days": days})
    assert_problem(answer, 422, "invalid_request")
    assert answer.body["errors"][0]["loc"] == ["query", "days"]


def test_a_year_of_usage_may_be_asked_for(ada: Customer) -> None:
    body = usage(ada, days="366")
    assert moment(body["to"]) - moment(body["from"]) == timedelta(days=366)


# ---- whatever comes ----

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "operation": values | st.sampled_from(["ai_text_chat", "nothing"]),
        "quantity": values | st.integers(min_value=-2, max_value=200),
        "details": values | st.dictionaries(st.text(), values),
        "x": values,
    },
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=requests, key=st.text(max_size=20) | st.just("key"))
def test_whatever_is_posted_debits_once_or_is_refused_without_a_trace(
    app_db: Database, ada: Customer, body: dict[str, Any], key: str
) -> None:
    before = len(entries(app_db, ada.organization_id))
    answer = send("POST", "/v1/credits/debits", ada.token, key=key, body=json.dumps(body))
    booked = len(entries(app_db, ada.organization_id)) - before
    if answer.status == 201:
        assert booked == ("idempotent-replayed" not in answer.headers)
    else:
        assert 400 <= answer.status < 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert booked == 0
    assert_books_balance(app_db, ada.organization_id)
