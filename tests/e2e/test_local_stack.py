"""`make dev` and the commands around it, as a person runs them."""

import base64
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import psycopg
import pytest
from local.aws import clients
from local.children import started_at
from local.postgres import Postgres
from tests.e2e.local_cloud import PATIENCE, ROOT, Cloud, alive, request, until

PYTHON = sys.executable
FUNCTIONS = sorted(
    folder.name for folder in (ROOT / "functions").iterdir() if (folder / f"{folder.name}.py").exists()
)


def is_free(port: int) -> bool:
    """Nobody listens there. (Somebody's outgoing connection may have the number meanwhile.)"""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def ports_of(written: dict[str, str]) -> list[int]:
    urls = ("api_url", "lambda_url", "aws_endpoint_url", "database_url", "issuer")
    return [port for name in urls if (port := urlsplit(written[name]).port)]


def assert_nothing_is_left(cloud: Cloud, family: dict[int, str], ports: list[int]) -> None:
    until(lambda: not alive(family), "every process of the stack ends")
    assert [port for port in ports if not is_free(port)] == []
    left = {path.name for path in cloud.data.iterdir()}
    assert not left & {"lock", "stack.json", "processes"}


# ---- one stack for all of these ----


def test_the_ready_line_has_the_urls_and_three_commands(stack: Cloud) -> None:
    written = stack.written
    ready = [line for line in stack.output.splitlines() if "Backplane is ready" in line]

    assert len(ready) == 1
    assert all(written[name] in ready[0] for name in ("api_url", "lambda_url", "aws_endpoint_url"))


def test_stack_json_has_what_callers_rely_on_and_is_private(stack: Cloud) -> None:
    written = stack.written

    assert set(written) == {
        "api_url",
        "lambda_url",
        "aws_endpoint_url",
        "database_url",
        "admin_database_url",
        "stripe_webhook_secret",
        "clerk_webhook_secret",
        "service_key",
        "issuer",
        "signing_key_path",
        "functions",
    }
    assert sorted(written["functions"]) == FUNCTIONS
    assert re.fullmatch(r"bp_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}", written["service_key"])
    assert written["stripe_webhook_secret"].startswith("whsec_")
    assert len(base64.b64decode(written["clerk_webhook_secret"].removeprefix("whsec_"))) == 24
    for file in ("stack.json", "secrets.json", "signing_key.pem"):
        assert stat.S_IMODE((stack.data / file).stat().st_mode) == 0o600
    assert stat.S_IMODE(stack.data.stat().st_mode) == 0o700


def test_health_answers_through_the_gateway(stack: Cloud) -> None:
    answer = stack.request("GET", "/health")

    assert (answer.status, answer.json()["status"]) == (200, "healthy")


def test_every_function_can_be_invoked_under_its_name_in_stack_json(stack: Cloud) -> None:
    client = clients(stack.written["lambda_url"])("lambda")
    answer = client.invoke(FunctionName=stack.written["functions"]["health"], Payload=b"{}")

    assert json.loads(answer["Payload"].read())["status"] == "healthy"
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.invoke(FunctionName="backplane-local-Nothing-1")


def test_both_database_urls_work_and_only_the_owner_sees_every_row(stack: Cloud) -> None:
    assert stack.run("local.send", "events/clerk_webhook.json").returncode == 0
    seen = {}
    for name in ("database_url", "admin_database_url"):
        with psycopg.connect(stack.written[name]) as connection:
            seen[name] = connection.execute("SELECT id FROM tenancy.organizations").fetchall()

    assert seen["database_url"] == []
    assert seen["admin_database_url"] != []


def test_the_service_key_has_every_scope_in_the_database(stack: Cloud) -> None:
    prefix = stack.written["service_key"].split("_")[1]
    with psycopg.connect(stack.written["admin_database_url"]) as connection:
        row = connection.execute(
            "SELECT kind::text, scopes FROM platform.api_keys WHERE prefix = %s", [prefix]
        ).fetchone()

    assert row is not None
    assert row[0] == "service"
    assert {"read", "credits:spend", "credits:settle", "credits:refund", "generations:finish"} <= set(row[1])


def test_the_issuer_serves_the_key_that_signs_tokens(stack: Cloud) -> None:
    token = stack.token("user_keys", "--org", "org_keys", "--role", "member")
    jwks = request(stack.written["issuer"], "GET", "/.well-known/jwks.json").json()
    key = jwt.PyJWKSet.from_dict(jwks)[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["RS256"], issuer=stack.written["issuer"])

    assert claims["sub"] == "user_keys"
    assert (claims["org_id"], claims["org_role"]) == ("org_keys", "org:member")
    assert claims["exp"] - claims["iat"] == 12 * 3600
    assert claims["azp"] == "http://localhost:3000"


def test_a_token_is_accepted_and_a_tampered_one_is_not(stack: Cloud) -> None:
    token = stack.token("user_tokens")
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = (
        base64.urlsafe_b64encode(json.dumps(claims | {"sub": "user_other"}).encode()).decode().rstrip("=")
    )

    accepted = stack.request("GET", "/v1/me", headers={"authorization": f"Bearer {token}"})
    refused = stack.request("GET", "/v1/me", headers={"authorization": f"Bearer {head}.{forged}.{signature}"})

    assert (accepted.status, accepted.json()["user"]["clerk_id"]) == (200, "user_tokens")
    assert (refused.status, refused.headers["content-type"]) == (401, "application/problem+json")


