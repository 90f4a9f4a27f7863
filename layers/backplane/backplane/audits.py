"""The proof of the books: an account recomputed from its entries, its live grants and its open holds."""

from uuid import UUID

from pydantic import BaseModel

from backplane import db
from backplane.problems import NotFound


class Audit(BaseModel):
    ok: bool
    available: int  # what live grants hold
    held: int  # what open holds hold
    debt: int
    entries_sum: int  # ok: available + held - debt
    entries: int
    versions_gapless: bool


class Fault(BaseModel):
    organization_id: UUID
    faults: list[str]


def book_due(organization_id: UUID) -> bool:
    """Books the grants and holds of an account that have expired. Answers whether there were any."""
    row = db.call("SELECT credits.book_due(%(id)s) AS booked", {"id": organization_id})
    return row is not None and row["booked"]


def audit(organization_id: UUID) -> Audit:
    """Whether an account adds up, once what is due is booked, so that it agrees with its balance.

    Raises NotFound.
    """
    book_due(organization_id)
    row = db.call("SELECT * FROM credits.audit(%(id)s)", {"id": organization_id}, repeatable=True)
    if row is None:
        raise NotFound("There is no such organisation with a credit account. Check its id.")
    return Audit.model_validate(row)


def accounts(tx: db.Tx, *, after: UUID | None, limit: int) -> list[tuple[UUID, bool]]:
    """The next accounts by id, and whether something in them is due."""
    rows = tx.execute(
        """
        SELECT organization_id, next_due_at <= clock_timestamp() IS TRUE AS due
        FROM credits.accounts
        WHERE %(after)s::uuid IS NULL OR organization_id > %(after)s
        ORDER BY organization_id
        LIMIT %(limit)s
        """,
        {"after": after, "limit": limit},
    ).fetchall()
    return [(row["organization_id"], row["due"]) for row in rows]


def faults(tx: db.Tx, organization_ids: list[UUID]) -> list[Fault]:
    """What does not add up in these accounts."""
    rows = tx.execute(
        """
        SELECT id AS organization_id, a.faults
        FROM unnest(%s::uuid[]) AS id
        CROSS JOIN LATERAL credits.audit(id) AS a
        WHERE NOT a.ok
        ORDER BY id
        """,
        [organization_ids],
    ).fetchall()
    return [Fault.model_validate(row) for row in rows]
