"""Sample events: what is new each time, and what is refused."""

from pathlib import Path

import pytest
from local import sample
from local.refusal import Refusal
from local.send import stripe_signature, svix_signature


def test_placeholders_are_filled_wherever_they_stand() -> None:
    written = {"id": "evt_{new}", "created": "{now}", "list": [{"at": "{now_ms}"}], "n": 1, "text": "{other}"}

    assert sample.fill(written, new="abc", now=12.5) == {
        "id": "evt_abc",
        "created": 12,
        "list": [{"at": 12500}],
        "n": 1,
        "text": "{other}",
    }


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("{now}", 1_000_000),
        ("{now+30d}", 1_000_000 + 30 * 86_400),
        ("{now-1h}", 1_000_000 - 3600),
        ("{now_ms+5m}", 1_000_300_000),
        ("{now_ms-2s}", 999_998_000),
        ("{now+1w}", "{now+1w}"),
        ("at {now}", "at {now}"),
    ],
)
def test_a_moment_may_be_earlier_or_later(written: str, moment: object) -> None:
    assert sample.fill(written, new="", now=1_000_000.0) == moment


def test_two_readings_are_two_events_unless_they_are_told_the_id(tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    file.write_text('{"description": "", "method": "POST", "path": "/x", "body": {"id": "{new}"}}')

    assert sample.read(file).body != sample.read(file).body
    assert sample.read(file, "once").body == sample.read(file, "once").body == {"id": "once"}


@pytest.mark.parametrize(
    "written",
    [
        "not json",
        "[]",
        '{"description": "neither"}',
        '{"description": "both", "path": "/x", "invoke": {}}',
        '{"description": "more", "path": "/x", "colour": "blue"}',
    ],
)
def test_what_is_no_sample_is_refused(tmp_path: Path, written: str) -> None:
    file = tmp_path / "event.json"
    file.write_text(written)

    with pytest.raises(Refusal):
        sample.read(file)


def test_a_missing_file_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "credits.json").write_text("{}")

    with pytest.raises(Refusal, match=r"credits\.json"):
        sample.read(tmp_path / "credit.json")


def test_stripes_signature_is_scheme_v1() -> None:
    # printf '1700000000.{}' | openssl dgst -sha256 -hmac whsec_x
    digest = "be8cb8325f2202445260a855532f967e30ad2a9394ce28da66ee02880ddcb661"
    assert stripe_signature("whsec_x", b"{}", 1700000000) == f"t=1700000000,v1={digest}"


def test_svixs_signature_is_scheme_v1() -> None:
    # The example of docs.svix.com/receiving/verifying-payloads/how-manual.
    secret = "whsec_plJ3nmyCDGBKInavdOK15jsl"
    payload = b'{"event_type":"ping","data":{"success":true}}'
    signature = svix_signature(secret, "msg_loFOjxBNrRLzqYUf", payload, 1731705121)

    assert signature == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