def test_a_platform_role_is_given_with_the_token(stack: Cloud) -> None:
    token = stack.token("user_platform", "--platform", "admin")
    answer = stack.request("GET", "/v1/me", headers={"authorization": f"Bearer {token}"})

    assert answer.json()["user"]["role"] == "admin"


@pytest.fixture(scope="module")
def somebody(stack: Cloud) -> None:
    """The user and the customer whom the samples are of."""
    assert stack.run("local.send", "events/clerk_webhook.json").returncode == 0
    assert stack.run("local.send", "events/stripe_webhook.json").returncode == 0


@pytest.mark.parametrize("file", sorted((ROOT / "events").glob("*.json")), ids=lambda file: file.stem)
@pytest.mark.usefixtures("somebody")
def test_every_sample_event_succeeds(stack: Cloud, file: Path) -> None:
    if file.stem == "restore_drill":  # of the newest backup
        assert stack.run("local.invoke", "backup").returncode == 0
    sample = json.loads(file.read_text())
    if "invoke" in sample:
        done = stack.run("local.invoke", file.stem, str(file))
    else:
        done = stack.run("local.send", str(file))

    assert done.returncode == 0, done.stdout + done.stderr
    # The document tells of problems, too.
    assert file.stem == "openapi" or "problem" not in done.stdout


def test_every_function_has_a_sample_event() -> None:
    assert sorted(file.stem for file in (ROOT / "events").glob("*.json")) == FUNCTIONS


def test_sending_twice_is_two_events_unless_it_is_told_the_id(stack: Cloud) -> None:
    def status(*arguments: str) -> str:
        sent = stack.run("local.send", "events/clerk_webhook.json", *arguments)
        answer: str = json.loads(sent.stdout.partition("\n")[2])["status"]
        return answer

    assert "duplicate" not in {status(), status()}
    assert status("--id", "once") != "duplicate"
    assert status("--id", "once") == "duplicate"


def test_migrate_has_nothing_left_to_apply(stack: Cloud) -> None:
    done = stack.run("local.database", "migrate")

    assert json.loads(done.stdout)["applied"] == []
    assert json.loads(done.stdout)["ok"] is True


