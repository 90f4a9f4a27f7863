"""A user is erased: nothing of him is left in any table, his numbers are, and a report says what went."""

import json
import threading
import time
from typing import Any

import maintenance
import psycopg
import pytest
from psycopg.rows import DictRow
from tests.callers import ROOT, send, sign_up, trust_our_tokens
from tests.databases import Database
from tests.senders import (
    FIRST,
    checkout_session,
    clerk_item,
    clerk_membership,
    clerk_organization,
    clerk_user,
    invoke,
    post_clerk,
    post_stripe,
    stripe_event,
    subscription,
)
from tests.traces import MARK, plant

from backplane import audits, erasure, ledger

pytestmark = pytest.mark.usefixtures("webhook_secrets")

# The columns that hold text, documents, bytes or addresses and nothing of a person, by table. A new
# column belongs here, or in erasure.PERSONAL with the statement that erases it. `*`: the whole table is
# the operator's.
IMPERSONAL = {
    "billing.credit_packs": {"*"},
    "billing.customers": {"provider_customer_id"},  # a pseudonym; the person behind it is the sender's
    # What Stripe calls a purchase, its payments and what went back: ids, amounts, states.
    "billing.disputes": {"provider_dispute_id", "status", "as_of"},
    "billing.payment_refunds": {"provider_refund_id", "status", "as_of"},
    "billing.payments": {"provider_payment_id", "provider_charge_id", "provider_purchase_id"},
    "billing.purchases": {"provider_purchase_id", "provider_subscription_id", "currency"},
    "billing.plan_limits": {"*"},
    "billing.plan_prices": {"*"},
    "billing.plans": {"*"},
    "billing.stripe_reconciliations": {"*"},
    "billing.subscription_events": {"provider_event_id", "event_type", "plan_key", "status"},
    "billing.subscriptions": {"provider_subscription_id", "provider_customer_id", "price_id", "as_of"},
    "billing.usage_counters": {"key"},
    "credits.entries": {"operation", "idempotency_key", "request_hash", "actor"},
    "credits.grants": {
        "source_key",
        "provider_subscription_id",
        "checkout_session_id",
        "invoice_id",
        "payment_intent_id",
        "charge_id",
    },
    "credits.holds": {"operation", "idempotency_key", "request_hash", "actor"},
    "credits.operations": {"*"},
    "credits.sign_up_claims": {"email_hash"},  # keyed; kept so that sign-up credits come once an address
    "deploys.artifacts": {"sha256"},
    "deploys.deployment_events": {"source", "actor", "external_id"},
    "deploys.deployments": {"stale_reason"},  # ours
    "deploys.provider_jobs": {"external_id"},
    "deploys.integrations": {"encryption_key", "secret_name"},  # names of keys
    "deploys.oauth_states": {"state_hash", "verifier"},  # random
    "deploys.private_keys": {"secret_name"},
    "identity.users": {"clerk_id", "as_of"},  # the tombstone
    "platform.admin_settings": {"*"},
    "platform.api_keys": {"prefix", "secret_hash", "scopes"},
    "platform.audit_log": {"actor", "action", "target"},
    "platform.backups": {"*"},
    "platform.erasures": {"actor", "erased"},
    "platform.idempotency_keys": {"route", "request_hash"},
    "platform.outbox": {"type", "error"},
    "platform.partitioned_tables": {"*"},
    "platform.webhook_inbox": {"event_id", "event_type", "waiting_for", "person"},
    "projects.file_versions": {"s3_key", "s3_version", "sha256"},
    "projects.generations": {"lock_token_hash"},
    "projects.projects": {"template_name", "template_version", "features"},
    "storage.objects": {"s3_key", "s3_version", "content_type", "reason"},  # reasons are ours: sizes, types
    "storage.unknown_objects": {"*"},
    "tenancy.former_members": {"as_of"},
    "tenancy.organization_members": {"as_of"},
    "tenancy.organizations": {"clerk_id", "owner_clerk_id", "as_of"},
}


def status(event: dict[str, Any], message_id: str | None = None) -> str:
    answer = post_clerk(event, message_id)
    assert answer.status == 200, answer.body
    return str(answer.body["status"])


