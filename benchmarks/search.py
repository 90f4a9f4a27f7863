"""Search in messages, stats and activity, against the queries of the schema that the product took over.

That schema keeps a project's messages in one JSON array; it is built here beside ours, with the same
rows and with the indexes it asks for. Both are asked in turns, and every answer is compared row by row.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from local.checkout import ROOT
from psycopg.rows import DictRow
from tests.databases import Database

from backplane import db
from benchmarks import results, scratch

MESSAGES = 40  # a project
SCALES = ((50, 100), (5, 1000))  # users, and projects of each
WORDS = {"absent": "axolotl", "rare": "zebrafish", "seldom": "marigold", "common": "button"}
ASKED = 200  # times a word

SOURCE = """
    CREATE SCHEMA source;
    CREATE TABLE source."Project" (
        id text PRIMARY KEY,
        title text NOT NULL,
        messages jsonb NOT NULL DEFAULT '[]',
        "userId" text,
        "isPublic" boolean NOT NULL DEFAULT false,
        "createdAt" timestamptz(6) NOT NULL,
        "updatedAt" timestamptz(6) NOT NULL,
        "deletedAt" timestamptz(6)
    );
    INSERT INTO source."Project"
    SELECT p.id, p.title, c.messages, p.organization_id, p.is_public, p.created_at, p.updated_at, p.deleted_at
    FROM projects.projects AS p
    JOIN projects.conversations AS c ON c.project_id = p.id;
    CREATE INDEX ON source."Project" ("createdAt" DESC);
    CREATE INDEX ON source."Project" ("userId", "isPublic", "deletedAt");
    CREATE INDEX ON source."Project" ("updatedAt" DESC) WHERE "deletedAt" IS NULL;
    ANALYZE;
"""
SEARCH = """
    SELECT p.id, p.title, msg.value AS message
    FROM source."Project" AS p, jsonb_array_elements(p.messages) AS msg
    WHERE p."userId" = %s
      AND msg.value ->> 'content' ILIKE %s
      AND p."deletedAt" IS NULL
    ORDER BY p."updatedAt" DESC
    LIMIT 20
"""
DATA = """
    INSERT INTO tenancy.organizations (name)
    SELECT 'Organisation ' || n
    FROM generate_series(1, %(users)s) AS n;
    ALTER TABLE projects.projects DISABLE TRIGGER USER;
    INSERT INTO projects.projects (organization_id, kind, title, slug, message_count, updated_at)
    SELECT o.id, 'web', 'Project ' || n, 'project-' || n, %(messages)s,
           now() - interval '1 second' * (n * %(users)s + o.number)
    FROM (SELECT id, row_number() OVER () AS number FROM tenancy.organizations) AS o
    CROSS JOIN generate_series(1, %(projects)s) AS n;
    ALTER TABLE projects.projects ENABLE TRIGGER USER;
    DROP INDEX projects.messages_trigrams;
    CREATE TEMPORARY TABLE sentences AS
    SELECT n, (
        SELECT string_agg(substr(md5((n * 31 + w)::text), 1, 3 + (n + w) %% 7), ' ')
        FROM generate_series(1, 9) AS w) AS words
    FROM generate_series(0, 4999) AS n;
    CREATE INDEX ON sentences (n);
    ANALYZE sentences;
    INSERT INTO projects.messages (organization_id, project_id, sequence, role, content)
    SELECT p.organization_id, p.id, s.sequence, 'user',
           a.words || ' ' || b.words
           || CASE WHEN s.luck < 0.3 THEN ' Button ' ELSE ' ' END
           || CASE WHEN s.luck BETWEEN 0.5 AND 0.505 THEN 'Marigold ' ELSE '' END
           || CASE WHEN s.luck BETWEEN 0.7 AND 0.7005 THEN 'Zebrafish ' ELSE '' END
           || c.words
    FROM projects.projects AS p
    CROSS JOIN LATERAL (
        SELECT g AS sequence, random() AS luck, floor(random() * 5000)::int AS one,
               floor(random() * 5000)::int AS two, floor(random() * 5000)::int AS three
        FROM generate_series(1, %(messages)s) AS g WHERE p.id IS NOT NULL
    ) AS s
    JOIN sentences AS a ON a.n = s.one
    JOIN sentences AS b ON b.n = s.two
    JOIN sentences AS c ON c.n = s.three;
    CREATE INDEX messages_trigrams
        ON projects.messages USING gin (organization_id, lower(content) gin_trgm_ops) WITH (fastupdate = off);
"""


STATS = """
    SELECT count(*) AS total_projects,
           count(CASE WHEN "isPublic" = true THEN 1 END) AS public_projects,
           count(CASE WHEN "deletedAt" IS NULL THEN 1 END) AS active_projects,
           avg(CASE WHEN "deletedAt" IS NULL THEN jsonb_array_length(messages) END) AS avg_messages,
           max("updatedAt") AS last_activity
    FROM source."Project"
    WHERE "userId" = %s
"""
ACTIVITY = """
    SELECT 'project' AS type, title AS name, "createdAt" AS timestamp, id
    FROM source."Project"
    WHERE "userId" = %s AND "deletedAt" IS NULL
    ORDER BY timestamp DESC
    LIMIT 10