def test_psql_opens_on_the_owners_database(stack: Cloud) -> None:
    done = subprocess.run(
        [PYTHON, "-m", "local.database", "psql"],
        cwd=ROOT,
        env=stack.environment(),
        input="SELECT current_database();",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "backplane" in done.stdout


def test_logs_follow_one_function(stack: Cloud) -> None:
    process = subprocess.Popen(
        [PYTHON, "-u", "-m", "local.logs", "health"],
        cwd=ROOT,
        env=stack.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        stack.request("GET", "/health")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_runtime_processes_descend_from_the_stack(stack: Cloud) -> None:
    stack.request("GET", "/health")
    runtimes = [
        pid
        for pid in stack.family()
        if b"awslambdaric" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]

    assert runtimes


def test_a_second_stack_here_is_refused_with_the_first_ones_id(stack: Cloud) -> None:
    second = stack.run("local.stack", "--port", "0")

    assert second.returncode == 1
    assert f"already running here (pid {stack.process.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    assert stack.request("GET", "/health").status == 200


def test_forgetting_is_refused_while_it_runs(stack: Cloud) -> None:
    refused = stack.run("local.stack", "--forget")

    assert refused.returncode == 1
    assert f"kill {stack.process.pid}" in refused.stderr


def test_a_port_in_use_is_refused_with_its_owner_and_a_way_out(stack: Cloud, cloud: Cloud) -> None:
    port = urlsplit(stack.written["api_url"]).port
    refused = cloud.run("local.stack", "--port", str(port))

    assert refused.returncode == 1
    assert f"port {port} is in use by pid {stack.process.pid}" in refused.stderr
    assert "make dev PORT=0" in refused.stderr
    assert "Traceback" not in refused.stderr


# ---- starting and stopping ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_stack_stops_it_clean(cloud: Cloud, number: signal.Signals) -> None:
    written = cloud.start()
    cloud.request("GET", "/health")
    family, ports = cloud.family(), ports_of(written)

    assert cloud.stop(number) == 0
    assert "Traceback" not in cloud.output
    assert_nothing_is_left(cloud, family, ports)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_make_alone_stops_it_clean(cloud: Cloud, number: signal.Signals) -> None:
    written = cloud.start("make", "dev", "PORT=0")
    cloud.request("GET", "/health")
    family, ports = cloud.family(), ports_of(written)
    cloud.stop(number)

    assert "Stopped." in cloud.output
    assert_nothing_is_left(cloud, family, ports)


def test_a_second_ctrl_c_does_not_leave_processes(cloud: Cloud) -> None:
    written = cloud.start()
    cloud.request("GET", "/health")
    family, ports = cloud.family(), ports_of(written)
    for _ in range(5):
        os.killpg(cloud.process.pid, signal.SIGINT)

    assert cloud.wait() == 0
    assert_nothing_is_left(cloud, family, ports)


def test_a_signal_while_it_starts_leaves_nothing(cloud: Cloud) -> None:
    process = cloud.spawn()
    until((cloud.data / "processes").exists, "it has begun")
    family = cloud.family()
    process.send_signal(signal.SIGTERM)

    assert cloud.wait() == 0
    until(lambda: not alive(family), "every process of the stack ends")
    assert not (cloud.data / "lock").exists()


def test_a_killed_stack_takes_all_with_it_and_starts_again_with_nothing_lost(cloud: Cloud) -> None:
    before = cloud.start()
    assert cloud.run("local.send", "events/clerk_webhook.json").returncode == 0
    assert cloud.run("local.send", "events/stripe_webhook.json").returncode == 0
    token = cloud.token("user_demo")
    family = cloud.family()
    cloud.process.kill()
    cloud.wait()
    until(lambda: not alive(family), "the kernel ends every process of a killed stack")
    # One that a schedule was just starting is not in the family, and may hold a port a moment longer.
    until(lambda: all(is_free(port) for port in ports_of(before)), "nobody listens any more")

    after = cloud.start()

    assert "was killed: took over its lock" in cloud.output
    balance = cloud.request("GET", "/v1/credits", headers={"authorization": f"Bearer {token}"})
    assert (balance.status, balance.json()["available"]) == (200, 600)
    unchanged = ("issuer", "service_key", "stripe_webhook_secret", "clerk_webhook_secret", "database_url")
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}


def test_forgetting_deletes_the_data_and_the_next_start_makes_it_anew(cloud: Cloud) -> None:
    cloud.start()
    cloud.stop()
    server = Postgres(cloud.data / "postgres")
    assert server.home.exists()

    assert cloud.run("local.stack", "--forget").returncode == 0
    assert not server.home.exists()
    assert not cloud.data.exists()
    assert cloud.start()["functions"]


# ---- what is refused ----


def test_without_a_stack_the_commands_say_how_to_start_one(cloud: Cloud) -> None:
    for command in (
        ("local.send", "events/health.json"),
        ("local.token", "user_demo"),
        ("local.invoke", "health"),
        ("local.database", "psql"),
        ("local.database", "migrate"),
    ):
        refused = cloud.run(*command)
        assert refused.returncode == 1
        assert "make dev" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_make_token_does_not_take_the_shells_user(cloud: Cloud) -> None:
    done = subprocess.run(
        ["make", "-s", "token"],
        cwd=ROOT,
        env=cloud.environment(USER="root"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode != 0
    assert "make -s token USER=" in done.stderr


def test_a_database_url_without_a_server_is_refused_with_a_way_out(cloud: Cloud) -> None:
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"postgresql://owner:secret@127.0.0.1:{port}/backplane"
        refused = cloud.run("local.stack", "--port", "0", DATABASE_URL=url)

    assert refused.returncode == 1
    assert f"No PostgreSQL server answers at 127.0.0.1:{port}" in refused.stderr
    assert "unset it" in refused.stderr
    assert "secret" not in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("login", "database", "told"),
    [
        ("postgres:wrong", "postgres", "refuses the password of postgres"),
        ("backplane_nobody:secret", "postgres", "may not create roles"),
        ("{owner}", "nowhere", "has no database nowhere"),
    ],
)
def test_a_database_url_that_cannot_work_is_refused_with_a_way_out(
    cloud: Cloud, tmp_path: Path, login: str, database: str, told: str
) -> None:
    server = Postgres(tmp_path / "server").start()
    try:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE backplane_nobody LOGIN PASSWORD 'secret'")
        owner = urlsplit(server.url()).netloc.rpartition("@")[0]
        url = f"postgresql://{login.format(owner=owner)}@127.0.0.1:{server.port}/{database}"
        refused = cloud.run("local.stack", "--port", "0", DATABASE_URL=url)
    finally:
        server.forget()

    assert refused.returncode == 1
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_a_killed_stack_has_written_is_not_taken_for_a_running_one(cloud: Cloud) -> None:
    cloud.start()
    cloud.process.kill()
    cloud.wait()
    assert (cloud.data / "stack.json").exists()

    assert "make dev" in cloud.run("local.token", "user_demo").stderr


def test_the_stack_runs_on_a_database_of_the_developers_own(cloud: Cloud, tmp_path: Path) -> None:
    server = Postgres(tmp_path / "server").start()
    try:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE developer LOGIN CREATEROLE PASSWORD 'secret'")
            connection.execute("CREATE DATABASE mine OWNER developer")
        url = f"postgresql://developer:secret@127.0.0.1:{server.port}/mine"
        written = cloud.start(DATABASE_URL=url)
        assert written["admin_database_url"] == url
        assert cloud.run("local.send", "events/clerk_webhook.json").returncode == 0
        assert cloud.request("GET", "/health").json()["status"] == "healthy"
        assert cloud.stop() == 0
        assert started_at(server.pid or 0), "the developer's server is his"
    finally:
        server.forget()
