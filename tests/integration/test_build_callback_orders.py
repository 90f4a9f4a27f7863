"""Callbacks in any order, repeated, at once and cut off anywhere: the same end, told and counted once."""

import itertools
import json
import multiprocessing
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import build_webhook
import pytest
from local import aws
from local.aws import CREDENTIALS
from tests.build_callbacks import eas_build, eas_submission, integrate, post
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.deploys import Deployed, announced, deploy, stored
from tests.keys import make_key
from tests.kills import Killed, at_statement, end_the_session
from tests.ledgers import rows

from backplane import config, db, deployments, field_encryption, inbox
from backplane.deployment_reports import TERMINAL
from backplane.senders import SENDERS

Told = dict[str, Any]

OURS = {"finished": "successful", "errored": "failed", "canceled": "aborted"}


@pytest.fixture(scope="module")
def database(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """One for all: each story has an organisation of its own."""
    name = f"callback_orders_{os.getpid()}"
    create_database(server_url, name, template)
    urls = [on(server_url, name, user=role, password=role_passwords[role]) for role in ROLES]
    yield Database(name, on(server_url, name), *urls)
    drop_database(server_url, name)


@pytest.fixture(scope="module", autouse=True)
def field_key(aws_url: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": aws_url}.items():
            patch.setenv(variable, value)
        arn = make_key(aws.clients(aws_url)("kms"))
        patch.setenv("FIELD_KEY_ARN", arn)
        config.settings.cache_clear()
        yield arn
    field_encryption.forget()
    build_webhook._known.clear()


@dataclass
class Story:
    """A deployment of both platforms, all that Expo tells of it, and that its builds are named meanwhile."""

    deployed: Deployed
    integration: UUID
    ends: tuple[str, str]  # Android's and iOS's
    brief: bool = False  # only the ends are told
    android: str = field(default_factory=lambda: str(uuid4()))
    ios: str = field(default_factory=lambda: str(uuid4()))
    submission: str = field(default_factory=lambda: str(uuid4()))

    def told(self) -> list[Told]:
        android, ios = self.ends
        ends = [
            eas_build(self.android, status=android, minutes=10),
            eas_build(self.ios, platform="ios", status=ios, minutes=12),
            eas_submission(self.submission, build=self.android, minutes=20),
        ]
        if self.brief:
            return ends
        return [
            eas_build(self.android, status="in-queue", minutes=1),
            eas_build(self.android, status="in-progress", minutes=3),
            eas_build(self.ios, platform="ios", status="in-progress", minutes=4),
            *ends,
        ]

    def name(self, database: Database) -> None:
        """Whoever began it says what Expo calls its builds, and the worker hears of it."""
        for build, platform in ((self.android, "android"), (self.ios, "ios")):
            rows(
                database,
                """
                INSERT INTO deploys.provider_jobs
                    (organization_id, external_id, deployment_id, kind, platform)
                VALUES (%s, %s, %s, 'build', %s)
                """,
                self.deployed.organization_id,
                build,
                self.deployed.id,
                platform,
            )
        for build in (self.android, self.ios):
            inbox.replay(deployments.subject(self.deployed.organization_id, build), SENDERS)

    def assert_ended(self, database: Database) -> None:
        """As the oracle says: whatever came when, the ends decide."""
        android, ios = (OURS[end] for end in self.ends)
        whole = next((bad for bad in ("failed", "aborted") if bad in {android, ios}), "successful")
        now = stored(database, self.deployed)
        assert now["status"] == whole
        assert (now["android_build_url"] is not None) == (android == "successful")
        assert (now["ios_build_url"] is not None) == (ios == "successful")
        assert (now["app_version"], now["build_number"]) == ("1.0.2", "123")
        jobs = rows(
            database,
            "SELECT external_id, status FROM deploys.provider_jobs WHERE deployment_id = %s",
            self.deployed.id,
        )
        assert {row["external_id"]: row["status"] for row in jobs} == {
            self.android: android,
            self.ios: ios,
            self.submission: "successful",
        }
        changes = [
            each["status"]
            for each in announced(database, "deployment.changed")
            if each["deployment_id"] == str(self.deployed.id)
        ]
        assert [status for status in changes if status in TERMINAL] == [whole]
        left = rows(database, "SELECT kind FROM deploys.artifacts WHERE deployment_id = %s", self.deployed.id)
        offered = {"android": android, "ios": ios}
        assert sorted(row["kind"] for row in left) == [
            kind for kind, end in offered.items() if end == "successful"
        ]
        (counted,) = rows(
            database,
            "SELECT used FROM billing.usage_counters WHERE organization_id = %s AND key = 'app.deployments'",
            self.deployed.organization_id,
        )
        assert counted["used"] == int(whole == "successful")
        seen = rows(
            database,
            "SELECT status FROM platform.webhook_inbox WHERE event_id LIKE %s",
            f"{self.integration}:%",
        )
        assert len(seen) == len(self.told())
        assert {row["status"] for row in seen} <= {"processed", "stale"}


_ends = itertools.cycle(itertools.product(("finished", "errored", "canceled"), ("finished", "errored")))


def story(database: Database, ends: tuple[str, str] | None = None, *, brief: bool = False) -> Story:
    deployed = deploy(database, platform="all")
    integration = integrate(database, "eas", deployed.organization_id)
    return Story(deployed, integration, ends or next(_ends), brief)


# ---- in any order ----


def test_a_story_ends_alike_in_every_order_with_repetitions(system_db: Database) -> None:
    luck = random.Random(7)
    for _ in range(20):
        one = story(system_db)
        order: list[Told | None] = [*one.told(), None]  # None: the builds are named
        order += luck.choices(one.told(), k=3)
        luck.shuffle(order)
        for told in order:
            if told is None:
                one.name(system_db)
                continue
            answer = post("eas", one.integration, told)
            assert answer.status == 200, answer.body
        one.assert_ended(system_db)


# ---- at once ----


def _enter(environment: dict[str, str], barrier: Any) -> None:
    """A worker becomes a function's process, and stands ready with the others."""
    os.environ |= environment
    config.settings.cache_clear()
    db.connection()
    barrier.wait(60)


def _post(work: tuple[str, str]) -> tuple[int, str]:
    integration, body = work
    answer = post("eas", integration, body.encode())
    return answer.status, answer.body.get("status", "")


def test_processes_that_deliver_everything_at_once_apply_each_event_once(system_db: Database) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.senders", "stripe_webhook", "clerk_webhook"])
    environment = {
        name: os.environ[name] for name in (*CREDENTIALS, "AWS_ENDPOINT_URL", "FIELD_KEY_ARN", "DATABASE_URL")
    }
    stories = [story(system_db) for _ in range(4)]
    luck = random.Random(11)
    with ProcessPoolExecutor(4, context, _enter, (environment, context.Barrier(4))) as pool:
        list(pool.map(abs, range(4), timeout=100))
        for one in stories:
            one.name(system_db)
        work = [(str(one.integration), json.dumps(told)) for one in stories for told in one.told()] * 3
        luck.shuffle(work)
        answers = list(pool.map(_post, work, timeout=300))
    assert {status for status, _ in answers} == {200}
    # A submission may come before its build was told, but never before the build was named: nothing waits.
    assert {word for _, word in answers} <= {"processed", "stale", "duplicate"}
    for one in stories:
        one.assert_ended(system_db)


# ---- cut off anywhere ----


def test_a_process_killed_before_any_statement_has_done_nothing_or_all(system_db: Database) -> None:
    """The last callback's delivery dies: the one that ends the deployment, and gives its count back."""

    def strike() -> None:
        end_the_session(system_db)
        raise Killed

    for number in itertools.count(1, 2):  # every second: each is a story of its own
        one = story(system_db, ("finished", "errored"), brief=True)
        one.name(system_db)
        *before, last = sorted(one.told(), key=lambda told: told["status"] == "errored")
        for told in before:
            assert post("eas", one.integration, told).status == 200
        with at_statement(number, strike) as said:
            try:
                whole = post("eas", one.integration, last).status == 200
            except Killed:
                whole = False
        db.reset()
        again = post("eas", one.integration, last)
        assert (again.status, again.body["status"]) == (200, "duplicate" if whole else "processed")
        one.assert_ended(system_db)
        if len(said) < number:
            break
    assert number > 5


def test_an_arrival_killed_before_any_statement_leaves_what_waits(system_db: Database) -> None:
    def strike() -> None:
        end_the_session(system_db)
        raise Killed

    for number in itertools.count(1, 4):  # of very many
        one = story(system_db, ("finished", "finished"), brief=True)
        for told in one.told():
            assert post("eas", one.integration, told).body["status"] == "parked"
        with at_statement(number, strike) as said:
            try:
                one.name(system_db)
            except Killed:
                db.reset()
                for build in (one.android, one.ios):
                    inbox.replay(deployments.subject(one.deployed.organization_id, build), SENDERS)
        one.assert_ended(system_db)
        if len(said) < number:
            break
    assert number > 5
