"""The HTTP API of the translated template: which route is whose, and what CORS allows.

CloudFormation gets routes as an OpenAPI document, and so do we: with the methods, the payload format
and the integration's timeout exactly as they are deployed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from local.refusal import Refusal

API = "AWS::ApiGatewayV2::Api"
DEFAULT = "$default"  # the route of what has no other
MAX_TIMEOUT = 30.0  # seconds, an HTTP API's patience with an integration

_ANY = "x-amazon-apigateway-any-method"
_INTEGRATION = "x-amazon-apigateway-integration"
_METHODS = frozenset({"get", "post", "put", "patch", "delete", "head", "options", _ANY})
_TARGET = re.compile(r"/functions/\$\{(\w+)(?:\.Arn)?\}/invocations")
_VARIABLE = re.compile(r"\{([^{}+]+)(\+?)\}")


@dataclass(frozen=True)
class Route:
    key: str  # "ANY /v1/credits/{proxy+}", or "$default"
    function: str  # logical id
    method: str | None  # None: any
    path: str
    timeout: float = MAX_TIMEOUT  # seconds

    @property
    def names(self) -> tuple[str, ...]:
        """Its path parameters."""
        return tuple(name for name, _ in _VARIABLE.findall(self.path))

    @property
    def pattern(self) -> re.Pattern[str]:
        """A `{name}` is one segment, a `{name+}` is the rest, and neither is empty."""
        if self.key == DEFAULT:
            return re.compile(".*", re.DOTALL)
        parts = []
        end = 0
        for variable in _VARIABLE.finditer(self.path):
            parts.append(re.escape(self.path[end : variable.start()]))
            parts.append("(.+)" if variable[2] else "([^/]+)")
            end = variable.end()
        return re.compile("".join(parts) + re.escape(self.path[end:]), re.DOTALL)

    @property
    def rank(self) -> tuple[bool, list[int], bool]:
        """Smaller is chosen first: the more exact path, then the named method; $default last.

        developer guide, "Routing API requests".
        """
        segments = [
            0 if not _VARIABLE.search(part) else 2 if part.endswith("+}") else 1
            for part in self.path.split("/")
        ]
        return self.key == DEFAULT, segments, self.method is None


@dataclass(frozen=True)
class Match:
    route: Route
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Cors:
    origins: tuple[str, ...]
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    credentials: bool = False
    max_age: int | None = None

    def preflight(self, origin: str | None) -> dict[str, str]:
        """What a preflight's answer says; nothing to an origin that is not allowed."""
        allowed = self._allowed(origin)
        if not allowed:
            return {}
        lists = {
            "access-control-allow-methods": ",".join(self.methods),
            "access-control-allow-headers": ",".join(self.headers),
            "access-control-max-age": "" if self.max_age is None else str(self.max_age),
        }
        return allowed | {name: value for name, value in lists.items() if value}

    def answer(self, origin: str | None) -> dict[str, str]:
        """What any other answer says."""
        allowed = self._allowed(origin)
        if allowed and self.exposed:
            allowed["access-control-expose-headers"] = ",".join(self.exposed)
        return allowed

    def _allowed(self, origin: str | None) -> dict[str, str]:
        if not origin:
            return {}
        if "*" in self.origins:
            allowed = {"access-control-allow-origin": "*"}
        elif any(origin == each or _is_any(each, origin) for each in self.origins):
            allowed = {"access-control-allow-origin": origin}
        else:
            return {}
        return allowed | ({"access-control-allow-credentials": "true"} if self.credentials else {})


@dataclass(frozen=True)
class HttpApi:
    routes: tuple[Route, ...] = ()
    cors: Cors | None = None
    _table: tuple[tuple[Route, re.Pattern[str]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ranked = sorted(self.routes, key=lambda route: route.rank)
        object.__setattr__(self, "_table", tuple((route, route.pattern) for route in ranked))

    def match(self, method: str, path: str) -> Match | None:
        """The route of a request, by its decoded path."""
        for route, pattern in self._table:
            if route.method in {None, method} and (found := pattern.fullmatch(path)):
                return Match(route, dict(zip(route.names, found.groups(), strict=True)))
        return None


def read(template: Mapping[str, Any]) -> HttpApi:
    """Raises Refusal where it has what is not served here."""
    resources = template["Resources"]
    apis = [each for each in resources.values() if each["Type"] == API]
    if len(apis) > 1:
        raise Refusal("the template has several HTTP APIs, and one is served here.")
    if not apis:
        return HttpApi()
    body = apis[0]["Properties"].get("Body", {})
    cors = body.get("x-amazon-apigateway-cors")
    return HttpApi(tuple(_routes(body.get("paths", {}), resources)), _cors(cors) if cors else None)


def _routes(paths: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[Route]:
    for path, operations in paths.items():
        for name in sorted(_METHODS.intersection(operations)):
            operation = operations[name]
            method = None if name == _ANY else name.upper()
            key = DEFAULT if path.strip("/") == DEFAULT else f"{method or 'ANY'} {path}"
            integration = operation.get(_INTEGRATION, {})
            if integration.get("payloadFormatVersion", "2.0") != "2.0":
                raise Refusal(f"{key} asks for payload format 1.0; here it is 2.0.")
            if any(operation.get("security", ())):
                raise Refusal(
                    f"{key} has an authorizer, which nothing here would ask: functions authenticate."
                )
            yield Route(
                key=key,
                function=_function(key, integration.get("uri", ""), resources),
                method=method,
                path=path,
                timeout=min(integration.get("timeoutInMillis", 30_000) / 1000, MAX_TIMEOUT),
            )


def _function(key: str, uri: Any, resources: Mapping[str, Any]) -> str:
    """The logical id, through the alias where there is one."""
    text = uri.get("Fn::Sub", "") if isinstance(uri, dict) else uri
    target = _TARGET.search(text)
    if target is None:
        raise Refusal(f"{key} leads to no function of this template.")
    resource = resources.get(target[1], {})
    if resource.get("Type") == "AWS::Lambda::Alias":
        return str(resource["Properties"]["FunctionName"]["Ref"])
    return target[1]


def _cors(declared: Mapping[str, Any]) -> Cors:
    return Cors(
        origins=_list(declared.get("allowOrigins")),
        methods=_list(declared.get("allowMethods")),
        headers=_list(declared.get("allowHeaders")),
        exposed=_list(declared.get("exposeHeaders")),
        credentials=str(declared.get("allowCredentials", "")).lower() == "true",
        max_age=declared.get("maxAge"),
    )


def _list(value: str | Iterable[str] | None) -> tuple[str, ...]:
    """SAM has put a parameter's value in place of its Ref: a list in a string."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value or ())


def _is_any(allowed: str, origin: str) -> bool:
    """`https://*` and `http://*` allow every origin of that scheme."""
    return allowed in {"https://*", "http://*"} and origin.startswith(allowed[:-1])


def decoded_path(target: str) -> str:
    """The path of a request line's target, decoded as an HTTP API does before it looks for a route.

    rawPath is this too, in spite of its name; REST APIs and function URLs leave it as it was sent.
    """
    if target.startswith(("http://", "https://")):
        target = "/" + target.split("/", 3)[3] if target.count("/") >= 3 else "/"  # noqa: PLR2004  absolute form
    return unquote_to_bytes(target.partition("?")[0].encode("latin-1")).decode(errors="replace")
