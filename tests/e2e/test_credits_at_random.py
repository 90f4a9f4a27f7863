"""The credits API driven at random, at random concurrency, while the function's processes are killed.

The driver knows nothing of the ledger but its answers. It repeats what was not answered under the same
key, and in the end every answer must be in the books, and nothing else.
"""

import itertools
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from tests.e2e import killing
from tests.e2e.local_cloud import Answer, Cloud
from tests.e2e.test_slice_over_http import get, sign_up
from tests.ledgers import Kept, assert_books_balance, entries, rows

SEED = 4
OPERATIONS = 240
KILLS = 6
CONCURRENCY = (1, 4, 12)
REFUSALS = {402, 409}  # short of credits; closed another way, or refunded already


@dataclass(frozen=True)
class Mutation:
    kind: str
    path: str
    credential: str
    body: dict[str, Any]
    key: str


@dataclass
class Driver:
    """Whoever calls it at once, each call does one random thing and checks its answer."""

    stack: Cloud
    organization_id: UUID
    customer: str  # session tokens
    admin: str
    luck: random.Random = field(default_factory=lambda: random.Random(SEED))
    lock: threading.Lock = field(default_factory=threading.Lock)
    acknowledged: list[tuple[Mutation, Any]] = field(default_factory=list)
    killed: int = 0
    repeated: int = 0
    _keys: "itertools.count[int]" = field(default_factory=itertools.count)

    def step(self, number: int) -> None:
        if number % (OPERATIONS // KILLS) == OPERATIONS // KILLS // 2:
            self.kill()
        with self.lock:
            work = self._choose()
        work()

    def _choose(self) -> Callable[[], None]:
        kind = self.luck.choice(
            ["debit"] * 4
            + ["hold"] * 3
            + ["settle"] * 3
            + ["release", "refund", "refund", "adjust"]
            + ["look", "again"]
        )
        of = [body for mutation, body in self.acknowledged if mutation.kind == _SUBJECT.get(kind)]
        if kind == "again" and self.acknowledged:
            return partial(self.again, *self.luck.choice(self.acknowledged))
        if kind in {"look", "again"} or (kind in _SUBJECT and not of):
            return self.look
        mutation = self._mutation(kind, self.luck.choice(of)["id"] if of else "")
        return partial(self.mutate, mutation)

    def _mutation(self, kind: str, subject: str) -> Mutation:
        roll = self.luck.randint
        saas = self.stack.written["service_key"]
        credits_, admin = "/v1/credits", f"/v1/admin/credits/{self.organization_id}/adjustments"
        operation = self.luck.choice(["ai_text_chat", "ai_image_generation"])
        requests: dict[str, tuple[str, str, dict[str, Any]]] = {
            "debit": (f"{credits_}/debits", self.customer, {"operation": operation, "quantity": roll(1, 4)}),
            "hold": (
                f"{credits_}/holds",
                self.customer,
                {"operation": operation, "quantity": roll(1, 4), "expires_in": self.luck.choice([1, 900])},
            ),
            "settle": (
                f"{credits_}/holds/{subject}/settle",
                saas,
                self.luck.choice([{}, {"amount": roll(0, 25)}, {"quantity": roll(0, 5)}]),
            ),
            "release": (f"{credits_}/holds/{subject}/release", saas, {}),
            "refund": (
                f"{credits_}/debits/{subject}/refunds",
                saas,
                {"reason": "it failed"} | self.luck.choice([{}, {"amount": roll(1, 5)}]),
            ),
            "adjust": (
                admin,
                self.admin,
                {
                    "amount": self.luck.choice([roll(20, 60), -roll(1, 30)]),
                    "reason": "by hand",
                    "allow_debt": True,
                },
            ),
        }
        path, credential, body = requests[kind]
        return Mutation(kind, path, credential, body, f"{kind}-{next(self._keys)}")

    def mutate(self, mutation: Mutation) -> None:
        answer = self.insist(mutation)
        if answer.status in REFUSALS:
            return
        assert answer.status in {200, 201}, answer.body
        with self.lock:
            self.acknowledged.append((mutation, answer.json()))

    def again(self, mutation: Mutation, body: Any) -> None:
        answer = self.insist(mutation)
        assert (answer.json(), answer.headers.get("idempotent-replayed")) == (body, "true")

    def look(self) -> None:
        balance = self.answered(lambda: get(self.stack, "/v1/credits", self.customer)).json()
        assert balance["available"] == sum(grant["remaining"] for grant in balance["grants"])
        assert min(balance["available"], balance["held"], balance["debt"]) >= 0
        assert self.answered(lambda: get(self.stack, "/v1/credits/audit", self.customer)).json()["ok"]

    def insist(self, mutation: Mutation) -> Answer:
        headers = {
            "authorization": f"Bearer {mutation.credential}",
            "idempotency-key": mutation.key,
            "content-type": "application/json",
        }
        if mutation.credential == self.stack.written["service_key"]:
            headers["x-organization-id"] = str(self.organization_id)
        body = json.dumps(mutation.body).encode()
        return self.answered(lambda: self.stack.request("POST", mutation.path, body, headers))

    def answered(self, ask: Callable[[], Answer]) -> Answer:
        answer, repeated = killing.answered(ask)
        self.repeated += repeated
        return answer

    def kill(self) -> None:
        killing.kill(self.stack, {"credits.handler"}, self.luck)
        self.killed += 1


# What an operation is about: something that an earlier one has answered.
_SUBJECT = {"settle": "hold", "release": "hold", "refund": "debit"}


def test_whatever_is_killed_every_answer_is_in_the_books_and_nothing_else(stack: Cloud) -> None:
    user, token = sign_up(stack)
    organization_id = UUID(get(stack, "/v1/me", token).json()["organization"]["id"])
    admin = stack.token(f"{user}admin", "--platform", "admin")
    driver = Driver(stack, organization_id, token, admin)
    driver.look()
    numbers = iter(range(OPERATIONS))
    for clients in itertools.cycle(CONCURRENCY):
        part = list(itertools.islice(numbers, 3 * clients + 8))
        if not part:
            break
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(driver.step, part))

    assert driver.killed == KILLS
    told: dict[str, dict[str, Any]] = {}
    for mutation, body in driver.acknowledged:
        told.setdefault(mutation.kind, {})[body["id"]] = body
    with psycopg.connect(
        stack.written["admin_database_url"], autocommit=True, row_factory=dict_row
    ) as connection:
        owner = Kept(connection)
        booked = {
            str(entry["id"]): entry["amount"]
            for entry in entries(owner, organization_id)
            if entry["kind"] in {"debit", "settle", "refund", "adjustment"}
        }
        assert booked == (
            {id_: -debit["amount"] for id_, debit in told["debit"].items()}
            | {settled["debit_id"]: -settled["amount_settled"] for settled in told["settle"].values()}
            | {id_: refund["amount"] for id_, refund in told["refund"].items()}
            | {id_: adjustment["amount"] for id_, adjustment in told["adjust"].items()}
        )
        held = rows(owner, "SELECT id, state FROM credits.holds WHERE organization_id = %s", organization_id)
        states = {str(hold["id"]): hold["state"] for hold in held}
        assert states.keys() == told["hold"].keys()
        assert {id_ for id_, state in states.items() if state == "settled"} == told["settle"].keys()
        released = {id_ for id_, hold in told["release"].items() if hold["state"] == "released"}
        assert {id_ for id_, state in states.items() if state == "released"} == released
        account = rows(owner, "SELECT * FROM credits.accounts WHERE organization_id = %s", organization_id)[0]
        assert account["available"] + account["held"] - account["debt"] == 100 + sum(booked.values())
        assert_books_balance(owner, organization_id)
    for mutation, body in driver.acknowledged[::10]:
        driver.again(mutation, body)
