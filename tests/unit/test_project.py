"""The house's rules: where things stand, what may know what, and what template and code say of each other."""

import ast
import importlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from samtranslator.yaml_helper import yaml_parse

from backplane import roles
from backplane.routes import PUBLIC_ROUTES
from backplane.schema import LATEST_MIGRATION

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = sorted(folder.name for folder in (ROOT / "functions").iterdir() if any(folder.glob("*.py")))
UNTRACKED = {".venv", ".git", ".local", ".aws-sam", "__pycache__"} | {
    f".{tool}" for tool in ("hypothesis", "mypy_cache", "pytest_cache", "ruff_cache")
}
Json: TypeAlias = dict[str, Any]

# Which login a function has: user-facing ones are bound by row-level security, the others see every
# organisation, and the one that migrates has the owner's secret instead of a name.
LOGINS = {
    "account": "backplane_app",
    "billing": "backplane_app",
    "admin": "backplane_system",  # a platform admin sees every organisation
    "artifact_copier": "backplane_system",
    "backup": "backplane_backup",
    "build_webhook": "backplane_system",
    "clerk_webhook": "backplane_system",
    "credits": "backplane_app",
    "deployments": "backplane_app",
    "generations": "backplane_app",
    "file_landed": "backplane_system",  # S3 tells of every organisation's uploads
    "files": "backplane_app",
    "health": "backplane_system",
    "integrations": "backplane_app",
    "ledger_audit": "backplane_system",
    "maintenance": "backplane_system",
    "migrate": None,
    "organizations": "backplane_app",
    "outbox_publisher": "backplane_system",
    "plan_credits": "backplane_system",
    "plans": "backplane_app",
    "restore_drill": "backplane_system",
    "projects": "backplane_app",
    "secrets_upkeep": "backplane_system",
    "storage_upkeep": "backplane_system",
    "stripe_reconciliation": "backplane_system",
    "stripe_webhook": "backplane_system",
    "sweeper": "backplane_system",
    "webhook_worker": "backplane_system",
}
SECRET_OF = {
    "backplane_app": "AppDatabaseSecret",
    "backplane_backup": "BackupDatabaseSecret",
    "backplane_system": "SystemDatabaseSecret",
}
# The drill makes and drops databases, on the owner's server unless it is given another.
SECOND_SECRET = {"restore_drill": {"DatabaseOwnerSecretArn"}}
# Paths that answer without a router: senders sign, monitors ask, and anyone reads.
WITHOUT_A_ROUTER = {
    "/docs",
    "/docs/{asset}",
    "/health",
    "/openapi.json",
    "/webhooks/clerk",
    "/webhooks/eas/{integration_id}",
    "/webhooks/github/{integration_id}",
    "/webhooks/stripe",
    "/webhooks/vercel/{integration_id}",
}
# They have no business with the database: no login, no secret.
WITHOUT_A_DATABASE = {"openapi"}


@cache
def template() -> Json:
    parsed: Json = yaml_parse((ROOT / "template.yaml").read_text())
    return parsed


@cache
def resources() -> dict[str, Json]:
    """The properties of each function's resource, by its folder's name."""
    return {
        resource["Properties"]["CodeUri"].removeprefix("functions/"): resource["Properties"]
        for resource in template()["Resources"].values()
        if resource["Type"] == "AWS::Serverless::Function"
    }


@cache
def all_texts() -> tuple[tuple[Path, str], ...]:
    """Every text file of the project, read once."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - UNTRACKED)  # they are not gone into: .venv alone has 30,000 files
        for name in sorted(set(names) - UNTRACKED):
            path = Path(folder, name)
            if path.is_file():
                with suppress(UnicodeDecodeError):
                    found.append((path.relative_to(ROOT), path.read_text()))
    return tuple(found)


def texts(*suffixes: str) -> Iterator[tuple[Path, str]]:
    """Every text file of the project, or those with one of the suffixes."""
    return ((place, text) for place, text in all_texts() if not suffixes or place.suffix in suffixes)


def imported(path: Path) -> set[str]:
    """The top-level names of what a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")}


