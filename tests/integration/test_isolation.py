"""Two organisations: whatever route is walked and whatever is sent, neither reads or spends of the other."""

import json
import re
from typing import Any
from uuid import UUID

import pytest
from local.openapi.examples import EXAMPLES
from tests.callers import FUNCTIONS, Customer, debit, mint, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import assert_books_balance, entries, rows
from tests.stripe_api import FakeStripe

from backplane import api, db
from backplane.auth import SCOPES_OF_KEY, SCOPES_OF_ROLE
from backplane.routes import PUBLIC_ROUTES

ROUTES = sorted(
    {
        (route.method, route.path, route.scope)
        for router, _ in FUNCTIONS.values()
        for route in router.routes
        if route.scope is not None
    }
)
ORGANIZATION = api.OF_AN_ORGANIZATION
QUERIES = {
    "/v1/projects/search": {"q": "of bob"},
    "/v1/projects/<project_id>/files/content": {"path": "of bob"},
}
NAMED_IN_THE_BODY = {"/v1/invitations/accept"}
# On the free plan, where nothing is connected: a person's answer, and a key's.
OTHERWISE = {
    "/v1/integrations/supabase/connect": (403, 403),
    "/v1/integrations/supabase/callback": (400, 403),
    "/v1/integrations/supabase/projects": (404, 404),
}
# What customers and their keys may not call at all: the SaaS's own servers and platform admins do.
OUT_OF_REACH = sorted({scope for *_, scope in ROUTES} - SCOPES_OF_ROLE["owner"])

UNKNOWN = UUID(int=0)
PROJECT_OF_BOB = UUID(int=13)

every_route = pytest.mark.parametrize(
    ("method", "path"), [(method, path) for method, path, _ in ROUTES], ids=str
)


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch, stripe: FakeStripe) -> Customer:
    trust_our_tokens(monkeypatch)
    stripe.add_price("price_pack_500", recurring=False)
    ada = sign_up("user_ada", name="Ada Lovelace")
    pays_as(app_db, ada, "cus_of_ada", stripe)
    return ada


def pays_as(database: Database, customer: Customer, customer_id: str, stripe: FakeStripe) -> None:
    stripe.add_customer(customer_id)
    rows(
        database,
        """
        INSERT INTO billing.customers (organization_id, provider, provider_customer_id)
        VALUES (%s, 'stripe', %s)
        """,
        customer.organization_id,
        customer_id,
    )