def rows(database: Database, query: str, *params: object) -> list[DictRow]:
    with database.connect() as connection:
        cursor = connection.execute(query, params)
        return cursor.fetchall() if cursor.description else []


def columns(database: Database) -> dict[str, set[str]]:
    """The columns that could hold something of a person, by table."""
    found = rows(
        database,
        """
        SELECT n.nspname || '.' || t.relname AS table, a.attname AS column
        FROM pg_attribute AS a
        JOIN pg_type AS y ON y.oid = a.atttypid
        LEFT JOIN pg_type AS element ON element.oid = y.typelem AND y.typcategory = 'A'
        JOIN pg_class AS t ON t.oid = a.attrelid
        JOIN pg_namespace AS n ON n.oid = t.relnamespace
        WHERE t.relkind IN ('r', 'p')
          AND NOT t.relispartition -- its table's columns
          AND a.attnum > 0
          AND NOT a.attisdropped
          AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')
          AND (coalesce(element.typcategory, y.typcategory) IN ('S', 'I') -- texts, network addresses
               OR coalesce(element.typname, y.typname)
                  IN ('json', 'jsonb', 'bytea', 'xml', 'tsvector', 'vector'))
        """,
    )
    tables: dict[str, set[str]] = {}
    for row in found:
        tables.setdefault(row["table"], set()).add(row["column"])
    return tables


def personal() -> dict[str, set[str]]:
    listed = {part.table: set(part.columns) for part in erasure.PERSONAL}
    return listed | {table: set(names) for table, names in erasure.LEDGER.items()}


def texts(database: Database) -> dict[str, str]:
    """All that is in each table, as one text; bytes as what they spell."""
    found = {}
    for table, names in columns(database).items():
        held = [
            {name: bytes(row[name]).decode(errors="replace") if isinstance(row[name], bytes) else row[name]}
            for row in rows(database, f"SELECT * FROM {table}")
            for name in names
        ]
        found[table] = json.dumps(held, default=str)
    return found


# ---- no column is forgotten ----


def test_every_column_is_either_personal_and_erased_or_called_impersonal(database: Database) -> None:
    undecided, unknown = [], []
    for table, names in columns(database).items():
        decided = personal().get(table, set()) | IMPERSONAL.get(table, set())
        if "*" not in decided:
            undecided += [f"{table}.{name}" for name in sorted(names - decided)]
        assert not personal().get(table, set()) & IMPERSONAL.get(table, set()), table
    everything = {
        f"{row['table_schema']}.{row['table_name']}.{row['column_name']}"
        for row in rows(
            database, "SELECT table_schema, table_name, column_name FROM information_schema.columns"
        )
    }
    for table, names in [*personal().items(), *IMPERSONAL.items()]:
        unknown += [f"{table}.{name}" for name in names - {"*"} if f"{table}.{name}" not in everything]
    assert not undecided, (
        f"Does {', '.join(undecided)} hold anything of a person? Then erase it: list it in erasure.PERSONAL "
        f"with its statement, and plant a trace of it below. If not, call it impersonal in {__name__}."
    )
    assert not unknown, f"there is no {', '.join(unknown)}"


# ---- a person with traces everywhere ----


def balances(database: Database) -> list[DictRow]:
    return rows(
        database,
        """
        SELECT version, kind, amount, available_after, held_after, debt_after, operation, actor,
               idempotency_key
        FROM credits.entries
        ORDER BY organization_id, version
        """,
    )


def test_nothing_of_an_erased_user_is_left_in_any_table(system_db: Database) -> None:
    plant(system_db)
    marked = {table for table, text in texts(system_db).items() if MARK.lower() in text.lower()}
    assert marked == {table for table, names in personal().items() if names}  # the trace is everywhere
    assert status(clerk_user("user_1", kind="deleted")) == "processed"
    left = {table: text for table, text in texts(system_db).items() if MARK.lower() in text.lower()}
    assert left == {}
    [user] = rows(
        system_db, "SELECT last_login_at, locked_until FROM identity.users WHERE clerk_id = 'user_1'"
    )
    assert user == {"last_login_at": None, "locked_until": None}


