"""A Supabase Management API on loopback: it keeps state and refuses what Supabase refuses.

    with FakeSupabase() as fake:
        code, state = fake.consent(authorize_url)   # the user's browser goes there and comes back
        fake.trouble.append("error")                # befalls the next; "lost" does its work first

Shapes follow supabase.com/docs/reference/api and its guide to OAuth integrations.
"""

import base64
import hashlib
import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlsplit

CLIENT_ID, CLIENT_SECRET = "7a2b8c1d-client", "sba_the-secret-of-the-app"
REDIRECT_URI = "https://app.example.com/connected"
LIFETIME = 86_400  # seconds


@dataclass
class Grant:
    """What a user consented to."""

    challenge: str
    redirect_uri: str
    organization: str


@dataclass
class FakeSupabase:
    lifetime: int = LIFETIME
    organization: str = "acme"  # that the next consent is for
    trouble: list[str] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)  # forms of the token endpoint
    pause: float = 0.0  # seconds that a renewal takes

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._codes: dict[str, Grant] = {}
        self._renewals: dict[str, str] = {}  # refresh tokens that are good, and whose
        self._access: dict[str, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._answer(self, *fake._get(self.path, self.headers.get("authorization") or ""))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                form = dict(parse_qsl(body)) if "form" in (self.headers.get("content-type") or "") else {}
                fake._answer(self, *fake._post(self.path, self.headers.get("authorization") or "", form))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def secrets(self) -> set[str]:
        """All that is to stay between Supabase and us."""
        return {*self._codes, *self._renewals, *self._access, *self.spent}

    @property
    def spent(self) -> set[str]:
        return {form[name] for form in self.asked for name in ("code", "refresh_token") if name in form}

    def consent(self, authorize_url: str) -> tuple[str, str]:
        """The user says yes: the code and the state that he is sent back with."""
        assert authorize_url.startswith(f"{self.url}/v1/oauth/authorize?")
        query = {name: values[0] for name, values in parse_qs(urlsplit(authorize_url).query).items()}
        assert (query["client_id"], query["response_type"]) == (CLIENT_ID, "code")
        assert query["redirect_uri"] == REDIRECT_URI
        assert query["code_challenge_method"] == "S256"
        code = f"code-{next(self._numbers)}-that-is-secret"
        self._codes[code] = Grant(query["code_challenge"], query["redirect_uri"], self.organization)
        return code, query["state"]

    def revoke(self) -> None:
        """The user takes his consent back."""
        with self._lock:
            self._renewals.clear()
            self._access.clear()

    # ---- requests ----

    def _post(self, path: str, authorization: str, form: dict[str, str]) -> tuple[int, Any]:
        trouble = self.trouble.pop(0) if self.trouble else None
        troubles = {
            "error": (500, {"message": "Internal server error"}),
            "forbidden": (403, "<html>Attention Required!</html>"),  # a firewall's
            "nonsense": (200, ["not", "tokens"]),
        }
        if trouble in troubles:
            return troubles[trouble]
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if path != "/v1/oauth/token":
            return 404, {"message": "Not found"}
        if authorization != f"Basic {basic}":
            return 401, {"error": "invalid_client"}
        time.sleep(self.pause)
        with self._lock:
            self.asked.append(form)
            organization = self._granted(form)
            if organization is None:
                return 400, {"message": "Invalid grant"}
            number = next(self._numbers)
            access, renewal = f"sbp_oauth_access-{number}-secret", f"sbr_renewal-{number}-secret"
            self._access[access] = self._renewals[renewal] = organization
        if trouble == "lost":
            return 502, {"message": "Bad gateway"}
        return 201, {
            "access_token": access,
            "refresh_token": renewal,
            "expires_in": self.lifetime,
            "token_type": "Bearer",
        }

    def _granted(self, form: dict[str, str]) -> str | None:
        """Whose organisation; None where the grant is not good. It is spent either way."""
        if form.get("grant_type") == "refresh_token":
            return self._renewals.pop(form.get("refresh_token", ""), None)
        grant = self._codes.pop(form.get("code", ""), None)
        if form.get("grant_type") != "authorization_code" or grant is None:
            return None
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if challenge != grant.challenge or form.get("redirect_uri") != grant.redirect_uri:
            return None
        return grant.organization

    def _get(self, path: str, authorization: str) -> tuple[int, Any]:
        organization = self._access.get(authorization.removeprefix("Bearer "))
        if organization is None:
            return 401, {"message": "JWT could not be decoded"}
        if path == "/v1/organizations":
            return 200, [{"id": organization, "slug": organization, "name": organization.title()}]
        if path == "/v1/projects":
            return 200, [
                {"id": "abcdefghij", "name": "Shop", "region": "eu-west-1", "status": "ACTIVE_HEALTHY"}
            ]
        return 404, {"message": "Not found"}

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
