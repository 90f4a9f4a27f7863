"""What there is of ours in a database's catalogue, for tests that leave nothing out."""

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

Connection = psycopg.Connection[DictRow]

# Tables that backplane_app reads whole, whoever the caller is. A new one is a decision: add it here.
PUBLIC = {
    "billing.credit_packs",
    "billing.plan_limits",
    "billing.plan_prices",
    "billing.plans",
    "credits.operations",
    "platform.admin_settings",
}

# Every table, view and function of ours: whatever is not PostgreSQL's and not the runner's.
OURS = """
    WITH ours AS (
        SELECT oid, nspname, nspowner, nspacl
        FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')
    ), relations AS (
        SELECT c.*, n.nspname || '.' || c.relname AS name
        FROM pg_class AS c
        JOIN ours AS n ON n.oid = c.relnamespace
    ), tables AS (
        SELECT * FROM relations WHERE relkind IN ('r', 'p')
    ), wholes AS (
        SELECT * FROM tables WHERE NOT relispartition
    ), functions AS (
        SELECT p.*, p.oid::regprocedure::text AS name
        FROM pg_proc AS p
        JOIN ours AS n ON n.oid = p.pronamespace
    ), policies AS (
        SELECT t.name AS table_name, p.*
        FROM pg_policies AS p
        JOIN tables AS t ON t.name = p.schemaname || '.' || p.tablename
    )
"""


def found(connection: Connection, query: str, params: dict[str, Any] | None = None) -> list[Any]:
    """The first column of a query over what is ours."""
    rows = connection.execute((OURS + query).encode(), params)
    return [next(iter(row.values())) for row in rows]


def name(table: str) -> sql.Composable:
    return sql.Identifier(*table.split("."))
