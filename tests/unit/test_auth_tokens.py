"""Session tokens: everything that is refused, and what is read from the rest."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backplane import config, jwks, tokens
from backplane.problems import Problem, Unauthorized
from backplane.scopes import Role

NOW = 1_800_000_000.0
ISSUER = "https://clerk.example.com"
ORIGIN = "https://app.example.com"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CLERK_ISSUER", ISSUER)
    monkeypatch.setenv("CLERK_JWT_KEY", PEM)
    monkeypatch.setenv("ALLOWED_ORIGINS", f"{ORIGIN}, http://localhost:5173")
    config.settings.cache_clear()
    yield
    config.settings.cache_clear()


def claims(**changes: Any) -> dict[str, Any]:
    """Clerk's claims of a session that is 10 seconds old; a change to None takes a claim away."""
    session = {
        "azp": ORIGIN,
        "exp": NOW + 50,
        "iat": NOW - 10,
        "iss": ISSUER,
        "nbf": NOW - 20,
        "sid": "sess_2abc",
        "sub": "user_2abc",
    }
    return {name: value for name, value in (session | changes).items() if value is not None}


def signed(content: Mapping[str, Any], *, key: rsa.RSAPrivateKey = KEY, **header: Any) -> str:
    return jwt.encode(dict(content), key, algorithm="RS256", headers={"kid": "ins_1"} | header)


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(header: Mapping[str, Any], content: Mapping[str, Any], signature: str = "") -> str:
    return f"{segment(header)}.{segment(content)}.{signature}"


def confused() -> str:
    """HS256 with the public key's text as the secret: what a careless verifier accepts."""
    head = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': 'ins_1'})}.{segment(claims())}"
    mac = hmac.new(PEM.encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def verify(token: str, *, origin: str | None = None) -> tokens.Session:
    return tokens.verify(token, origin=origin, now=NOW)


REFUSED = {
    "empty": "",
    "not a token": "abc",
    "two segments": "abc.def",
    "segments that are not base64": "!!!.???.***",
    "a header that is no object": f"{segment([1])}.{segment({})}.AAAA",
    "claims that are no object": jwt.api_jws.encode(b"[1]", KEY, "RS256"),
    "claims that are no JSON": jwt.api_jws.encode(b"\xff\xfe", KEY, "RS256"),
    "too long": signed(claims(padding="x" * tokens.MAX_BYTES)),
    "not signed": signed(claims()).rsplit(".", 1)[0] + ".",
    "signed by a stranger": signed(claims(), key=STRANGER),
    "changed after it was signed": ".".join(
        [signed(claims()).split(".")[0], segment(claims(sub="user_2else")), signed(claims()).split(".")[2]]
    ),
    "alg none": unsigned({"alg": "none", "typ": "JWT"}, claims()),
    "alg NONE with a signature": unsigned({"alg": "NONE", "typ": "JWT"}, claims(), "AAAA"),
    "HS256 with the public key as its secret": confused(),
    "RS512": jwt.encode(claims(), KEY, algorithm="RS512"),
    "no alg": unsigned({"typ": "JWT"}, claims(), "AAAA"),
    "an OAuth access token": signed(claims(), typ="at+jwt"),
    "an OAuth access token, long form": signed(claims(), typ="application/at+jwt"),
    "an ID token, which has an audience": signed(claims(aud="client_1")),
    "a detached payload": jwt.api_jws.encode(
        b"{}", KEY, "RS256", headers={"b64": False}, is_payload_detached=True
    ),
    "another issuer": signed(claims(iss="https://clerk.elsewhere.example")),
    "an issuer that only begins like ours": signed(claims(iss=f"{ISSUER}.elsewhere.example")),
    "no issuer": signed(claims(iss=None)),
    "no expiry": signed(claims(exp=None)),
    "an expiry that is no number": signed(claims(exp="tomorrow")),
    "an expiry that is true": signed(claims(exp=True)),
    "an expiry that never comes": signed(claims(exp=float("inf"))),
    "an expiry beyond floats": signed(claims(exp=10**400)),
    "expired at the leeway's end": signed(claims(exp=NOW - tokens.LEEWAY)),
    "not valid before the leeway's end": signed(claims(nbf=NOW + tokens.LEEWAY + 1)),
    "a start that is no number": signed(claims(nbf="now")),
    "issued in the future": signed(claims(iat=NOW + tokens.LEEWAY + 1)),
    "issued at true": signed(claims(iat=True)),
    "no subject": signed(claims(sub=None)),
    "a subject that is no text": signed(claims(sub=7)),
    "a machine's subject": signed(claims(sub="mch_2abc")),
    "a subject with a quote": signed(claims(sub="user_2abc'--")),
    "a subject with a line end": signed(claims(sub="user_2abc\n")),
    "a subject beyond bounds": signed(claims(sub="user_" + "a" * 65)),
    "an unfinished sign-in": signed(claims(sts="pending")),
    "another origin": signed(claims(azp="https://evil.example.com")),
    "an origin in another case": signed(claims(azp=ORIGIN.upper())),
    "an origin that is a list": signed(claims(azp=[ORIGIN])),
    "an organisation that is no object": signed(claims(v=2, o="org_2abc")),
    "an organisation's id that is no text": signed(claims(v=2, o={"id": 7})),
    "an organisation's id with a quote": signed(claims(org_id="org_2abc'--")),
    "an organisation's id that is none": signed(claims(org_id="2abc")),
}


@pytest.mark.parametrize("token", REFUSED.values(), ids=REFUSED.keys())
def test_a_token_is_refused_when_it_is(token: str) -> None:
    with pytest.raises(Unauthorized):
        verify(token)


def test_a_refusal_tells_a_forger_nothing() -> None:
    details = set()
    for name in (
        "signed by a stranger",
        "alg none",
        "another issuer",
        "not a token",
        "an OAuth access token",
    ):
        with pytest.raises(Unauthorized) as refusal:
            verify(REFUSED[name])
        details.add(refusal.value.detail)
        assert refusal.value.__cause__ is None
    assert len(details) == 1


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("expired at the leeway's end", "expired"),
        ("issued in the future", "not valid yet"),
        ("another origin", "origin"),
        ("an unfinished sign-in", "not finished"),
    ],
)
def test_the_holder_of_an_authentic_token_is_told_what_is_wrong(name: str, word: str) -> None:
    with pytest.raises(Unauthorized, match=word):
        verify(REFUSED[name])


