"""Stripe's list of events, page by page, for as long as it reaches back: 30 days.

How far a scan has come stands in billing.stripe_reconciliations, so that one that runs out of time is taken
up by the next run, and two at once share one scan: whoever finishes a page moves the cursor, if it still is
where he found it.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import replay

from backplane import db, stripe_api
from backplane.problems import Unavailable
from backplane.stripe_effects import EFFECTS

REACH = timedelta(days=30)  # how far back Stripe lists
PAGE = 100  # Stripe's most
# An event this young may still be on its way to the webhook. It is replayed all the same, but is no drift.
UNDER_WAY = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Scan:
    id: UUID
    since: datetime
    until: datetime
    last_event_id: str | None  # of the pages that are done
    listed: int
    replayed: int
    late: int


def run(*, seconds: float) -> dict[str, Any]:
    """Goes on with the scan that is open, or begins one. Answers {ok, complete, since, until, listed,
    replayed, late, statuses}: of the whole scan, except statuses, which are this run's.
    """
    ends = time.monotonic() + seconds
    scan = _open()
    statuses: list[str] = []
    complete = False
    while not complete and time.monotonic() < ends:
        try:
            events, more = _page(scan)
        except stripe_api.Refused as refused:
            if refused.param != "starting_after" or scan.last_event_id is None:
                raise
            scan = _rewind(scan)  # the scan rested so long that its place is out of reach
            continue
        lacking = _lacking(events)
        done = []
        for event in lacking:
            if time.monotonic() >= ends:
                break
            done.append(replay.replay(event))
        statuses += done
        if len(done) < len(lacking):  # the page is looked at again, and lacks these no more: count them now
            scan, complete = _advance(scan, [], lacking[: len(done)], more=True)
            break
        scan, complete = _advance(scan, events, lacking, more=more)
    return {
        "ok": complete and "failed" not in statuses,
        "complete": complete,
        "since": scan.since.isoformat(),
        "until": scan.until.isoformat(),
        "listed": scan.listed,
        "replayed": scan.replayed,
        "late": scan.late,
        "statuses": replay.counts(statuses),
    }


def _page(scan: Scan) -> tuple[list[dict[str, Any]], bool]:
    """The next events, newest first, and whether there are more."""
    after = {} if scan.last_event_id is None else {"starting_after": scan.last_event_id}
    span = {"gte": int(scan.since.timestamp()), "lte": int(scan.until.timestamp())}
    page = stripe_api.get("/v1/events", created=span, limit=PAGE, **after)
    return page["data"], page["has_more"]


def _lacking(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with an effect that the inbox has never seen, oldest first."""
    ours = [event for event in events if event["type"] in EFFECTS]
    rows = db.run(
        lambda tx: tx.execute(
            "SELECT event_id FROM platform.webhook_inbox WHERE provider = 'stripe' AND event_id = ANY(%s)",
            [[event["id"] for event in ours]],
        ).fetchall()
    )
    known = {row["event_id"] for row in rows}
    return [event for event in reversed(ours) if event["id"] not in known]


# ---- the scan's row ----

_COLUMNS = "id, since, until, last_event_id, listed, replayed, late"


def _open() -> Scan:
    """The scan that is open, or a new one."""

    def work(tx: db.Tx) -> Scan:
        for _ in range(3):  # another run may begin or finish one between the two statements
            row = tx.execute(
                f"""
                INSERT INTO billing.stripe_reconciliations (since, until)
                SELECT now - %s, now
                FROM (SELECT date_trunc('second', clock_timestamp()) + interval '1 second' AS now) AS clock
                ON CONFLICT DO NOTHING
                RETURNING {_COLUMNS}
                """,
                [REACH],
            ).fetchone()
            row = (
                row
                or tx.execute(
                    f"SELECT {_COLUMNS} FROM billing.stripe_reconciliations WHERE finished_at IS NULL"
                ).fetchone()
            )
            if row is not None:
                return Scan(**row)
        raise Unavailable("Other runs begin and finish scans at once. Run again.")

    return db.run(work)


def _advance(
    scan: Scan, events: list[dict[str, Any]], lacking: list[dict[str, Any]], *, more: bool
) -> tuple[Scan, bool]:
    """The scan after a page, and whether it is finished, by us or by another run."""
    overdue = (scan.until - UNDER_WAY).timestamp()
    page = {
        "id": scan.id,
        "before": scan.last_event_id,
        "last": events[-1]["id"] if events else scan.last_event_id,
        "listed": len(events),
        "replayed": len(lacking),
        "late": sum(event["created"] < overdue for event in lacking),
        "finished": not more,
    }

    def work(tx: db.Tx) -> tuple[Scan, bool]:
        tx.execute(
            """
            UPDATE billing.stripe_reconciliations
            SET last_event_id = %(last)s,
                listed = listed + %(listed)s,
                replayed = replayed + %(replayed)s,
                late = late + %(late)s,
                finished_at = CASE WHEN %(finished)s THEN clock_timestamp() END
            WHERE id = %(id)s AND last_event_id IS NOT DISTINCT FROM %(before)s AND finished_at IS NULL
            """,
            page,
        )
        row = tx.execute(
            f"""
            SELECT {_COLUMNS}, finished_at IS NOT NULL AS finished
            FROM billing.stripe_reconciliations
            WHERE id = %s
            """,
            [scan.id],
        ).fetchone()
        if row is None:
            raise RuntimeError("a scan is never deleted")
        finished = bool(row.pop("finished"))
        return Scan(**row), finished

    return db.run(work)


def _rewind(scan: Scan) -> Scan:
    def work(tx: db.Tx) -> None:
        tx.execute(
            """
            UPDATE billing.stripe_reconciliations
            SET last_event_id = NULL, listed = 0
            WHERE id = %s AND last_event_id = %s AND finished_at IS NULL
            """,
            [scan.id, scan.last_event_id],
        )

    db.run(work)
    return _open()
