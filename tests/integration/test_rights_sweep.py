"""Every table and verb, for every role, by whose row it is and whom the session says it works for.

What is expected stands in two small tables, EXPECTED and CALLS. The catalogue is the list of what is tried,
so that a table or a function that a migration adds is tried too, or has to be said here what it is.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import DictRow
from tests.databases import ROLES, Database
from tests.rows import ONE, OTHER, populate
from tests.sweeps import PUBLIC, Connection, found, name

Seen = Literal["own", "all", "none", "error"]

SELECT, INSERT, UPDATE, DELETE = "SELECT", "INSERT", "UPDATE", "DELETE"
VERBS = (SELECT, INSERT, UPDATE, DELETE)
# What a session has in app.organization_id. After a transaction that set it, it is empty and not unset.
SESSIONS = {"ada": str(ONE.organization), "nobody": None, "empty": "", "garbage": "x' OR true --"}

# Whose rows each verb reaches, of a table of tenants' rows; `error`: the statement is refused. Tried with
# every right granted and no trigger or foreign key in the way, so that the policies alone decide.
EXPECTED: dict[str, dict[str, dict[str, Seen]]] = {
    "backplane_app": {
        "ada": dict.fromkeys(VERBS, "own"),
        "nobody": dict.fromkeys(VERBS, "none"),
        "empty": dict.fromkeys(VERBS, "none"),
        "garbage": dict.fromkeys(VERBS, "error"),
    },
    "backplane_system": {session: dict.fromkeys(VERBS, "all") for session in SESSIONS},
    "backplane_backup": {
        session: {SELECT: "all", INSERT: "none", UPDATE: "none", DELETE: "none"} for session in SESSIONS
    },
    "backplane_migrator": {session: dict.fromkeys(VERBS, "all") for session in SESSIONS},
}
# Tables that have an organisation's rows, and none of them for the application: jobs alone come near.
HIDDEN = {
    "identity.settings",  # a person's own, whatever the organisation
    "billing.disputes",
    "billing.payment_refunds",
    "billing.payments",
    "billing.stripe_reconciliations",
    "credits.sign_up_claims",
    "platform.backups",
    "platform.erasures",
    "platform.partitioned_tables",
    "platform.webhook_inbox",
    "storage.unknown_objects",
}


@pytest.fixture
def owner(database: Database) -> Iterator[Connection]:
    """To a database of two organisations in which policies alone hold anybody back."""
    with database.connect() as connection:
        populate(connection)
        yield connection


@pytest.fixture
def opened(owner: Connection) -> Connection:
    for table in found(owner, "SELECT name FROM tables"):
        owner.execute(
            sql.SQL("GRANT ALL ON {} TO backplane_app, backplane_system, backplane_backup").format(
                name(table)
            )
        )
        owner.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(name(table)))
    for schema in found(owner, "SELECT nspname FROM ours"):
        owner.execute(
            sql.SQL("GRANT USAGE ON SCHEMA {} TO backplane_app, backplane_system, backplane_backup").format(
                name(schema)
            )
        )
    for constraint in found(
        owner,
        """
        SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname)
        FROM pg_constraint AS k
        JOIN wholes AS t ON t.oid = k.conrelid
        WHERE k.contype = 'f' AND k.conparentid = 0
        """,
    ):
        owner.execute(constraint.encode())
    return owner


# ---- every table and verb ----


@pytest.mark.parametrize("role", EXPECTED)
def test_each_role_reaches_the_rows_that_are_expected_by_every_verb(
    opened: Connection, database: Database, role: str
) -> None:
    tables = tenant_columns(opened)
    expected = expectations(opened, role)
    copies = {table: by_owner(opened, table, column) for table, column in tables.items()}
    wrong = []
    for session, organization in SESSIONS.items():
        with connected(database, role) as connection, connection.transaction(force_rollback=True):
            if organization is not None:
                connection.execute("SELECT set_config('app.organization_id', %s, true)", [organization])
            for table, column in tables.items():
                for verb in VERBS:
                    seen = reached(connection, table, column, verb, copies[table])
                    if seen != expected[table][session][verb]:
                        wrong.append(f"{verb} on {table} in the session of {session} reaches {seen}")
    assert wrong == []


def expectations(owner: Connection, role: str) -> dict[str, dict[str, dict[str, Seen]]]:
    """By table, session and verb."""
    tenants = set(found(owner, "SELECT table_name FROM policies WHERE policyname = 'app_tenant'"))
    wholes = set(found(owner, "SELECT name FROM wholes"))  # partitions are reached through their table
    expected = {}
    for table in tenant_columns(owner):
        if role != "backplane_app" or table in tenants:
            expected[table] = EXPECTED[role]
            continue
        assert table in PUBLIC | HIDDEN or table not in wholes, (
            f"{table} has no policy for the application. Let its migration CALL platform.protect('{table}', "
            f"'organization_id'); or put it into HIDDEN here, or into PUBLIC in tests/sweeps.py."
        )
        reads: Seen = "all" if table in PUBLIC else "none"
        expected[table] = {
            session: {SELECT: reads, INSERT: "none", UPDATE: "none", DELETE: "none"} for session in SESSIONS
        }
    return expected


def tenant_columns(owner: Connection) -> dict[str, str | None]:
    """Every table, with the column that says whose its rows are; None: nobody's. (A person is seen by himself
    and by his organisation: test_row_level_security.py has that one.)
    """
    tables = found(owner, "SELECT name FROM tables WHERE name <> 'identity.users' ORDER BY name")
    owned = found(
        owner,
        """
        SELECT t.name
        FROM tables AS t
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = 'organization_id' AND NOT a.attisdropped
        """,
    )
    columns = dict.fromkeys(owned, "organization_id") | {"tenancy.organizations": "id"}
    return {table: columns.get(table) for table in tables}


def by_owner(owner: Connection, table: str, column: str | None) -> dict[str, str]:
    """A row of each organisation as JSON; of a table that is nobody's, one."""
    query = sql.SQL("SELECT {}::text AS whose, to_jsonb(t)::text AS row FROM {} AS t").format(
        sql.Identifier(column) if column else sql.Literal("all"), name(table)
    )
    whose = {str(ONE.organization): "own", str(OTHER.organization): "theirs"}
    return {whose.get(row["whose"], "all"): row["row"] for row in owner.execute(query).fetchall()}


