"""The planner's picture of tables, renewed where much has changed since it was taken."""

import time

from backplane import db


def renew(ends: float) -> tuple[int, bool]:
    """How many tables were analysed, and whether those were all. One that is locked is left alone."""
    tables = db.run(_due)
    for count, table in enumerate(tables):
        if time.monotonic() > ends:
            return count, False
        db.run(lambda tx: tx.execute("SELECT platform.analyze_table(%s)", [table]))  # noqa: B023  at once
    return len(tables), True


def _due(tx: db.Tx) -> list[str]:
    return [
        row["name"] for row in tx.execute("SELECT name FROM platform.tables_to_analyze() AS name").fetchall()
    ]
