"""Whether the backup's role sees every row there is.

Row-level security hides rows without a word: pg_dump would write an empty table and exit with 0. So the
first step of a backup goes through the catalogue and refuses what this role can't read whole.
"""

from typing import Final

import psycopg
from psycopg.rows import DictRow

MOST_TOLD: Final = 20

_HIDDEN: Final = """
    WITH objects AS (
        SELECT c.oid, c.relkind, c.relrowsecurity, n.oid AS schema,
               format('%s.%s', n.nspname, c.relname) AS name
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't'
          AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND NOT EXISTS (
              SELECT FROM pg_depend
              WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'
          )
    ),
    policies AS (
        SELECT polrelid, polpermissive, pg_get_expr(polqual, polrelid) = 'true' AS shows_all
        FROM pg_policy
        WHERE polcmd IN ('r', '*')
          AND (
              0 = ANY (polroles)
              OR EXISTS (SELECT FROM unnest(polroles) AS role WHERE pg_has_role(current_user, role, 'USAGE'))
          )
    )
    SELECT o.name,
           CASE
               WHEN NOT has_schema_privilege(o.schema, 'USAGE') THEN 'no USAGE on its schema'
               WHEN o.relkind = 'S' AND NOT has_sequence_privilege(o.oid, 'SELECT') THEN 'no SELECT'
               WHEN o.relkind <> 'S' AND NOT has_table_privilege(o.oid, 'SELECT') THEN 'no SELECT'
               WHEN o.relkind <> 'S' AND NOT o.relrowsecurity THEN 'no row-level security'
               WHEN EXISTS (
                   SELECT
                   FROM policies AS p
                   WHERE p.polrelid = o.oid AND NOT p.polpermissive AND NOT p.shows_all
               ) THEN 'a restrictive policy'
               WHEN o.relkind <> 'S' AND NOT EXISTS (
                   SELECT FROM policies AS p WHERE p.polrelid = o.oid AND p.polpermissive AND p.shows_all
               ) THEN 'no policy USING (true)'
           END AS why
    FROM objects AS o
    ORDER BY o.name
"""
# The runner's own table stands before any migration that could protect it, and holds nobody's data.
_UNPROTECTED: Final = frozenset({"public.schema_migrations"})


class HiddenError(RuntimeError):
    """The role does not see everything, so that a backup by it would lack rows."""


def check(connection: psycopg.Connection[DictRow]) -> None:
    """Raises HiddenError with what is hidden from the connection's role, and the way out."""
    rows = connection.execute(_HIDDEN.encode()).fetchall()
    hidden = [
        f"{row['name']} ({row['why']})"
        for row in rows
        if row["why"] and not (row["name"] in _UNPROTECTED and row["why"] == "no row-level security")
    ]
    if hidden:
        more = f" and {len(hidden) - MOST_TOLD} more" if len(hidden) > MOST_TOLD else ""
        raise HiddenError(
            f"{connection.info.user} can't read all of {', '.join(hidden[:MOST_TOLD])}{more}: a backup would "
            f"lack rows. Put CALL platform.protect('schema.table', …) into the migration that made it, "
            f"or GRANT SELECT for a sequence."
        )
