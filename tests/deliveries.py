"""Events delivered at once, by processes as Lambda runs them: one connection and one event at a time each."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from tests.databases import Database
from tests.senders import CLERK_SECRET, STRIPE_SECRET, post_clerk, post_stripe

from backplane import config, db, secrets


def _enter(url: str, barrier: Any) -> None:
    """A worker becomes a function's process, and stands ready with the others."""
    os.environ |= {
        "DATABASE_URL": url,
        "STRIPE_WEBHOOK_SECRET_ARN": "stripe",
        "CLERK_WEBHOOK_SECRET_ARN": "clerk",
        "HASH_KEY_SECRET_ARN": "hash",
    }
    known = {"stripe": [STRIPE_SECRET], "clerk": [CLERK_SECRET], "hash": {"key": "a key for hashes"}}
    secrets.get = lambda arn, *, refresh=False: known[arn]
    config.settings.cache_clear()
    db.connection()
    barrier.wait(60)


def post(event: dict[str, Any]) -> tuple[int, str]:
    """Posts an event to its sender's function. Answers the HTTP status and what became of the event."""
    # A Stripe event has its id in its body. Clerk's is a header: the same for the same body, in any process.
    if "id" in event:
        answer = post_stripe(event)
    else:
        answer = post_clerk(event, f"msg_{sha256(json.dumps(event).encode()).hexdigest()}")
    return answer.status, answer.body.get("status", "")


@contextmanager
def processes(
    count: int, database: Database
) -> Iterator[Callable[[list[dict[str, Any]]], list[tuple[int, str]]]]:
    context = multiprocessing.get_context("forkserver")  # clean processes, and imported once for all
    context.set_forkserver_preload(["tests.senders", "stripe_webhook", "clerk_webhook"])
    barrier = context.Barrier(count)
    with ProcessPoolExecutor(count, context, _enter, (database.system, barrier)) as pool:
        # The pool starts a process when it is given work and none is idle: all of them, before a short list.
        list(pool.map(abs, range(count), timeout=100))
        yield lambda events: list(pool.map(post, events, timeout=100))