def connected(database: Database, role: str) -> Connection:
    connection = database.connect("owner" if role == "backplane_migrator" else role)
    if role == "backplane_migrator":
        connection.execute("SET ROLE backplane_migrator")
    return connection


def reached(
    connection: Connection, table: str, column: str | None, verb: str, copies: dict[str, str]
) -> Seen:
    """Whose rows a verb reaches, tried on one row of each organisation and undone."""
    reaches = set()
    for whose, copy in copies.items():
        try:
            with connection.transaction(force_rollback=True):
                if connection.execute(statement(table, column, verb, whose, copy)).rowcount:
                    reaches.add(whose)
        except psycopg.errors.InvalidTextRepresentation:
            return "error"
        except psycopg.errors.InsufficientPrivilege as refused:
            if "row-level security" not in str(refused):
                raise
        except psycopg.errors.IntegrityError:
            reaches.add(whose)  # the policy let it pass: it is checked before any constraint
    if not reaches:
        return "none"
    return "own" if reaches == {"own"} else "all" if reaches == set(copies) else "error"


def statement(table: str, column: str | None, verb: str, whose: str, copy: str) -> sql.Composed:
    names = sorted(json.loads(copy))
    is_theirs = (
        sql.SQL("{} = {}").format(
            sql.Identifier(column), sql.Literal((ONE if whose == "own" else OTHER).organization)
        )
        if column and whose != "all"
        else sql.SQL("true")
    )
    parts = {
        "table": name(table),
        "where": is_theirs,
        "column": sql.Identifier(column or names[0]),
        "columns": sql.SQL(", ").join(map(sql.Identifier, names)),
        "copy": sql.Literal(copy),
    }
    statements = {
        SELECT: "SELECT {column} FROM {table} WHERE {where}",
        INSERT: "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE "
        "SELECT {columns} FROM jsonb_populate_record(NULL::{table}, {copy})",
        UPDATE: "UPDATE {table} SET {column} = {column} WHERE {where}",
        DELETE: "DELETE FROM {table} WHERE {where}",
    }
    return sql.SQL(statements[verb]).format(**parts)


def test_nobody_truncates_whatever_the_session_says(owner: Connection, database: Database) -> None:
    for role in ROLES:
        with connected(database, role) as connection:
            for table in found(owner, "SELECT name FROM tables"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(name(table)))


def test_views_show_the_application_nothing_of_others(owner: Connection, database: Database) -> None:
    views = found(
        owner,
        """
        SELECT r.name
        FROM relations AS r
        JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attname = 'organization_id'
        WHERE r.relkind IN ('v', 'm') AND has_table_privilege('backplane_app', r.oid, 'SELECT')
        """,
    )
    assert "projects.conversations" in views
    with connected(database, "backplane_app") as app, app.transaction():
        app.execute("SELECT set_config('app.organization_id', %s, true)", [str(ONE.organization)])
        for view in views:
            rows = app.execute(sql.SQL("SELECT organization_id FROM {}").format(name(view))).fetchall()
            assert {row["organization_id"] for row in rows} <= {ONE.organization}, view


