"""A POST under an Idempotency-Key: once, whoever repeats it, however often, and whatever cuts it off."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel
from tests.callers import sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer, call, http_event

from backplane import api, db, idempotency, limits
from backplane.idempotency import Claim, Remembered
from backplane.problems import Conflict, Forbidden, IdempotencyConflict, Unavailable

router = api.Router()
made: list[str] = []  # what the route made, in order
raising: list[BaseException] = []  # what its next call raises


class Order(api.Body):
    name: str


class Made(BaseModel):
    number: int
    name: str
    secret: str


@router.post("/v1/things", scope="read", status_code=201, shown_once=("secret",))
def make(body: Order) -> api.Response[Made]:
    if raising:
        raise raising.pop()
    made.append(body.name)
    return api.answer(Made(number=len(made), name=body.name, secret="s3cret"), status_code=201)


@router.post("/v1/others", scope="read")
def make_other(body: Order) -> None:
    made.append(body.name)


@router.post("/v1/kept", scope="read", status_code=201, shown_once=("secret",))
def keep(caller: api.Caller, body: Order, tx: api.Tx) -> Made:
    """What it does stands in the database: a count of the organisation's."""
    limits.correct(tx, caller.organization_id, "app.projects", 1)
    if raising:
        raise raising.pop()
    return Made(number=1, name=body.name, secret="s3cret")


handler = api.lambda_handler(router)


@pytest.fixture(autouse=True)
def _signed_in(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    trust_our_tokens(monkeypatch)


def post(
    key: str | None = "key-1", name: str = "lamp", *, user: str = "user_ada", path: str = "/v1/things"
) -> Answer:
    headers = {"authorization": f"Bearer {token(user)}"} | ({} if key is None else {"idempotency-key": key})
    return call(handler, http_event("POST", path, body=json.dumps({"name": name}), headers=headers))


def test_a_repetition_answers_the_first_status_and_body_without_what_is_shown_once() -> None:
    first, again = post(), post()
    assert (first.status, first.body) == (201, {"number": 1, "name": "lamp", "secret": "s3cret"})
    assert "idempotent-replayed" not in first.headers
    assert (again.status, again.body) == (201, {"number": 1, "name": "lamp"})
    assert again.headers["idempotent-replayed"] == "true"
    assert made == ["lamp"]


def test_a_secret_that_is_shown_once_is_never_stored(app_db: Database) -> None:
    post()
    [row] = rows(app_db, "SELECT body FROM platform.idempotency_keys")
    assert "s3cret" not in row["body"]


def test_without_a_key_every_request_is_a_new_one() -> None:
    assert [post(None).status, post(None).status] == [201, 201]
    assert len(made) == 2


def test_another_request_under_the_key_is_a_conflict() -> None:
    post()
    refused = post(name="chair")
    assert (refused.status, refused.body["code"]) == (409, "idempotency_conflict")
    assert made == ["lamp"]


def test_a_key_belongs_to_its_organisation_and_its_route() -> None:
    post()
    assert post(user="user_bob").status == 201
    assert post(path="/v1/others").status == 200
    assert made == ["lamp"] * 3


def test_an_answer_without_a_body_is_repeated_too() -> None:
    assert [post(path="/v1/others").status for _ in range(2)] == [200, 200]
    assert made == ["lamp"]


@pytest.mark.parametrize("error", [Forbidden("no"), RuntimeError("a defect")])
def test_only_what_succeeded_is_remembered(error: Exception) -> None:
    raising.append(error)
    assert post().status in {403, 500}
    assert post().status == 201
    assert post().headers["idempotent-replayed"] == "true"


def test_what_is_refused_before_the_route_is_not_remembered_either() -> None:
    headers = {"authorization": f"Bearer {token()}", "idempotency-key": "key-1"}
    assert call(handler, http_event("POST", "/v1/things", body="{}", headers=headers)).status == 422
    assert post().status == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "clé"])
def test_a_key_must_be_short_and_printable(key: str) -> None:
    refused = post(key)
    assert refused.status == 422
    assert refused.body["errors"][0]["loc"] == ["header", "Idempotency-Key"]
    assert made == []


def test_a_key_is_forgotten_after_a_day(app_db: Database) -> None:
    post()
    rows(app_db, "UPDATE platform.idempotency_keys SET expires_at = now() RETURNING 1")
    assert "idempotent-replayed" not in post(name="chair").headers
    assert made == ["lamp", "chair"]


def test_what_is_over_is_purged_in_parts(app_db: Database) -> None:
    for number in range(5):
        post(f"key-{number}")
    rows(
        app_db,
        "UPDATE platform.idempotency_keys SET expires_at = now() WHERE key <> 'key-0' RETURNING 1",
    )
    with app_db.as_role("backplane_system"):
        assert [db.run(lambda tx: idempotency.purge(tx, limit=3)) for _ in range(3)] == [3, 1, 0]
    assert rows(app_db, "SELECT key FROM platform.idempotency_keys") == [{"key": "key-0"}]


# ---- at once, and cut off ----

HASH = idempotency.request_hash("a request")


def claimed(organization_id: UUID, request: bytes = HASH) -> Claim | Remembered:
    return idempotency.claim(organization_id, "POST /v1/things", "key-1", request)


