"""Expo's, Vercel's and GitHub's APIs on loopback: they know what they were given and refuse what those do.

    with FakeProviders() as fake:
        fake.builds["…"] = eas_build(status="FINISHED")
        fake.trouble.append("too_often")    # befalls the next request; "down", "hang" and others too

Shapes and refusals follow docs.expo.dev, vercel.com/docs/rest-api and docs.github.com/rest.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "a-token-that-the-fakes-take"
TEAM = "team_1"
REPOSITORY = "acme/app"

Json = dict[str, Any]


def eas_build(status: str = "FINISHED", **fields: Any) -> Json:
    finished = {
        "artifacts": {"buildUrl": "https://expo.dev/artifacts/eas/1.aab", "applicationArchiveUrl": None},
        "completedAt": "2026-03-01T12:10:00.000Z",
    }
    return {
        "platform": "ANDROID",
        "status": status,
        "updatedAt": "2026-03-01T12:10:00.000Z",
        "completedAt": None,
        "appVersion": "1.0.2",
        "appBuildVersion": "123",
        "gitCommitHash": "564b61ebdd403d28b5dc616a12ce160b91585b5b",
        "artifacts": None,
        "error": None,
        **(finished if status == "FINISHED" else {}),
        **fields,
    }


def vercel_deployment(state: str = "READY", **fields: Any) -> Json:
    return {
        "readyState": state,
        "url": "fitness-abc123.vercel.app",
        "inspectorUrl": "https://vercel.com/acme/fitness/abc123",
        "createdAt": 1772366400000,
        "buildingAt": 1772366460000,
        "ready": 1772366520000 if state == "READY" else None,
        "meta": {"githubCommitSha": "564b61ebdd403d28b5dc616a12ce160b91585b5b"},
        **fields,
    }


def github_status(state: str = "success", **fields: Any) -> Json:
    at = "2026-03-01T12:10:00Z"
    given = {"description": "", "environment_url": "", "log_url": "", "target_url": ""}
    return {"state": state, "created_at": at, "updated_at": at, **given, **fields}


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


# What befalls a request whatever it asks for.
TROUBLE = {
    "down": Reply(503, {"message": "Service Unavailable"}),
    "too_often": Reply(429, {"message": "Too Many Requests"}, {"retry-after": "1800"}),
    "out_of_calls": Reply(403, {"message": "API rate limit exceeded"}, {"x-ratelimit-remaining": "0"}),
    "no_json": Reply(200, "<html>Sorry</html>"),
    "a_list": Reply(200, [1, 2, 3]),
    "an_empty_object": Reply(200, {}),
    "elsewhere": Reply(302, "", {"location": "https://attacker.example/"}),
    "too_long": Reply(200, "[" + "1," * 2_000_000 + "1]"),
    "transient": Reply(200, {"errors": [{"message": "Oops", "extensions": {"isTransient": True}}]}),
}


@dataclass
class FakeProviders:
    token: str = TOKEN
    builds: dict[str, Json] = field(default_factory=dict)  # Expo's, by id
    deployments: dict[str, Json] = field(default_factory=dict)  # Vercel's, of TEAM
    statuses: dict[str, list[Json]] = field(default_factory=dict)  # GitHub's, of REPOSITORY, newest first
    trouble: list[str] = field(default_factory=list)  # what befalls the next requests
    asked: list[str] = field(default_factory=list)  # the paths

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str, bearer: str, body: Json) -> Reply:
        self.asked.append(path)
        if self.trouble:
            befalls = self.trouble.pop(0)
            if befalls == "hang":
                self._over.wait(60)
            elif befalls == "out_of_calls":
                reply = TROUBLE[befalls]
                return Reply(
                    reply.status,
                    reply.body,
                    {**reply.headers, "x-ratelimit-reset": str(int(time.time()) + 1800)},
                )
            else:
                return TROUBLE[befalls]
        parts = urlsplit(path)
        segments = [unquote(each) for each in parts.path.split("/")[1:]]
        match segments:
            case ["graphql"]:
                return self._expo(bearer, body)
            case ["v13", "deployments", name]:
                return self._vercel(bearer, name, dict(parse_qsl(parts.query)))
            case ["repos", owner, name, "deployments", number, "statuses"]:
                return self._github(bearer, f"{owner}/{name}", number)
            case _:
                return Reply(404, {"message": "Not Found"})

    def _expo(self, bearer: str, body: Json) -> Reply:
        if bearer != self.token:
            return Reply(
                401, {"errors": [{"code": "UNAUTHORIZED", "message": "The bearer token is invalid."}]}
            )
        build = self.builds.get(body["variables"]["id"])
        if build is None:  # the same for what does not exist and what is another account's
            errors = [{"message": "Entity not authorized: BuildEntity", "path": ["builds", "byId"]}]
            return Reply(200, {"errors": errors, "data": None})
        return Reply(200, {"data": {"builds": {"byId": {"id": body["variables"]["id"], **build}}}})

    def _vercel(self, bearer: str, name: str, query: Json) -> Reply:
        if bearer != self.token:
            error = {"code": "forbidden", "message": "Not authorized", "invalidToken": True}
            return Reply(403, {"error": error})
        if name not in self.deployments or query.get("teamId") != TEAM:
            return Reply(404, {"error": {"code": "not_found", "message": "The deployment was not found."}})
        return Reply(200, {"id": name, **self.deployments[name]})

    def _github(self, bearer: str, repository: str, number: str) -> Reply:
        if bearer != self.token:
            return Reply(401, {"message": "Bad credentials", "status": "401"})
        if repository != REPOSITORY or number not in self.statuses:
            return Reply(404, {"message": "Not Found", "status": "404"})
        return Reply(200, self.statuses[number])

    def _handler(fake) -> type[BaseHTTPRequestHandler]:  # noqa: N805  `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _answer(self, body: Json) -> None:
                bearer = (self.headers["authorization"] or "").removeprefix("Bearer ")
                reply = fake.answer(self.path, bearer, body)
                text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                data = text.encode()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # who asked has gone
                    return

            def log_message(self, *_: Any) -> None:
                return

        return Handler