def test_a_forged_expired_token_is_not_told_that_it_expired() -> None:
    with pytest.raises(Unauthorized, match="not valid"):
        verify(signed(claims(exp=NOW - 3600), key=STRANGER))


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW - tokens.LEEWAY + 1},
        {"nbf": NOW + tokens.LEEWAY},
        {"iat": NOW + tokens.LEEWAY},
        {"nbf": None},
    ],
)
def test_clocks_may_differ_by_the_leeway(changes: dict[str, Any]) -> None:
    assert verify(signed(claims(**changes))).user_id == "user_2abc"


def test_a_token_without_organisation_is_for_the_personal_one() -> None:
    assert verify(signed(claims())) == tokens.Session(
        user_id="user_2abc",
        organization_id=None,
        organization_slug=None,
        organization_role=None,
        email=None,
        name=None,
        issued_at=datetime.fromtimestamp(NOW - 10, UTC),
    )


@pytest.mark.parametrize(
    "organization",
    [
        {"org_id": "org_2abc", "org_role": "org:admin", "org_slug": "acme"},
        {"v": 2, "o": {"id": "org_2abc", "rol": "admin", "slg": "acme", "per": "read"}},
    ],
    ids=["version 1", "version 2"],
)
def test_the_organisation_is_read_from_both_versions_of_the_claims(organization: dict[str, Any]) -> None:
    session = verify(signed(claims(**organization)))
    assert session.organization_id == "org_2abc"
    assert session.organization_role == "admin"
    assert session.organization_slug == "acme"


