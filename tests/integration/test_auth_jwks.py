"""Signing keys over HTTP: fetched once, rotated, rationed against forgers, kept through outages."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from backplane import config, jwks, tokens
from backplane.problems import Unauthorized, Unavailable

NOW = 1_800_000_000.0
ORIGIN = "https://app.example.com"
OLD = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NEW = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  to be ignored


def jwk(key: rsa.RSAPrivateKey, kid: str, **changes: Any) -> dict[str, Any]:
    public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {
        "kty": "RSA",
        "n": public["n"],
        "e": public["e"],
        "kid": kid,
        "use": "sig",
        "alg": "RS256",
    } | changes


def keyset(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


@dataclass
class Issuer:
    """A Clerk that serves its keys, and can be told to fail."""

    url: str = ""
    body: bytes = keyset(jwk(OLD, "old"))
    status: int = 200
    silent: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)  # path, user agent
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def fetches(self) -> int:
        return len(self.requests)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    served = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append((self.path, self.headers.get("user-agent", "")))
            if served.silent:
                served.closing.wait(30)
                return
            self.send_response(served.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(served.body)))
            self.end_headers()
            self.wfile.write(served.body)

        def log_message(self, *_: object) -> None:
            """Not on the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("CLERK_ISSUER", served.url)
    monkeypatch.setenv("ALLOWED_ORIGINS", ORIGIN)
    monkeypatch.delenv("CLERK_JWKS_URL", raising=False)
    monkeypatch.delenv("CLERK_JWT_KEY", raising=False)
    monkeypatch.setattr(jwks, "_sets", {})
    config.settings.cache_clear()
    yield served
    config.settings.cache_clear()
    served.closing.set()
    server.shutdown()
    thread.join(10)
    server.server_close()


def verify(issuer: Issuer, key: rsa.RSAPrivateKey, kid: str | None, *, at: float = 0.0) -> tokens.Session:
    """Verifies a fresh token `at` seconds into the test."""
    now = NOW + at
    claims = {"azp": ORIGIN, "exp": now + 60, "iat": now, "iss": issuer.url, "sub": "user_2abc"}
    token = jwt.encode(claims, key, algorithm="RS256", headers={"kid": kid} if kid else None)
    return tokens.verify(token, origin=None, now=now)


def refused(issuer: Issuer, key: rsa.RSAPrivateKey, kid: str | None, *, at: float = 0.0) -> bool:
    with pytest.raises(Unauthorized, match="not valid"):
        verify(issuer, key, kid, at=at)
    return True


def test_one_fetch_serves_an_hour_of_tokens(issuer: Issuer) -> None:
    for at in (0, 10, 1800, jwks.MAX_AGE - 1):
        assert verify(issuer, OLD, "old", at=at).user_id == "user_2abc"
    assert issuer.fetches == 1
    verify(issuer, OLD, "old", at=jwks.MAX_AGE)
    assert issuer.fetches == 2


def test_the_set_is_found_under_the_issuer_by_a_named_client(issuer: Issuer) -> None:
    verify(issuer, OLD, "old")
    assert issuer.requests == [("/.well-known/jwks.json", "backplane")]