def test_the_ledgers_numbers_stay_and_add_up(system_db: Database) -> None:
    plant(system_db)
    before = balances(system_db)
    status(clerk_user("user_1", kind="deleted"))
    assert balances(system_db) == before
    for row in rows(system_db, "SELECT id FROM tenancy.organizations"):
        assert audits.audit(row["id"]).ok


def test_the_report_counts_what_went_and_names_nobody(system_db: Database) -> None:
    user_id = plant(system_db)
    status(clerk_user("user_1", kind="deleted"))
    [report] = rows(system_db, "SELECT * FROM platform.erasures")
    assert (report["user_id"], report["actor"]) == (user_id, "clerk")
    assert set(report["erased"]) == set(personal())
    assert report["erased"]["identity.users"] == 1
    assert report["erased"]["credits.entries"] == 6  # a debit, a hold and a refund in each organisation
    [told] = rows(system_db, "SELECT payload FROM platform.outbox WHERE type = 'user.erased'")
    assert told["payload"] == {"user_id": str(user_id), "erased": report["erased"]}


def test_platform_admins_read_the_reports(system_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_our_tokens(monkeypatch)
    user_ids = [plant(system_db, f"user_{number}") for number in (1, 2)]
    for number in (1, 2):
        status(clerk_user(f"user_{number}", kind="deleted"))
    root = sign_up(ROOT).token
    newest = send("GET", "/v1/admin/erasures", root, query={"limit": "1"}).body
    older = send("GET", "/v1/admin/erasures", root, query={"cursor": newest["next_cursor"]}).body
    reports = newest["items"] + older["items"]
    assert [report["user_id"] for report in reports] == [str(user_id) for user_id in reversed(user_ids)]
    assert reports[0]["erased"]["identity.users"] == 1
    assert older["next_cursor"] is None
    assert send("GET", "/v1/admin/erasures", sign_up("user_3").token).status == 403


def test_others_keep_what_is_theirs(system_db: Database) -> None:
    """Their own tables whole, and in a shared organisation what the erased user did not write."""
    plant(system_db)
    plant(system_db, "user_2")
    [shared] = rows(system_db, "SELECT id FROM tenancy.organizations WHERE clerk_id = 'org_1'")
    ledger.debit(shared["id"], "ai_text_chat", 1, key="x", actor="key:1", details={"kept": True})
    before = rows(system_db, "SELECT * FROM identity.users WHERE clerk_id = 'user_2'")
    status(clerk_user("user_1", kind="deleted"))
    assert rows(system_db, "SELECT * FROM identity.users WHERE clerk_id = 'user_2'") == before
    marked = {table for table, text in texts(system_db).items() if MARK.lower() in text.lower()}
    assert marked == {table for table, names in personal().items() if names}  # the other's
    kept = rows(system_db, "SELECT details FROM credits.entries WHERE actor = 'key:1' AND kind = 'debit'")
    assert kept == [{"details": {"kept": True}}]
    [organization] = rows(
        system_db, "SELECT name, deleted_at FROM tenancy.organizations WHERE clerk_id = 'org_1'"
    )
    assert organization == {"name": "Acme", "deleted_at": None}


def test_invitations_to_his_address_and_what_was_shared_with_him_go_too(system_db: Database) -> None:
    status(clerk_user("user_1", email="ada@example.com"))
    plant(system_db, "user_2")
    [ada] = rows(system_db, "SELECT id FROM identity.users WHERE clerk_id = 'user_1'")
    for email, accepted_by in (("ada@example.com", None), ("her.other@example.com", ada["id"])):
        rows(
            system_db,
            """
            INSERT INTO projects.shares
                (organization_id, project_id, email, role, token_hash, expires_at, user_id, accepted_at)
            SELECT organization_id, id, %s, 'viewer', sha256(%s), now(), %s, CASE WHEN %s THEN now() END
            FROM projects.projects
            """,
            email,
            email.encode(),
            accepted_by,
            accepted_by is not None,
        )
    status(clerk_user("user_1", kind="deleted"))
    assert len(rows(system_db, "SELECT email FROM projects.shares")) == 1  # another's


def test_a_second_deletion_erases_and_reports_nothing_more(system_db: Database) -> None:
    plant(system_db)
    assert status(clerk_user("user_1", kind="deleted")) == "processed"
    assert status(clerk_user("user_1", kind="deleted")) == "stale"
    assert len(rows(system_db, "SELECT 1 FROM platform.erasures")) == 1


def test_a_deletion_that_comes_first_is_reported_too(system_db: Database) -> None:
    assert status(clerk_user("user_1", kind="deleted")) == "processed"
    assert rows(system_db, "SELECT organization_id, erased FROM platform.erasures") == [
        {"organization_id": None, "erased": {}}
    ]
    status(clerk_user("user_1", first_name=MARK))
    assert MARK not in json.dumps(texts(system_db))


def test_sign_up_credits_come_once_an_address_also_after_an_erasure(system_db: Database) -> None:
    status(clerk_user("user_1", email="ada@example.com"))
    status(clerk_user("user_1", kind="deleted"))
    assert status(clerk_user("user_2", email="ada@example.com")) == "processed"
    amounts = rows(
        system_db, "SELECT available FROM credits.accounts ORDER BY available"
    )  # the erased one's stay his
    assert [row["available"] for row in amounts] == [0, 100]


# ---- late events ----

LATE = [
    clerk_user("user_1", kind="updated", first_name=MARK, updated_at=FIRST * 1000 + 5),
    clerk_membership("user_1", "org_1", public_user_data={"user_id": "user_1", "first_name": MARK}),
    clerk_membership("user_1", "org_unknown", public_user_data={"user_id": "user_1", "first_name": MARK}),
    clerk_item("csub_item_9", seats={"name": MARK}),
    clerk_user("user_1", kind="updated", first_name=[MARK]),  # of no shape that could be applied
]


@pytest.mark.parametrize("late", LATE, ids=["user", "member", "member of nothing", "item", "malformed"])
@pytest.mark.parametrize("known", [True, False])
def test_a_late_event_of_an_erased_user_brings_nothing_of_him_back(
    system_db: Database, late: dict[str, Any], known: bool
) -> None:
    status(clerk_organization("org_1", created_by=None))
    if known:
        status(clerk_user("user_1"))
    status(clerk_user("user_1", kind="deleted"))
    assert status(late, "msg_late") in {"stale", "quarantined"}
    assert MARK not in json.dumps(texts(system_db))
    [row] = rows(
        system_db, "SELECT status::text, body FROM platform.webhook_inbox WHERE event_id = 'msg_late'"
    )
    assert row["body"] is None
    assert status(late, "msg_late") == "duplicate"


def test_what_was_parked_about_an_erased_user_goes_too(system_db: Database) -> None:
    for late in LATE[1:4]:
        assert status(late) == "parked"
    assert MARK in json.dumps(texts(system_db))
    status(clerk_user("user_1", kind="deleted"))
    assert MARK not in json.dumps(texts(system_db))
    assert rows(system_db, "SELECT 1 FROM platform.webhook_inbox WHERE status = 'parked'") == []


def test_late_events_of_stripe_for_his_organisation_are_applied_and_their_bodies_forgotten(
    system_db: Database,
) -> None:
    status(clerk_user("user_1"))
    metadata = {"organization_id": "user_1", "name": MARK}
    active = stripe_event("customer.subscription.created", subscription(metadata=metadata))
    assert post_stripe(active).body["status"] == "processed"
    status(clerk_user("user_1", kind="deleted"))
    assert MARK not in json.dumps(texts(system_db))
    ended = subscription(metadata=metadata, status="canceled")
    over = stripe_event("customer.subscription.deleted", ended, created=FIRST + 60)
    assert post_stripe(over).body["status"] == "processed"
    assert rows(system_db, "SELECT status::text FROM billing.subscriptions") == [{"status": "canceled"}]
    late = checkout_session(client_reference_id="user_1", metadata={"name": MARK}, customer="cus_2")
    assert post_stripe(stripe_event("checkout.session.completed", late)).body["status"] == "quarantined"
    assert MARK not in json.dumps(texts(system_db))


def test_what_is_recorded_while_he_is_erased_is_forgotten_by_night(system_db: Database) -> None:
    """An event of his organisation whose transaction began before the erasure and ends after it."""
    status(clerk_user("user_1"))
    [organization] = rows(system_db, "SELECT id FROM tenancy.organizations")
    with psycopg.connect(system_db.system) as late:
        late.execute(
            """
            INSERT INTO platform.webhook_inbox
                (provider, event_id, event_type, body, status, organization_id, occurred_at)
            VALUES ('stripe', 'evt_late', 'invoice.paid', %s, 'processed', %s, now())
            """,
            [MARK.encode(), organization["id"]],
        )
        status(clerk_user("user_1", kind="deleted"))
        late.commit()
    assert MARK in json.dumps(texts(system_db))
    assert invoke(maintenance.handler, {})["done"]["late_bodies_of_the_erased"] == 1
    assert MARK not in json.dumps(texts(system_db))


def test_an_update_and_a_deletion_at_once_leave_nothing(system_db: Database) -> None:
    """The update has begun and waits for the user's lock while he is erased."""
    status(clerk_user("user_1"))
    with psycopg.connect(system_db.system) as other, system_db.connect() as watcher:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('clerk.user:user_1', 0))")
        other.execute("UPDATE identity.users SET deleted_at = now(), email = NULL, last_name = NULL")
        other.execute("UPDATE tenancy.organizations SET deleted_at = now(), name = 'Deleted'")
        other.execute("UPDATE platform.webhook_inbox SET body = NULL")

        def commit_once_the_update_waits() -> None:
            for _ in range(1000):
                if watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                    break
                time.sleep(0.01)
            other.commit()

        thread = threading.Thread(target=commit_once_the_update_waits)
        thread.start()
        assert status(LATE[0]) == "stale"
        thread.join()
    assert MARK not in json.dumps(texts(system_db))


