"""The OpenAPI document against the functions: whatever is asked, the answer is one that it tells of.

FUZZ=200 asks each operation so many questions instead of a few dozen, another FUZZ_SEED other ones.
"""

import itertools
import os
import random
from typing import Any

from tests import requests_at_random
from tests.contract import OPERATIONS, Operation
from tests.requests_at_random import Request
from tests.senders import Answer
from tests.world import World

API = sorted(
    (each for each in OPERATIONS if each.path.startswith("/v1/")), key=lambda each: each.told["operationId"]
)
LAST = {"PUT /v1/admin/feature-costs"}  # prices nobody can pay
UNAVAILABLE = {"POST /v1/integrations/supabase/connect"}  # no OAuth app is set up for the tests
QUESTIONS = int(os.environ.get("FUZZ", "2"))  # to each operation, of each kind
SEED = os.environ.get("FUZZ_SEED", "1")


def ask(world: World, operation: Operation, request: Request) -> Answer:
    names = {**world.made(operation).names, **request.names}
    path = operation.path.format(**names)
    return world.send(operation, world.root, path=path, **request.changed)


def fault(world: World, operation: Operation, request: Request) -> str | None:
    """What is wrong with the answer; whether the document tells of it is looked at wherever a test asks."""
    try:
        answer = ask(world, operation, request)
    except AssertionError as undocumented:
        return str(undocumented)
    if answer.status >= 500 and not (answer.status == 503 and operation.route in UNAVAILABLE):
        return f"answered {answer.status}"
    if request.refused and answer.status not in request.refused:
        return f"answered {answer.status} ({answer.body}) instead of {sorted(request.refused)}"
    return None


def faults(world: World, operation: Operation, requests: Any) -> list[str]:
    return [
        f"{operation.route}, {request.about}: {found}"
        for request in requests
        if (found := fault(world, operation, request))
    ]


def test_whatever_is_asked_wrongly_is_refused_as_the_document_says(world: World) -> None:
    found = []
    for operation in API:
        dice = random.Random(f"{SEED} {operation.route}")
        body = world.body(operation, world.made(operation))
        known = list(requests_at_random.broken(operation, body, dice))
        found += faults(world, operation, dice.sample(known, min(QUESTIONS * 2, len(known))))
    assert not found, "\n".join([*found, f"FUZZ_SEED={SEED}"])


def test_whatever_the_document_takes_is_answered_as_it_says(world: World) -> None:
    found = []
    for operation in sorted(API, key=lambda each: (each.method == "DELETE", each.route in LAST)):
        dice = random.Random(f"{SEED} {operation.route}")
        body = world.body(operation, world.made(operation, fresh=True))
        drawn = itertools.islice(requests_at_random.taken(operation, body, dice), QUESTIONS)
        found += faults(world, operation, drawn)
    assert not found, "\n".join([*found, f"FUZZ_SEED={SEED}"])
