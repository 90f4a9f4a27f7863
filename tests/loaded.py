"""A database with many rows in every table, a third of them one organisation's, and the plans it makes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow
from tests.databases import Database
from tests.rows import INSERTS, ONE, populate

from backplane import db

ROWS = 4000  # a table; by so many a plan that reads them all shows itself
LARGE = ROWS // 2  # what no single node of a plan may read: more than all of one organisation's

# What a column holds in the n-th row, where it is not what the first row has. A third of all is one
# organisation's, half of that one project's.
COLUMNS = (
    {
        "organization_id": f"CASE WHEN n %% 3 = 0 THEN '{ONE.organization}'::uuid "
        "ELSE md5('org' || n %% 500)::uuid END",
        "project_id": f"CASE WHEN n %% 3 > 0 THEN md5('project' || n %% 500)::uuid "
        f"WHEN n %% 2 = 0 THEN '{ONE.project}'::uuid ELSE md5('project' || n)::uuid END",
        "user_id": f"CASE WHEN n %% 3 = 0 THEN '{ONE.user}' ELSE md5('user' || n %% 500)::uuid END",
        "created_by": f"CASE WHEN n %% 3 = 0 THEN '{ONE.user}' ELSE md5('user' || n %% 500)::uuid END",
    }
    | dict.fromkeys(("expires_at", "lock_expires_at"), "now() + n * interval '1 minute'")
    | dict.fromkeys(
        ("created_at", "updated_at", "received_at", "occurred_at"), "now() - n * interval '1 minute'"
    )
)
OVERRIDES = {
    "identity.users": {"id": "md5('user' || n)::uuid", "email": "'u' || n || '@example.com'"},
    "tenancy.organizations": {"id": "md5('org' || n)::uuid"},
    "deploys.integrations": {"organization_id": "md5('org' || n)::uuid"},
    "platform.backups": {
        "name": "to_char('2026-02-01'::timestamp + n * interval '1 minute', '\"backup_\"YYYYMMDD_HH24MISS')"
    },
    "projects.file_versions": {"base_version": "n + 9"},
    "projects.projects": {"id": "md5('project' || n)::uuid"},
}
# Of which an organisation, or what it has one of, has a few rows and not thousands.
FEW = {
    "billing.subscription_events",
    "billing.subscriptions",
    "credits.grants",
    "credits.holds",
    "deploys.deployment_events",
    "deploys.provider_jobs",
    "platform.api_keys",
    "tenancy.organization_members",
    "tenancy.invitations",
}
# How a value of a type is made another one for each row, the best choice first.
VARIED = {
    "uuid": "md5({column}::text || n)::uuid",
    "text": "{column} || n",
    "bytea": "sha256({column} || n::text::bytea)",
    "int8": "n + 10",
    "timestamptz": "{column} + n * interval '1 minute'",
    "date": "{column} + n",
}


def load(database: Database) -> None:
    with database.connect() as owner:
        populate(owner)
        owner.execute("SET session_replication_role = replica")  # no foreign keys, no triggers
        for table in INSERTS:
            owner.execute(_copies(owner, table))
        owner.execute("VACUUM ANALYZE")  # as autovacuum does, which here comes too late or in the middle


def _copies(owner: psycopg.Connection[DictRow], table: str) -> bytes:
    """Copies of a table's first row, each with values of its own where they must be unique."""
    columns = {
        row["attname"]: row["typname"]
        for row in owner.execute(
            """
            SELECT a.attname, y.typname
            FROM pg_attribute AS a
            JOIN pg_type AS y ON y.oid = a.atttypid
            WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
            ORDER BY a.attnum
            """,
            [table],
        ).fetchall()
    }
    values = {
        name: f'CASE WHEN t."{name}" IS NOT NULL THEN {COLUMNS[name]} END'
        for name in columns
        if name in COLUMNS
    } | OVERRIDES.get(table, {})
    if table in FEW:
        values["organization_id"] = "md5('org' || n)::uuid"
        values |= {"deployment_id": "md5('deployment' || n)::uuid"} if "deployment_id" in columns else {}
    if "id" in columns and columns["id"] == "uuid":
        values.setdefault("id", "platform.new_id()")
    varied = {"id"} & columns.keys() | OVERRIDES.get(table, {}).keys()
    for row in owner.execute(
        """
        SELECT ARRAY(SELECT attname::text FROM pg_attribute
                     WHERE attrelid = i.indrelid AND attnum = ANY (i.indkey)) AS columns
        FROM pg_index AS i
        WHERE i.indrelid = %s::regclass AND i.indisunique
        ORDER BY cardinality(i.indkey::int2[])
        """,
        [table],
    ).fetchall():
        names = [name for name in row["columns"] if columns.get(name) in VARIED]
        if not names or varied & set(names):
            continue
        chosen = min(names, key=lambda name: (name == "organization_id", name in COLUMNS, name))
        values[chosen] = VARIED[columns[chosen]].format(column=f"t.{chosen}")
        varied.add(chosen)
    listed = ", ".join(f'"{name}"' for name in columns)
    made = ", ".join(values.get(name, f't."{name}"') for name in columns).replace("%%", "%")
    return (
        f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE "
        f"SELECT {made} FROM (SELECT * FROM {table} LIMIT 1) AS t CROSS JOIN generate_series(1, {ROWS}) AS n"
    ).encode()


@dataclass
class Plans:
    """What auto_explain told of the statements of a session, those inside functions too."""

    found: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        _, _, plan = (diagnostic.message_primary or "").partition("plan:")
        if plan:
            self.found.append(json.loads(plan))

    def nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every node with its statement's text."""

        def within(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
            yield node
            for each in node.get("Plans", []):
                yield from within(each)

        for plan in self.found:
            for node in within(plan["Plan"]):
                yield " ".join(plan["Query Text"].split()), node

    def indexes(self) -> set[str]:
        return {node["Index Name"] for _, node in self.nodes() if "Index Name" in node}

    def wasteful(self) -> set[str]:
        """Nodes that read more rows of a table than anything that a person waits for should."""
        told = set()
        for query, node in self.nodes():
            read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            read += node.get("Rows Removed by Index Recheck", 0)
            if "Relation Name" in node and read * node["Actual Loops"] > LARGE:
                by = f" by {node['Index Name']}" if "Index Name" in node else ""
                told.add(
                    f"{node['Node Type']} of {node['Relation Name']}{by} reads {read:.0f}: {query[:400]}"
                )
        return told


@contextmanager
def explained(database: Database, role: str, *, generic: bool) -> Iterator[Plans]:
    """The plans of all that backplane.db runs as a role. With `generic`, statements are prepared and planned
    without their values, as they are from the sixth time on.
    """
    settings = {
        "session_preload_libraries": "'auto_explain'",
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_analyze": "on",
        "auto_explain.log_timing": "off",
        "auto_explain.log_nested_statements": "on",
        "auto_explain.log_format": "json",
        "auto_explain.log_level": "notice",
        "random_page_cost": "1.1",  # as where data are in memory or on flash: index by index, row by row
        "plan_cache_mode": "force_generic_plan" if generic else "auto",
    }
    with database.connect() as owner:
        for name, value in settings.items():
            owner.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    sql.Identifier(database.name), sql.SQL(name), sql.SQL(value)
                )
            )
    plans = Plans()
    with database.as_role(role):
        session = db.connection()
        session.prepare_threshold = 0 if generic else None
        session.add_notice_handler(plans.hear)
        yield plans