def test_the_same_request_at_once_waits_for_the_first_and_answers_the_same() -> None:
    organization_id = sign_up().organization_id
    first = claimed(organization_id)
    assert isinstance(first, Claim)
    polled: list[Any] = []
    ask = idempotency._ask

    def watched(query: str, held: Claim, **more: object) -> Any:
        row = ask(query, held, **more)
        if len(polled) == 2:  # the second request has seen twice that the first is under way
            ask(
                "SELECT platform.remember_answer(%(organization_id)s, %(route)s, %(key)s, %(id)s, 201, '{}')",
                first,
            )
        polled.append(row)
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idempotency, "_ask", watched)
        assert claimed(organization_id) == Remembered(201, "{}")
    assert [row["outcome"] for row in polled] == ["busy", "busy", "busy", "replayed"]


def test_of_many_claims_at_once_one_is_given(app_db: Database) -> None:
    organization_id = sign_up().organization_id

    def take(_: int) -> str:
        with app_db.connect("backplane_app") as connection:
            row = connection.execute(
                """
                SELECT outcome
                FROM platform.claim_key(%s, 'POST /v1/things', 'key', %s, gen_random_uuid(), 60)
                """,
                [organization_id, HASH],
            ).fetchone()
            assert row is not None
            return str(row["outcome"])

    with ThreadPoolExecutor(8) as threads:
        outcomes = sorted(threads.map(take, range(8)))
    assert outcomes == ["busy"] * 7 + ["claimed"]


def test_a_request_that_goes_on_and_on_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    organization_id = sign_up().organization_id
    claimed(organization_id)
    monkeypatch.setattr(idempotency, "PATIENCE", 0.1)
    with pytest.raises(Conflict) as refused:
        claimed(organization_id)
    assert (refused.value.code, refused.value.retry_after) == ("idempotency_in_progress", 2)
    with pytest.raises(IdempotencyConflict):
        claimed(organization_id, idempotency.request_hash("another"))


def test_a_request_that_was_cut_off_gives_its_key_up_when_its_time_is_over(app_db: Database) -> None:
    organization_id = sign_up().organization_id
    cut_off = claimed(organization_id)
    rows(app_db, "UPDATE platform.idempotency_keys SET claimed_until = now() RETURNING 1")
    second = claimed(organization_id)
    assert isinstance(cut_off, Claim)
    assert isinstance(second, Claim)
    idempotency.finish(cut_off, 403, "")  # the first turns up again: the key is not its own any more
    idempotency.finish(cut_off, 201, '{"late": true}')
    idempotency.finish(second, 201, '{"late": false}')
    assert claimed(organization_id) == Remembered(201, '{"late": false}')


def test_an_answer_stands_where_it_could_not_be_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = idempotency._ask

    def broken(query: str, held: Claim, **more: object) -> Any:
        if "remember_answer" in query:
            raise Unavailable("the database is away")
        return ask(query, held, **more)

    monkeypatch.setattr(idempotency, "_ask", broken)
    assert post().status == 201


# ---- in the route's own transaction ----


def kept(app_db: Database) -> int:
    [row] = rows(app_db, "SELECT coalesce(sum(used), 0)::int AS used FROM billing.usage_counters")
    return int(row["used"])


def test_the_answer_is_committed_with_the_effect(app_db: Database) -> None:
    first, again = post(path="/v1/kept"), post(path="/v1/kept")
    assert (first.status, first.body) == (201, {"number": 1, "name": "lamp", "secret": "s3cret"})
    assert (again.status, again.body) == (201, {"number": 1, "name": "lamp"})
    assert kept(app_db) == 1


def test_a_request_that_is_cut_off_before_its_commit_has_done_nothing(app_db: Database) -> None:
    raising.append(KeyboardInterrupt())  # as a process that ends
    with pytest.raises(KeyboardInterrupt):
        post(path="/v1/kept")
    assert kept(app_db) == 0
    assert post(path="/v1/kept").status == 201
    assert kept(app_db) == 1


def test_a_request_that_is_cut_off_after_its_commit_is_repeated_not_redone(
    app_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(idempotency, "finish", cut)
        patch.setattr("backplane.outbox.poke", cut)
        with pytest.raises(KeyboardInterrupt):
            post(path="/v1/kept")
    again = post(path="/v1/kept")
    assert (again.status, again.headers["idempotent-replayed"]) == (201, "true")
    assert kept(app_db) == 1


@pytest.mark.parametrize("error", [Forbidden("no"), RuntimeError("a defect")])
def test_a_refusal_undoes_what_the_route_had_done_and_gives_the_key_back(
    app_db: Database, error: Exception
) -> None:
    raising.append(error)
    assert post(path="/v1/kept").status in {403, 500}
    assert kept(app_db) == 0
    assert post(path="/v1/kept").status == 201


def test_a_conflict_with_another_transaction_runs_the_route_again(app_db: Database) -> None:
    raising.append(psycopg.errors.DeadlockDetected())
    assert post(path="/v1/kept").status == 201
    assert kept(app_db) == 1


def test_a_request_that_outlived_its_claim_does_nothing(
    app_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = idempotency.claim

    def stolen(*arguments: Any) -> Claim | Remembered:
        held = claim(*arguments)
        rows(app_db, "UPDATE platform.idempotency_keys SET claim = gen_random_uuid() RETURNING 1")
        return held

    monkeypatch.setattr(idempotency, "claim", stolen)
    refused = post(path="/v1/kept")
    assert (refused.status, refused.body["code"]) == (409, "idempotency_in_progress")
    assert kept(app_db) == 0
