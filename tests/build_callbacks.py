"""Callbacks of Expo, Vercel and GitHub: composed as they send them, and signed by their published schemes."""

import hashlib
import hmac
import itertools
import json
from typing import Any
from uuid import UUID, uuid4

from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer, call, http_event

from backplane import field_encryption
from backplane.config import settings
from backplane.field_encryption import Place

SECRET = "a webhook secret, of 34 characters"
TYPES = {"eas": "expo", "vercel": "vercel", "github": "github"}
BUILD = "147a3212-49fd-446f-b4e3-a6519acf264a"
DEPLOYMENT = "dpl_1"
GITHUB_DEPLOYMENT = 145988746
NOON_MS = 1_772_366_400_000  # 2026-03-01T12:00:00Z

_numbers = itertools.count(1)


def integrate(
    database: Database,
    sender: str,
    organization_id: UUID,
    project_id: UUID | None = None,
    *,
    secrets: tuple[tuple[str, str | None], ...] = ((SECRET, None),),
) -> UUID:
    """An integration with webhook secrets, each until when. Needs the fixture `field_key`."""
    made = uuid4()
    write_secrets(
        database,
        made,
        organization_id,
        secrets,
        """
        INSERT INTO deploys.integrations
            (webhook_secrets, encryption_key, id, organization_id, project_id, scope, type)
        VALUES (%s, %s, %s, %s, %s, %s, %s)
        """,
        project_id,
        "project" if project_id else "organization",
        TYPES[sender],
    )
    return made


def rotate(
    database: Database, integration_id: UUID, organization_id: UUID, *secrets: tuple[str, str | None]
) -> None:
    statement = """
        UPDATE deploys.integrations
        SET webhook_secrets = %s, encryption_key = %s
        WHERE id = %s AND organization_id = %s
    """
    write_secrets(database, integration_id, organization_id, secrets, statement)


def write_secrets(
    database: Database,
    integration_id: UUID,
    organization_id: UUID,
    secrets: tuple[tuple[str, str | None], ...],
    statement: str,
    *more: object,
) -> None:
    plain = json.dumps([{"secret": secret, "until": until} for secret, until in secrets]).encode()
    place = Place("deploys.integrations", "webhook_secrets", integration_id, organization_id)
    ciphertext = field_encryption.encrypt(plain, place)
    rows(database, statement, ciphertext, settings().field_key_arn, integration_id, organization_id, *more)


# ---- sent ----


def signed(sender: str, body: bytes, secret: str = SECRET, *, delivery: str | None = None) -> dict[str, str]:
    """The headers that say who sent it."""
    algorithm = hashlib.sha256 if sender == "github" else hashlib.sha1
    digest = hmac.new(secret.encode(), body, algorithm).hexdigest()
    match sender:
        case "eas":
            return {"expo-signature": f"sha1={digest}"}
        case "vercel":
            return {"x-vercel-signature": digest}
        case _:
            return {
                "x-hub-signature-256": f"sha256={digest}",
                "x-github-delivery": delivery or f"72d3162e-cc78-11e3-81ab-{next(_numbers):012d}",
                "x-github-event": "deployment_status",
            }


def post(
    sender: str,
    integration_id: object,
    told: Any,
    *,
    secret: str = SECRET,
    delivery: str | None = None,
    headers: dict[str, str] | None = None,
    base64_encoded: bool = False,
) -> Answer:
    """Signs what is told and hands it to the function, as the gateway does."""
    import build_webhook

    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    return call(
        build_webhook.handler,
        http_event(
            "POST",
            f"/webhooks/{sender}/{integration_id}",
            body=body,
            headers=signed(sender, body, secret, delivery=delivery) if headers is None else headers,
            base64_encoded=base64_encoded,
        ),
    )


# ---- what they tell ----


def at(minutes: int) -> str:
    """So long after noon, as Expo writes times."""
    return f"2026-03-01T{12 + minutes // 60:02d}:{minutes % 60:02d}:00.000Z"


