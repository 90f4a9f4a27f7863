"""Editors and a model at work on one project over HTTP, while the processes of the functions are killed.

Each repeats what was not answered, under the same key. In the end the versions must be those that were
acknowledged and no other, in their order, each with what it must hold.

    BACKPLANE_RACE_SECONDS=60 python -m pytest --log-cli-level=INFO tests/e2e/test_files_at_random.py
"""

import hashlib
import itertools
import json
import logging
import os
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from local import aws
from psycopg.rows import DictRow, dict_row
from tests.e2e import killing
from tests.e2e.local_cloud import Answer, Cloud
from tests.e2e.test_slice_over_http import get, sign_up

SECONDS = float(os.environ.get("BACKPLANE_RACE_SECONDS", "6"))
ENOUGH = 30  # acknowledged saves at least, however slow it is
GENERATIONS = 8  # the free plan has ten a day
SEED = 6
HANDLERS = {"files.handler", "generations.handler"}
SHARED = "shared.txt"  # all write to it, each a line

Contents = dict[str, str]

logger = logging.getLogger("backplane.race")


@dataclass(frozen=True)
class Acknowledged:
    """What a version does to the one before."""

    operation: str  # upsert, delete or restore
    path: str = ""
    content: str = ""
    restored: int = 0
    base: int | None = None

    def on(self, before: Contents, versions: dict[int, Contents]) -> Contents:
        match self.operation:
            case "upsert":
                return before | {self.path: self.content}
            case "delete":
                return {path: text for path, text in before.items() if path != self.path}
            case _:
                return versions[self.restored]


