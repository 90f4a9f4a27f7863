"""The catalogue, swept: whatever a migration adds, tenants stay apart and nobody has more than his part."""

from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import DictRow
from tests.databases import ROLES, Database
from tests.rows import INSERTS, ONE, OTHER, SEEDED, populate
from tests.sweeps import PUBLIC, Connection, found, name

from backplane import db

TENANT = "( SELECT (NULLIF(current_setting('app.organization_id'::text, true), ''::text))::uuid AS"


@pytest.fixture
def owner(database: Database) -> Iterator[Connection]:
    with database.connect() as connection:
        yield connection


@pytest.fixture
def tenants(owner: Connection) -> Connection:
    """The owner's connection to a database in which two organisations have a row in every table."""
    populate(owner)
    return owner


@pytest.fixture
def opened(tenants: Connection) -> Connection:
    """The same with every right granted to backplane_app and no trigger: policies alone hold it back.

    So every verb is tried on every table, also where a right is granted only later.
    """
    for table in found(tenants, "SELECT name FROM tables"):
        tenants.execute(sql.SQL("GRANT ALL ON {} TO backplane_app").format(name(table)))
        tenants.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(name(table)))
    for schema in found(tenants, "SELECT nspname FROM ours"):
        tenants.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO backplane_app").format(name(schema)))
    return tenants


# ---- what every table must have ----


def test_row_level_security_is_on_and_forced_for_every_table(owner: Connection) -> None:
    assert found(owner, "SELECT count(*) FROM tables")[0] >= len(INSERTS)
    assert found(owner, "SELECT name FROM tables WHERE NOT (relrowsecurity AND relforcerowsecurity)") == []


@pytest.mark.parametrize(
    ("role", "command", "check"),
    [
        ("backplane_migrator", "ALL", "true"),
        ("backplane_system", "ALL", "true"),
        ("backplane_backup", "SELECT", None),
    ],
)
def test_every_table_lets_this_role_see_every_row(
    owner: Connection, role: str, command: str, check: str | None
) -> None:
    without = found(
        owner,
        """
        SELECT t.name
        FROM tables AS t
        WHERE NOT EXISTS (
            SELECT 1
            FROM policies AS p
            WHERE p.table_name = t.name
              AND p.permissive = 'PERMISSIVE'
              AND p.roles = ARRAY[%(role)s]::name[]
              AND p.cmd = %(command)s
              AND p.qual = 'true'
              AND p.with_check IS NOT DISTINCT FROM %(check)s
        )
        """,
        {"role": role, "command": command, "check": check},
    )
    assert without == []


def test_no_policy_is_for_everybody_and_none_lets_the_backup_write(owner: Connection) -> None:
    assert found(owner, "SELECT table_name FROM policies WHERE 'public' = ANY(roles)") == []
    writing = "SELECT table_name FROM policies WHERE 'backplane_backup' = ANY(roles) AND cmd <> 'SELECT'"
    assert found(owner, writing) == []


def test_only_the_named_tables_are_public(owner: Connection) -> None:
    whole = "SELECT table_name FROM policies WHERE 'backplane_app' = ANY(roles) AND qual = 'true'"
    assert set(found(owner, whole)) == PUBLIC
    written = """
        SELECT table_name
        FROM policies
        WHERE 'backplane_app' = ANY(roles)
          AND (with_check = 'true' OR (cmd <> 'SELECT' AND qual = 'true'))
    """
    assert found(owner, written) == []


def test_the_tenants_policy_compares_a_column_and_calls_nothing_per_row(owner: Connection) -> None:
    """A function in a policy runs for each row, 3 s for a million; a sub-select runs once."""
    of_tenants = "SELECT qual FROM policies WHERE policyname = 'app_tenant'"
    conditions = found(owner, of_tenants)
    assert conditions
    assert [condition for condition in conditions if TENANT not in condition] == []
    called = found(
        owner,
        """
        SELECT f.name
        FROM pg_depend AS d
        JOIN functions AS f ON f.oid = d.refobjid
        WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_proc'::regclass
        """,
    )
    assert called == []


def test_every_tenant_column_leads_an_index(owner: Connection) -> None:
    unindexed = found(
        owner,
        """
        SELECT t.name
        FROM tables AS t
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = 'organization_id' AND NOT a.attisdropped
        WHERE NOT EXISTS (
            SELECT 1
            FROM pg_index AS i
            WHERE i.indrelid = t.oid AND i.indkey[0] = a.attnum AND i.indpred IS NULL
        )
        """,
    )
    assert unindexed == []


