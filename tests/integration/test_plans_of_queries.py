"""No route reads a large table from end to end: the product's own statements, as its own roles, on a database
with thousands of rows a table.
"""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from tests.callers import FUNCTIONS, ROOT, send, token, trust_our_tokens
from tests.databases import Database
from tests.loaded import explained, load
from tests.rows import ONE

from backplane import db, holds, idempotency, inbox_upkeep, invitations, leases, limits, outbox
from backplane.archives import Bucket

ROUTES = sorted(
    {route.path for router, _ in FUNCTIONS.values() for route in router.routes if route.method == "GET"}
)
# Lists as they are filtered; without a filter all are asked for, too.
QUERIES: dict[str, list[dict[str, str]]] = {
    "/v1/projects": [{"q": "Project"}, {"favorite": "true"}, {"deleted": "true"}],
    "/v1/projects/search": [{"q": "Hello"}, {"q": "axolotl"}],
    # Not what is rare: under row-level security the planner may not look at the statistics of an enum, whose
    # comparison PostgreSQL does not call leakproof, and takes any value for a common one.
    "/v1/admin/webhooks": [{"status": "processed"}, {"provider": "stripe"}],
    "/v1/admin/users": [{"email": "u12"}, {"email": "nobody"}],
    "/v1/admin/audit-log": [{"organization_id": str(ONE.organization)}, {"organization_id": str(ONE.user)}],
    "/v1/projects/<project_id>/files/content": [{"path": "a"}],
}
REQUIRED = {"/v1/projects/search", "/v1/projects/<project_id>/files/content"}  # which take no less
# What adds up all of an organisation's rows, and has to read them.
SUMS = {
    "/v1/projects/stats": "counts projects",
    "/v1/deployments/stats": "counts deployments",
    "/v1/credits/audit": "adds up all entries",
    "/v1/credits/usage": "adds up the entries of a month, from an index alone",
    "/v1/admin/database": "reads the catalogue",
}


pytestmark = pytest.mark.xdist_group("plans")  # which share the loaded database


TABLES = {
    "webhook_id": "platform.webhook_inbox",
    "generation_id": "projects.generations",
    "deployment_id": "deploys.deployments",
}


@pytest.fixture(scope="module")
def loaded(module_database: Database) -> Database:
    load(module_database)
    return module_database