"""


def main() -> None:
    sys.path.append(str(ROOT / "functions" / "projects"))
    os.environ["DATABASE_PREPARE_THRESHOLD"] = "5"  # as the template has it
    search()
    overview()


def overview() -> None:
    """One user with 10,000 projects: what they come to, and the latest of them."""
    with scratch.server() as server:
        database = server.migrated()
        fill(database, 1, 10_000, 4)
        with database.connect() as peer, database.as_role("backplane_app"):
            [one] = [row["id"] for row in peer.execute("SELECT id FROM tenancy.organizations").fetchall()]
            rows = [
                compared("statistics", partial(ask_stats, one), partial(ask_peer, peer, STATS, one)),
                compared("activity", partial(ask_activity, one), partial(ask_peer, peer, ACTIVITY, one)),
            ]
    results.write(
        "Statistics and activity",
        "One user with 10,000 projects of 4 messages; median / 99th percentile in ms.",
        ["what", "source's query", "ours", "times as fast", "same numbers"],
        rows,
        notes="Ours in a transaction of the application's role, bound to its organisation.",
    )


def compared(what: str, ours: Callable[[], list[Any]], theirs: Callable[[], list[Any]]) -> list[str]:
    same = True
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(100):
        expected, seconds = timed(theirs)
        taken[0].append(seconds)
        answer, seconds = timed(ours)
        taken[1].append(seconds)
        same = same and answer == expected
    ratio = sorted(taken[0])[50] / sorted(taken[1])[50]
    return [
        what,
        results.milliseconds(taken[0]),
        results.milliseconds(taken[1]),
        f"{ratio:.1f}",
        "yes" if same else "no",
    ]


def ask_stats(organization_id: UUID) -> list[Any]:
    import project_activity

    found = db.run(
        lambda tx: project_activity.stats(tx, organization_id, "30d"), organization_id=organization_id
    )
    return [found.total, found.public, found.active, found.avg_messages, found.last_activity]


def ask_activity(organization_id: UUID) -> list[Any]:
    import project_activity

    found = db.run(
        lambda tx: project_activity.activity(tx, organization_id, before=None, limit=10),
        organization_id=organization_id,
    )
    return [value for item in found for value in (item.type, item.name, item.timestamp, str(item.id))]


def ask_peer(peer: psycopg.Connection[DictRow], query: str, organization_id: UUID) -> list[Any]:
    rows = peer.execute(query.encode(), [str(organization_id)], prepare=True).fetchall()
    return [value for row in rows for value in row.values()]


def search() -> None:
    rows: list[list[str]] = []
    with scratch.server() as server:
        for users, projects in SCALES:
            database = server.migrated()
            print(f"{users} users with {projects:,} projects …", flush=True)
            fill(database, users, projects, MESSAGES)
            with database.connect() as peer, database.as_role("backplane_app"):
                organizations = [
                    row["id"] for row in peer.execute("SELECT id FROM tenancy.organizations").fetchall()
                ]
                rows += [measure(peer, organizations, projects, kind) for kind in WORDS]
    results.write(
        "Message search",
        f"200,000 messages, {MESSAGES} a project; one client; median / 99th percentile in ms.",
        ["projects of the user", "word", "source's query", "search", "times as fast", "same rows"],
        rows,
        notes="The search is measured through `message_search.search`, as the application's role; the "
        "source's query as a prepared statement of a superuser, without row-level security. Goals: absent "
        "and rare at least 10 times as fast, common not slower, flat from the first scale to the second.",
    )


def fill(database: Database, users: int, projects: int, messages: int) -> None:
    sizes = {"users": users, "projects": projects, "messages": messages}
    with database.connect() as owner:
        owner.execute("SET maintenance_work_mem = '512MB'")
        text = DATA
        for name, value in sizes.items():
            text = text.replace(f"%({name})s", str(value))
        owner.execute(text.replace("%%", "%").encode())
        owner.execute(SOURCE)
        owner.execute("VACUUM ANALYZE")


def measure(
    peer: psycopg.Connection[DictRow], organizations: list[UUID], projects: int, kind: str
) -> list[str]:
    theirs: list[float] = []
    ours: list[float] = []
    same = 0
    asked = organizations * (ASKED // len(organizations))
    for organization_id in organizations[:10] + asked:  # the first ten warm both up
        expected, seconds = timed(partial(ask_source, peer, organization_id, WORDS[kind]))
        theirs.append(seconds)
        answer, seconds = timed(partial(ask, organization_id, WORDS[kind]))
        ours.append(seconds)
        same += answer == expected
    warm = len(organizations[:10])
    theirs, ours = theirs[warm:], ours[warm:]
    ratio = sorted(theirs)[len(asked) // 2] / sorted(ours)[len(asked) // 2]
    return [
        f"{projects:,}",
        kind,
        results.milliseconds(theirs),
        results.milliseconds(ours),
        f"{ratio:.1f}",
        f"{same} of {warm + len(asked)}",
    ]


def timed(work: Callable[[], list[Any]]) -> tuple[list[Any], float]:
    began = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - began


def ask(organization_id: UUID, word: str) -> list[tuple[str, str]]:
    import message_search

    found = message_search.search(organization_id, word, after=None, limit=20)
    return [(str(item.project.id), str(item.message.id)) for item in found]


def ask_source(peer: psycopg.Connection[DictRow], organization_id: UUID, word: str) -> list[tuple[str, str]]:
    rows = peer.execute(SEARCH, [str(organization_id), db.containing(word)], prepare=True).fetchall()
    return [(row["id"], row["message"]["id"]) for row in rows]