# ---- functions that see every row ----

IDS = {
    "mine": ONE.organization,
    "my_user": ONE.user,
    "theirs": OTHER.organization,
    "their_user": OTHER.user,
    "their_project": OTHER.project,
}
# A security-definer function of the application's sees every row, and has to keep to the organisation that
# it is given. Called for one's own organisation with the other's ids: what it must answer, `refused` for an
# error of rights, None for no row. A new function belongs here, or in BY_ITS_NATURE with the reason.
CALLS: dict[str, tuple[str, Any]] = {
    "billing.correct_count": (
        "SELECT billing.correct_count(%(theirs)s, '{app.projects}', 1, NULL)",
        "refused",
    ),
    "billing.take": (
        "SELECT billing.take(%(theirs)s, (SELECT id FROM billing.plans LIMIT 1), '{app.projects}', 1)",
        "refused",
    ),
    "credits.set_low_balance_threshold": (
        "SELECT credits.set_low_balance_threshold(%(theirs)s, 1)",
        "refused",
    ),
    "tenancy.close_organization": ("SELECT tenancy.close_organization(%(theirs)s)", "refused"),
    "tenancy.accept_invitation": (
        "SELECT outcome FROM tenancy.accept_invitation(sha256('x'), %(my_user)s, %(theirs)s, %(mine)s)",
        "refused",
    ),
    "tenancy.change_timezone": ("SELECT tenancy.change_timezone(%(theirs)s, 'UTC')", "refused"),
    "credits.refund": (
        "SELECT outcome FROM credits.refund(%(mine)s, %(their_debit)s, 'k', sha256('r'), 1, 'why', 'user:1')",
        "unknown_debit",
    ),
    "credits.settle": (
        "SELECT outcome FROM credits.settle(%(mine)s, %(their_hold)s, 'k', sha256('r'), 0, 0, 'user:1')",
        "unknown_hold",
    ),
    "credits.release": (
        "SELECT outcome FROM credits.release(%(mine)s, %(their_hold)s, 'k', sha256('r'), 'user:1')",
        "unknown_hold",
    ),
    "platform.claim_key": (
        "SELECT outcome FROM platform.claim_key(%(mine)s, 'POST /x', 'their key', sha256(''), %(mine)s, 1)",
        "claimed",
    ),
    "platform.remember_answer": (
        "SELECT platform.remember_answer(%(mine)s, 'POST /x', 'their key', %(their_claim)s, 200, '')",
        False,
    ),
    "platform.release_key": (
        "SELECT platform.release_key(%(mine)s, 'POST /x', 'their key', %(their_claim)s)",
        False,
    ),
    "projects.find_access": (
        "SELECT standing FROM projects.find_access(%(their_project)s, %(mine)s, %(my_user)s)",
        None,
    ),
    "projects.search_messages": (
        "SELECT content FROM projects.search_messages(%(mine)s, '%%theirs alone%%', 20)",
        None,
    ),
}
BY_ITS_NATURE = {
    "tenancy.create_organization": "makes one, for the user who calls",
    "tenancy.find_invitation": "whoever has the token is invited",
    "tenancy.find_membership": "what the user who calls is in an organisation, for deciding what he may",
    "tenancy.organizations_of": "those that the user who calls is in",
    "tenancy.personal_organization": "the one of the user who calls",
    "credits.adjust": "takes no id but the organisation's, and that is the authenticated caller's",
    "credits.audit": "as adjust",
    "credits.book_due": "as adjust",
    "credits.debit": "as adjust",
    "credits.hold": "as adjust",
    "credits.costs": "the price list, which is everybody's",
    "identity.provision_user": "makes who calls, before there is an organisation",
    "identity.resolve_caller": "finds who calls, by what the verified token says",
    "platform.find_api_key": "finds who calls, by a prefix; the secret is compared after it",
    "platform.count_key_uses": "by the key's id, after its secret was verified",
    "projects.accept_share": "whoever has the token is invited",
    "tenancy.find_organization": "whether there is such an organisation, for service keys and admins",
    "tenancy.provision_organization": "makes the organisation of a verified token",
}


