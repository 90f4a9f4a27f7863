"""What Stripe says, through the inbox: as the webhook would have brought it."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aws_lambda_powertools import Logger

from backplane import inbox, stripe_events
from backplane.problems import Unavailable
from backplane.senders import SENDERS

logger = Logger()

# Statuses after which a person or the worker has to do something.
UNSETTLED = frozenset({"parked", "failed", "quarantined"})


def replay(event: Mapping[str, Any]) -> str:
    """What becomes of an event. A failure is recorded in the inbox, for the worker, and not raised.

    Raises Unavailable where the database is not there.
    """
    received = stripe_events.parse(None, json.dumps(event).encode())
    try:
        return inbox.receive(received, SENDERS)
    except Unavailable:
        raise
    except Exception:  # the edge of an effect: `receive` has recorded it
        logger.exception("an event failed", event_id=received.id)
        return "failed"


def counts(statuses: list[str]) -> dict[str, int]:
    return dict(Counter(statuses))