# ---- what the inbox keeps at all ----


def test_kinds_without_effect_leave_no_body(system_db: Database) -> None:
    code = {"otp_code": "123456", "to_email_address": "ada@example.com"}
    assert status({"type": "email.created", "data": code, "timestamp": FIRST}, "msg_code") == "ignored"
    assert rows(system_db, "SELECT body FROM platform.webhook_inbox") == [{"body": None}]


def test_who_caused_an_event_and_from_where_is_not_kept(system_db: Database) -> None:
    attributes = {"http_request": {"client_ip": "192.0.2.7", "user_agent": "Mozilla/5.0"}}
    event = clerk_user("user_1") | {"event_attributes": attributes}
    assert status(event) == "processed"
    [row] = rows(system_db, "SELECT body, person FROM platform.webhook_inbox")
    assert json.loads(bytes(row["body"])) == clerk_user("user_1")
    assert row["person"] == "user_1"


# ---- append-only still means it ----


@pytest.mark.parametrize("table", ["credits.entries", "platform.audit_log"])
@pytest.mark.parametrize(
    "change", ['details = \'{"name": "x"}\'', "actor = 'x', details = NULL", "actor = 'somebody'"]
)
def test_an_erasure_can_empty_details_and_change_nothing_else(
    system_db: Database, table: str, change: str
) -> None:
    plant(system_db)
    if table == "platform.audit_log":
        change = change.replace("NULL", "'{}'")
    with system_db.connect() as owner, owner.transaction():
        owner.execute("SELECT set_config('backplane.erasing', 'details', true)")
        with (
            pytest.raises(psycopg.errors.RestrictViolation, match="changes nothing else"),
            owner.transaction(),
        ):
            owner.execute(f"UPDATE {table} SET {change}".encode())


def test_details_are_erased_by_the_erasure_only(system_db: Database) -> None:
    user_id = plant(system_db)
    with system_db.connect() as owner:
        for table in ("credits.entries", "platform.audit_log"):
            empty = "NULL" if table == "credits.entries" else "'{}'"
            with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                owner.execute(f"UPDATE {table} SET details = {empty}".encode())
    with system_db.connect("backplane_app") as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("SELECT credits.erase_details(NULL, '{}', %s)", [f"user:{user_id}"])
    with system_db.connect("backplane_system") as system, system.transaction():
        system.execute("SELECT credits.erase_details(NULL, '{}', 'user:nobody')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), system.transaction():
            system.execute("UPDATE credits.entries SET details = NULL")
        assert system.execute("SELECT current_setting('backplane.erasing')").fetchone() == {
            "current_setting": ""
        }