# ---- a function's four places ----


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_an_entry_module_of_its_name(name: str) -> None:
    module = importlib.import_module(name)
    assert Path(module.__file__ or "") == ROOT / "functions" / name / f"{name}.py"
    assert callable(module.handler)
    assert module.__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_a_resource(name: str) -> None:
    resource = resources()[name]
    assert resource["Handler"] == f"{name}.handler"
    assert resource["Description"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_a_sample_event(name: str) -> None:
    event = json.loads((ROOT / "events" / f"{name}.json").read_text())
    assert event["description"]
    assert ("invoke" in event) != ("path" in event)
    if "path" in event:
        assert claims(name, event["method"], event["path"]), "the template gives the path to another function"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_tests_that_call_it(name: str) -> None:
    uses = re.compile(rf"\b(import {name}|{name}\.handler|from {name} import)\b")
    assert [place for place, text in texts(".py") if place.parts[0] == "tests" and uses.search(text)]


def test_nothing_is_in_the_template_or_among_the_events_that_has_no_folder() -> None:
    assert set(resources()) == set(FUNCTIONS)
    assert {path.stem for path in (ROOT / "events").glob("*.json")} == set(FUNCTIONS)


# ---- who may know whom ----


def test_the_layer_knows_neither_the_functions_nor_the_local_cloud() -> None:
    others = {"local", "tests", "functions"}
    others |= {module for name in FUNCTIONS for module in modules(ROOT / "functions" / name)}
    for path in (ROOT / "layers").rglob("*.py"):
        assert not imported(path) & others, path.relative_to(ROOT)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_knows_the_layer_and_itself_only(name: str) -> None:
    folder = ROOT / "functions" / name
    others = {"local", "tests", "functions"}
    others |= {module for other in FUNCTIONS for module in modules(ROOT / "functions" / other)}
    for path in folder.glob("*.py"):
        assert not imported(path) & (others - modules(folder)), path.name


def test_a_modules_name_is_used_once() -> None:
    """Tests, logs and stack traces tell modules apart by their names."""
    names = [path.stem for name in FUNCTIONS for path in (ROOT / "functions" / name).glob("*.py")]
    names += ["backplane", "local", "tests"]
    assert len(names) == len(set(names))


# ---- the template and the routes ----


def paths(name: str) -> list[tuple[str, str]]:
    """What the template gives a function: (method or ANY, path)."""
    events = resources()[name].get("Events") or {}
    return [
        (event["Properties"]["Method"], event["Properties"]["Path"])
        for event in events.values()
        if event["Type"] == "HttpApi"
    ]


def covers(given: tuple[str, str], method: str, path: str) -> bool:
    """Whether API Gateway sends a route's requests to a template's path."""
    pattern = re.sub(r"\\\{[^}]+\\\+\\\}", ".+", re.escape(given[1]))
    pattern = re.sub(r"\\\{[^}]+\\\}", "[^/]+", pattern)
    return given[0] in {"ANY", method} and re.fullmatch(pattern, path) is not None


def claims(name: str, method: str, path: str) -> bool:
    return any(covers(given, method, path) for given in paths(name))


def routes(name: str) -> list[tuple[str, str]]:
    router = getattr(importlib.import_module(name), "router", None)
    return (
        []
        if router is None
        else [(route.method, re.sub(r"<\w+>", "x", route.path)) for route in router.routes]
    )


def test_every_route_is_reached_through_its_own_functions_path_alone() -> None:
    for name in FUNCTIONS:
        for method, path in routes(name):
            assert [other for other in FUNCTIONS if claims(other, method, path)] == [name], (method, path)


def test_every_path_of_the_template_leads_to_a_route() -> None:
    for name in FUNCTIONS:
        for given in paths(name):
            led = any(covers(given, method, path) for method, path in routes(name))
            assert led or given[1] in WITHOUT_A_ROUTER, given
    assert {path for name in FUNCTIONS if not routes(name) for _, path in paths(name)} == WITHOUT_A_ROUTER


def test_every_router_is_walked_by_the_tests_of_isolation() -> None:
    from tests import callers

    routers = {router for router, _ in callers.FUNCTIONS.values()}
    assert routers == {importlib.import_module(name).router for name in FUNCTIONS if routes(name)}


def test_only_the_price_list_is_public() -> None:
    assert {"GET /v1/plans"} == PUBLIC_ROUTES
    public = {
        f"{route.method} {route.path}"
        for name in FUNCTIONS
        if routes(name)
        for route in importlib.import_module(name).router.routes
        if route.scope is None
    }
    assert public == PUBLIC_ROUTES


# ---- rights ----


# A star may stand for the names in a folder or behind a prefix that nobody else has.
OF_ITS_OWN = re.compile(
    r"\$\{\w+\.Arn\}/\w+/\*|arn:.*:cluster-snapshot:backplane-backup-\*"
    r"|arn:.*:secret:\$\{AWS::StackName\}/integrations/\*"
)


def secrets_of(name: str) -> set[str]:
    """The resources and parameters whose secrets a function may read."""
    found = set()
    for policy in resources()[name].get("Policies", ()):
        for given in policy["Statement"]:
            statement = given.get("Fn::If", [None, given])[1]
            assert statement["Effect"] == "Allow"
            assert "*" not in json.dumps(statement["Action"])
            for part in re.findall(r'"([^"]*\*[^"]*)"', json.dumps(statement["Resource"])):
                assert OF_ITS_OWN.fullmatch(part), part
            if statement["Action"] == "secretsmanager:GetSecretValue":
                found |= set(re.findall(r'"Ref": "(\w+)"', json.dumps(statement["Resource"])))
    return found - {"AWS::NoValue"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_signs_in_as_who_it_must_be_and_reads_that_ones_secret_only(name: str) -> None:
    if name in WITHOUT_A_DATABASE:
        assert not {"Environment", "Policies"} & set(resources()[name])
        return
    variables = resources()[name]["Environment"]["Variables"]
    assert name in LOGINS, f"say in LOGINS which login {name} has, and why it needs no less"
    login = LOGINS[name]
    assert variables.get("DATABASE_USER") == login
    if login is None:
        assert variables["DATABASE_SECRET_ARN"] == {"Ref": "DatabaseOwnerSecretArn"}
        return
    own = SECRET_OF[login]
    assert variables["DATABASE_SECRET_ARN"] == {"Ref": own}
    others = {
        "AppDatabaseSecret",
        "SystemDatabaseSecret",
        "BackupDatabaseSecret",
        "DatabaseOwnerSecretArn",
    } - {own}
    assert own in secrets_of(name)
    assert secrets_of(name) & others == SECOND_SECRET.get(name, set())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if LOGINS.get(name) in roles.TOKEN_LOGINS])
