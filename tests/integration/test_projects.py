"""Projects over their routes: made, listed, changed, deleted, restored, and read by others."""

import base64
import json
from typing import Any
from uuid import uuid4

import project_rows
import pytest
from project_requests import NewProject
from tests import counters
from tests.callers import Customer, mint, moment, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import new_account, rows
from tests.senders import Answer

from backplane import auth, db
from backplane.problems import PlanLimitReached

SITE = {"title": "Bakery", "kind": "site"}


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada", name="Ada Lovelace", email="ada@example.com")


@pytest.fixture
def bob(ada: Customer) -> Customer:
    return sign_up("user_bob", name="Robert Tables")


@pytest.fixture(autouse=True)
def _hash_key(webhook_secrets: None) -> None:
    """Sign-up credits come once an address, which is kept as a keyed hash."""


def subscribe(database: Database, customer: Customer, plan: str = "pro") -> None:
    rows(
        database,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_' || %s, id, 'active', '0.1' FROM billing.plans WHERE key = %s
        """,
        customer.organization_id,
        str(uuid4()),
        plan,
    )


def create(credential: str, title: str = "Fitness", **fields: Any) -> Any:
    answer = send("POST", "/v1/projects", credential, body={"title": title, **fields})
    assert answer.status == 201, answer.body
    return answer.body


def patch(credential: str, project: Any, **fields: Any) -> Answer:
    return send("PATCH", f"/v1/projects/{project['id']}", credential, body=fields)


def get(credential: str, project: Any) -> Answer:
    return send("GET", f"/v1/projects/{project['id']}", credential)


def listed(credential: str, **query: str) -> list[str]:
    answer = send("GET", "/v1/projects", credential, query=query)
    assert answer.status == 200, answer.body
    return [item["title"] for item in answer.body["items"]]


def events(database: Database, kind: str) -> list[dict[str, Any]]:
    found = rows(database, "SELECT payload FROM platform.outbox WHERE type = %s ORDER BY id", kind)
    return [row["payload"] for row in found]


# ---- what a new one is ----


def test_a_new_project_has_what_it_was_sent_and_nothing_more(app_db: Database, ada: Customer) -> None:
    made = create(
        ada.token,
        "Fitness Tracker",
        description="A comprehensive fitness tracking app",
        template={"name": "expo-router", "version": "1.0.0", "category": "custom"},
        features=["auth"],
        tags=["health", "beta"],
    )
    assert made == get(ada.token, made).body
    assert moment(made.pop("created_at")) <= moment(made.pop("updated_at"))
    project_id = made.pop("id")
    assert made.pop("slug") == f"fitness-tracker-{project_id[-6:]}"
    assert made == {
        "kind": "mobile",
        "title": "Fitness Tracker",
        "description": "A comprehensive fitness tracking app",
        "status": "draft",
        "template": {"name": "expo-router", "version": "1.0.0", "category": "custom"},
        "features": ["auth"],
        "tags": ["health", "beta"],
        "is_public": True,  # the free plan has no private ones
        "is_favorite": False,
        "update_in_progress": False,
        "message_count": 0,
        "forked_from": None,
        "deployment_url": None,
        "deployed_at": None,
        "deleted_at": None,
        "created_by": {"id": str(ada.user_id), "email": "ada@example.com", "name": "Ada Lovelace"},
        "config": {},
        "last_entry_id": None,
        "generated_path": None,
        "repository_url": None,
        "supabase": None,
        "app": dict.fromkeys(
            (
                "app_icon_url",
                "android_app_icon_url",
                "android_package_name",
                "ios_app_icon_url",
                "ios_bundle_id",
                "ios_app_id",
            )
        ),
        "site": None,
    }
    assert events(app_db, "project.created") == [{"project_id": project_id, "kind": "mobile"}]


def test_a_site_has_a_sites_settings(app_db: Database, ada: Customer) -> None:
    made = create(ada.token, **SITE)
    assert made["app"] is None
    assert made["site"]["published_at"] is None


def test_a_key_makes_a_project_of_nobody(app_db: Database, ada: Customer) -> None:
    made = create(mint(app_db, ada.organization_id, ["read", "projects:write"]))
    assert made["created_by"] is None
    assert listed(ada.token) == ["Fitness"]


def test_without_private_projects_in_the_plan_a_project_is_public(app_db: Database, ada: Customer) -> None:
    assert create(ada.token)["is_public"] is True
    refused = send("POST", "/v1/projects", ada.token, body={"title": "Secret", "is_public": False})
    assert (refused.status, refused.body["code"]) == (403, "feature_not_in_plan")
    hidden = patch(ada.token, create(ada.token), is_public=False)
    assert (hidden.status, hidden.body["code"]) == (403, "feature_not_in_plan")
    assert listed(ada.token) == ["Fitness", "Fitness"]


def test_with_private_projects_in_the_plan_a_project_is_private(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, ada)
    made = create(ada.token)
    assert made["is_public"] is False
    assert create(ada.token, is_public=True)["is_public"] is True
    assert patch(ada.token, made, is_public=True).body["is_public"] is True
    assert patch(ada.token, made, is_public=False).body["is_public"] is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", ""),
        ("title", " \n"),
        ("title", "x" * 201),
        ("title", 5),
        ("kind", "desktop"),
        ("template", {"name": "expo"}),
        ("is_public", "yes"),
        ("organization_id", "00000000-0000-0000-0000-000000000000"),
        ("message_count", 3),
    ],
)
def test_what_is_no_project_is_refused_with_its_place(
    app_db: Database, ada: Customer, field: str, value: Any
) -> None:
    refused = send("POST", "/v1/projects", ada.token, body={"title": "Fitness", field: value})
    assert refused.status == 422
    assert refused.body["errors"][0]["loc"][:2] == ["body", field]
    assert rows(app_db, "SELECT 1 FROM projects.projects") == []


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("Fitness Tracker", "fitness-tracker-"),
        ("  --Über 100% & more!  ", "ber-100-more-"),
        ("日本語", ""),
    ],
)
def test_a_slug_is_made_of_the_title_and_the_ids_end(
    app_db: Database, ada: Customer, title: str, slug: str
) -> None:
    made = create(ada.token, title)
    assert made["slug"] == slug + made["id"][-6:]


def test_a_slug_that_is_taken_is_made_of_the_whole_id(app_db: Database, ada: Customer) -> None:
    free = create(ada.token)
    insert = """
        INSERT INTO projects.projects (id, organization_id, kind, title)
        VALUES (%s, %s, 'web', 'Fitness')
        RETURNING slug
    """
    twin = uuid4().hex[:-6] + free["id"][-6:]
    assert rows(app_db, insert, twin, ada.organization_id)[0]["slug"] == f"fitness-{twin}"


# ---- lists ----


@pytest.mark.parametrize(("path", "name"), [("", "q"), ("", "tag"), ("/search", "q")])
def test_a_text_that_cannot_be_stored_is_not_looked_for(ada: Customer, path: str, name: str) -> None:
    answer = send("GET", f"/v1/projects{path}", ada.token, query={name: "a\x00"})
    assert (answer.status, answer.body["errors"][0]["loc"]) == (422, ["query", name])


def test_projects_are_listed_newest_first_in_parts(app_db: Database, ada: Customer) -> None:
    subscribe(app_db, ada)
    for number in range(5):
        create(ada.token, f"Project {number}")
    first = send("GET", "/v1/projects", ada.token, query={"limit": "2"}).body
    assert [item["title"] for item in first["items"]] == ["Project 4", "Project 3"]
    create(ada.token, "Project 5")
    second = send("GET", "/v1/projects", ada.token, query={"limit": "3", "cursor": first["next_cursor"]}).body
    assert [item["title"] for item in second["items"]] == ["Project 2", "Project 1", "Project 0"]
    assert second["next_cursor"] is None


def test_projects_are_listed_by_change(app_db: Database, ada: Customer) -> None:
    made = [create(ada.token, f"Project {number}") for number in range(3)]
    patch(ada.token, made[0], description="changed")
    query = {"sort": "updated", "limit": "2"}
    first = send("GET", "/v1/projects", ada.token, query=query).body
    assert [item["title"] for item in first["items"]] == ["Project 0", "Project 2"]
    rest = send("GET", "/v1/projects", ada.token, query=query | {"cursor": first["next_cursor"]}).body
    assert [item["title"] for item in rest["items"]] == ["Project 1"]


@pytest.mark.parametrize("sort", ["created", "updated"])
@pytest.mark.parametrize("cursor", ["nonsense", "IjEi", "MTI", "W10", "bnVsbA", "x" * 201])
def test_a_cursor_of_another_list_is_refused(app_db: Database, ada: Customer, sort: str, cursor: str) -> None:
    assert send("GET", "/v1/projects", ada.token, query={"sort": sort, "cursor": cursor}).status == 422


def test_a_list_is_narrowed_by_text_kind_and_favourite(app_db: Database, ada: Customer) -> None:
    fitness = create(ada.token, "Fitness", description="counts 100% of steps")
    create(ada.token, "Recipes_app")
    create(ada.token, **SITE)
    patch(ada.token, fitness, is_favorite=True, tags=["health"])
    assert listed(ada.token, tag="health") == ["Fitness"]
    assert listed(ada.token, q="FIT") == ["Fitness"]
    assert listed(ada.token, q="100%25") == []
    assert listed(ada.token, q="100% of") == ["Fitness"]
    assert listed(ada.token, q="%") == ["Fitness"]
    assert listed(ada.token, q="s_a") == ["Recipes_app"]
    assert listed(ada.token, q="\\") == []
    assert listed(ada.token, kind="site") == ["Bakery"]
    assert listed(ada.token, favorite="true") == ["Fitness"]
    assert listed(ada.token, favorite="false") == ["Bakery", "Recipes_app"]


def test_a_list_has_nothing_of_others_though_it_is_public(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    create(bob.token, "Public", is_public=True)
    assert listed(ada.token) == []
    assert listed(ada.token, q="Public") == []


# ---- changes ----


def test_a_change_touches_what_it_names_alone(app_db: Database, ada: Customer) -> None:
    made = create(ada.token, description="of old")
    config = {"colors": {"primary": "#fff"}, "n": [1, 2]}
    changed = patch(
        ada.token,
        made,
        title="Fitness 2",
        config=config,
        last_entry_id="entry-7",
        supabase={"project_ref": "abcdefgh", "url": "https://abcdefgh.supabase.co"},
        app={"ios_bundle_id": "com.example.fitness"},
        template={"name": "expo-router", "version": "2.0.0"},
    )
    assert changed.status == 200
    assert changed.body["title"] == "Fitness 2"
    assert changed.body["description"] == "of old"
    assert changed.body["config"] == config
    assert changed.body["last_entry_id"] == "entry-7"
    assert changed.body["app"]["ios_bundle_id"] == "com.example.fitness"
    assert moment(changed.body["updated_at"]) > moment(made["updated_at"])
    more = patch(
        ada.token,
        made,
        description=None,
        app={"android_package_name": "com.example.fitness"},
        supabase={"anon_key": "sb_publishable_abc"},
    ).body
    assert more["description"] is None
    assert more["app"]["ios_bundle_id"] == more["app"]["android_package_name"] == "com.example.fitness"
    assert more["supabase"] == {
        "project_ref": "abcdefgh",
        "url": "https://abcdefgh.supabase.co",
        "anon_key": "sb_publishable_abc",
    }
    assert patch(ada.token, made, supabase=None).body["supabase"] is None


def jwt_of(role: object) -> str:
    parts = ({"alg": "HS256"}, {"role": role})
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "signature"])


@pytest.mark.parametrize("key", ["sb_secret_abc", jwt_of("service_role"), jwt_of("postgres"), jwt_of(None)])
def test_a_supabase_key_that_opens_everything_is_refused(app_db: Database, ada: Customer, key: str) -> None:
    made = create(ada.token)
    refused = patch(ada.token, made, supabase={"anon_key": key})
    assert refused.status == 422
    assert key not in json.dumps(refused.body)
    assert get(ada.token, made).body["supabase"] is None


def test_an_anonymous_supabase_key_is_kept(app_db: Database, ada: Customer) -> None:
    key = jwt_of("anon")
    assert patch(ada.token, create(ada.token), supabase={"anon_key": key}).body["supabase"]["anon_key"] == key


@pytest.mark.parametrize(
    ("kind", "fields"), [("mobile", {"site": {"meta_title": "x"}}), ("site", {"app": {"ios_app_id": "1"}})]
)
def test_settings_of_another_kind_are_refused(
    app_db: Database, ada: Customer, kind: str, fields: dict[str, Any]
) -> None:
    refused = patch(ada.token, create(ada.token, kind=kind), **fields)
    assert refused.status == 422
    assert refused.body["errors"][0]["loc"] == ["body", *fields]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"title": None},
        {"title": ""},
        {"slug": "Not A Slug"},
        {"status": "deployed"},
        {"config": {"x": "y" * 70_000}},
        {"config": []},
        {"site": {"custom_domain": "http://example.com"}},
        {"is_public": None},
        {"deleted_at": None},
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(
    app_db: Database, ada: Customer, fields: dict[str, Any]
) -> None:
    made = create(ada.token)
    assert patch(ada.token, made, **fields).status == 422
    assert get(ada.token, made).body == made


def test_a_name_that_is_taken_is_refused_whole(app_db: Database, ada: Customer, bob: Customer) -> None:
    one, other = create(ada.token), create(bob.token, **SITE)
    two = create(ada.token)
    assert patch(ada.token, one, slug="fitness").body["slug"] == "fitness"
    assert patch(bob.token, other, slug="fitness").body["slug"] == "fitness"  # once an organisation
    taken = patch(ada.token, two, slug="fitness", title="Other")
    assert (taken.status, taken.body["code"]) == (409, "conflict")
    assert get(ada.token, two).body["title"] == "Fitness"
    subscribe(app_db, ada)
    site = create(ada.token, **SITE)
    assert (
        patch(bob.token, other, site={"subdomain": "bakery", "custom_domain": "b.example.com"}).status == 200
    )
    for field, value in (("subdomain", "bakery"), ("custom_domain", "b.example.com")):
        refused = patch(ada.token, site, site={field: value})
        assert refused.status == 409
        assert field in refused.body["detail"]


def test_a_favourite_is_one_persons(app_db: Database, ada: Customer) -> None:
    made = create(ada.token)
    for _ in range(2):
        assert patch(ada.token, made, is_favorite=True).body["is_favorite"] is True
    key = mint(app_db, ada.organization_id, ["read", "projects:write"])
    assert get(key, made).body["is_favorite"] is False
    assert patch(key, made, is_favorite=True).status == 403
    assert get(ada.token, made).body["updated_at"] == made["updated_at"]
    assert patch(ada.token, made, is_favorite=False).body["is_favorite"] is False


# ---- who may what ----


def test_each_role_may_what_it_should(app_db: Database, ada: Customer) -> None:
    def of(role: str) -> str:
        return token(f"user_{role}", org_id="org_acme", org_role=f"org:{role}")

    admin, editor, viewer = of("admin"), of("member"), of("viewer")
    made = create(admin)
    assert send("POST", "/v1/projects", viewer, body={"title": "x"}).status == 403
    assert patch(viewer, made, title="x").status == 403
    assert patch(viewer, made, is_favorite=True).body["is_favorite"] is True
    assert get(viewer, made).status == 200
    assert patch(editor, made, title="Edited").body["is_favorite"] is False
    create(editor)
    path = f"/v1/projects/{made['id']}"
    assert send("DELETE", path, editor).status == 403
    assert send("DELETE", path, viewer).status == 403
    assert send("DELETE", path, admin).status == 204
    assert send("POST", f"{path}/restore", editor).status == 403
    assert send("POST", f"{path}/restore", admin).status == 200


def test_others_read_what_is_public_and_nothing_of_what_belongs_to_it(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    made = create(ada.token, is_public=True, template={"name": "expo", "version": "1"})
    patch(ada.token, made, config={"secret": "of ada"}, supabase={"anon_key": "sb_publishable_x"})
    seen = get(bob.token, made)
    assert seen.status == 200
    assert set(seen.body) == {
        "id", "kind", "title", "description", "slug", "status", "template", "features", "tags", "is_public",
        "deployment_url", "created_at", "updated_at",
    }  # fmt: skip
    for refused in (
        patch(bob.token, made, title="of bob"),
        patch(bob.token, made, is_favorite=True),
        send("DELETE", f"/v1/projects/{made['id']}", bob.token),
        send("POST", f"/v1/projects/{made['id']}/restore", bob.token),
    ):
        assert (refused.status, refused.body["code"]) == (403, "forbidden")
    assert get(ada.token, made).body["title"] == "Fitness"


def test_others_know_nothing_of_what_is_private_or_deleted(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    subscribe(app_db, ada)
    private, deleted = create(ada.token), create(ada.token, is_public=True)
    assert send("DELETE", f"/v1/projects/{deleted['id']}", ada.token).status == 204
    for project in (private, deleted, {"id": str(uuid4())}):
        for answer in (get(bob.token, project), patch(bob.token, project, title="x")):
            assert (answer.status, answer.body["code"]) == (404, "not_found")


def test_a_public_project_is_read_by_the_application_and_written_by_its_organisation_alone(
    app_db: Database, ada: Customer, bob: Customer
) -> None:
    made = create(ada.token, is_public=True)

    def write(tx: db.Tx) -> int:
        seen = tx.execute("SELECT id FROM projects.projects").fetchall()
        assert [str(row["id"]) for row in seen] == [made["id"]]
        assert tx.execute("SELECT 1 FROM projects.settings").fetchall() == []
        return tx.execute("UPDATE projects.projects SET title = 'of bob'").rowcount

    assert db.run(write, organization_id=bob.organization_id) == 0
    assert db.run(write) == 0


# ---- the end, and back ----


def test_a_deleted_project_is_gone_until_it_is_restored(app_db: Database, ada: Customer) -> None:
    made = create(ada.token)
    path = f"/v1/projects/{made['id']}"
    assert send("DELETE", path, ada.token).status == 204
    assert listed(ada.token) == []
    assert get(ada.token, made).status == 404
    assert patch(ada.token, made, title="x").status == 404
    assert send("DELETE", path, ada.token).status == 404
    assert {send("GET", f"{path}/{part}", ada.token).status for part in ("messages", "shares")} == {404}
    assert send("POST", f"{path}/shares", ada.token, body={"email": "bob@example.com"}).status == 404
    deleted = send("GET", "/v1/projects", ada.token, query={"deleted": "true"}).body["items"]
    assert [item["id"] for item in deleted] == [made["id"]]
    assert deleted[0]["deleted_at"] is not None
    assert events(app_db, "project.deleted") == [{"project_id": made["id"], "kind": "mobile"}]
    restored = send("POST", f"{path}/restore", ada.token)
    assert (restored.status, restored.body["deleted_at"]) == (200, None)
    assert listed(ada.token) == ["Fitness"]
    again = send("POST", f"{path}/restore", ada.token)
    assert (again.status, again.body["code"]) == (409, "invalid_state")


# ---- limits ----


def used(customer: Customer, key: str) -> int:
    count: int = send("GET", "/v1/me", customer.token).body["limits"][key]["used"]
    return count


def test_a_plans_projects_are_counted_by_kind_and_refused_beyond(app_db: Database, ada: Customer) -> None:
    made = [create(ada.token, kind=kind) for kind in ("mobile", "web", "mobile")]
    site = create(ada.token, **SITE)
    for kind in ("mobile", "web", "site"):
        refused = send("POST", "/v1/projects", ada.token, body={"title": "One more", "kind": kind})
        assert (refused.status, refused.body["code"]) == (403, "plan_limit_reached")
    in_vain = send("POST", "/v1/projects", ada.token, body={"title": "Secret", "is_public": False})
    assert in_vain.body["code"] == "feature_not_in_plan"  # whatever is deleted to make room for it
    assert len(listed(ada.token)) == 4
    send("DELETE", f"/v1/projects/{made[0]['id']}", ada.token)
    assert (used(ada, "app.projects"), used(ada, "site.projects")) == (2, 1)
    create(ada.token)
    full = send("POST", f"/v1/projects/{made[0]['id']}/restore", ada.token)
    assert (full.status, full.body["code"]) == (403, "plan_limit_reached")
    send("DELETE", f"/v1/projects/{site['id']}", ada.token)
    assert send("POST", f"/v1/projects/{site['id']}/restore", ada.token).status == 200
    assert (used(ada, "app.projects"), used(ada, "site.projects")) == (3, 1)


def test_a_refused_project_counts_nothing(app_db: Database, ada: Customer) -> None:
    body = {"title": "Secret", "is_public": False}
    assert send("POST", "/v1/projects", ada.token, body=body).status == 403
    assert used(ada, "app.projects") == 0


def test_however_many_create_at_once_the_plans_number_is_made(database: Database) -> None:
    organization_id = new_account(database)
    caller = auth.Caller("organization_key", organization_id, None, uuid4(), None, frozenset(), False)
    new = NewProject(title="Fitness")

    def race(_: int) -> str:
        try:
            with counters.transaction(database, organization_id) as tx:
                project_rows.create(tx, caller, new)
        except PlanLimitReached:
            return "refused"
        return "made"

    outcomes = counters.at_once(16, race)
    assert outcomes.count("made") == 3
    assert len(rows(database, "SELECT 1 FROM projects.projects")) == 3
    assert counters.used(database, organization_id, "app.projects") == 3