def eas_build(
    build_id: str = BUILD,
    *,
    status: str = "finished",
    platform: str = "android",
    minutes: int = 10,
    **fields: Any,
) -> dict[str, Any]:
    page = f"https://expo.dev/accounts/ada/projects/fitness/builds/{build_id}"
    ending = {"ios": "ipa", "android": "aab"}.get(platform, "zip")
    artifacts: dict[str, Any] = {"logsS3KeyPrefix": "production/1"}
    if status == "finished":
        artifacts["buildUrl"] = f"https://expo.dev/artifacts/eas/{build_id[:8]}.{ending}"
        if platform == "ios":
            artifacts["xcodeBuildLogsUrl"] = "https://expo.dev/artifacts/eas/xcode-logs"
    told: dict[str, Any] = {
        "id": build_id,
        "accountName": "ada",
        "projectName": "fitness",
        "buildDetailsPageUrl": page,
        "appId": "bc0a82de-65a5-4497-ad86-54ff1f53edf7",
        "initiatingUserId": "d1041496-1a59-423a-8caf-479bb978203a",
        "platform": platform,
        "status": status,
        "artifacts": artifacts,
        "metadata": {
            "appName": "Fitness",
            "username": "ada",
            "appVersion": "1.0.2",
            "appBuildVersion": "123",
            "buildProfile": "production",
            "gitCommitHash": "564b61ebdd403d28b5dc616a12ce160b91585b5b",
            "gitCommitMessage": "Add the home screen",
            "trackingContext": {"account_id": "7c34cbf1-efd4-4964-84a1-c13ed297aaf9"},
        },
        "metrics": None,
        "createdAt": at(0),
        "updatedAt": at(minutes),
        "expirationDate": "2026-03-31T12:00:00.000Z",
    }
    if status in {"finished", "errored", "canceled"}:
        told["completedAt"] = at(minutes)
    if status == "errored":
        told["error"] = {"message": "The keystore is missing", "errorCode": "KEYSTORE_MISSING"}
    return told | fields


def eas_submission(
    submission_id: str = "0374430d-7776-44ad-be7d-8513629adc54",
    *,
    build: str | None = BUILD,
    status: str = "finished",
    minutes: int = 20,
    **fields: Any,
) -> dict[str, Any]:
    info: dict[str, Any] = {"logsUrl": "https://logs.example.com/submission.txt"}
    if status == "errored":
        info["error"] = {"message": "The version code was used before", "errorCode": "OLD_VERSION_CODE"}
    return {
        "id": submission_id,
        "accountName": "ada",
        "submissionDetailsPageUrl": f"https://expo.dev/accounts/ada/submissions/{submission_id}",
        "archiveUrl": "https://expo.dev/artifacts/eas/147a3212.aab",
        "turtleBuildId": build,
        "platform": "android",
        "status": status,
        "submissionInfo": None if status == "canceled" else info,
        "createdAt": at(minutes - 5),
        "updatedAt": at(minutes),
        "completedAt": at(minutes),
    } | fields


def vercel_event(
    kind: str = "succeeded", *, deployment: object = DEPLOYMENT, seconds: int = 0, **fields: Any
) -> dict[str, Any]:
    return {
        "id": f"hook_{kind}_{next(_numbers)}",
        "type": f"deployment.{kind}",
        "createdAt": NOON_MS + 1000 * seconds,
        "region": "iad1",
        "payload": {
            "team": {"id": "team_1"},
            "user": {"id": "usr_1"},
            "deployment": {
                "id": deployment,
                "name": "fitness",
                "url": "fitness-abc123.vercel.app",
                "meta": {"githubCommitSha": "564b61eb", "githubCommitAuthorName": "Ada"},
            },
            "links": {"deployment": "https://vercel.com/ada/fitness/abc123"},
            "target": "production",
            "project": {"id": "prj_1"},
        },
    } | fields


def github_status(
    state: str = "success", *, deployment: object = GITHUB_DEPLOYMENT, seconds: int = 0, **fields: Any
) -> dict[str, Any]:
    moment = f"2026-03-01T12:{seconds // 60:02d}:{seconds % 60:02d}Z"
    return {
        "action": "created",
        "deployment_status": {
            "id": next(_numbers),
            "state": state,
            "creator": {"login": "ada"},
            "description": "It broke" if state in {"failure", "error"} else "",
            "environment": "production",
            "environment_url": "https://fitness.example.com",
            "target_url": "",
            "log_url": "https://github.com/ada/fitness/actions/runs/1/job/2",
            "created_at": moment,
            "updated_at": moment,
        },
        "deployment": {"id": deployment, "sha": "f95f852b", "ref": "main", "creator": {"login": "ada"}},
        "repository": {"id": 1, "full_name": "ada/fitness"},
        "sender": {"login": "ada"},
    } | fields