def test_a_function_may_sign_in_by_token_as_its_own_login_and_no_other(name: str) -> None:
    granted = [
        statement["Fn::If"][1]
        for policy in resources()[name]["Policies"]
        for statement in policy["Statement"]
        if "rds-db:connect" in json.dumps(statement)
    ]
    short = (LOGINS[name] or "").removeprefix("backplane_")
    assert len(granted) == 1, f"add `- *sign_in_as_{short}` to the statements of {name}'s policy"
    assert granted[0]["Action"] == "rds-db:connect"
    (resource,) = (statement["Resource"]["Fn::Sub"] for statement in granted)
    assert resource.endswith(f":dbuser:${{DatabaseIamResourceId}}/{LOGINS[name]}")


def test_only_the_webhooks_read_their_senders_secrets() -> None:
    readers = {
        name for name in FUNCTIONS for secret in secrets_of(name) if secret.endswith("WebhookSecretArn")
    }
    assert readers == {"stripe_webhook", "clerk_webhook"}
    assert "ClerkWebhookSecretArn" not in secrets_of("stripe_webhook")
    assert "StripeWebhookSecretArn" not in secrets_of("clerk_webhook")


def test_whoever_checks_callers_is_told_how() -> None:
    needed = {"CLERK_ISSUER", "CLERK_JWT_KEY", "ALLOWED_ORIGINS", "PLATFORM_ADMINS"}
    for name in FUNCTIONS:
        if {f"{method} {path}" for method, path in routes(name)} - PUBLIC_ROUTES:
            assert needed <= set(resources()[name]["Environment"]["Variables"]), name