def test_every_function_that_sees_all_rows_is_judged(owner: Connection) -> None:
    granted = found(
        owner,
        """
        SELECT DISTINCT split_part(name, '(', 1)
        FROM functions
        WHERE prosecdef AND has_function_privilege('backplane_app', oid, 'EXECUTE')
        """,
    )
    judged = CALLS.keys() | BY_ITS_NATURE.keys()
    assert set(granted) - judged == set(), (
        "Call it in CALLS for one's own organisation with another's ids, and say what it must answer; or say "
        "in BY_ITS_NATURE why it takes no organisation"
    )
    assert judged - set(granted) == set(), "there is no such function any more"


@pytest.mark.parametrize("function", CALLS)
def test_a_function_that_sees_all_rows_does_not_cross_from_one_organisation_to_another(
    owner: Connection, database: Database, function: str
) -> None:
    query, expected = CALLS[function]
    ids = dict(IDS)
    for key, look in {
        "their_debit": "SELECT id FROM credits.entries WHERE organization_id = %s",
        "their_hold": "SELECT id FROM credits.holds WHERE organization_id = %s",
    }.items():
        row = owner.execute(look.encode(), [OTHER.organization]).fetchone()
        assert row is not None
        ids[key] = row["id"]
    ids["their_claim"] = OTHER.user
    owner.execute(
        """
        UPDATE projects.messages SET content = 'theirs alone' WHERE organization_id = %(theirs)s;
        UPDATE platform.idempotency_keys
        SET route = 'POST /x', key = 'their key', claimed_until = 'infinity', expires_at = 'infinity'
        WHERE organization_id = %(theirs)s
        """.replace("%(theirs)s", f"'{OTHER.organization}'").encode()
    )
    before = everything_of(owner)
    with connected(database, "backplane_app") as app, app.transaction():
        app.execute("SELECT set_config('app.organization_id', %s, true)", [str(ONE.organization)])
        try:
            row = app.execute(query.encode(), ids).fetchone()
            answer = None if row is None else next(iter(row.values()))
        except psycopg.errors.InsufficientPrivilege:
            answer = "refused"
    assert answer == expected
    assert everything_of(owner) == before


def everything_of(owner: Connection) -> dict[str, list[DictRow]]:
    """The other organisation's rows."""
    return {
        table: owner.execute(
            sql.SQL("SELECT to_jsonb(t) AS row FROM {} AS t WHERE {} = {}").format(
                name(table), sql.Identifier(column), sql.Literal(OTHER.organization)
            )
        ).fetchall()
        for table, column in tenant_columns(owner).items()
        if column
    }


# ---- what comes later ----


def test_what_a_migration_makes_is_nobodys_until_it_is_granted(owner: Connection) -> None:
    owner.execute(
        """
        SET ROLE backplane_migrator;
        CREATE TABLE platform.things (id bigint GENERATED ALWAYS AS IDENTITY);
        CREATE VIEW platform.views WITH (security_invoker = true) AS SELECT id FROM platform.things;
        CREATE FUNCTION platform.runs() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
        CREATE SEQUENCE platform.counts;
        RESET ROLE;
        """
    )
    rights = found(
        owner,
        """
        SELECT role || ' ' || right_
        FROM unnest(%(roles)s::text[]) AS role
        CROSS JOIN LATERAL (VALUES
            ('table', has_table_privilege(role, 'platform.things', 'SELECT, INSERT, UPDATE, DELETE')),
            ('view', has_table_privilege(role, 'platform.views', 'SELECT')),
            ('function', has_function_privilege(role, 'platform.runs()', 'EXECUTE')),
            ('sequence', has_sequence_privilege(role, 'platform.counts', 'USAGE, SELECT, UPDATE'))
        ) AS has (right_, granted)
        WHERE granted
        """,
        {"roles": list(ROLES)},
    )
    assert rights == []


def test_nobody_but_the_migrator_makes_objects_and_no_sequence_is_anybodys(owner: Connection) -> None:
    makers = found(
        owner,
        """
        SELECT role || ' in ' || nspname
        FROM unnest(%(roles)s::text[]) AS role
        CROSS JOIN pg_namespace
        WHERE nspname !~ '^pg_temp|^pg_toast_temp' AND has_schema_privilege(role, pg_namespace.oid, 'CREATE')
        """,
        {"roles": list(ROLES)},
    )
    assert makers == []
    sequences = found(
        owner,
        """
        SELECT role || ' ' || name
        FROM relations
        CROSS JOIN unnest(%(roles)s::text[]) AS role
        WHERE relkind = 'S' AND has_sequence_privilege(role, oid, 'UPDATE')
        """,
        {"roles": list(ROLES)},
    )
    assert sequences == [], "nextval takes USAGE; setval, which UPDATE is for, would give out numbers twice"
