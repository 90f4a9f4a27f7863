"""Integrations over their routes: set up by type and scope, never told again, rotated, deleted, erased."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import boto3
import integration_changes
import pytest
import secrets_upkeep
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from psycopg.rows import DictRow
from tests.callers import Customer, mint, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.keys import make_key
from tests.senders import Answer, clerk_user, invoke, post_clerk

from backplane import auth, config, db, field_encryption, integrations, private_keys, reencryption
from backplane.problems import Unavailable


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


P256, P384 = (pem(ec.generate_private_key(curve)) for curve in (ec.SECP256R1(), ec.SECP384R1()))
RSA = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))

ACCOUNT = {
    "type": "service_account",
    "project_id": "acme-play",
    "private_key_id": "0123456789abcdef" * 2 + "01234567",
    "private_key": RSA,
    "client_email": "builder@acme-play.iam.gserviceaccount.com",
    "client_id": "109876543210987654321",
    "token_uri": "https://oauth2.googleapis.com/token",
    "universe_domain": "googleapis.com",
}
# A configuration of each type; what begins with a capital S and ends in XXXX is a secret to look for.
CONFIGS: dict[str, dict[str, Any]] = {
    "expo": {"access_token": "Sexpo-token-of-forty-charactersXXXX", "username": "acme"},
    "app-store-connect": {
        "issuer_id": "57246542-96FE-1A63-E053-0824D011072A",
        "key_id": "2X9R4HXF34",
        "private_key": P256,
    },
    "google-play": {"service_account_json": json.dumps(ACCOUNT), "package_name": "com.acme.app"},
    "vercel": {
        "access_token": "Svercel-token-of-some-lengthXXXX",
        "team_id": "team_a1B2",
        "webhook_secret": "Svercels-own-webhook-secretXXXX",
    },
    "github": {"repository": "acme/app", "access_token": "ghp_SgithubtokenofthirtysixcharactersxXXXX"},
    "stripe": {
        "secret_key": "sk_test_SstripekeyXXXX",
        "publishable_key": "pk_test_publishable",
        "endpoint_secret": "whsec_SendpointXXXX",
    },
    "google_analytics": {"measurement_id": "G-ABCDEF1234", "api_secret": "SmeasurementXXXX"},
    "custom": {
        "name": "Acme's CRM",
        "url": "https://crm.acme.example/api",
        "settings": {"region": "eu", "retries": 3},
        "secret_values": {"api_key": "ScustomkeyXXXX"},
    },
}
SECRETS = {
    *re.findall(r"S[\w-]+XXXX", json.dumps(CONFIGS)),
    *(line for key in (P256, RSA) for line in key.splitlines()[1:-1]),
}


@dataclass
class Seen:
    """All that was logged or answered."""

    caplog: pytest.LogCaptureFixture
    answers: list[str]

    @property
    def text(self) -> str:
        logged = "\n".join(f"{r.getMessage()} {r.__dict__}" for r in self.caplog.records)
        return "\n".join([self.caplog.text, logged, *self.answers])


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Seen:
    caplog.set_level(logging.DEBUG)
    for name in ("botocore", "urllib3", "aws_encryption_sdk"):  # what operators never set to debug
        caplog.set_level(logging.INFO, logger=name)
    return Seen(caplog, [])


@pytest.fixture
def secrets_manager(field_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Secrets Manager with no secret of ours, and the environment that names them so."""
    prefix = f"test-{field_key[-12:]}/integrations/"
    monkeypatch.setenv("INTEGRATION_SECRETS_PREFIX", prefix)
    config.settings.cache_clear()
    private_keys._client.cache_clear()
    yield boto3.client("secretsmanager")
    private_keys._client.cache_clear()


@pytest.fixture
def ada(app_db: Database, secrets_manager: Any, monkeypatch: pytest.MonkeyPatch) -> Customer:
    """With a plan that has integrations."""
    trust_our_tokens(monkeypatch)
    monkeypatch.setenv("PUBLIC_URL", "https://api.example.com/")
    customer = sign_up()
    give_plan(app_db, customer.organization_id)
    return customer


def give_plan(database: Database, organization_id: UUID, plan: str = "pro") -> None:
    rows(
        database,
        """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %s, 'stripe', 'sub_' || %s, id, 'active', '0.1' FROM billing.plans WHERE key = %s
        """,
        organization_id,
        str(organization_id),
        plan,
    )