def test_whoever_replays_senders_events_reads_them_as_the_senders_own_functions_do() -> None:
    """Else another instance's event, put aside as such, would be applied by its replay."""
    known = {
        name: set(resources()[f"{name}_webhook"]["Environment"]["Variables"])
        - {"DATABASE_USER", "DATABASE_SECRET_ARN", f"{name.upper()}_WEBHOOK_SECRET_ARN"}
        for name in ("stripe", "clerk")
    }
    for name in ("admin", "webhook_worker"):
        variables = set(resources()[name]["Environment"]["Variables"])
        assert known["stripe"] | known["clerk"] <= variables, name
        assert "StripeApiKeySecretArn" in secrets_of(name)


# ---- settings ----


def test_the_code_expects_the_newest_migration() -> None:
    files = sorted((ROOT / "functions" / "migrate" / "migrations").glob("*.sql"))
    assert files[-1].name.partition("_")[0] == LATEST_MIGRATION


def test_the_environments_are_complete_and_alike() -> None:
    environments = tomllib.loads((ROOT / "samconfig.toml").read_text())
    assert environments.pop("version") == 0.1
    assert set(environments) == {"dev", "staging", "prod"}

    def keys(table: Json) -> set[str]:
        return {f"{command}.{key}" for command, part in table.items() for key in part["parameters"]}

    stages = template()["Parameters"]["Stage"]["AllowedValues"]
    for name, table in environments.items():
        assert keys(table) == keys(environments["prod"]), name
        assert {"global", "validate", "build", "deploy"} == set(table)
        assert table["global"]["parameters"]["stack_name"] == f"backplane-{name}"
        deploy = table["deploy"]["parameters"]
        assert deploy["s3_prefix"] == f"backplane-{name}"
        overrides = dict(override.split("=", 1) for override in deploy["parameter_overrides"])
        assert overrides["Stage"] == name
        assert name in stages
        assert set(overrides) <= set(template()["Parameters"])
        assert deploy["confirm_changeset"] is (name != "dev")


def test_each_stage_has_its_log_level_in_the_runtime_and_in_our_own_loggers() -> None:
    levels = {name: stage["LogLevel"] for name, stage in template()["Mappings"]["Stages"].items()}
    assert levels == {"local": "INFO", "dev": "DEBUG", "staging": "INFO", "prod": "INFO"}
    assert list(levels) == template()["Parameters"]["Stage"]["AllowedValues"]
    by_stage = {"Fn::FindInMap": ["Stages", {"Ref": "Stage"}, "LogLevel"]}
    everywhere = template()["Globals"]["Function"]
    assert everywhere["LoggingConfig"]["ApplicationLogLevel"] == by_stage
    assert everywhere["Environment"]["Variables"]["LOG_LEVEL"] == by_stage


