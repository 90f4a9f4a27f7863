"""Ids: UUIDs of version 7, in order of time."""

import re
import time
from itertools import pairwise
from uuid import UUID

import runner
from tests.databases import Database


def milliseconds(identifier: UUID) -> int:
    return identifier.int >> 80


def test_ids_ascend_within_a_session_where_the_server_makes_them(system_db: Database) -> None:
    """PostgreSQL 18's own: a look-up by an ambiguous name once took the stand-in for them."""
    with system_db.connect() as connection:
        ids = [
            row["id"]
            for _ in range(50)
            for row in connection.execute("SELECT platform.new_id() AS id FROM generate_series(1, 20)")
        ]
    assert all(before < after for before, after in pairwise(ids))


def test_the_stand_in_for_older_servers_makes_ids_of_the_same_form(system_db: Database) -> None:
    text = (runner.FOLDER / "0001_foundation.sql").read_text()
    (body,) = re.findall(r"AS \$fn\$(.*?)\$fn\$", text, re.DOTALL)
    before = int(time.time() * 1000)
    with system_db.connect() as connection:
        query = f"{body} AS id FROM generate_series(1, 1000)"
        ids = [row["id"] for row in connection.execute(query.encode())]
    after = int(time.time() * 1000)
    assert {identifier.version for identifier in ids} == {7}
    assert {identifier.variant for identifier in ids} == {ids[0].variant} == {"specified in RFC 4122"}
    assert all(before - 1 <= milliseconds(identifier) <= after + 1 for identifier in ids)
    assert len(set(ids)) == 1000
