"""Each minute: what was begun and not ended in time is given up, so that it blocks and costs nobody, what
deleted organisations left is erased, and of deployments that are silent their providers are asked.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import deployment_polls
import psycopg
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import audits, db, erasure, holds, leases, outbox
from backplane.problems import Problem

BATCH = 500  # of each kind; what is more comes the next minute
POLLS = 100  # of deployments, one after another
MARGIN = 5.0  # seconds kept back to finish what was begun
LONGEST_POLL = 25.0  # seconds, from the last question on

logger = Logger()


@logger.inject_lambda_context(clear_state=True)
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  a schedule says nothing
    """Answers {ok, generations, accounts, organizations, polled, unheard}: how many were given up, had holds
    to free, were erased, were asked about and told nothing of.

    `ok` is false where one could not be: the log says why, and the next minute tries again.
    """
    remaining = context.get_remaining_time_in_millis() / 1000
    db.set_deadline(remaining)
    ends = time.monotonic() + remaining - MARGIN
    lapsed = db.run(lambda tx: leases.lapsed(tx, limit=BATCH))
    given_up = _each(lapsed, lambda generation_id: db.run(lambda tx: leases.give_up(tx, generation_id)), ends)
    overdue = db.run(lambda tx: holds.overdue(tx, limit=BATCH))
    booked = _each(overdue, audits.book_due, ends)
    deleted = db.run(lambda tx: erasure.organizations_to_erase(tx, limit=BATCH))
    erased = _each(deleted, _erase, ends)
    polled = deployment_polls.sweep(most=POLLS, ends=ends - LONGEST_POLL)
    outbox.poke()
    done = [len(given_up), len(booked), len(erased)]
    return {
        "ok": done == [len(lapsed), len(overdue), len(deleted)] and None not in polled,
        "generations": sum(given_up),
        "accounts": sum(booked),
        "organizations": sum(erased),
        "polled": len(polled),
        "unheard": polled.count(False),
    }


def _erase(organization_id: UUID) -> bool:
    return db.run(lambda tx: erasure.erase_organization(tx, organization_id, actor="system"))


def _each(ids: list[UUID], work: Callable[[UUID], bool], ends: float) -> list[bool]:
    """What `work` answered for those it could be done for: one's trouble must not stop the others."""
    done = []
    for each in ids:
        if time.monotonic() > ends:
            break
        try:
            done.append(work(each))
        except (psycopg.Error, Problem):
            logger.exception("not done", id=str(each))
    return done