@dataclass
class Race:
    stack: Cloud
    token: str
    organization_id: str
    project_id: str
    saved: dict[int, Acknowledged] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    conflicts: int = 0
    repeated: int = 0
    killed: int = 0
    generated: int = 0
    _keys: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def project(self) -> str:
        return f"/v1/projects/{self.project_id}"

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[DictRow]]:
        url = self.stack.written["admin_database_url"]
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
            yield connection

    def get(self, path: str) -> Any:
        answer, _ = killing.answered(lambda: get(self.stack, path, self.token))
        assert answer.status == 200, answer.body
        return answer.json()

    def post(self, path: str, body: Any, *, credential: str | None = None) -> Answer:
        """Answered once, however often it must be sent."""
        with self.lock:
            key = f"key-{next(self._keys)}"
        headers = {"content-type": "application/json", "idempotency-key": key}
        headers |= {"authorization": f"Bearer {credential or self.token}"}
        if credential is not None:
            headers["x-organization-id"] = self.organization_id
        data = json.dumps(body).encode()
        answer, repeated = killing.answered(
            lambda: self.stack.request("POST", path, data, headers),
            lambda heard: heard.status == 409 and heard.json()["code"] == "idempotency_in_progress",
        )
        with self.lock:
            self.repeated += repeated
        return answer

    def acknowledge(self, version: int, what: Acknowledged) -> None:
        with self.lock:
            assert version not in self.saved, f"version {version} is two saves'"
            self.saved[version] = what

    # ---- what goes on ----

    def edit(self, name: str) -> None:
        luck = random.Random(f"{SEED}{name}")
        for number in itertools.count():
            if self.over.is_set():
                return
            kind = luck.choices(["own", "shared", "delete", "restore"], [4, 4, 1, 1])[0]
            if kind == "own":
                self.save(Acknowledged("upsert", f"{name}.txt", f"{name} {number}"))
            elif kind == "shared":
                self.append(f"{name} {number}\n")
            elif kind == "delete":
                self.save(Acknowledged("delete", f"{name}.txt"))
            elif known := list(self.saved):
                self.restore(luck.choice(known))

    def append(self, line: str) -> None:
        """On top of what was read, or not at all."""
        base = self.get(f"{self.project}/files")["version"]
        path = f"{self.project}/files/content?path={SHARED}" + (f"&version={base}" if base else "")
        before, _ = killing.answered(lambda: get(self.stack, path, self.token))
        text = before.json()["content"] if before.status == 200 else ""
        self.save(Acknowledged("upsert", SHARED, text + line, base=base))

    def save(self, what: Acknowledged) -> None:
        file = {"path": what.path} | ({} if what.operation == "delete" else {"content": what.content})
        body = {"operation": what.operation, "files": [file], "base_version": what.base}
        answer = self.post(f"{self.project}/files", body)
        if answer.status == 201:
            self.acknowledge(answer.json()["version"], what)
        elif answer.status == 409:
            assert (what.base is not None, answer.json()["code"]) == (True, "version_conflict")
            self.conflicts += 1
        else:
            assert (what.operation, answer.status) == ("delete", 404), answer.body

    def restore(self, version: int) -> None:
        answer = self.post(f"{self.project}/versions/{version}/restore", {})
        assert answer.status == 201, answer.body
        if any(answer.json()["counts"][kind] for kind in ("created", "updated", "deleted")):
            self.acknowledge(answer.json()["version"], Acknowledged("restore", restored=version))

    def generate(self) -> None:
        """A model that brings a file, until it has brought enough of them or all is over."""
        while self.generated < GENERATIONS and not self.over.is_set():
            asked = {"agent_type": "frontend", "prompt": "x", "operation": "ai_text_chat"}
            started = self.post(f"{self.project}/generations", asked)
            if started.status == 201 and started.json().get("lock_token"):
                self._complete(started.json())
            else:  # the answer with the token was lost, or so is that of whoever is in its way
                assert started.status in {201, 409}, started.body
                self.lapse()

    def _complete(self, started: Any) -> None:
        text = f"generation {started['id']}"
        body = {
            "lock_token": started["lock_token"],
            "response": "Done",
            "tokens_used": 1,
            "files": [{"path": "generated.txt", "content": text}],
            "messages": [{"role": "assistant", "content": text}],
        }
        path = f"/v1/generations/{started['id']}/complete"
        answer = self.post(path, body, credential=self.stack.written["service_key"])
        assert answer.status == 200, answer.body
        what = Acknowledged("upsert", "generated.txt", text)
        self.acknowledge(answer.json()["files_version"], what)
        self.generated += 1

    def lapse(self) -> None:
        """The time of a generation's lock is over."""
        with self.database() as connection:
            connection.execute(
                """
                UPDATE projects.generations
                SET lock_expires_at = clock_timestamp()
                WHERE project_id = %s AND status = 'in_progress'
                """,
                [self.project_id],
            )

    def kill(self) -> None:
        """Kills one process and then another, each after a few more saves."""
        luck = random.Random(SEED)
        while not self.over.is_set():
            enough = len(self.saved) + luck.randint(2, 6)
            while len(self.saved) < enough and not self.over.wait(0.01):
                pass
            if not self.over.wait(luck.uniform(0, 0.05)):
                killing.kill(self.stack, HANDLERS, luck)
                self.killed += 1
                self._forget_claims()

    def _forget_claims(self) -> None:
        """What the killed process had claimed is free now, and not when its request would have ended. Another
        one that finds its key taken then has done nothing.
        """
        with self.database() as connection:
            connection.execute(
                """
                UPDATE platform.idempotency_keys
                SET claimed_until = clock_timestamp()
                WHERE organization_id = %s AND status_code IS NULL
                """,
                [self.organization_id],
            )

    def run(self) -> None:
        with ThreadPoolExecutor(5) as pool:
            work = [pool.submit(self.edit, name) for name in ("ada", "bob", "eve")]
            work += [pool.submit(self.generate), pool.submit(self.kill)]
            ends = time.monotonic() + SECONDS
            while any(not each.done() for each in work[:3]) and (
                time.monotonic() < ends or len(self.saved) < ENOUGH
            ):
                self.over.wait(0.05)
            self.over.set()
            for each in work:
                each.result()

    # ---- what has become of it ----

    def assert_versions_are_what_was_acknowledged(self) -> None:
        assert sorted(self.saved) == list(range(1, len(self.saved) + 1)), "a version is nobody's, or missing"
        versions: dict[int, Contents] = {0: {}}
        for number in sorted(self.saved):
            what = self.saved[number]
            assert what.base in {None, number - 1}
            versions[number] = what.on(versions[number - 1], versions)
        assert self.get(f"{self.project}/files")["version"] == len(self.saved)
        for number, expected in versions.items():
            if number:
                found = self.get(f"{self.project}/files?version={number}")
                with urllib.request.urlopen(found["download_url"], timeout=60) as response:  # noqa: S310  moto's
                    body = response.read()
                assert hashlib.sha256(body).hexdigest() == found["sha256"]
                assert json.loads(body)["files"] == expected, f"version {number}"

    def assert_nothing_else_is_left(self) -> None:
        """After the sweep: no object without its version, no byte miscounted, no generation half done."""
        self.lapse()
        with self.database() as connection:
            connection.execute(
                "UPDATE storage.objects SET expires_at = clock_timestamp() WHERE project_id = %s",
                [self.project_id],
            )
        for name in ("sweeper", "storage_upkeep"):
            function = self.stack.written["functions"][name]
            answer = aws.clients(self.stack.written["lambda_url"])("lambda").invoke(FunctionName=function)
            assert json.loads(answer["Payload"].read())["ok"]
        with self.database() as connection:
            stored = connection.execute(
                """
                SELECT s3_key, bytes, state
                FROM storage.objects
                WHERE project_id = %s AND purged_at IS NULL
                """,
                [self.project_id],
            ).fetchall()
        assert {row["state"] for row in stored} == {"stored"}
        listed = self._listed()
        assert listed == {row["s3_key"]: row["bytes"] for row in stored}
        assert len(listed) == len(self.saved)
        assert self.get("/v1/storage")["used_bytes"] == sum(listed.values())

    def _listed(self) -> dict[str, int]:
        """The project's objects in the bucket."""
        s3 = aws.clients(self.stack.written["aws_endpoint_url"])("s3")
        prefix = f"projects/{self.project_id}/"
        return {
            each["Key"]: each["Size"]
            for bucket in s3.list_buckets()["Buckets"]
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"], Prefix=prefix)
            for each in page.get("Contents", ())
        }

    def assert_generations_are_whole(self) -> None:
        seen = self.get(self.project)
        assert (seen["message_count"], seen["update_in_progress"]) == (self.generated, False)
        balance = self.get("/v1/credits")
        assert (balance["available"], balance["held"]) == (100 - self.generated, 0)
        assert self.get("/v1/credits/audit")["ok"]


def test_whatever_is_killed_every_save_is_a_version_and_nothing_else_is(stack: Cloud) -> None:
    _, token = sign_up(stack)
    organization_id = get(stack, "/v1/me", token).json()["organization"]["id"]
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    project = stack.request("POST", "/v1/projects", b'{"title": "Raced"}', headers).json()["id"]
    race = Race(stack, token, organization_id, project)
    race.run()
    logger.info(
        "%s versions, %s conflicts, %s generations, %s processes killed, %s requests repeated",
        len(race.saved),
        race.conflicts,
        race.generated,
        race.killed,
        race.repeated,
    )
    assert race.killed
    race.assert_versions_are_what_was_acknowledged()
    race.assert_nothing_else_is_left()
    race.assert_generations_are_whole()
