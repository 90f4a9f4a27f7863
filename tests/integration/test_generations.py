"""Generations: one at a time on a project, charged when they end well, and free when they don't."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sweeper
from tests import counters, kills
from tests.callers import Customer, mint, moment, send, sign_up, token, trust_our_tokens
from tests.counters import DAY, MONTH
from tests.databases import Database
from tests.ledgers import assert_books_balance, new_account, rows
from tests.senders import Answer, invoke

from backplane import access, auth, db, generations, leases, messages
from backplane.problems import Conflict

ASKED = {"agent_type": "frontend", "prompt": "Make it blue", "operation": "ai_image_generation"}  # 5 credits


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada", name="Ada Lovelace")


@pytest.fixture
def server(app_db: Database, ada: Customer) -> str:
    """A service key that may end generations."""
    return mint(app_db, None, ["read", "projects:write", "credits:spend", "generations:finish"])


@pytest.fixture
def project(ada: Customer) -> str:
    made = send("POST", "/v1/projects", ada.token, body={"title": "Fitness"})
    project_id: str = made.body["id"]
    return project_id


def start(customer: Customer, project_id: str, **fields: Any) -> Answer:
    path = f"/v1/projects/{project_id}/generations"
    return send("POST", path, customer.token, body=ASKED | fields)


def tell(server: str, customer: Customer, started: Any, verb: str, **fields: Any) -> Answer:
    body = {"lock_token": started["lock_token"], **fields}
    path = f"/v1/generations/{started['id']}/{verb}"
    return send("POST", path, server, body=body, organization=customer.organization_id)


def complete(server: str, customer: Customer, started: Any, **fields: Any) -> Answer:
    return tell(server, customer, started, "complete", response="Done", tokens_used=321, **fields)


def standing(database: Database, customer: Customer) -> tuple[int, int, int, int]:
    """Credits available and held, messages counted of the day and of the month."""
    balance = send("GET", "/v1/credits", customer.token).body
    return (
        balance["available"],
        balance["held"],
        counters.used(database, customer.organization_id, DAY),
        counters.used(database, customer.organization_id, MONTH),
    )


def seen(customer: Customer, project_id: str) -> Any:
    return send("GET", f"/v1/projects/{project_id}", customer.token).body


def events(database: Database) -> list[str]:
    found = rows(database, "SELECT type FROM platform.outbox WHERE type LIKE 'generation.%%' ORDER BY id")
    return [row["type"] for row in found]


def lapse(database: Database) -> None:
    rows(database, "UPDATE projects.generations SET lock_expires_at = now() WHERE status = 'in_progress'")


# ---- a life ----


def test_a_generation_holds_while_it_works_and_is_charged_when_it_is_done(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project)
    assert started.status == 201
    assert started.body["status"] == "in_progress"
    assert set(started.body) == {"id", "status", "lock_token", "lock_expires_at", "hold_id"}
    assert standing(app_db, ada) == (95, 5, 1, 1)
    working = seen(ada, project)
    assert (working["status"], working["update_in_progress"]) == ("generating", True)
    assert working["message_count"] == 0

    said = [{"role": "user", "content": "Make it blue"}, {"role": "assistant", "content": "It is blue."}]
    done = complete(server, ada, started.body, messages=said)
    assert done.status == 200
    assert (done.body["status"], done.body["response"], done.body["tokens_used"]) == (
        "completed",
        "Done",
        321,
    )
    assert (done.body["operation"], done.body["amount_settled"]) == ("ai_image_generation", 5)
    assert done.body["user"] == {"id": str(ada.user_id), "email": None, "name": "Ada Lovelace"}
    assert done.body["duration_ms"] >= 0
    assert moment(done.body["completed_at"]) >= moment(done.body["created_at"])
    assert standing(app_db, ada) == (95, 0, 1, 1)
    after = seen(ada, project)
    assert (after["status"], after["update_in_progress"], after["message_count"]) == ("ready", False, 2)
    heard = send("GET", f"/v1/projects/{project}/messages", ada.token).body["items"]
    assert [item["content"] for item in heard] == ["It is blue.", "Make it blue"]
    assert events(app_db) == ["generation.completed"]
    assert send("GET", f"/v1/generations/{started.body['id']}", ada.token).body == done.body
    assert_books_balance(app_db, ada.organization_id)


def test_a_failure_costs_nothing_and_is_recorded(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project).body
    for _ in range(2):
        failed = tell(server, ada, started, "fail", error_message="the model is down")
        assert failed.status == 200
        assert (failed.body["status"], failed.body["error_message"]) == ("failed", "the model is down")
        assert failed.body["amount_settled"] is None
    assert standing(app_db, ada) == (100, 0, 0, 0)
    assert seen(ada, project)["status"] == "error"
    assert events(app_db) == ["generation.failed"]
    assert complete(server, ada, started).body["code"] == "invalid_state"
    assert start(ada, project).status == 201
    assert_books_balance(app_db, ada.organization_id)


def test_a_repeated_completion_answers_the_same_and_does_nothing(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project).body
    said = [{"role": "assistant", "content": "It is blue."}]
    first, again = (complete(server, ada, started, messages=said) for _ in range(2))
    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body
    assert seen(ada, project)["message_count"] == 1
    assert standing(app_db, ada) == (95, 0, 1, 1)
    assert tell(server, ada, started, "fail", error_message="x").status == 409
    assert tell(server, ada, started, "heartbeat").status == 409


def test_no_lock_token_is_stored_or_shown_again(app_db: Database, ada: Customer, project: str) -> None:
    path = f"/v1/projects/{project}/generations"
    first, again = (send("POST", path, ada.token, key="k", body=ASKED) for _ in range(2))
    assert (first.status, again.status) == (201, 201)
    secret = first.body.pop("lock_token")
    assert first.body == again.body
    [stored] = rows(app_db, "SELECT row_to_json(g)::text AS row FROM projects.generations AS g")
    assert secret not in stored["row"]
    listed = send("GET", path, ada.token)
    assert [item["id"] for item in listed.body["items"]] == [first.body["id"]]
    assert "lock_token" not in listed.body["items"][0]


def test_generations_are_listed_newest_first_in_parts(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    ids = []
    for _ in range(3):
        started = start(ada, project, operation="ai_text_chat").body
        complete(server, ada, started)
        ids.append(started["id"])
    path = f"/v1/projects/{project}/generations"
    first = send("GET", path, ada.token, query={"limit": "2"}).body
    rest = send("GET", path, ada.token, query={"cursor": first["next_cursor"]}).body
    assert [item["id"] for item in first["items"] + rest["items"]] == ids[::-1]


# ---- one at a time ----


def test_a_second_start_is_refused_and_told_when_to_come_again(
    app_db: Database, ada: Customer, project: str
) -> None:
    start(ada, project)
    rows(app_db, "UPDATE projects.generations SET lock_expires_at = clock_timestamp() + interval '1 day'")
    refused = start(ada, project)
    assert (refused.status, refused.body["code"]) == (409, "generation_in_progress")
    assert 80_000 < int(refused.headers["retry-after"]) <= 86_400
    assert standing(app_db, ada) == (95, 5, 1, 1)
    other = send("POST", "/v1/projects", ada.token, body={"title": "Other"}).body["id"]
    assert start(ada, other).status == 201


def test_of_many_starts_at_once_one_begins(database: Database) -> None:
    organization_id, caller, project_id = seeded(database, 100)

    def race(_: int) -> str:
        try:
            with counters.transaction(database, organization_id) as tx:
                leases.start(tx, found(organization_id, project_id), caller, WORK)
        except Conflict as conflict:
            return conflict.code
        return "started"

    outcomes = counters.at_once(8, race)
    assert sorted(outcomes) == ["generation_in_progress"] * 7 + ["started"]
    assert counters.used(database, organization_id, DAY) == 1
    [account] = rows(database, "SELECT available, held FROM credits.accounts")
    assert account == {"available": 99, "held": 1}


WORK = leases.Work(agent_type="backend", prompt="x", operation="ai_text_chat", quantity=1)


def found(organization_id: UUID, project_id: UUID) -> access.Access:
    return access.Access(project_id, organization_id, "member")


def seeded(database: Database, pack: int) -> tuple[UUID, auth.Caller, UUID]:
    organization_id = new_account(database, pack)
    [project] = rows(
        database,
        "INSERT INTO projects.projects (organization_id, kind, title) VALUES (%s, 'web', 'x') RETURNING id",
        organization_id,
    )
    rows(
        database,
        "INSERT INTO projects.settings (organization_id, project_id) VALUES (%s, %s)",
        organization_id,
        project["id"],
    )
    caller = auth.Caller("service_key", organization_id, None, uuid4(), None, frozenset(), False)
    return organization_id, caller, project["id"]


def test_what_is_refused_takes_nothing(app_db: Database, ada: Customer, project: str) -> None:
    short = start(ada, project, quantity=21)
    assert (short.status, short.body["code"]) == (402, "insufficient_credits")
    assert start(ada, project, operation="nothing").status == 422
    assert start(ada, str(uuid4())).status == 404
    assert standing(app_db, ada) == (100, 0, 0, 0)
    assert seen(ada, project)["update_in_progress"] is False


def test_the_days_messages_are_counted_and_refused_beyond(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    for _ in range(10):
        complete(server, ada, start(ada, project, operation="ai_text_chat").body)
    refused = start(ada, project, operation="ai_text_chat")
    assert (refused.status, refused.body["code"]) == (429, "quota_exhausted")
    assert int(refused.headers["retry-after"]) > 0
    assert standing(app_db, ada) == (90, 0, 10, 10)


@pytest.mark.parametrize(
    "body",
    [
        {},
        ASKED | {"agent_type": "cook"},
        ASKED | {"prompt": " "},
        ASKED | {"quantity": 0},
        ASKED | {"quantity": -1},
        ASKED | {"user_id": "x"},
    ],
)
def test_what_is_no_generation_is_refused(
    app_db: Database, ada: Customer, project: str, body: dict[str, Any]
) -> None:
    assert send("POST", f"/v1/projects/{project}/generations", ada.token, body=body).status == 422


# ---- who may end it ----


def test_customers_do_not_end_what_they_pay_for(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project).body
    own_key = mint(app_db, ada.organization_id, ["read", "projects:write", "credits:spend"])
    bodies: dict[str, dict[str, Any]] = {
        "complete": {"response": "", "tokens_used": 0},
        "fail": {"error_message": "x"},
        "heartbeat": {},
    }
    for verb, body in bodies.items():
        path = f"/v1/generations/{started['id']}/{verb}"
        for credential in (ada.token, own_key):
            sent = body | {"lock_token": started["lock_token"]}
            assert send("POST", path, credential, body=sent).status == 403
        wrong = tell(server, ada, started | {"lock_token": "0" * 43}, verb, **body)
        assert (wrong.status, wrong.body["code"]) == (409, "invalid_state")
        bob = sign_up("user_bob")
        assert tell(server, bob, started, verb, **body).status == 404
        assert tell(server, ada, started | {"id": str(uuid4())}, verb, **body).status == 404
    assert standing(app_db, ada) == (95, 5, 1, 1)


def test_a_shared_projects_generation_is_its_organisations(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    bob = sign_up("user_bob")
    path = f"/v1/projects/{project}/shares"
    for role, status in (("viewer", 403), ("editor", 201)):
        invited = send("POST", path, ada.token, body={"email": f"{role}@example.com", "role": role})
        send("POST", "/v1/invitations/accept", bob.token, body={"token": invited.body["token"]})
        started = start(bob, project)
        assert started.status == status
    assert standing(app_db, ada) == (95, 5, 1, 1)
    assert standing(app_db, bob) == (100, 0, 0, 0)
    assert complete(server, ada, started.body).status == 200
    mine = send("GET", f"/v1/generations/{started.body['id']}", bob.token)
    assert (mine.status, mine.body["status"]) == (200, "completed")
    eve = token("user_eve")
    assert send("GET", f"/v1/generations/{started.body['id']}", eve).status == 404


# ---- time ----


def test_a_heartbeat_prolongs_the_lease_and_notes_where_to_resume(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project).body
    rows(app_db, "UPDATE projects.generations SET lock_expires_at = now() + interval '60 seconds'")
    beat = tell(server, ada, started, "heartbeat", last_entry_id="17-0")
    assert beat.status == 200
    assert moment(beat.body["lock_expires_at"]) >= moment(started["lock_expires_at"])
    assert seen(ada, project)["last_entry_id"] == "17-0"
    held = rows(
        app_db, "SELECT h.expires_at - g.created_at AS lasts FROM credits.holds h, projects.generations g"
    )
    assert (
        held[0]["lasts"].total_seconds() > leases.LONGEST_SECONDS
    )  # held however long heartbeats prolong it
    rows(app_db, "UPDATE projects.generations SET created_at = now() - interval '119 minutes'")
    last = tell(server, ada, started, "heartbeat")
    assert moment(last.body["lock_expires_at"]) < moment(beat.body["lock_expires_at"])


def test_a_lease_that_is_over_is_lost(app_db: Database, ada: Customer, server: str, project: str) -> None:
    started = start(ada, project).body
    lapse(app_db)
    for answer in (complete(server, ada, started), tell(server, ada, started, "heartbeat")):
        assert (answer.status, answer.body["code"]) == (409, "invalid_state")
    assert seen(ada, project)["update_in_progress"] is False
    assert standing(app_db, ada) == (95, 5, 1, 1)


def test_a_start_takes_over_a_lease_that_is_over(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    stale = start(ada, project).body
    lapse(app_db)
    fresh = start(ada, project)
    assert fresh.status == 201
    assert standing(app_db, ada) == (95, 5, 1, 1)
    assert complete(server, ada, stale).body["code"] == "invalid_state"
    assert complete(server, ada, fresh.body).status == 200
    assert events(app_db) == ["generation.failed", "generation.completed"]
    assert_books_balance(app_db, ada.organization_id)


def test_the_sweeper_gives_up_what_is_over_and_nothing_else(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    stale = start(ada, project).body
    lapse(app_db)
    other = send("POST", "/v1/projects", ada.token, body={"title": "Other"}).body["id"]
    live = start(ada, other).body
    held = {"operation": "ai_text_chat", "expires_in": 60}
    bob = sign_up("user_bob")
    send("POST", "/v1/credits/holds", bob.token, key="h", body=held)
    rows(app_db, "UPDATE credits.holds SET expires_at = now() WHERE operation = 'ai_text_chat'")
    rows(
        app_db,
        "UPDATE credits.accounts SET next_due_at = now() WHERE organization_id = %s",
        bob.organization_id,
    )
    assert not db.run(  # as after a heartbeat that the sweeper's list knew nothing of
        lambda tx: leases.give_up(tx, UUID(live["id"])), organization_id=ada.organization_id
    )
    answer = {"ok": True, "organizations": 0, "polled": 0, "unheard": 0}
    assert sweep(app_db) == answer | {"generations": 1, "accounts": 1}
    assert sweep(app_db) == answer | {"generations": 0, "accounts": 0}
    assert standing(app_db, ada) == (95, 5, 1, 1)
    assert standing(app_db, bob) == (100, 0, 0, 0)
    given_up = send("GET", f"/v1/generations/{stale['id']}", ada.token).body
    assert (given_up["status"], given_up["error_message"]) == ("failed", leases.LAPSED)
    assert complete(server, ada, live).status == 200
    assert_books_balance(app_db, ada.organization_id)


def sweep(database: Database) -> Any:
    with database.as_role("backplane_system"):
        return invoke(sweeper.handler, {})


def test_counts_go_back_to_the_day_they_were_taken_from(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project).body
    earlier = "interval '1 day'"
    rows(
        app_db,
        f"UPDATE billing.usage_counters SET period_start = period_start - {earlier},"
        f" period = period - 1, period_end = period_end - {earlier} WHERE key = '{DAY}'",
    )
    rows(app_db, f"UPDATE projects.generations SET counted_at = counted_at - {earlier}")
    other = send("POST", "/v1/projects", ada.token, body={"title": "Other"}).body["id"]
    start(ada, other)
    tell(server, ada, started, "fail", error_message="x")
    counted = counters.counters(app_db, ada.organization_id, DAY)
    assert [row["used"] for row in counted] == [0, 1]


def test_a_deleted_projects_generation_ends_with_it(
    app_db: Database, ada: Customer, server: str, project: str
) -> None:
    started = start(ada, project).body
    assert send("DELETE", f"/v1/projects/{project}", ada.token).status == 204
    assert standing(app_db, ada) == (100, 0, 0, 0)
    assert complete(server, ada, started).body["code"] == "invalid_state"
    assert start(ada, project).status == 404
    restored = send("POST", f"/v1/projects/{project}/restore", ada.token).body
    assert restored["status"] == "error"
    assert_books_balance(app_db, ada.organization_id)


@pytest.mark.parametrize("verb", ["settle", "release"])
def test_a_hold_that_a_server_closed_by_itself_does_not_block_the_project(
    app_db: Database, ada: Customer, project: str, verb: str
) -> None:
    server = mint(app_db, None, ["generations:finish", "credits:settle"])
    started = start(ada, project).body
    body = {"amount": 2} if verb == "settle" else {}
    path = f"/v1/credits/holds/{started['hold_id']}/{verb}"
    closed = send("POST", path, server, key="k", body=body, organization=ada.organization_id)
    assert closed.status == 200
    if verb == "settle":
        done = complete(server, ada, started)
        assert (done.status, done.body["amount_settled"]) == (200, 2)
    else:
        assert complete(server, ada, started).status == 409
        lapse(app_db)
        assert sweep(app_db)["generations"] == 1
    assert seen(ada, project)["update_in_progress"] is False
    assert_books_balance(app_db, ada.organization_id)


# ---- whatever dies ----


def snapshot(database: Database) -> Any:
    tables = ["projects.generations", "projects.messages", "projects.projects", "credits.accounts"]
    tables += ["credits.entries", "credits.holds", "platform.outbox"]
    stored = {table: rows(database, f"SELECT * FROM {table} AS t ORDER BY t::text") for table in tables}
    used = rows(database, "SELECT key, used FROM billing.usage_counters WHERE used > 0 ORDER BY key")
    return stored, used


def test_a_session_killed_before_any_statement_leaves_nothing_half_done(database: Database) -> None:
    organization_id, caller, project_id = seeded(database, 100)
    said = [messages.NewMessage(role="assistant", content="It is blue.")]
    result = leases.Result(response="Done", tokens_used=3, messages=said)
    tokens: list[leases.Started] = []

    def started(tx: db.Tx) -> None:
        tokens.append(leases.start(tx, found(organization_id, project_id), caller, WORK))

    def completed(tx: db.Tx) -> None:
        last = tokens[-1]
        leases.complete(tx, caller, last.id, last.lock_token or "", result)

    def failed(tx: db.Tx) -> None:
        last = tokens[-1]
        leases.fail(tx, caller, last.id, last.lock_token or "", "it broke")

    def given_up(tx: db.Tx) -> None:
        assert leases.give_up(tx, tokens[-1].id)

    for ending in (completed, failed, given_up):
        before = snapshot(database)
        count = steps_unchanged(database, organization_id, started, before)
        assert count > 5
        if ending is given_up:
            lapse(database)
        assert steps_unchanged(database, organization_id, ending, snapshot(database)) > 5
        assert_books_balance(database, organization_id)
    statuses = rows(database, "SELECT status FROM projects.generations ORDER BY id")
    assert [row["status"] for row in statuses] == ["completed", "failed", "failed"]
    [account] = rows(database, "SELECT available, held FROM credits.accounts")
    assert account == {"available": 99, "held": 0}
    assert counters.used(database, organization_id, DAY) == 1
    assert len(rows(database, "SELECT 1 FROM projects.messages")) == 1


def steps_unchanged(database: Database, organization_id: UUID, work: Any, before: Any) -> int:
    """As kills.until_through; nothing stands of the runs that were killed."""

    def checked(tx: db.Tx) -> None:
        assert snapshot(database) == before
        work(tx)

    return kills.until_through(database, organization_id, checked)


def test_killed_servers_and_racing_callers_leave_every_generation_whole(database: Database) -> None:
    """Starts and ends at once on two projects, while sessions are killed."""
    organization_id, caller, one = seeded(database, 500)
    insert = (
        "INSERT INTO projects.projects (organization_id, kind, title) VALUES (%s, 'web', 'y') RETURNING id"
    )
    racers = Racers(database, caller, (one, rows(database, insert, organization_id)[0]["id"]))
    rows(
        database,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_x', id, 'active', '0.1' FROM billing.plans WHERE key = 'super'
        """,
        organization_id,
    )
    over = threading.Event()
    with ThreadPoolExecutor(5) as pool:
        killing = pool.submit(kills.amid, database, "backplane_app", racers.tried, over, random.Random(7))
        try:
            list(pool.map(racers.serve, range(4)))
        finally:
            over.set()
        assert killing.result(timeout=30) > 0
    racers.abandon_all()
    assert_each_is_whole(database, organization_id)