def test_the_set_may_stand_elsewhere(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLERK_JWKS_URL", f"{issuer.url}/keys?for=backplane")
    config.settings.cache_clear()
    verify(issuer, OLD, "old")
    assert [path for path, _ in issuer.requests] == ["/keys?for=backplane"]


def test_a_given_key_needs_no_fetch(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = NEW.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    monkeypatch.setenv("CLERK_JWT_KEY", pem.decode())
    config.settings.cache_clear()
    verify(issuer, NEW, None)
    assert refused(issuer, OLD, "old")
    assert issuer.fetches == 0


def test_a_rotation_brings_the_new_key_and_ends_the_old(issuer: Issuer) -> None:
    verify(issuer, OLD, "old")
    issuer.body = keyset(jwk(OLD, "old"), jwk(NEW, "new"))
    verify(issuer, NEW, "new", at=60)
    verify(issuer, OLD, "old", at=60)
    assert issuer.fetches == 2
    issuer.body = keyset(jwk(NEW, "new"))
    verify(issuer, OLD, "old", at=120)  # until the next fetch
    later = 60 + jwks.MAX_AGE
    verify(issuer, NEW, "new", at=later)
    assert refused(issuer, OLD, "old", at=later)


def test_forged_key_ids_fetch_once_in_thirty_seconds(issuer: Issuer) -> None:
    verify(issuer, OLD, "old")
    for second in range(30):
        assert refused(issuer, NEW, f"forged{second}", at=second)
    assert issuer.fetches == 1
    assert refused(issuer, NEW, "forged", at=30)
    assert refused(issuer, NEW, "forged", at=31)
    assert issuer.fetches == 2


def test_forged_key_ids_do_not_disturb_those_who_have_a_key(issuer: Issuer) -> None:
    for second in range(5):
        assert refused(issuer, NEW, "forged", at=second)
        verify(issuer, OLD, "old", at=second)
    assert issuer.fetches == 1


def test_a_key_that_just_appeared_is_found_half_a_minute_later_at_most(issuer: Issuer) -> None:
    verify(issuer, OLD, "old")
    issuer.body = keyset(jwk(NEW, "new"))
    assert refused(issuer, NEW, "new", at=jwks.MIN_REFRESH - 1)
    verify(issuer, NEW, "new", at=jwks.MIN_REFRESH)


def test_absurd_tokens_fetch_nothing(issuer: Issuer) -> None:
    def segment(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    for header in ({"alg": "none", "kid": "old"}, {"alg": "HS256", "kid": "old"}, {"alg": "RS256"}):
        with pytest.raises(Unauthorized):
            tokens.verify(f"{segment(header)}.{segment({})}.AAAA", origin=None, now=NOW)
    assert issuer.fetches == 0


def test_a_token_that_names_no_key_is_refused(issuer: Issuer) -> None:
    verify(issuer, OLD, "old")
    assert refused(issuer, OLD, None)


def test_an_outage_keeps_those_signed_in_who_are(issuer: Issuer) -> None:
    verify(issuer, OLD, "old")
    issuer.status = 503
    for at in (jwks.MAX_AGE, jwks.MAX_AGE + 1, jwks.MAX_AGE + 29):
        assert verify(issuer, OLD, "old", at=at).user_id == "user_2abc"
    assert issuer.fetches == 2  # and a failed fetch is not repeated at every request
    assert refused(issuer, NEW, "new", at=jwks.MAX_AGE + 29)
    issuer.status, issuer.body = 200, keyset(jwk(NEW, "new"))
    verify(issuer, NEW, "new", at=jwks.MAX_AGE + 30)
    assert refused(issuer, OLD, "old", at=jwks.MAX_AGE + 31)


def test_without_any_key_the_answer_is_unavailable_and_recovers(issuer: Issuer) -> None:
    issuer.status = 500
    for _ in range(3):
        with pytest.raises(Unavailable) as unavailable:
            verify(issuer, OLD, "old")
    assert unavailable.value.retry_after == jwks.MIN_RETRY
    assert issuer.fetches == 1
    issuer.status = 200
    verify(issuer, OLD, "old", at=jwks.MIN_RETRY)
    assert issuer.fetches == 2


def test_an_issuer_that_cannot_be_reached_is_unavailable(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # ours, and not listening
        monkeypatch.setenv("CLERK_JWKS_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}/jwks.json")
        config.settings.cache_clear()
        with pytest.raises(Unavailable):
            verify(issuer, OLD, "old")
    assert "cannot fetch the JWKS" in caplog.text


def test_an_issuer_that_says_nothing_is_not_waited_for(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", 0.1)
    issuer.silent = True
    with pytest.raises(Unavailable):
        verify(issuer, OLD, "old")


BAD_SETS = {
    "nothing": b"",
    "a page": b"<html>maintenance</html>",
    "not UTF-8": b"\xff\xfe\xfd",
    "a list": b"[]",
    "no keys": b'{"keys": []}',
    "keys that are no list": b'{"keys": {"kid": "old"}}',
    "keys that are no objects": b'{"keys": [1, null, "old"]}',
    "a bottomless pit": b'{"keys":' + b"[" * 30_000,
    "too much": keyset(jwk(OLD, "old")) + b" " * jwks.MAX_BYTES,
}


@pytest.mark.parametrize("body", BAD_SETS.values(), ids=BAD_SETS.keys())
def test_a_set_that_cannot_be_read_displaces_none(issuer: Issuer, body: bytes) -> None:
    good, issuer.body = issuer.body, body
    with pytest.raises(Unavailable):
        verify(issuer, OLD, "old")
    issuer.body = good
    verify(issuer, OLD, "old", at=10)
    issuer.body = body
    verify(issuer, OLD, "old", at=10 + jwks.MAX_AGE)
    assert issuer.fetches == 3


PRIVATE = RSAAlgorithm.to_jwk(NEW, as_dict=True)
UNFIT = {
    "for encryption": jwk(NEW, "unfit", use="enc"),
    "for nothing named": {k: v for k, v in jwk(NEW, "unfit").items() if k != "use"},
    "for another algorithm": jwk(NEW, "unfit", alg="RS512"),
    "a private key": PRIVATE | {"kid": "unfit", "use": "sig", "alg": "RS256"},
    "a short key": jwk(WEAK, "unfit"),
    "a modulus that is no text": jwk(NEW, "unfit", n=7),
    "a modulus that is no number": jwk(NEW, "unfit", n="!"),
    "no modulus": {k: v for k, v in jwk(NEW, "unfit").items() if k != "n"},
    "an elliptic curve": ECAlgorithm.to_jwk(
        ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True
    )
    | {"kid": "unfit", "use": "sig"},
    "a shared secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "unfit", "use": "sig", "alg": "HS256"},
    "an id that is no text": jwk(NEW, "unfit") | {"kid": ["unfit"]},
}


@pytest.mark.parametrize("entry", UNFIT.values(), ids=UNFIT.keys())
def test_only_rsa_signing_keys_of_a_set_are_used(issuer: Issuer, entry: dict[str, Any]) -> None:
    issuer.body = keyset(entry, jwk(OLD, "old"))
    verify(issuer, OLD, "old")
    assert jwks.signing_key("unfit", now=NOW) is None
    assert refused(issuer, NEW, "unfit")


def test_eight_first_requests_share_one_fetch(issuer: Issuer) -> None:
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda _: verify(issuer, OLD, "old"), range(8)))
    assert len(sessions) == 8
    assert issuer.fetches == 1


def test_a_clock_set_back_does_not_keep_a_set_for_ever(issuer: Issuer) -> None:
    verify(issuer, OLD, "old")
    issuer.body = keyset(jwk(NEW, "new"))
    verify(issuer, NEW, "new", at=-7200)
    assert issuer.fetches == 2
