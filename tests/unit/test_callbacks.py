"""What callbacks of builds are read as: no database here."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from callback_signature import SCHEMES, Sender, verify_signature
from tests.build_callbacks import at, eas_build, eas_submission, github_status, vercel_event

from backplane import callbacks, eas_callbacks, github_callbacks, vercel_callbacks
from backplane.deployment_reports import Urls
from backplane.inbox import Event
from backplane.problems import InvalidSignature

INTEGRATION = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
BODY, SECRET = b'{"id": "build-1"}', "0123456789abcdef"


def event(told: dict[str, Any]) -> Event:
    return eas_callbacks.received(INTEGRATION, json.dumps(told).encode())


def test_a_build_is_read_whole() -> None:
    report = eas_callbacks.build_told(event(eas_build("b1", platform="ios", minutes=7))).report
    page = "https://expo.dev/accounts/ada/projects/fitness/builds/b1"
    assert (report.status, report.external_id, report.platform, report.job) == (
        "successful",
        "b1",
        "ios",
        "build",
    )
    assert report.occurred_at == datetime(2026, 3, 1, 12, 7, tzinfo=UTC)
    assert report.artifact_expires_at == datetime(2026, 3, 31, 12, tzinfo=UTC)
    archive = "https://expo.dev/artifacts/eas/b1.ipa"
    logs = "https://expo.dev/artifacts/eas/xcode-logs"
    assert report.urls == Urls(ios=archive, archive=archive, details=page, logs=logs)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (eas_build(), "build.finished"),
        (eas_build(status="IN_PROGRESS"), "build.in-progress"),
        (eas_submission(), "submission.finished"),
        ({"id": "x", "status": "finished"}, "build.finished"),
        ({"id": "x", "status": "errored", "submissionInfo": None}, "submission.errored"),
        ({"id": "x", "status": "errored", "turtleBuildId": "y"}, "submission.errored"),
        (eas_build(archiveUrl="https://expo.dev/a.aab"), "build.finished"),
    ],
)
def test_builds_and_submissions_are_told_apart_by_their_fields(told: dict[str, Any], kind: str) -> None:
    assert event(told).type == kind


def test_a_submission_waits_for_its_build_last() -> None:
    assert eas_callbacks.submission_told(event(eas_submission("s1", build="b1"))).names == ("s1", "b1")
    assert eas_callbacks.submission_told(event(eas_submission("s1", build=None))).names == ("s1",)


def test_events_are_told_apart_by_what_their_sender_tells_them_apart_by() -> None:
    told = [
        eas_build(),
        eas_build(minutes=11),
        eas_build(status="errored"),
        eas_build("another"),
        eas_submission(),
        eas_build(updatedAt=None, completedAt=at(12)),
    ]
    assert len({event(each).id for each in told}) == len(told)
    assert event(eas_build(metadata=None)).id == event(eas_build()).id
    other = eas_callbacks.received(UUID(int=1), json.dumps(eas_build()).encode())
    assert other.id != event(eas_build()).id
    assert callbacks.integration_of(other) == UUID(int=1)


@pytest.mark.parametrize("told", [eas_build(), eas_build(status="errored"), eas_submission()])
def test_what_is_kept_of_a_body_tells_the_same(told: dict[str, Any]) -> None:
    first = event(told)
    assert first.body is not None
    again = eas_callbacks.parse(first.id, first.body)
    tell = eas_callbacks.build_told if "artifacts" in told else eas_callbacks.submission_told
    assert tell(again) == tell(first)


def test_so_it_does_of_vercels_and_githubs() -> None:
    body = json.dumps(vercel_event("error")).encode()
    vercel = vercel_callbacks.received(INTEGRATION, body)
    assert vercel.body is not None
    assert b"Ada" not in vercel.body
    again = vercel_callbacks.parse(vercel.id, vercel.body)
    assert vercel_callbacks.told(again) == vercel_callbacks.told(vercel)
    body = json.dumps(github_status("failure")).encode()
    github = github_callbacks.received(INTEGRATION, "d-1", body)
    assert github.body is not None
    assert b"ada" not in github.body.replace(b"ada/fitness/actions", b"")
    again = github_callbacks.parse(github.id, github.body)
    assert github_callbacks.told(again) == github_callbacks.told(github)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-03-01T12:00:00.000Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T12:00:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T13:00:00+01:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        (1_772_366_400_000, datetime(2026, 3, 1, 12, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_their_senders_write_them(value: object, moment: datetime) -> None:
    assert callbacks.moment(value) == moment


@pytest.mark.parametrize(
    "value", ["", "now", "1999-12-31T23:59:59Z", "9999-12-31T23:59:59Z", -1, 10**30, 1.5, True, None, [], {}]
)
def test_what_is_no_time_of_this_age_is_none(value: object) -> None:
    with pytest.raises(ValueError, match="not a time"):
        callbacks.moment(value)


# Made with `openssl dgst -hmac`.
SIGNATURES: dict[Sender, str] = {
    "eas": "sha1=8b881d76f4a27749a0eff764fe5361123298b90e",
    "vercel": "8b881d76f4a27749a0eff764fe5361123298b90e",
    "github": "sha256=83b51e0fcb4bbe0acd65445220c14ff19167a63691277430f9a92d455455e063",
}


@pytest.mark.parametrize("sender", SCHEMES)
def test_a_signature_is_the_senders_own(sender: Sender) -> None:
    good = SIGNATURES[sender]
    verify_signature(sender, BODY, good, ["another secret 0123", SECRET])
    others = [SIGNATURES[other] for other in SCHEMES if SIGNATURES[other] != good]
    for bad in (
        None,
        "",
        good[:-1],
        good + "0",
        good.upper(),
        f"{good},{good}",
        f" {good}",
        "٣" * 40,
        *others,
    ):
        with pytest.raises(InvalidSignature):
            verify_signature(sender, BODY, bad, [SECRET])
    for secrets in ([], ["another secret 0123"]):
        with pytest.raises(InvalidSignature):
            verify_signature(sender, BODY, good, secrets)
    with pytest.raises(InvalidSignature):
        verify_signature(sender, BODY + b" ", good, [SECRET])