@dataclass(frozen=True)
class Racers:
    """Callers who start and end generations, each attempt on a session of its own."""

    database: Database
    caller: auth.Caller
    projects: tuple[UUID, UUID]
    tried: list[UUID] = field(default_factory=list)

    def serve(self, number: int) -> None:
        """Until five generations of its own were completed, as far as it was told."""
        luck = random.Random(number)
        done = 0
        for _ in range(500):
            if done == 5:
                return
            done += self._once(luck, luck.choice(self.projects))
        raise AssertionError("some must get through")

    def abandon_all(self) -> None:
        for project_id in self.projects:
            with counters.transaction(self.database, self.caller.organization_id) as tx:
                leases.abandon(tx, project_id, "over", actor="system")

    def _once(self, luck: random.Random, project_id: UUID) -> bool:
        self.tried.append(project_id)
        of_it = found(self.caller.organization_id, project_id)
        begun = self._attempt(lambda tx: leases.start(tx, of_it, self.caller, WORK))
        if begun is None:
            if luck.random() < 0.2:
                self._attempt(lambda tx: leases.abandon(tx, project_id, "given up", actor="system"))
            return False
        if luck.random() < 0.3:
            self._attempt(lambda tx: leases.fail(tx, self.caller, begun.id, begun.lock_token, "broke"))
            return False
        said = [messages.NewMessage(role="user", content="x")]
        result = leases.Result(response="x", tokens_used=1, messages=said)
        ended = self._attempt(lambda tx: leases.complete(tx, self.caller, begun.id, begun.lock_token, result))
        return ended is not None

    def _attempt(self, work: Any) -> Any:
        try:
            with counters.transaction(self.database, self.caller.organization_id) as tx:
                return work(tx)
        except (psycopg.OperationalError, Conflict):
            return None


def assert_each_is_whole(database: Database, organization_id: UUID) -> None:
    """Each completed one was charged, counted and said once, each other one not at all."""
    ended = rows(database, "SELECT status, hold_id FROM projects.generations")
    completed = [row for row in ended if row["status"] == "completed"]
    assert len(completed) >= 20
    assert {row["status"] for row in ended} <= {"completed", "failed"}
    assert len(rows(database, "SELECT 1 FROM projects.messages")) == len(completed)
    settled = rows(database, "SELECT id FROM credits.holds WHERE state = 'settled'")
    assert {row["id"] for row in settled} == {row["hold_id"] for row in completed}
    [account] = rows(database, "SELECT available, held FROM credits.accounts")
    assert account == {"available": 500 - len(completed), "held": 0}
    assert counters.used(database, organization_id, DAY) == len(completed)
    told = rows(database, "SELECT count(*) AS n FROM platform.outbox WHERE type LIKE 'generation.%%'")
    assert told == [{"n": len(ended)}]
    assert_books_balance(database, organization_id)


def test_what_is_read_of_a_generation_names_no_secret() -> None:
    assert not {"lock_token", "lock_token_hash"} & set(generations.Generation.model_fields)