def test_every_table_with_an_organisation_has_the_tenants_policy_or_is_hidden_from_the_application(
    owner: Connection,
) -> None:
    open_ = found(
        owner,
        """
        SELECT t.name
        FROM tables AS t
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = 'organization_id' AND NOT a.attisdropped
        WHERE has_any_column_privilege('backplane_app', t.oid, 'SELECT, INSERT, UPDATE')
          AND NOT EXISTS (
              SELECT 1 FROM policies AS p WHERE p.table_name = t.name AND p.policyname = 'app_tenant'
          )
        """,
    )
    assert open_ == []


# ---- who has which right ----


def test_nobody_bypasses_row_level_security_or_is_more_than_he_must(owner: Connection) -> None:
    powers = owner.execute(
        """
        SELECT rolname
        FROM pg_roles
        WHERE rolname = ANY(%(roles)s)
          AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)
        """,
        {"roles": [*ROLES, "backplane_migrator"]},
    ).fetchall()
    assert powers == []
    memberships = owner.execute(
        """
        SELECT member::regrole::text || ' in ' || roleid::regrole::text AS found
        FROM pg_auth_members
        WHERE member::regrole::text LIKE 'backplane\\_%'
        """
    ).fetchall()
    # For the views of schema ops: it sees sessions and counted statements, and no row more.
    assert [row["found"] for row in memberships] == ["backplane_system in pg_read_all_stats"]


def test_everything_belongs_to_the_migrator(owner: Connection) -> None:
    strangers = found(
        owner,
        """
        SELECT name
        FROM (
            SELECT 'schema ' || nspname AS name, nspowner AS owner FROM ours
            UNION ALL SELECT name, relowner FROM relations
            UNION ALL SELECT name, proowner FROM functions
            UNION ALL SELECT typname::text, typowner FROM pg_type JOIN ours ON ours.oid = typnamespace
        ) AS objects
        WHERE owner <> 'backplane_migrator'::regrole
        """,
    )
    assert strangers == []


def test_the_public_may_do_nothing(owner: Connection) -> None:
    rights = found(
        owner,
        """
        SELECT name || ' ' || privilege_type
        FROM (
            SELECT nspname AS name, coalesce(nspacl, acldefault('n', nspowner)) AS acl FROM ours
            UNION ALL
            SELECT name, coalesce(relacl, acldefault('r', relowner)) FROM relations WHERE relkind <> 'S'
            UNION ALL
            SELECT name, coalesce(relacl, acldefault('s', relowner)) FROM relations WHERE relkind = 'S'
            UNION ALL
            SELECT r.name, a.attacl FROM pg_attribute AS a JOIN relations AS r ON r.oid = a.attrelid
            UNION ALL
            SELECT name, coalesce(proacl, acldefault('f', proowner)) FROM functions
        ) AS objects
        CROSS JOIN aclexplode(acl) AS rights
        WHERE rights.grantee = 0
        """,
    )
    assert rights == []


def test_security_definer_functions_pin_their_search_path(owner: Connection) -> None:
    loose = found(
        owner,
        """
        SELECT name
        FROM functions
        WHERE prosecdef
          AND NOT 'search_path=pg_catalog, pg_temp' = ANY(coalesce(proconfig, '{}'))
        """,
    )
    assert found(owner, "SELECT name FROM functions WHERE prosecdef") != []
    assert loose == []


def test_security_definer_functions_are_granted_to_the_applications_only(owner: Connection) -> None:
    grantees = found(
        owner,
        """
        SELECT DISTINCT grantee::regrole::text
        FROM functions
        CROSS JOIN aclexplode(proacl)
        WHERE prosecdef AND grantee <> proowner AND name !~ '^platform.record_backup'
        ORDER BY 1
        """,
    )
    assert grantees == ["backplane_app", "backplane_system"], "the backup's are looked at below"


def test_views_show_what_the_caller_may_see(owner: Connection) -> None:
    owners_eyes = found(
        owner,
        """
        SELECT name
        FROM relations
        WHERE relkind IN ('v', 'm')
          AND NOT 'security_invoker=true' = ANY(coalesce(reloptions, '{}'))
        """,
    )
    assert owners_eyes == []


def test_the_backup_reads_every_table_and_leaves_nothing_but_its_record(owner: Connection) -> None:
    cannot_read = "SELECT name FROM tables WHERE NOT has_table_privilege('backplane_backup', oid, 'SELECT')"
    assert found(owner, cannot_read) == []
    writes = """
        SELECT name FROM tables
        WHERE has_any_column_privilege('backplane_backup', oid, 'INSERT, UPDATE, REFERENCES')
           OR has_table_privilege('backplane_backup', oid, 'DELETE, TRUNCATE, TRIGGER')
    """
    assert found(owner, writes) == []
    runs = "SELECT name FROM functions WHERE has_function_privilege('backplane_backup', oid, 'EXECUTE')"
    assert {name.partition("(")[0] for name in found(owner, runs)} == {
        "platform.record_backup",
        "platform.record_backups_deleted",
    }