def rows(database: Database, query: str, *params: object) -> list[DictRow]:
    with database.connect() as connection:
        cursor = connection.execute(query.encode(), params)
        return cursor.fetchall() if cursor.description else []


def put(who: Customer | str, name: str, body: dict[str, Any] | None = None, **others: Any) -> Answer:
    credential = who if isinstance(who, str) else who.token
    sent = {"config": CONFIGS[name] if body is None else body, **others}
    return send("PUT", f"/v1/integrations/{name}", credential, body=sent)


def made(who: Customer | str, name: str, body: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    answer = put(who, name, body, **others)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.body
    return found


def rotate(who: Customer, name: str, body: dict[str, Any] | None = None, key: str | None = None) -> Answer:
    return send("POST", f"/v1/integrations/{name}/rotate", who.token, body=body or {}, key=key)


def listed(who: Customer | str, **query: str) -> list[dict[str, Any]]:
    credential = who if isinstance(who, str) else who.token
    answer = send("GET", "/v1/integrations", credential, query=query or None)
    assert answer.status == 200, answer.body
    items: list[dict[str, Any]] = answer.body["items"]
    return items


def project(who: Customer) -> str:
    answer = send("POST", "/v1/projects", who.token, body={"title": "App"})
    assert answer.status == 201, answer.body
    project_id: str = answer.body["id"]
    return project_id


def secrets_of(provider: str, integration_id: str) -> tuple[str, ...] | None:
    """What may sign a webhook, as the function that receives it sees it."""
    found = db.run(lambda tx: integrations.webhook_of(tx, provider, UUID(integration_id)))
    return None if found is None else found.secrets


def credentials(
    who: Customer, type_: integrations.Type, project_id: str | None = None, user_id: UUID | None = None
) -> integrations.Credentials | None:
    return db.run(
        lambda tx: integrations.credentials(
            tx, who.organization_id, type_, UUID(project_id) if project_id else None, user_id=user_id
        )
    )


def stored_keys(secrets_manager: Any) -> list[str]:
    """The names of ours in Secrets Manager."""
    prefix = config.settings().integration_secrets_prefix
    listed = secrets_manager.list_secrets(Filters=[{"Key": "name", "Values": [prefix]}], MaxResults=100)
    return [each["Name"] for each in listed["SecretList"]]


def age(database: Database) -> None:
    """Two hours pass for what is noted of private keys."""
    rows(database, "UPDATE deploys.private_keys SET created_at = created_at - interval '2 hours'")


# ---- secrets stay secret ----


def test_no_secret_is_in_the_database_a_log_or_an_answer(app_db: Database, ada: Customer, seen: Seen) -> None:
    shown_once = set()
    for name in CONFIGS:
        for _ in range(2):  # made, and changed
            answer = put(ada, name)
            assert answer.status == 200, answer.body
            shown_once.add(answer.body.pop("webhook_secret"))
            seen.answers.append(json.dumps(answer.body))
    answer = rotate(ada, "github", key="key-1")
    shown_once.add(answer.body.pop("webhook_secret"))
    seen.answers += [json.dumps(answer.body), json.dumps(rotate(ada, "github", key="key-1").body)]
    for wrong in ({"access_token": "SrefusedtokenXXXX\n"}, {"access_token": ["SrefusedtokenXXXX"]}, {}):
        seen.answers.append(json.dumps(put(ada, "expo", wrong).body))
    broken = {**CONFIGS["google-play"], "service_account_json": json.dumps(ACCOUNT | {"client_id": "x"})}
    seen.answers.append(json.dumps(put(ada, "google-play", broken).body))
    seen.answers.append(json.dumps(listed(ada, limit="100")))
    with app_db.as_role("backplane_system"):
        for type_ in ("expo", "app_store_connect", "google_play"):
            seen.answers.append(repr(credentials(ada, type_)))
        logging.getLogger("backplane").warning("%r", credentials(ada, "expo"))
    shown_once.discard(None)
    assert len(shown_once) == 3  # expo's, github's and its second
    sought = {*SECRETS, *shown_once, "SrefusedtokenXXXX"}
    assert len(SECRETS) > 20
    everything = {"the logs and answers": seen.text, "the database": dump(app_db)}
    for where, text in everything.items():
        assert not [secret for secret in sought if secret in text], where
    assert "57246542-96fe-1a63-e053-0824d011072a" in everything["the database"]  # so the search would find


def dump(database: Database) -> str:
    """Every row of every table as text, and bytes as what they may spell."""
    tables = rows(
        database,
        """
        SELECT n.nspname || '.' || c.relname AS name
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        """,
    )
    spelt = []
    for table in tables:
        for row in rows(database, f"SELECT * FROM {table['name']}"):
            spelt += [
                value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                for value in row.values()
            ]
    return "\n".join(spelt)


def test_what_was_put_in_reads_back_for_those_who_use_it(app_db: Database, ada: Customer) -> None:
    for name in CONFIGS:
        made(ada, name)
    with app_db.as_role("backplane_system"):
        expo, apple, play, custom = (
            credentials(ada, type_) for type_ in ("expo", "app_store_connect", "google_play", "custom")
        )
    assert expo
    assert apple
    assert play
    assert custom
    assert (expo.config, expo.secrets) == (
        {"username": "acme"},
        {"access_token": CONFIGS["expo"]["access_token"]},
    )
    assert apple.secrets == {"private_key": P256}
    assert apple.config["key_id"] == "2X9R4HXF34"
    assert json.loads(play.secrets["service_account_json"]) == ACCOUNT
    assert play.config == {"package_name": "com.acme.app", "client_email": ACCOUNT["client_email"]}
    assert custom.secrets == {"secret_values": {"api_key": "ScustomkeyXXXX"}}
    assert custom.config == {key: CONFIGS["custom"][key] for key in ("name", "url", "settings")}


def test_an_app_store_key_is_in_secrets_manager_alone(
    app_db: Database, ada: Customer, secrets_manager: Any
) -> None:
    made(ada, "app-store-connect")
    [name] = stored_keys(secrets_manager)
    assert secrets_manager.get_secret_value(SecretId=name)["SecretString"] == P256
    [row] = rows(app_db, "SELECT secrets, secret_name FROM deploys.integrations")
    assert row == {"secrets": None, "secret_name": name}
    made(ada, "app-store-connect")
    [changed] = stored_keys(secrets_manager)
    assert changed != name
    assert send("DELETE", "/v1/integrations/app-store-connect", ada.token).status == 204
    assert stored_keys(secrets_manager) == []
    assert rows(app_db, "SELECT 1 FROM deploys.integrations") == []


def test_nothing_is_half_done_where_secrets_manager_or_the_database_fails(
    app_db: Database, ada: Customer, secrets_manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(ada, "app-store-connect")
    before = rows(app_db, "SELECT * FROM deploys.integrations")
    [name] = stored_keys(secrets_manager)

    def away(operation: str, **_: object) -> None:
        raise Unavailable("Secrets Manager can't be reached at the moment. Repeat the request.")

    with monkeypatch.context() as patch:
        patch.setattr(private_keys, "_call", away)
        assert put(ada, "app-store-connect").status == 503
        assert put(ada, "app-store-connect", project_id=project(ada)).status == 503
    assert rows(app_db, "SELECT * FROM deploys.integrations") == before
    with monkeypatch.context() as patch:  # the row is refused after the key was stored
        patch.setattr(integration_changes, "ATTEMPTS", 1)
        rows(app_db, "ALTER TABLE deploys.integrations ADD CONSTRAINT never CHECK (false) NOT VALID")
        assert put(ada, "app-store-connect").status == 500
        rows(app_db, "ALTER TABLE deploys.integrations DROP CONSTRAINT never")
    assert rows(app_db, "SELECT * FROM deploys.integrations") == before
    assert stored_keys(secrets_manager) == [name]
    with monkeypatch.context() as patch:
        patch.setattr(private_keys, "delete", lambda name: away("delete_secret"))
        assert send("DELETE", "/v1/integrations/app-store-connect", ada.token).status == 204
    assert rows(app_db, "SELECT 1 FROM deploys.integrations") == []
    assert stored_keys(secrets_manager) == [name]
    upkeep = {"ok": True, "deleted": 0, "strays": 0, "reencrypted": 0, "unreadable": 0, "left": 0}
    with app_db.as_role("backplane_system"):
        assert invoke(secrets_upkeep.handler, {}) == upkeep  # its row may be on its way
        age(app_db)
        assert invoke(secrets_upkeep.handler, {}) == upkeep | {"strays": 3}  # two were never stored
        assert invoke(secrets_upkeep.handler, {}) == upkeep
    assert stored_keys(secrets_manager) == []
    assert rows(app_db, "SELECT 1 FROM deploys.private_keys") == []


# ---- webhooks ----


@pytest.mark.parametrize(("name", "provider"), [("expo", "eas"), ("github", "github")])
def test_a_webhook_secret_is_shown_once_and_honoured_a_day_after_its_successor(
    app_db: Database, ada: Customer, name: str, provider: str
) -> None:
    first = made(ada, name)
    assert first["webhook_url"] == f"https://api.example.com/webhooks/{provider}/{first['id']}"
    assert len(first["webhook_secret"]) >= 16
    again = made(ada, name)
    assert (again["id"], again["webhook_secret"]) == (first["id"], None)
    [item] = listed(ada)
    assert item == again
    second = rotate(ada, name).body
    third = rotate(ada, name, {"webhook_secret": "of-the-callers-own-choice"}).body
    assert third["webhook_secret"] is None
    with app_db.as_role("backplane_system"):
        assert secrets_of(provider, first["id"]) == (
            "of-the-callers-own-choice",
            second["webhook_secret"],
            first["webhook_secret"],
        )
        for hours, honoured in ((23, 3), (24, 1)):
            [later] = rows(
                app_db,
                "SELECT *, clock_timestamp() + make_interval(hours => %s) AS now FROM deploys.integrations",
                hours,
            )
            assert len(integrations.webhook_secrets(later)) == honoured
        for other in ("eas", "vercel", "github", "stripe", "custom"):
            if other != provider:
                assert secrets_of(other, first["id"]) is None
    assert send("DELETE", f"/v1/integrations/{name}", ada.token).status == 204
    with app_db.as_role("backplane_system"):
        assert secrets_of(provider, first["id"]) is None


def test_vercels_own_secret_is_taken_and_a_new_one_is_a_rotation(app_db: Database, ada: Customer) -> None:
    first = made(ada, "vercel")
    assert first["webhook_secret"] is None
    made(ada, "vercel", CONFIGS["vercel"] | {"webhook_secret": "the-one-after-it-XXXX"})
    made(ada, "vercel", {key: value for key, value in CONFIGS["vercel"].items() if key != "webhook_secret"})
    with app_db.as_role("backplane_system"):
        assert secrets_of("vercel", first["id"]) == (
            "the-one-after-it-XXXX",
            CONFIGS["vercel"]["webhook_secret"],
        )


def test_a_secret_is_not_rotated_away_while_ten_are_honoured(ada: Customer) -> None:
    assert rotate(ada, "expo").status == 404
    made(ada, "expo")
    assert [rotate(ada, "expo").status for _ in range(10)] == [200] * 9 + [409]
    made(ada, "stripe")
    refused = rotate(ada, "stripe")
    assert (refused.status, refused.body["code"]) == (409, "invalid_state")


def test_a_repeated_rotation_rotates_once_and_does_not_tell_the_secret_again(
    app_db: Database, ada: Customer
) -> None:
    integration_id = made(ada, "expo")["id"]
    first, second = (rotate(ada, "expo", key="once") for _ in range(2))
    assert first.body["webhook_secret"]
    assert "webhook_secret" not in second.body
    with app_db.as_role("backplane_system"):
        honoured = secrets_of("eas", integration_id)
    assert honoured
    assert (honoured[0], len(honoured)) == (first.body["webhook_secret"], 2)


def test_a_disabled_integration_takes_no_webhook_and_gives_no_credentials(
    app_db: Database, ada: Customer
) -> None:
    made(ada, "expo")
    disabled = made(ada, "expo", active=False)
    assert disabled["state"] == "disabled"
    with app_db.as_role("backplane_system"):
        assert secrets_of("eas", disabled["id"]) is None
        assert credentials(ada, "expo") is None
    assert made(ada, "expo")["state"] == "active"


# ---- scopes ----


def test_there_is_one_of_a_type_in_each_scope_and_the_nearest_counts(app_db: Database, ada: Customer) -> None:
    project_id = project(ada)
    for username, others in (
        ("organisations", {}),
        ("projects", {"project_id": project_id}),
        ("own", {"scope": "user"}),
    ):
        for _ in range(2):
            made(ada, "expo", CONFIGS["expo"] | {"username": username}, **others)
    assert {each["scope"]: each["config"]["username"] for each in listed(ada)} == {
        "organization": "organisations",
        "project": "projects",
        "user": "own",
    }
    assert [each["scope"] for each in listed(ada, project_id=project_id)] == ["project"]
    with app_db.as_role("backplane_system"):
        found = [
            credentials(ada, "expo", project_id),
            credentials(ada, "expo"),
        ]
    assert [each and each.config["username"] for each in found] == ["projects", "organisations"]
    for query in ({"project_id": project_id}, None):
        assert send("DELETE", "/v1/integrations/expo", ada.token, query=query).status == 204
    with app_db.as_role("backplane_system"):
        own = credentials(ada, "expo", project_id)
    assert own
    assert own.config["username"] == "own"
    for status in (204, 404):
        deleted = send("DELETE", "/v1/integrations/expo", ada.token, query={"scope": "user"})
        assert deleted.status == status


def test_a_members_own_are_not_the_others(app_db: Database, ada: Customer) -> None:
    ann, ben = (token(user, org_id="org_acme", org_role="org:member") for user in ("user_ann", "user_ben"))
    owner = sign_up("user_owner", org_id="org_acme", org_role="org:admin")
    give_plan(app_db, owner.organization_id)
    ann_id, ben_id = (UUID(send("GET", "/v1/me", who).body["user"]["id"]) for who in (ann, ben))
    made(ann, "expo", scope="user")
    assert (len(listed(ann)), listed(ben), listed(owner)) == (1, [], [])
    made(ben, "expo", CONFIGS["expo"] | {"username": "bens"}, scope="user")
    with app_db.as_role("backplane_system"):
        found = [credentials(owner, "expo", user_id=each) for each in (ann_id, ben_id, None)]
    assert [each and each.config["username"] for each in found] == ["acme", "bens", None]
    key = mint(app_db, owner.organization_id, ["read", "deployments:write"])
    assert listed(key) == []
    assert put(key, "expo", scope="user").status == 403
    made(key, "expo")
    rows(app_db, "DELETE FROM tenancy.organization_members WHERE user_id = %s", ann_id)
    assert rows(app_db, "SELECT 1 FROM deploys.integrations WHERE user_id = %s", ann_id) == []


def test_another_organisation_sees_and_changes_nothing(app_db: Database, ada: Customer) -> None:
    project_id = project(ada)
    made(ada, "expo", project_id=project_id)
    eve = sign_up("user_eve")
    give_plan(app_db, eve.organization_id)
    assert listed(eve) == []
    assert put(eve, "expo", project_id=project_id).status == 404
    assert send("DELETE", "/v1/integrations/expo", eve.token, query={"project_id": project_id}).status == 404
    assert rotate(eve, "expo", {"project_id": project_id}).status == 404
    assert len(listed(ada)) == 1


def test_the_free_plan_has_no_integrations_and_may_delete_those_it_had(
    app_db: Database, ada: Customer
) -> None:
    eve = sign_up("user_eve")
    refused = put(eve, "expo")
    assert (refused.status, refused.body["code"]) == (403, "feature_not_in_plan")
    made(ada, "expo")
    rows(app_db, "UPDATE billing.subscriptions SET status = 'canceled'")
    assert put(ada, "expo").status == 403
    assert len(listed(ada)) == 1
    assert send("DELETE", "/v1/integrations/expo", ada.token).status == 204


def test_who_is_overtaken_reads_again_and_leaves_no_second_key(
    app_db: Database, ada: Customer, secrets_manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, which writes after it has read: at the first time, and at a change."""
    caller = auth.authenticate({"authorization": f"Bearer {ada.token}"})
    seal = integration_changes._seal

    def commit(work: Any) -> Any:
        return db.run(work, organization_id=ada.organization_id, user_id=ada.user_id)

    def overtaken(integration_id: UUID, target: Any, wanted: Any, read: Any) -> Any:
        monkeypatch.setattr(integration_changes, "_seal", seal)
        asked = integration_changes.Asked(caller, commit, "")
        integration_changes.put(asked, target, replace(wanted, config={"by": "the other"}))
        return seal(integration_id, target, wanted, read)

    for _ in range(2):
        monkeypatch.setattr(integration_changes, "_seal", overtaken)
        made(ada, "app-store-connect")
        [row] = rows(app_db, "SELECT secret_name, config FROM deploys.integrations")
        assert row["config"]["key_id"] == "2X9R4HXF34"
        assert stored_keys(secrets_manager) == [row["secret_name"]]


# ---- what is refused ----

REFUSED: list[tuple[str, str, Any]] = [
    ("expo", "access_token", "short"),
    ("expo", "access_token", "has a space in it, and is long"),
    ("expo", "username", "no spaces"),
    ("expo", "webhook_secret", "x" * 15),
    ("app-store-connect", "issuer_id", "57246542"),
    ("app-store-connect", "key_id", "2x9r4hxf34"),
    ("app-store-connect", "private_key", P384),
    ("app-store-connect", "private_key", RSA),
    ("app-store-connect", "private_key", P256[:-40]),
    ("google-play", "package_name", "app"),
    ("google-play", "service_account_json", "{"),
    ("google-play", "service_account_json", json.dumps(ACCOUNT | {"type": "authorized_user"})),
    ("google-play", "service_account_json", json.dumps(ACCOUNT | {"private_key": P256})),
    (
        "google-play",
        "service_account_json",
        json.dumps(ACCOUNT | {"token_uri": "https://evil.example/token"}),
    ),
    ("google-play", "service_account_json", json.dumps(ACCOUNT | {"client_email": None})),
    ("vercel", "team_id", "acme"),
    ("github", "repository", "acme"),
    ("github", "access_token", "xoxb-not-one-of-githubs-tokens-at-all-really"),
    ("stripe", "secret_key", "pk_test_SstripekeyXXXX"),
    ("stripe", "publishable_key", "pk_live_publishable"),
    ("google_analytics", "measurement_id", "UA-12345-1"),
    ("custom", "url", "http://crm.acme.example"),
    ("custom", "settings", {"nested": {"no": 1}}),
    ("custom", "secret_values", {"name with spaces": "x"}),
]


def test_what_is_no_configuration_of_its_type_is_refused_with_its_place(
    app_db: Database, ada: Customer
) -> None:
    for name, field, value in REFUSED:
        answer = put(ada, name, CONFIGS[name] | {field: value})
        assert (answer.status, answer.body["code"]) == (422, "invalid_request"), (name, field)
        places = [error["loc"] for error in answer.body["errors"]]
        assert all(place[:2] == ["body", "config"] for place in places)
        assert field in {place[2] for place in places if len(place) > 2} or field == "publishable_key"
        text = value if isinstance(value, str) else json.dumps(value)
        assert len(text) < 12 or text not in json.dumps(answer.body), (name, field)
    for name, given in CONFIGS.items():
        assert put(ada, name, {}).status == 422, name
        assert put(ada, name, given | {"unknown": 1}).status == 422, name
    for path in ("nothing", "supabase", "app_store_connect"):
        assert send("PUT", f"/v1/integrations/{path}", ada.token, body={"config": {}}).status == 404
    assert rows(app_db, "SELECT 1 FROM deploys.integrations") == []


def test_a_viewer_looks_and_does_not_touch(app_db: Database, ada: Customer) -> None:
    owner = sign_up("user_owner", org_id="org_acme", org_role="org:admin")
    give_plan(app_db, owner.organization_id)
    made(owner, "expo")
    viewer = token("user_vic", org_id="org_acme", org_role="org:viewer")
    assert len(listed(viewer)) == 1
    assert put(viewer, "expo").status == 403
    assert send("DELETE", "/v1/integrations/expo", viewer).status == 403
    assert send("POST", "/v1/integrations/expo/rotate", viewer, body={}).status == 403


# ---- on record, and gone ----


def test_every_change_is_in_the_audit_log(app_db: Database, ada: Customer) -> None:
    for _ in range(2):
        made(ada, "expo")
    rotate(ada, "expo")
    send("DELETE", "/v1/integrations/expo", ada.token)
    noted = rows(
        app_db,
        "SELECT action, actor, details FROM platform.audit_log WHERE action ~ '^integration' ORDER BY id",
    )
    assert [row["action"] for row in noted] == [
        f"integration.{what}" for what in ("created", "changed", "rotated", "deleted")
    ]
    assert {row["actor"] for row in noted} == {f"user:{ada.user_id}"}
    assert noted[0]["details"] == {"type": "expo", "scope": "organization"}


def test_the_list_comes_in_parts(ada: Customer) -> None:
    names = ["expo", "stripe", "github"]
    for name in names:
        made(ada, name)
    first = send("GET", "/v1/integrations", ada.token, query={"limit": "2"}).body
    rest = send(
        "GET", "/v1/integrations", ada.token, query={"limit": "2", "cursor": first["next_cursor"]}
    ).body
    assert [each["type"] for each in first["items"] + rest["items"]] == names[::-1]
    assert rest["next_cursor"] is None
    assert [each["type"] for each in listed(ada, type="stripe")] == ["stripe"]


def test_an_erased_user_leaves_no_integration_and_no_private_key(
    app_db: Database, ada: Customer, secrets_manager: Any, webhook_secrets: None
) -> None:
    for name in ("app-store-connect", "expo"):
        made(ada, name)
    made(ada, "expo", scope="user")
    with app_db.as_role("backplane_system"):
        assert post_clerk(clerk_user("user_ada", kind="deleted")).body["status"] == "processed"
        assert rows(app_db, "SELECT 1 FROM deploys.integrations") == []
        age(app_db)
        assert invoke(secrets_upkeep.handler, {})["strays"] == 1
    assert stored_keys(secrets_manager) == []


def test_a_deleted_organisations_integrations_are_of_no_use_at_once_and_gone_within_the_hour(
    app_db: Database, ada: Customer, secrets_manager: Any
) -> None:
    made(ada, "app-store-connect")
    expo = made(ada, "expo")
    rows(app_db, "UPDATE tenancy.organizations SET deleted_at = now()")
    age(app_db)
    with app_db.as_role("backplane_system"):
        assert secrets_of("eas", expo["id"]) is None
        assert credentials(ada, "expo") is None
        done = invoke(secrets_upkeep.handler, {})
    assert (done["deleted"], done["strays"]) == (2, 1)
    assert stored_keys(secrets_manager) == []


# ---- another key ----


def test_rows_are_brought_under_a_new_key_once_and_read_as_before(
    app_db: Database, ada: Customer, kms: Any, field_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("expo", "stripe", "github", "google_analytics", "app-store-connect"):
        made(ada, name)
    new = make_key(kms)
    monkeypatch.setenv("FIELD_KEY_ARN", new)
    monkeypatch.setenv("FORMER_FIELD_KEY_ARNS", field_key)
    config.settings.cache_clear()
    rotate(ada, "github")  # half of a row under the new key counts as under the former
    monkeypatch.setattr(secrets_upkeep, "BATCH", 2)
    with app_db.as_role("backplane_system"):
        first = reencryption.reencrypt(reencryption.FIELDS[0], after=None, limit=2)  # and cut off
        assert first.reencrypted == 2
        done = invoke(secrets_upkeep.handler, {})
        assert (done["ok"], done["reencrypted"], done["left"]) == (True, 2, 0)
        assert invoke(secrets_upkeep.handler, {})["reencrypted"] == 0
        kms.disable_key(KeyId=field_key.rpartition("/")[2])
        monkeypatch.setenv("FORMER_FIELD_KEY_ARNS", "")
        config.settings.cache_clear()
        field_encryption.forget()
        for type_, secret in (("expo", "access_token"), ("stripe", "secret_key"), ("github", "access_token")):
            found = credentials(ada, type_)  # type: ignore[arg-type]
            assert found is not None
            assert found.secrets[secret] == CONFIGS[type_][secret]
        assert len(rows(app_db, "SELECT 1 FROM deploys.integrations WHERE encryption_key = %s", new)) == 4


def test_a_field_that_cannot_be_read_is_counted_and_stops_nobody(
    app_db: Database, ada: Customer, kms: Any, field_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("expo", "stripe"):
        made(ada, name)
    rows(app_db, "UPDATE deploys.integrations SET secrets = 'damaged' WHERE type = 'expo'")
    monkeypatch.setenv("FIELD_KEY_ARN", make_key(kms))
    monkeypatch.setenv("FORMER_FIELD_KEY_ARNS", field_key)
    config.settings.cache_clear()
    with app_db.as_role("backplane_system"):
        done = invoke(secrets_upkeep.handler, {})
    assert (done["ok"], done["reencrypted"], done["unreadable"], done["left"]) == (False, 1, 1, 1)
