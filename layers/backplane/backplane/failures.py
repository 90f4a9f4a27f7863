"""What each error of the database means for the work it ended: decided here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import psycopg


class Verdict(Enum):
    REPEAT = "repeat"  # undone by the server: again, on the same connection
    RECONNECT = "reconnect"  # undone, and the session is gone or of no use: again, on a new one
    REFUSE = "refuse"  # undone, and doing it again at once would only add to the load: 503
    RAISE = "raise"  # the work's own error


@dataclass(frozen=True, slots=True)
class Decision:
    """`retry_after`: seconds a caller is told to wait, in the 503 that ends it where attempts do not."""

    verdict: Verdict
    retry_after: int = 5


_GONE: Final = Decision(Verdict.RECONNECT)
_OWN: Final = Decision(Verdict.RAISE)

# By SQLSTATE, or its class of two characters.
DECISIONS: Final[Mapping[str, Decision]] = {
    "08": _GONE,  # connection exception: a pooler's words, mostly
    "40001": Decision(Verdict.REPEAT, 1),  # serialization failure
    "40P01": Decision(Verdict.REPEAT, 1),  # deadlock
    "57P01": _GONE,  # an administrator ended the session, or the server shuts down
    "57P02": _GONE,  # crash shutdown: another backend took the server with it
    "57P03": _GONE,  # starting up, shutting down or recovering
    "57P04": _GONE,  # the database was dropped, as a restore replaces it
    "57P05": _GONE,  # idle session timeout
    "25P03": _GONE,  # idle in transaction timeout: the process was frozen in the middle
    "25006": _GONE,  # read only: the writer has become a reader, and the name leads to another by now
    "53300": Decision(Verdict.RECONNECT, 2),  # too many connections
    "26000": _GONE,  # a prepared statement is not there: a pooler gave us another session
    "42P05": _GONE,  # or is there already: another client of the pooler's prepared the same one
    "57014": Decision(Verdict.REFUSE, 5),  # statement timeout: its time was all there was
    "55P03": Decision(Verdict.REFUSE, 1),  # lock timeout: whoever waits again stands in everyone's way
    "25P04": Decision(Verdict.REFUSE, 5),  # transaction timeout
}


def decide(error: psycopg.Error) -> Decision:
    if error.sqlstate is None:  # libpq's own word: the connection is gone
        return _GONE if isinstance(error, psycopg.OperationalError) else _OWN
    if is_stale_plan(error):
        return _GONE
    if is_stale_route(error):
        return Decision(Verdict.REPEAT, 1)
    return DECISIONS.get(error.sqlstate) or DECISIONS.get(error.sqlstate[:2], _OWN)


def is_lost(error: psycopg.Error) -> bool:
    """Whether the session ended with it, so that nobody can say what became of what was on its way.

    An ERROR says that the server undid it. After a FATAL it may stand: the server takes in that it is to
    shut down even between a commit and its answer (where it logs the statement's duration, for one).
    """
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith("08") or error.diag.severity_nonlocalized in {"FATAL", "PANIC"}


def is_stale_plan(error: psycopg.Error) -> bool:
    """Whether a migration changed what a prepared statement answers. Only a new session forgets the old."""
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"


def is_stale_route(error: psycopg.Error) -> bool:
    """Whether a row waited for the default partition while the one it belongs to was made: routed anew, it
    finds that one.
    """
    return error.sqlstate == "23514" and error.diag.source_function == "ExecPartitionCheckEmitError"