@pytest.fixture
def trusted(files_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_our_tokens(monkeypatch)


def named(database: Database, path: str) -> str:
    """The path with ids of rows that are there."""

    def one_of(match: re.Match[str]) -> str:
        known = {"project_id": ONE.project, "organization_id": ONE.organization, "user_id": ONE.user}
        if match[1] in known or match[1] not in TABLES:
            return str(known.get(match[1], UUID(int=0)))  # what is not there is looked up, too
        with database.connect() as owner:
            row = owner.execute(
                f"SELECT id FROM {TABLES[match[1]]} WHERE organization_id = %s LIMIT 1".encode(),
                [ONE.organization],
            ).fetchone()
        assert row is not None
        return str(row["id"])

    return re.sub(r"<(\w+)>", one_of, path)


@pytest.mark.parametrize("generic", [False, True], ids=["own plans", "generic plans"])
@pytest.mark.usefixtures("trusted")
def test_no_route_reads_a_large_table_from_end_to_end(loaded: Database, generic: bool) -> None:
    wasteful: dict[str, Any] = {}
    for role in ("backplane_app", "backplane_system"):
        with explained(loaded, role, generic=generic) as plans:
            for path in ROUTES:
                if path.startswith("/v1/admin") != (role == "backplane_system") or path in SUMS:
                    continue
                plans.found.clear()
                unfiltered: list[dict[str, str]] = [] if path in REQUIRED else [{}]
                for query in unfiltered + QUERIES.get(path, []):
                    ask(named(loaded, path), query)
                if told := plans.wasteful():
                    wasteful[path] = told
    assert wasteful == {}, "give it an index, or a condition that one serves; or say in SUMS why it reads all"


def ask(path: str, query: dict[str, str]) -> None:
    """The first page and the second."""
    organization = None if path.startswith("/v1/admin") else ONE.organization
    answer = send("GET", path, token(ROOT), query=query, organization=organization)
    assert answer.status < 500, answer.body
    if isinstance(answer.body, dict) and (cursor := answer.body.get("next_cursor")):
        again = send("GET", path, token(ROOT), query=query | {"cursor": cursor}, organization=organization)
        assert again.status == 200, again.body


# What runs each minute or night, most often to find that there is nothing to do.
JOBS: dict[str, Callable[[db.Tx], object]] = {
    "the inbox counted": inbox_upkeep.census,
    "holds that are over": lambda tx: holds.overdue(tx, limit=20),
    "leases that are over": lambda tx: leases.lapsed(tx, limit=20),
    "settled bodies": lambda tx: inbox_upkeep.trim_bodies(tx, days=400, limit=20),
    "published events": lambda tx: outbox.purge(tx, days=400, limit=20),
    "forgotten keys": lambda tx: idempotency.purge(tx, limit=20),
    "stale invitations": lambda tx: invitations.purge(tx, limit=20),
    "counters of past years": lambda tx: limits.purge(tx, limit=20),
}


@pytest.mark.parametrize("generic", [False, True], ids=["own plans", "generic plans"])
def test_no_job_reads_a_large_table_to_find_little(loaded: Database, generic: bool) -> None:
    wasteful = {}
    with explained(loaded, "backplane_system", generic=generic) as plans:
        for name, job in JOBS.items():
            plans.found.clear()
            db.run(job)
            if told := plans.wasteful():
                wasteful[name] = told
    assert wasteful == {}


# What the sources recommend, by what is asked: (asked, the index that answers). Each as its own role.
RECOMMENDED = {
    "users by Clerk id (S2, S4)": (
        "backplane_system",
        "SELECT id FROM identity.users WHERE clerk_id = 'user_1'",
        "users_clerk_id_key",
    ),
    "users by email (S1, S2, S4)": (
        "backplane_system",
        "SELECT id FROM identity.users WHERE lower(email) = 'u7@example.com' AND deleted_at IS NULL",
        "users_email_prefix",
    ),
    "users by creation (S2)": (
        "backplane_system",
        "SELECT id FROM identity.users WHERE created_at > now() - interval '1 hour'",
        "users_created_at",
    ),
    "live projects by change (S0)": (
        "backplane_app",
        (
            "SELECT id FROM projects.projects WHERE organization_id = '{organization}' "
            "AND deleted_at IS NULL ORDER BY updated_at DESC, id DESC LIMIT 20"
        ),
        "projects_live_updated",
    ),
    "projects by user and status (S1)": (
        "backplane_system",
        "SELECT id FROM projects.projects WHERE created_by = md5('user7')::uuid",
        "projects_created_by",
    ),
    "generations by project (S1)": (
        "backplane_app",
        "SELECT id FROM projects.generations WHERE project_id = '{project}' ORDER BY id DESC LIMIT 20",
        "generations_newest",
    ),
    "use by organisation and time (S2)": (
        "backplane_app",
        (
            "SELECT sum(amount) FROM credits.entries WHERE organization_id = '{organization}' "
            "AND kind = 'debit' AND created_at > now() - interval '1 hour'"
        ),
        None,
    ),
    "subscription events by organisation and time (S2)": (
        "backplane_app",
        (
            "SELECT id FROM billing.subscription_events WHERE organization_id = '{organization}' "
            "ORDER BY occurred_at DESC LIMIT 10"
        ),
        "subscription_events_organization",
    ),
    "deployments by project (S0)": (
        "backplane_app",
        (
            "SELECT id FROM deploys.deployments WHERE organization_id = '{organization}' "
            "AND project_id = '{project}' ORDER BY id DESC LIMIT 20"
        ),
        None,
    ),
    "assets by organisation (S3)": (
        "backplane_app",
        (
            "SELECT id FROM storage.objects WHERE organization_id = '{organization}' AND state = 'stored' "
            "ORDER BY id DESC LIMIT 20"
        ),
        None,
    ),
}


@pytest.mark.parametrize("asked", RECOMMENDED)
def test_what_the_sources_recommend_is_answered_by_an_index(loaded: Database, asked: str) -> None:
    role, query, index = RECOMMENDED[asked]
    with explained(loaded, role, generic=False) as plans:
        text = query.format(organization=ONE.organization, project=ONE.project)
        db.run(lambda tx: tx.execute(text.encode()).fetchall(), organization_id=ONE.organization)
        assert plans.wasteful() == set()
        assert plans.indexes(), "no index at all"
        assert index is None or index in plans.indexes()


# Foreign keys without an index of their own: whose parents are never deleted, and which nobody asks by.
UNINDEXED = {
    "billing.subscriptions (plan_id)": "plans are never deleted",
    "credits.grants (plan_id)": "plans are never deleted",
    "credits.holds (debit_id)": "entries are never deleted",
    "platform.api_keys (created_by)": "users stay as tombstones",
    "projects.messages (created_by)": "users stay as tombstones",
    "tenancy.invitations (invited_by)": "users stay as tombstones",
    "projects.shares (invited_by)": "users stay as tombstones",
}


def test_every_foreign_key_has_an_index_or_a_reason(loaded: Database) -> None:
    """An index that begins with some of its columns is enough, if what they find is little or unique."""
    with loaded.connect() as owner:
        rows = owner.execute(
            """
            SELECT format('%s (%s)', k.conrelid::regclass, string_agg(a.attname, ', ' ORDER BY c.n)) AS name
            FROM pg_constraint AS k
            CROSS JOIN LATERAL unnest(k.conkey) WITH ORDINALITY AS c (attnum, n)
            JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = c.attnum
            WHERE k.contype = 'f'
              AND k.conparentid = 0
              AND NOT EXISTS (
                  SELECT
                  FROM pg_index AS i
                  WHERE i.indrelid = k.conrelid
                    AND i.indisvalid
                    AND (i.indpred IS NULL
                         OR pg_get_expr(i.indpred, i.indrelid) LIKE '(%IS NOT NULL)')
                    AND (i.indkey::int2[])[0:cardinality(k.conkey) - 1] <@ k.conkey
                    AND (i.indisunique OR (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
              )
            GROUP BY k.oid, k.conrelid
            """
        ).fetchall()
    found = {row["name"] for row in rows}
    assert found - UNINDEXED.keys() == set(), "index it in a migration, or say in UNINDEXED why not"
    assert UNINDEXED.keys() - found == set(), "it has an index now"