@pytest.mark.parametrize(
    ("claimed", "role"),
    [
        ("org:admin", "admin"),
        ("org:member", "member"),
        ("org:editor", "editor"),
        ("org:viewer", "viewer"),
        ("org:owner", "owner"),
        ("member", "member"),
        ("org:accountant", "viewer"),
        ("ADMIN", "viewer"),
        ("org:org:admin", "viewer"),
    ],
)
def test_an_organisation_role_is_ours_or_a_viewer(claimed: str, role: Role) -> None:
    assert verify(signed(claims(org_id="org_2abc", org_role=claimed))).organization_role == role


def test_a_role_without_an_organisation_is_none() -> None:
    assert verify(signed(claims(org_role="org:admin"))).organization_role is None


@pytest.mark.parametrize(
    ("custom", "email", "name"),
    [
        ({"email": "ada@example.com", "name": "Ada Lovelace"}, "ada@example.com", "Ada Lovelace"),
        ({"first_name": "Ada", "last_name": "Lovelace"}, None, "Ada Lovelace"),
        ({"first_name": "Ada"}, None, "Ada"),
        ({"email": 7, "name": {"first": "Ada"}}, None, None),
        ({"email": " ", "name": ""}, None, None),
        ({"email": "a\x00@example.com", "name": "\ud800"}, None, None),
        ({"name": "x" * 1000}, None, "x" * tokens.MAX_TEXT),
    ],
)
def test_custom_claims_name_the_user_when_they_are_fit_for_it(
    custom: dict[str, Any], email: str | None, name: str | None
) -> None:
    session = verify(signed(claims(**custom)))
    assert (session.email, session.name) == (email, name)


def test_a_native_apps_token_needs_no_origin() -> None:
    assert verify(signed(claims(azp=None))).user_id == "user_2abc"


def test_a_token_without_azp_is_accepted_from_an_allowed_page_only() -> None:
    token = signed(claims(azp=None))
    assert verify(token, origin=ORIGIN).user_id == "user_2abc"
    with pytest.raises(Unauthorized, match="origin"):
        verify(token, origin="https://evil.example.com")


def test_without_allowed_origins_no_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", "")
    config.settings.cache_clear()
    with pytest.raises(Unauthorized, match="origin"):
        verify(signed(claims()))


def test_a_trailing_slash_in_the_configured_issuer_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLERK_ISSUER", f"{ISSUER}/")
    config.settings.cache_clear()
    assert verify(signed(claims())).user_id == "user_2abc"


@pytest.mark.parametrize(
    "text",
    [PEM, PEM.replace("\n", "\\n"), PEM.replace("\n", " "), PEM.replace("\n", "\r\n"), f"  {PEM}  "],
    ids=["as it is", "literal line ends", "spaces", "CRLF", "padded"],
)
def test_a_given_key_is_read_however_the_environment_carried_it(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("CLERK_JWT_KEY", text)
    config.settings.cache_clear()
    assert verify(signed(claims())).user_id == "user_2abc"


SHORT = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()  # noqa: S505  to be refused


@pytest.mark.parametrize(
    "text",
    [
        "secret",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        SHORT.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    ],
    ids=["no PEM", "no key", "1,024 bits"],
)
def test_a_useless_given_key_is_the_operators_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CLERK_JWT_KEY", text)
    config.settings.cache_clear()
    with pytest.raises(RuntimeError, match="CLERK_JWT_KEY"):
        jwks.signing_key("ins_1", now=NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
claim_names = st.sampled_from(
    [
        "sub",
        "iss",
        "aud",
        "exp",
        "nbf",
        "iat",
        "azp",
        "o",
        "org_id",
        "org_role",
        "org_slug",
        "sts",
        "jti",
        "email",
    ]
)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(claim_names, json_values, max_size=4))
def test_whatever_an_issuer_signs_is_a_session_or_a_problem(changes: dict[str, Any]) -> None:
    token = jwt.api_jws.encode(json.dumps(claims(**changes)).encode(), KEY, "RS256")
    try:
        session = verify(token)
    except Problem:
        return
    assert session.user_id.startswith("user_")


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jku", "jwk", "x5c"]), json_values)
)
def test_whatever_stands_in_a_header_is_a_problem(header: dict[str, Any]) -> None:
    with pytest.raises(Problem):
        verify(unsigned(header, claims(), "AAAA"))
