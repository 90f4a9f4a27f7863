"""Low balance: below how many credits an organisation is told, by `credits.low_balance` on the bus.

The database watches: whichever commit takes `available` below the threshold writes the event, once
until the balance has been at or above it again (the trigger accounts_low_balance).
"""

from uuid import UUID

from backplane import db
from backplane.problems import NotFound


def threshold(tx: db.Tx, organization_id: UUID) -> int:
    """Less available than this is low; 0: never. Raises NotFound."""
    row = tx.execute(
        "SELECT low_balance_threshold FROM credits.accounts WHERE organization_id = %s", [organization_id]
    ).fetchone()
    if row is None:
        raise NotFound("There is no such organisation with a credit account. Check its id.")
    found: int = row["low_balance_threshold"]
    return found


def set_threshold(tx: db.Tx, organization_id: UUID, value: int) -> None:
    """Sets it. A threshold above what is available is crossed by being set. Raises NotFound."""
    row = tx.execute(
        "SELECT credits.set_low_balance_threshold(%s, %s) AS found", [organization_id, value]
    ).fetchone()
    if row is None or not row["found"]:
        raise NotFound("There is no such organisation with a credit account. Check its id.")