@pytest.fixture
def bob(app_db: Database, ada: Customer, stripe: FakeStripe) -> Customer:
    """Somebody else, with a subscription, a counter, and entries that say whose they are."""
    bob = sign_up("user_bob", name="Robert Tables")
    debit(bob.token, key="of bob", quantity=13, details={"secret": "of bob"})
    pays_as(app_db, bob, "cus_of_bob", stripe)
    rows(
        app_db,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_of_bob', id, 'active', '0.1' FROM billing.plans WHERE key = 'enterprise'
        """,
        bob.organization_id,
    )
    rows(
        app_db,
        """
        INSERT INTO billing.usage_counters (organization_id, key, period_start, used)
        VALUES (%s, 'app.projects', '-infinity', 13)
        """,
        bob.organization_id,
    )
    rows(
        app_db,
        """
        INSERT INTO projects.projects (id, organization_id, created_by, kind, title)
        VALUES (%s, %s, %s, 'mobile', 'Project of bob')
        """,
        PROJECT_OF_BOB,
        bob.organization_id,
        bob.user_id,
    )
    rows(
        app_db,
        """
        INSERT INTO projects.messages (organization_id, project_id, sequence, role, content)
        VALUES (%s, %s, 1, 'user', 'words of bob')
        """,
        bob.organization_id,
        PROJECT_OF_BOB,
    )
    rows(
        app_db,
        """
        INSERT INTO deploys.deployments
            (id, organization_id, project_id, type, platform, project_name, next_poll_at)
        VALUES (%s, %s, %s, 'web', 'web', 'Project of bob', now())
        """,
        bob.organization_id,  # what a path names
        bob.organization_id,
        PROJECT_OF_BOB,
    )
    return bob


def walk(method: str, path: str, credential: str, *, named: object = UNKNOWN, **sent: Any) -> Any:
    """A request to a route; `named` stands for what its path names, except for a project: Bob's."""
    body = EXAMPLES.get((method, path))
    key = "of ada" if method == "POST" else None
    query = QUERIES.get(path)
    return send(method, named_in(path, named), credential, body=body, key=key, query=query, **sent)


def named_in(path: str, named: object = UNKNOWN) -> str:
    path = path.replace("<project_id>", str(PROJECT_OF_BOB)).replace("<version>", "1")
    return re.sub(r"<\w+>", str(named), path)


def scope_of(method: str, path: str) -> str:
    return next(scope for of_method, of_path, scope in ROUTES if (of_method, of_path) == (method, path))


def state(database: Database, customer: Customer) -> Any:
    account = rows(
        database, "SELECT * FROM credits.accounts WHERE organization_id = %s", customer.organization_id
    )
    project = rows(
        database, "SELECT * FROM projects.projects WHERE organization_id = %s", customer.organization_id
    )
    deployment = rows(
        database, "SELECT * FROM deploys.deployments WHERE organization_id = %s", customer.organization_id
    )
    return account, entries(database, customer.organization_id), project, deployment


def traces_of(database: Database, customer: Customer) -> set[str]:
    """Ids and words that stand in this customer's rows only."""
    ids = rows(
        database,
        """
        SELECT id FROM credits.grants WHERE organization_id = %(o)s
        UNION ALL SELECT id FROM credits.entries WHERE organization_id = %(o)s
        UNION ALL SELECT id FROM projects.projects WHERE organization_id = %(o)s
        """.replace("%(o)s", f"'{customer.organization_id}'"),
    )
    return {
        str(customer.organization_id),
        str(customer.user_id),
        "of bob",
        "of_bob",
        "Robert",
        "user_bob",
    } | {str(row["id"]) for row in ids}


@every_route
def test_no_route_tells_of_another_organisation_or_touches_it(
    app_db: Database, ada: Customer, bob: Customer, method: str, path: str
) -> None:
    before = state(app_db, bob)
    key = mint(app_db, ada.organization_id, sorted(SCOPES_OF_KEY["organization"]))
    for credential in (ada.token, key):
        answer = walk(method, path, credential, named=bob.organization_id)
        scope = scope_of(method, path)
        not_a_keys = scope not in SCOPES_OF_KEY["organization"]
        if path.startswith(ORGANIZATION):
            assert answer.status == 404
        elif scope in OUT_OF_REACH or (credential is key and not_a_keys):
            assert answer.status == 403
        elif path in OTHERWISE:
            assert answer.status == OTHERWISE[path][credential is key]
        elif "<" in path or path in NAMED_IN_THE_BODY:
            assert answer.status == 404
        else:
            assert 200 <= answer.status < 300, answer.body
        told = json.dumps(answer.body) + json.dumps(answer.headers)
        assert not {trace for trace in traces_of(app_db, bob) if trace in told}
    assert state(app_db, bob) == before
    assert_books_balance(app_db, ada.organization_id)


@every_route
def test_no_route_takes_the_callers_word_for_his_organisation(
    app_db: Database, ada: Customer, bob: Customer, method: str, path: str
) -> None:
    before = state(app_db, bob), state(app_db, ada)
    key = mint(app_db, ada.organization_id, sorted(SCOPES_OF_KEY["organization"]))
    for organization in (bob.organization_id, UNKNOWN, "org_1", "x' OR true --", ""):
        refused = walk(method, path, ada.token, organization=organization)
        assert refused.status == (404 if path.startswith(ORGANIZATION) else 403)
        refused = walk(method, path, key, organization=organization)
        assert (refused.status, refused.body["code"]) == (403, "forbidden")
    assert walk(method, path, key, organization=ada.organization_id).status == 403
    assert (state(app_db, bob), state(app_db, ada)) == before


@every_route
def test_every_route_refuses_who_is_not_known_and_who_lacks_its_scope(
    app_db: Database, ada: Customer, method: str, path: str
) -> None:
    scope = scope_of(method, path)
    others = sorted(SCOPES_OF_KEY["organization"] - {scope})
    before = state(app_db, ada)
    assert walk(method, path, "nonsense").status == 401
    assert walk(method, path, token(exp=1)).status == 401
    key = mint(app_db, ada.organization_id, others)
    refused = walk(method, path, key, named=ada.organization_id if path.startswith(ORGANIZATION) else UNKNOWN)
    assert refused.status == 403
    assert f"`{scope}`" in refused.body["detail"]
    assert state(app_db, ada) == before


def test_a_member_of_two_organisations_spends_where_the_token_says(app_db: Database, ada: Customer) -> None:
    acme = token("user_ada", org_id="org_acme", org_role="org:admin")
    refused = debit(acme, key="key-1")
    assert (refused.status, refused.body["code"]) == (402, "insufficient_credits")
    assert debit(ada.token, key="key-1").body["available_after"] == 99


def test_only_what_is_named_answers_without_a_credential(app_db: Database) -> None:
    public = {
        f"{route.method} {route.path}"
        for router, _ in FUNCTIONS.values()
        for route in router.routes
        if route.scope is None
    }
    assert public == PUBLIC_ROUTES == {"GET /v1/plans"}
    assert not [path for _, path, _ in ROUTES if send("GET", named_in(path)).status not in {401, 405}]


@pytest.mark.parametrize("set_to", ["ada", "bob", "nobody"])
def test_the_applications_session_sees_its_organisations_rows_in_every_table(
    app_db: Database, ada: Customer, bob: Customer, set_to: str
) -> None:
    organization_id = {"ada": ada.organization_id, "bob": bob.organization_id, "nobody": None}[set_to]
    with app_db.connect() as owner:
        tables = owner.execute(
            """
            SELECT c.oid::regclass::text AS name, a.attname AS tenant
            FROM pg_class AS c
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
            JOIN pg_attribute AS a
                ON a.attrelid = c.oid
                AND a.attname = CASE c.oid::regclass::text WHEN 'tenancy.organizations' THEN 'id'
                                ELSE 'organization_id' END
            WHERE c.relkind = 'r'
              AND n.nspname IN ('tenancy', 'billing', 'credits', 'platform', 'projects', 'deploys')
              AND has_table_privilege('backplane_app', c.oid, 'SELECT')
            """
        ).fetchall()
        stored = {
            table["name"]: owner.execute(f"SELECT count(*) AS n FROM {table['name']}".encode()).fetchone()
            for table in tables
        }
    assert {"credits.accounts", "credits.entries", "credits.grants", "billing.subscriptions"} <= set(stored)
    for table in tables:

        def owners(tx: db.Tx, name: str = table["name"], tenant: str = table["tenant"]) -> set[Any]:
            seen = tx.execute(f"SELECT {tenant} AS tenant FROM {name}".encode()).fetchall()
            return {row["tenant"] for row in seen}

        seen = db.run(owners, organization_id=organization_id)
        assert seen <= {organization_id}, table["name"]
        if set_to == "bob" and stored[table["name"]] != {"n": 0}:
            assert seen == {organization_id}, table["name"]


def test_users_see_themselves_and_their_organisations_members_only(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    def users(tx: db.Tx) -> set[Any]:
        return {row["id"] for row in tx.execute("SELECT id FROM identity.users").fetchall()}

    assert db.run(users) == set()
    assert db.run(users, organization_id=ada.organization_id) == {ada.user_id}
    assert db.run(users, user_id=bob.user_id) == {bob.user_id}
    assert db.run(users, organization_id=ada.organization_id, user_id=bob.user_id) == {
        ada.user_id,
        bob.user_id,
    }