def test_nobody_but_the_owner_truncates_or_hangs_triggers(owner: Connection) -> None:
    for role in ROLES:
        query = f"SELECT name FROM tables WHERE has_table_privilege('{role}', oid, 'TRUNCATE, TRIGGER')"
        assert found(owner, query) == []


# ---- A against B against nobody, for every table and verb ----


def test_every_table_has_rows_to_test_with(tenants: Connection) -> None:
    """A new table needs its row in tests/rows.py (or SEEDED, where its migration fills it)."""
    assert set(found(tenants, "SELECT name FROM wholes")) == set(INSERTS) | SEEDED
    for table in found(tenants, "SELECT name FROM wholes"):
        assert rows(tenants, table), f"{table} is empty: add its row to tests/rows.py"


def rows(connection: Connection, table: str, columns: list[str] | None = None) -> list[DictRow]:
    listed = sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL("*")
    return connection.execute(sql.SQL("SELECT {} FROM {}").format(listed, name(table))).fetchall()


def tables_of_tenants(connection: Connection) -> list[tuple[str, str]]:
    """(table, tenant column) of each table that an organisation's callers may come near."""
    names = found(
        connection, "SELECT DISTINCT table_name FROM policies WHERE policyname = 'app_tenant' ORDER BY 1"
    )
    assert len(names) >= 10
    return [(table, "id" if table == "tenancy.organizations" else "organization_id") for table in names]


@pytest.mark.usefixtures("app_db")
def test_reads_show_the_organisations_own_rows_only(opened: Connection) -> None:
    for table, column in tables_of_tenants(opened):
        for tenant in (ONE, OTHER):
            with db.transaction(organization_id=tenant.organization) as tx:
                assert {row[column] for row in rows(tx, table, [column])} == {tenant.organization}, table


@pytest.mark.usefixtures("app_db")
def test_an_error_does_not_leave_its_organisation_behind(opened: Connection) -> None:
    with (
        pytest.raises(psycopg.errors.DivisionByZero),
        db.transaction(organization_id=ONE.organization) as tx,
    ):
        tx.execute("SELECT 1 / 0")
    for table, _ in tables_of_tenants(opened):
        with db.transaction() as tx:
            assert rows(tx, table) == [], table


@pytest.mark.usefixtures("app_db")
def test_nothing_of_another_organisation_is_updated_or_deleted(opened: Connection) -> None:
    for table, column in tables_of_tenants(opened):
        names = {
            "table": name(table),
            "column": sql.Identifier(column),
            "theirs": sql.Literal(OTHER.organization),
        }
        for statement in (
            "UPDATE {table} SET {column} = {column} WHERE {column} = {theirs}",
            "DELETE FROM {table} WHERE {column} = {theirs}",
        ):
            for caller in (ONE.organization, None):
                with db.transaction(organization_id=caller) as tx:
                    assert tx.execute(sql.SQL(statement).format(**names)).rowcount == 0, (table, statement)


@pytest.mark.usefixtures("app_db")
def test_nothing_is_handed_over_to_another_organisation(opened: Connection) -> None:
    for table, column in tables_of_tenants(opened):
        hand_over = sql.SQL("UPDATE {} SET {} = {}").format(
            name(table), sql.Identifier(column), sql.Literal(OTHER.organization)
        )
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
            db.transaction(organization_id=ONE.organization) as tx,
        ):
            tx.execute(hand_over)


@pytest.mark.usefixtures("app_db")
def test_what_the_application_has_no_right_to_is_refused(tenants: Connection) -> None:
    hidden = found(
        tenants,
        "SELECT name FROM tables WHERE NOT has_any_column_privilege('backplane_app', oid, 'SELECT')",
    )
    assert "platform.webhook_inbox" in hidden
    for table in hidden:
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            db.transaction(organization_id=ONE.organization) as tx,
        ):
            rows(tx, table)


@pytest.mark.usefixtures("app_db", "tenants")
def test_a_user_is_seen_by_himself_and_by_his_organisation() -> None:
    def users(tx: db.Tx) -> set[UUID]:
        return {row["id"] for row in rows(tx, "identity.users", ["id"])}

    with db.transaction() as tx:
        assert users(tx) == set()
    with db.transaction(user_id=ONE.user) as tx:
        assert users(tx) == {ONE.user}
    with db.transaction(organization_id=OTHER.organization) as tx:
        assert users(tx) == {OTHER.user}
