"""Supabase connected by its user's consent, its tokens renewed by one at a time, and lost in the open."""

import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import boto3
import maintenance
import pytest
from tests.callers import Customer, mint, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.integration.test_integrations import dump, give_plan, listed, rows
from tests.processes import race
from tests.senders import Answer, invoke
from tests.supabase_api import CLIENT_ID, CLIENT_SECRET, REDIRECT_URI, FakeSupabase

from backplane import config, secrets, supabase_tokens
from backplane.problems import InvalidState, NotFound, Unavailable

PROCESSES = 6
RENEW = """
import sys
from uuid import UUID
from backplane import supabase_tokens
integration, organization = map(UUID, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
print(supabase_tokens.access_token(supabase_tokens.Whose(integration, organization, None)))
"""


@pytest.fixture
def supabase(field_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSupabase]:
    """An OAuth app at a fake Supabase, and the environment that names both."""
    secret = boto3.client("secretsmanager").create_secret(
        Name=f"supabase-{field_key[-12:]}",
        SecretString=json.dumps({"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}),
    )
    secrets._client.cache_clear()
    with FakeSupabase() as fake:
        monkeypatch.setenv("SUPABASE_CLIENT_SECRET_ARN", secret["ARN"])
        monkeypatch.setenv("SUPABASE_REDIRECT_URI", REDIRECT_URI)
        monkeypatch.setenv("SUPABASE_API_BASE", fake.url)
        config.settings.cache_clear()
        yield fake
    secrets._client.cache_clear()


@pytest.fixture
def ada(app_db: Database, supabase: FakeSupabase, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    customer = sign_up()
    give_plan(app_db, customer.organization_id)
    return customer


def begin(who: Customer, **body: Any) -> str:
    answer = send("POST", "/v1/integrations/supabase/connect", who.token, body=body)
    assert answer.status == 200, answer.body
    url: str = answer.body["authorize_url"]
    return url


def come_back(who: Customer, code: str, state: str) -> Answer:
    return send("POST", "/v1/integrations/supabase/callback", who.token, body={"code": code, "state": state})


def connect(who: Customer, supabase: FakeSupabase, **body: Any) -> dict[str, Any]:
    answer = come_back(who, *supabase.consent(begin(who, **body)))
    assert answer.status == 200, answer.body
    connected: dict[str, Any] = answer.body
    return connected


def whose(who: Customer, connected: dict[str, Any]) -> supabase_tokens.Whose:
    return supabase_tokens.Whose(UUID(connected["id"]), who.organization_id, None)


def expire(database: Database, *, seconds: int = 0) -> None:
    """The tokens that stand are over, or will be in so many seconds."""
    rows(
        database,
        "UPDATE deploys.integrations SET tokens_expire_at = now() + make_interval(secs => %s)",
        seconds,
    )


def renewals(supabase: FakeSupabase) -> int:
    return sum(form["grant_type"] == "refresh_token" for form in supabase.asked)


def state(database: Database) -> str:
    [row] = rows(database, "SELECT state::text FROM deploys.integrations")
    text: str = row["state"]
    return text


# ---- connecting ----


def test_a_user_who_consents_is_connected_until_the_token_is_over(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    connected = connect(ada, supabase)
    assert (connected["type"], connected["state"], connected["config"]) == (
        "supabase",
        "active",
        {"organization_id": "acme"},
    )
    [row] = rows(
        app_db,
        """
        SELECT extract(epoch FROM tokens_expire_at - clock_timestamp())::int AS lives
        FROM deploys.integrations
        """,
    )
    assert supabase.lifetime - 600 < row["lives"] <= supabase.lifetime
    answer = send("GET", "/v1/integrations/supabase/projects", ada.token)
    assert answer.body == {"items": [{"id": "abcdefghij", "name": "Shop", "region": "eu-west-1"}]}
    assert renewals(supabase) == 0
    assert [each["action"] for each in rows(app_db, "SELECT action FROM platform.audit_log")][-1] == (
        "integration.connected"
    )


def test_who_connects_again_stays_in_his_organisation(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    first = connect(ada, supabase)
    supabase.organization = "another"
    second = connect(ada, supabase)
    assert (second["id"], second["config"]) == (first["id"], {"organization_id": "acme"})
    assert len(listed(ada)) == 1


def test_a_consent_is_good_once_for_who_began_it_and_for_ten_minutes(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    eve = sign_up("user_eve")
    give_plan(app_db, eve.organization_id)
    code, state = supabase.consent(begin(ada))
    for who, code_sent, state_sent in ((eve, code, state), (ada, code, "guessed")):
        assert come_back(who, code_sent, state_sent).status == 400
    assert come_back(ada, code, state).status == 200
    assert come_back(ada, code, state).status == 400
    other_code, _ = supabase.consent(begin(ada))
    _, state = supabase.consent(begin(ada))
    assert come_back(ada, other_code, state).status == 400  # of another consent: its verifier is another
    code, state = supabase.consent(begin(ada))
    rows(app_db, "UPDATE deploys.oauth_states SET expires_at = now() - interval '1 second'")
    assert come_back(ada, code, state).status == 400
    with app_db.as_role("backplane_system"):
        assert invoke(maintenance.handler, {})["done"]["oauth_states"] == 2
    assert rows(app_db, "SELECT 1 FROM deploys.oauth_states") == []


def test_only_a_person_with_the_plan_connects_where_it_is_set_up(
    app_db: Database, ada: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/v1/integrations/supabase/connect"
    assert send("POST", path, sign_up("user_eve").token, body={}).body["code"] == "feature_not_in_plan"
    key = mint(app_db, ada.organization_id, ["read", "deployments:write"])
    assert send("POST", path, key, body={}).status == 403
    assert send("GET", "/v1/integrations/supabase/projects", ada.token).status == 404
    monkeypatch.delenv("SUPABASE_CLIENT_SECRET_ARN")
    config.settings.cache_clear()
    assert send("POST", path, ada.token, body={}).status == 503


def test_no_token_code_or_state_is_in_the_database_a_log_or_an_answer(
    app_db: Database, ada: Customer, supabase: FakeSupabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("botocore", "urllib3"):
        caplog.set_level(logging.INFO, logger=name)
    path = "/v1/integrations/supabase/connect"
    url = send("POST", path, ada.token, body={}, key="once").body["authorize_url"]
    repeated = send("POST", path, ada.token, body={}, key="once")
    code, state = supabase.consent(url)
    told = [repeated, come_back(ada, code, state), come_back(ada, code, state)]
    expire(app_db)
    told.append(send("GET", "/v1/integrations/supabase/projects", ada.token))
    supabase.revoke()
    expire(app_db)
    told.append(send("GET", "/v1/integrations/supabase/projects", ada.token))
    assert [answer.status for answer in told] == [200, 200, 400, 200, 409]
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    everything = "\n".join([logged, dump(app_db), *(json.dumps(answer.body) for answer in told)])
    sought = {code, state, CLIENT_SECRET, *supabase.secrets}
    sought |= {form["code_verifier"] for form in supabase.asked if "code_verifier" in form}
    assert len(sought) >= 6
    assert not [secret for secret in sought if secret in everything]


# ---- renewing ----


def test_a_token_is_renewed_before_it_is_over_and_not_while_it_is_fresh(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    of = whose(ada, connect(ada, supabase))
    with app_db.as_role("backplane_system"):
        first = supabase_tokens.access_token(of)
        expire(app_db, seconds=supabase_tokens.AHEAD + 60)
        assert supabase_tokens.access_token(of) == first
        expire(app_db, seconds=supabase_tokens.AHEAD - 60)
        second = supabase_tokens.access_token(of)
        assert second != first
        assert supabase_tokens.access_token(of) == second
    assert renewals(supabase) == 1


def test_many_processes_at_once_renew_once(app_db: Database, ada: Customer, supabase: FakeSupabase) -> None:
    """The fake refuses a refresh token that is sent twice, as Supabase does."""
    of = whose(ada, connect(ada, supabase))
    expire(app_db)
    supabase.pause = 0.5
    with app_db.as_role("backplane_system"):
        tokens = {words[0] for words in race(RENEW, *[[str(of.id), str(of.organization_id)]] * PROCESSES)}
    assert len(tokens) == 1
    assert renewals(supabase) == 1
    assert state(app_db) == "active"


def test_a_refused_renewal_asks_the_user_to_connect_again_and_says_so_once(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    connected = connect(ada, supabase)
    supabase.revoke()
    expire(app_db)
    for _ in range(2):
        answer = send("GET", "/v1/integrations/supabase/projects", ada.token)
        assert (answer.status, answer.body["code"]) == (409, "invalid_state")
    assert renewals(supabase) == 1
    [item] = listed(ada)
    assert item["state"] == "needs_reconnect"
    told = rows(app_db, "SELECT payload FROM platform.outbox WHERE type = 'integration.needs_reconnect'")
    assert [row["payload"] for row in told] == [
        {"integration_id": connected["id"], "integration_type": "supabase"}
    ]
    assert connect(ada, supabase)["state"] == "active"
    assert send("GET", "/v1/integrations/supabase/projects", ada.token).status == 200


def test_a_renewal_whose_answer_was_lost_surfaces_too(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    """Supabase has spent the refresh token, and we have not got the new one."""
    of = whose(ada, connect(ada, supabase))
    expire(app_db)
    supabase.trouble.append("lost")
    with app_db.as_role("backplane_system"):
        with pytest.raises(Unavailable):
            supabase_tokens.access_token(of)
        with pytest.raises(InvalidState):
            supabase_tokens.access_token(of)
    assert state(app_db) == "needs_reconnect"


def test_a_passing_cause_keeps_the_token_while_it_is_good(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    of = whose(ada, connect(ada, supabase))
    with app_db.as_role("backplane_system"):
        first = supabase_tokens.access_token(of)
        expire(app_db, seconds=60)
        supabase.trouble.append("error")
        assert supabase_tokens.access_token(of) == first
        expire(app_db)
        for trouble in ("error", "forbidden", "nonsense"):
            supabase.trouble.append(trouble)
            with pytest.raises(Unavailable):
                supabase_tokens.access_token(of)
        assert supabase_tokens.access_token(of) != first
    assert state(app_db) == "active"


def test_a_lease_that_nobody_gives_back_is_waited_for_and_ends(
    app_db: Database, ada: Customer, supabase: FakeSupabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder was killed before it asked."""
    of = whose(ada, connect(ada, supabase))
    hold = """
        UPDATE deploys.integrations
        SET refresh_lease = gen_random_uuid(), refresh_leased_until = now() + make_interval(secs => %s)
    """
    with app_db.as_role("backplane_system"):
        first = supabase_tokens.access_token(of)
        rows(app_db, hold, 3600)
        expire(app_db, seconds=60)
        assert supabase_tokens.access_token(of) == first  # the others go on with the one that stands
        expire(app_db)
        monkeypatch.setattr(supabase_tokens, "PATIENCE", 0.3)
        with pytest.raises(Unavailable):
            supabase_tokens.access_token(of)
        rows(app_db, hold, -1)
        assert supabase_tokens.access_token(of) != first
    assert renewals(supabase) == 1


def test_who_connects_while_another_renews_is_not_overwritten(
    app_db: Database, ada: Customer, supabase: FakeSupabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = whose(ada, connect(ada, supabase))
    expire(app_db)
    seal = supabase_tokens.seal

    def overtaken(row: Any, tokens: Any) -> bytes:
        monkeypatch.setattr(supabase_tokens, "seal", seal)
        with app_db.as_role("backplane_app"):
            connect(ada, supabase)
        return seal(row, tokens)

    monkeypatch.setattr(supabase_tokens, "seal", overtaken)
    with app_db.as_role("backplane_system"):
        token = supabase_tokens.access_token(of)
        assert token == supabase_tokens.access_token(of)
    assert renewals(supabase) == 1
    assert state(app_db) == "active"


def test_a_connection_that_was_deleted_has_no_token(
    app_db: Database, ada: Customer, supabase: FakeSupabase
) -> None:
    of = whose(ada, connect(ada, supabase))
    assert send("DELETE", "/v1/integrations/supabase", ada.token).status == 204
    with app_db.as_role("backplane_system"), pytest.raises(NotFound):
        supabase_tokens.access_token(of)