@pytest.mark.parametrize(
    ("given", "level"), [(None, logging.INFO), ("", logging.INFO), ("DEBUG", logging.DEBUG)]
)
def test_our_loggers_have_the_stages_level_and_libraries_never_write_what_they_are_sent(
    monkeypatch: pytest.MonkeyPatch, given: str | None, level: int
) -> None:
    import backplane

    if given is None:
        monkeypatch.delenv("LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("LOG_LEVEL", given)
    try:
        importlib.reload(backplane)
        assert logging.getLogger("backplane.db").getEffectiveLevel() == level
        for library in ("botocore.parsers", "boto3", "urllib3.connectionpool", "stripe", "psycopg"):
            assert logging.getLogger(library).getEffectiveLevel() == logging.WARNING
    finally:
        monkeypatch.undo()
        importlib.reload(backplane)


def infra(name: str) -> Json:
    parsed: Json = yaml_parse((ROOT / "infra" / name).read_text())
    return parsed


def test_the_databases_stack_gives_what_the_applications_stack_takes() -> None:
    assert set(infra("database.yaml")["Outputs"]) <= set(template()["Parameters"])
    assert set(infra("database.yaml")["Parameters"]) & set(template()["Outputs"]) == {
        "AppDatabaseSecretArn",
        "SystemDatabaseSecretArn",
    }


def test_the_database_can_be_restored_to_any_second_of_a_week_and_is_not_deleted_by_mistake() -> None:
    cluster = infra("database.yaml")["Resources"]["Cluster"]
    assert cluster["Properties"]["BackupRetentionPeriod"] >= 7
    assert cluster["Properties"]["DeletionProtection"] is True
    assert cluster["Properties"]["StorageEncrypted"] is True
    assert cluster["DeletionPolicy"] == cluster["UpdateReplacePolicy"] == "Snapshot"


def test_the_bucket_of_backups_is_private_encrypted_versioned_and_outlives_the_stack() -> None:
    bucket = template()["Resources"]["BackupBucket"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
    properties = bucket["Properties"]
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert "aws:kms" in json.dumps(properties["BucketEncryption"])
    rules = properties["LifecycleConfiguration"]["Rules"]
    assert any("AbortIncompleteMultipartUpload" in rule for rule in rules)
    (statement,) = template()["Resources"]["BackupBucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


# ---- requirements ----

LOCKS = ("requirements/bootstrap.txt", "requirements/dev.txt", "layers/backplane/requirements.txt")


def locked(lock: str) -> set[tuple[str, str, frozenset[str]]]:
    """Name, version and hashes of each line; a name may have a version a platform."""
    found = set()
    for line in (ROOT / lock).read_text().replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        requirement, *hashes = (part.strip() for part in line.split(" --hash="))
        name, _, version = requirement.partition(";")[0].partition("==")
        assert version, f"{name} is not pinned"
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), name
        found.add((name.partition("[")[0], version.strip(), frozenset(hashes)))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_and_hashes_every_line_and_names_no_host(lock: str) -> None:
    assert locked(lock)
    assert not re.search(r"://|index-url|find-links|trusted-host| @ ", (ROOT / lock).read_text())
    wanted = (ROOT / lock).with_suffix(".in").read_text()
    assert not re.search(r"://|index-url|find-links|trusted-host| @ ", wanted)


def test_the_layer_runs_on_what_was_tested() -> None:
    assert locked("layers/backplane/requirements.txt") <= locked("requirements/dev.txt")


# ---- what no file holds ----


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X)\b")  # in brackets: this file is searched too
    assert [f"{place}: {found[0]}" for place, text in texts() if (found := marks.search(text))] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile(r"(?<![\w.])/(home|Users|root|work|mnt)/\w|\b[A-Z]:\\")
    found = [f"{place}: {hit[0]}" for place, text in texts() if (hit := places.search(text))]
    assert found == []
    assert [place for place, text in texts() if str(ROOT) in text] == []


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\S+?\.md)\)", (folder / "README.md").read_text()))
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}


def test_every_module_of_the_layer_has_a_room_in_the_architecture() -> None:
    rooms = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.stem for path in (ROOT / "layers" / "backplane" / "backplane").glob("[!_]*.py")}
    named = {
        name
        for row in re.findall(r"^\| (`.*?) \|", rooms, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert modules - named == set()


@pytest.mark.xdist_group("one")
def test_the_tests_that_share_a_stack_are_kept_on_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest-xdist knows a group by what it puts behind the ids. Where it can't, only the time tells."""
    grouped = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@one") == grouped
