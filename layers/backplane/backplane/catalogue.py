"""What the catalogue says of a database, put so that a database and its restored copy say the same.

Names instead of object ids, defaults spelt out, lists sorted. Each query has a row an object, `name` and
`value`; what the system or an extension owns is left out.
"""

from typing import Final

# What belongs to the database's user, and not to an extension or the system.
_OURS: Final = """
    {0}.relnamespace IN (SELECT oid FROM ours)
    AND NOT EXISTS (
        SELECT FROM pg_depend
        WHERE classid = 'pg_class'::regclass AND objid = {0}.oid AND deptype = 'e'
    )
"""
_SCHEMAS: Final = """
    WITH ours AS (
        SELECT oid
        FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    )
"""

TABLES: Final = f"""
    {_SCHEMAS}
    SELECT format('%s.%s', n.nspname, c.relname) AS name, n.nspname AS schema, c.relname AS table,
           c.relkind = 'p' AS partitioned,
           ARRAY(
               SELECT format('%s.%s', ln.nspname, leaf.relname)
               FROM pg_partition_tree(c.oid) AS part
               JOIN pg_class AS leaf ON leaf.oid = part.relid
               JOIN pg_namespace AS ln ON ln.oid = leaf.relnamespace
               WHERE part.isleaf AND c.relkind = 'p'
           ) AS leaves
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_OURS.format("c")}
    ORDER BY 1
"""

SEQUENCES: Final = f"""
    {_SCHEMAS}
    SELECT format('%s.%s', n.nspname, c.relname) AS name, pg_sequence_last_value(c.oid) AS value
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND {_OURS.format("c")}
    ORDER BY 1
"""

# The server's own counting is no part of what the database holds, and not everybody who restores may
# make it: a dump leaves it out, and the migrations make it anew where they may.
COUNTING: Final = "pg_stat_statements"
EXTENSIONS: Final = f"""
    SELECT extname AS name, extversion AS value FROM pg_extension WHERE extname <> '{COUNTING}' ORDER BY 1
"""

ROW_SECURITY: Final = f"""
    {_SCHEMAS}
    SELECT format('%s.%s', n.nspname, c.relname) AS name,
           concat_ws(
               '; ',
               CASE WHEN c.relrowsecurity THEN 'enabled' ELSE 'disabled' END,
               CASE WHEN c.relforcerowsecurity THEN 'forced' END,
               (
                   SELECT string_agg(
                       format(
                           '%s %s %s TO %s USING %s CHECK %s',
                           p.polname,
                           CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END,
                           p.polcmd,
                           (
                               SELECT string_agg(name, ',' ORDER BY name)
                               FROM (
                                   SELECT CASE role WHEN 0 THEN 'public' ELSE role::regrole::text END AS name
                                   FROM unnest(p.polroles) AS role
                               ) AS roles
                           ),
                           pg_get_expr(p.polqual, p.polrelid),
                           pg_get_expr(p.polwithcheck, p.polrelid)
                       ),
                       '; ' ORDER BY p.polname
                   )
                   FROM pg_policy AS p
                   WHERE p.polrelid = c.oid
               )
           ) AS value
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_OURS.format("c")}
    ORDER BY 1
"""

# An access list that says no more than the default is not restored as such: hence acldefault.
_GRANTS: Final = """
    (
        SELECT string_agg(
            format(
                '%s=%s%s',
                CASE WHEN a.grantee = 0 THEN 'public' ELSE a.grantee::regrole::text END,
                a.privilege_type,
                CASE WHEN a.is_grantable THEN '*' ELSE '' END
            ),
            ','
            ORDER BY CASE a.grantee WHEN 0 THEN 'public' ELSE a.grantee::regrole::text END, a.privilege_type
        )
        FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))) AS a
    )
"""


def _grants(acl: str, kind: str, owner: str) -> str:
    return f"concat_ws('; ', {owner}::regrole::text, {_GRANTS.format(acl=acl, kind=kind, owner=owner)})"


PRIVILEGES: Final = f"""
    {_SCHEMAS}
    SELECT format('%s.%s', n.nspname, c.relname) AS name,
           CASE WHEN c.relkind = 'S' THEN {_grants("c.relacl", "s", "c.relowner")}
                ELSE {_grants("c.relacl", "r", "c.relowner")}
           END AS value
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' AND {_OURS.format("c")}
    UNION ALL
    SELECT format('%s.%s.%s', n.nspname, c.relname, t.attname), t.attacl::text
    FROM pg_attribute AS t
    JOIN pg_class AS c ON c.oid = t.attrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE t.attacl IS NOT NULL AND {_OURS.format("c")}
    UNION ALL
    SELECT format('schema %s', n.nspname), {_grants("n.nspacl", "n", "n.nspowner")}
    FROM pg_namespace AS n
    WHERE n.oid IN (SELECT oid FROM ours)
    UNION ALL
    SELECT format('%s.%s(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
           {_grants("p.proacl", "f", "p.proowner")}
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.oid IN (SELECT oid FROM ours)
      AND NOT EXISTS (
          SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e'
      )
    ORDER BY 1
"""

DEFINITIONS: Final = f"""
    {_SCHEMAS}
    SELECT format('table %s.%s', n.nspname, c.relname) AS name,
           (
               SELECT string_agg(
                   concat_ws(
                       ' ', t.attname, format_type(t.atttypid, t.atttypmod),
                       CASE WHEN t.attnotnull THEN 'not null' END,
                       nullif(t.attidentity::text, ''), nullif(t.attgenerated::text, ''),
                       (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d
                        WHERE (d.adrelid, d.adnum) = (t.attrelid, t.attnum))
                   ),
                   ', ' ORDER BY t.attname
               )
               FROM pg_attribute AS t
               WHERE t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped
           ) AS value
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_OURS.format("c")}
    UNION ALL
    SELECT format('view %s.%s', n.nspname, c.relname), concat(c.reloptions::text, pg_get_viewdef(c.oid))
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('v', 'm') AND {_OURS.format("c")}
    UNION ALL
    SELECT format('index %s.%s', n.nspname, c.relname), concat(pg_get_indexdef(c.oid), i.indisvalid)
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE {_OURS.format("c")}
    UNION ALL
    SELECT format('constraint %s on %s.%s', o.conname, n.nspname, c.relname),
           concat(pg_get_constraintdef(o.oid), o.convalidated)
    FROM pg_constraint AS o
    JOIN pg_class AS c ON c.oid = o.conrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE {_OURS.format("c")}
    UNION ALL
    SELECT format('trigger %s on %s.%s', g.tgname, n.nspname, c.relname),
           concat(pg_get_triggerdef(g.oid), g.tgenabled)
    FROM pg_trigger AS g
    JOIN pg_class AS c ON c.oid = g.tgrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE NOT g.tgisinternal AND {_OURS.format("c")}
    UNION ALL
    SELECT format('function %s.%s(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
           pg_get_functiondef(p.oid)
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE p.prokind IN ('f', 'p') AND n.oid IN (SELECT oid FROM ours)
      AND NOT EXISTS (
          SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e'
      )
    UNION ALL
    SELECT format('enum %s.%s', n.nspname, t.typname),
           (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)
    FROM pg_type AS t
    JOIN pg_namespace AS n ON n.oid = t.typnamespace
    WHERE t.typtype = 'e' AND n.oid IN (SELECT oid FROM ours)
    ORDER BY 1
"""
