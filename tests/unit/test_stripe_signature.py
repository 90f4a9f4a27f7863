"""Stripe's signature scheme: what it lets through and what it refuses, and nothing but refusals."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from signature import MAX_HEADER_BYTES, TOLERANCE, verify_signature
from tests.senders import STRIPE_SECRET, stripe_signature

from backplane.problems import InvalidSignature

BODY = b'{"id": "evt_1"}'
NOW = 1_800_000_000
OLD_SECRET = "whsec_the_one_before"


def verify(header: str | None, *, body: bytes = BODY, secrets: list[str] | None = None) -> None:
    verify_signature(body, header, [STRIPE_SECRET] if secrets is None else secrets, now=NOW + 0.5)


def v1(secret: str = STRIPE_SECRET, *, at: int = NOW) -> str:
    return stripe_signature(BODY, secret, at).partition(",")[2]


@pytest.mark.parametrize(
    "secrets", [[STRIPE_SECRET], [OLD_SECRET, STRIPE_SECRET], [STRIPE_SECRET, OLD_SECRET]]
)
@pytest.mark.parametrize("signer", [STRIPE_SECRET, OLD_SECRET])
def test_each_of_the_secrets_in_force_verifies_and_no_other(secrets: list[str], signer: str) -> None:
    header = stripe_signature(BODY, signer, NOW)
    if signer in secrets:
        verify(header, secrets=secrets)
    else:
        with pytest.raises(InvalidSignature):
            verify(header, secrets=secrets)


@pytest.mark.parametrize(
    "header",
    [
        f"t={NOW},{v1()},{v1(OLD_SECRET)}",
        f"t={NOW},{v1(OLD_SECRET)},{v1()}",
        f"t={NOW},v0={'0' * 64},{v1()}",
        f"{v1()},t={NOW}",
        f"t={NOW}, {v1()}",
        f"t={NOW},v1=short,{v1()}",
    ],
)
def test_one_matching_v1_among_several_parts_is_enough(header: str) -> None:
    verify(header)


@pytest.mark.parametrize("seconds", [-TOLERANCE, 0, TOLERANCE])
def test_a_timestamp_within_the_tolerance_is_taken_on_either_side(seconds: int) -> None:
    verify_signature(BODY, stripe_signature(BODY, at=NOW + seconds), [STRIPE_SECRET], now=NOW)


@pytest.mark.parametrize("seconds", [-TOLERANCE - 1, TOLERANCE + 1, -31_536_000, 31_536_000])
def test_a_timestamp_outside_the_tolerance_is_refused_in_the_past_and_in_the_future(seconds: int) -> None:
    with pytest.raises(InvalidSignature, match="timestamp"):
        verify_signature(BODY, stripe_signature(BODY, at=NOW + seconds), [STRIPE_SECRET], now=NOW)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"t={NOW}",
        v1(),
        f"t={NOW},t={NOW},{v1()}",  # which of them was signed?
        f"t={NOW},{v1().upper()}",
        f"t={NOW},v1={'é' * 64}",
        f"t={NOW},v1={'٣' * 64}",
        f"t={NOW},v1=\ud800{'0' * 63}",
        f"t=-{NOW},{v1()}",
        f"t={NOW}.0,{v1()}",
        f"t={'9' * 400},{v1()}",
        f"t=٣,{v1()}",
        f"t={NOW + 1},{v1()}",
        f"t={NOW},{v1()[:-1]}",
        f"t={NOW},v0={v1()[3:]}",
        f"t={NOW},{v1(OLD_SECRET)}",
        f"t={NOW},{v1()}," + "v1=0," * MAX_HEADER_BYTES,
    ],
)
def test_a_header_that_proves_nothing_is_refused(header: str | None) -> None:
    with pytest.raises(InvalidSignature):
        verify(header)


@pytest.mark.parametrize("body", [b"", BODY + b" ", BODY.replace(b"1", b"2"), b"\xff" + BODY])
def test_a_signature_is_for_one_body_to_the_byte(body: bytes) -> None:
    with pytest.raises(InvalidSignature):
        verify(stripe_signature(BODY, at=NOW), body=body)


def test_bytes_that_are_not_utf8_can_be_signed_too() -> None:
    verify(stripe_signature(b"\xff\x00", at=NOW), body=b"\xff\x00")


_part = st.one_of(
    st.text(max_size=20),
    st.integers(0, 10**14).map(lambda n: f"t={n}"),
    st.just(f"t={NOW}"),
    st.text(alphabet="0123456789abcdef", min_size=64, max_size=64).map("v1={}".format),
)


@given(st.one_of(st.text(st.characters()), st.lists(_part, max_size=6).map(",".join)))
@example(f"t={NOW},v1=" + "é" * 64)
@example("t=²,v1=" + "0" * 64)
def test_any_other_header_is_refused_as_an_invalid_signature(header: str) -> None:
    with pytest.raises(InvalidSignature):
        verify(header)
