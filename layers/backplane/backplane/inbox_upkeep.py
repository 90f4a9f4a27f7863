"""What is in the inbox, once it is there: tried again when it is due, counted, and in the end made small."""

import logging
from dataclasses import dataclass
from uuid import UUID

from backplane import db, inbox
from backplane.inbox import Senders, Status
from backplane.problems import InvalidState, NotFound, Unavailable

logger = logging.getLogger("backplane.inbox")

# Until then a subject may well come: a sign-up finishes, a checkout's other event is on its way.
PARKED_LONG = "interval '1 hour'"
# How long a report stays about what no longer changes by itself, so that one event nobody minds
# (another product's customer on the same Stripe account) doesn't drown the next.
REPORTED = "interval '1 day'"


@dataclass(frozen=True, slots=True)
class Census:
    """How many events are in which state that is not the end of it."""

    parked: int
    failed: int
    dead: int
    quarantined: int
    parked_long: int  # Stripe's and Clerk's, for more than an hour, since less than a day
    newly_dead: int  # in the last day
    newly_quarantined: int  # in the last day
    oldest_seconds: int | None  # since the oldest of those parked or failed came
    overdue_seconds: int  # since the first of them was to be tried again


def census(tx: db.Tx) -> Census:
    # Under row-level security the planner may not look at the statistics of an enum, takes unsettled events
    # for common ones and would read the whole inbox. The index of just those knows how few they are.
    tx.execute("SET LOCAL enable_seqscan = off", prepare=False)
    row = tx.execute(
        f"""
        SELECT count(*) FILTER (WHERE status = 'parked') AS parked,
               count(*) FILTER (WHERE status = 'failed') AS failed,
               count(*) FILTER (WHERE status = 'dead') AS dead,
               count(*) FILTER (WHERE status = 'quarantined') AS quarantined,
               count(*) FILTER (WHERE status = 'parked'
                   -- Of builds we are told that nobody ever begins here.
                   AND provider IN ('stripe', 'clerk')
                   AND received_at BETWEEN clock_timestamp() - {PARKED_LONG} - {REPORTED}
                                       AND clock_timestamp() - {PARKED_LONG}) AS parked_long,
               count(*) FILTER (WHERE status = 'dead'
                   AND processed_at > clock_timestamp() - {REPORTED}) AS newly_dead,
               count(*) FILTER (WHERE status = 'quarantined'
                   AND processed_at > clock_timestamp() - {REPORTED}) AS newly_quarantined,
               extract(epoch FROM clock_timestamp() - min(received_at)
                   FILTER (WHERE status IN ('parked', 'failed')))::bigint AS oldest_seconds,
               greatest(0, extract(epoch FROM clock_timestamp() - min(next_attempt_at)))::bigint
                   AS overdue_seconds
        FROM platform.webhook_inbox
        WHERE status IN ('parked', 'quarantined', 'failed', 'dead')
        """
    ).fetchone()
    tx.execute("SET LOCAL enable_seqscan TO DEFAULT", prepare=False)
    if row is None:
        raise RuntimeError("an aggregate answers one row")
    return Census(**row)


# ---- tried again ----


def due(limit: int) -> list[UUID]:
    """The rows whose next attempt is due, the longest waiting first."""
    rows = db.run(
        lambda tx: tx.execute(
            """
            SELECT id
            FROM platform.webhook_inbox
            WHERE status IN ('parked', 'failed')
              AND next_attempt_at <= statement_timestamp()
              AND body IS NOT NULL
            ORDER BY next_attempt_at
            LIMIT %s
            """,
            [limit],
        ).fetchall()
    )
    return [row["id"] for row in rows]


def retry(inbox_id: UUID, senders: Senders, *, anew: bool = False) -> Status:
    """Applies a recorded event once more. `duplicate` where it is settled already; with `anew`, as a
    person asks for it, also what was put aside is tried, and its attempts count from one.

    A failure is recorded and answered, not raised. Raises NotFound; Conflict where the body is gone;
    Unavailable where the database is not there.
    """
    row = db.run(
        lambda tx: tx.execute(
            """
            SELECT provider, event_id, event_type, occurred_at, body
            FROM platform.webhook_inbox
            WHERE id = %s
            """,
            [inbox_id],
        ).fetchone()
    )
    if row is None:
        raise NotFound("There is no such event in the inbox. GET /v1/admin/webhooks lists them.")
    if row["body"] is None:
        raise InvalidState(
            "The event's body is not kept any longer, so it cannot be applied again. Have the sender send it "
            "again under a new id, or make the change by hand.",
        )
    event = inbox.read_back(row, senders)
    try:
        return inbox.receive(event, senders, anew=anew)
    except Unavailable:
        raise
    except Exception:  # the edge of an effect: `receive` has recorded it
        logger.exception("%s %s failed again", event.provider, event.id)
        return "failed"


# ---- made small ----


def trim_bodies(tx: db.Tx, *, days: int, limit: int) -> int:
    """Forgets the bodies of settled events that came so long ago; their ids stay, so that a late
    repetition is still one. Answers how many, `limit` at most.
    """
    return tx.execute(
        """
        UPDATE platform.webhook_inbox
        SET body = NULL
        WHERE id IN (
            SELECT id
            FROM platform.webhook_inbox
            WHERE body IS NOT NULL
              AND status IN ('processed', 'ignored', 'stale')
              AND received_at < statement_timestamp() - make_interval(days => %(days)s)
            ORDER BY received_at
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED
        )
        """,
        {"days": days, "limit": limit},
    ).rowcount


def trim_quarantined(tx: db.Tx, *, days: int, limit: int) -> int:
    """Forgets the bodies of poison that nobody has replayed for so long: their alarm is over, and whom
    they tell of, none could read. Answers how many, `limit` at most.
    """
    return tx.execute(
        """
        UPDATE platform.webhook_inbox
        SET body = NULL
        WHERE id IN (
            SELECT id
            FROM platform.webhook_inbox
            WHERE body IS NOT NULL
              AND status = 'quarantined'
              AND processed_at < statement_timestamp() - make_interval(days => %(days)s)
            ORDER BY id
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED
        )
        """,
        {"days": days, "limit": limit},
    ).rowcount
