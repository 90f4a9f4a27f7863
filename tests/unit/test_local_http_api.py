"""Routes and CORS of the translated template."""

from typing import Any

import pytest
from local.http_api import Cors, HttpApi, Route, read
from local.refusal import Refusal

PATHS = [
    "GET /pets/dog/1",
    "GET /pets/dog/{id}",
    "GET /pets/{proxy+}",
    "ANY /pets/{id}",
    "ANY /{proxy+}",
    "POST /pets/{id}",
    "PUT /a.b",
]


def api(*keys: str) -> HttpApi:
    routes = []
    for key in keys:
        method, _, path = key.partition(" ")
        routes.append(Route(key, "F", None if method in {"ANY", "$default"} else method, path))
    return HttpApi(tuple(routes))


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("GET", "/pets/dog/1", "GET /pets/dog/1"),
        ("GET", "/pets/dog/2", "GET /pets/dog/{id}"),
        ("GET", "/pets/cat/1", "GET /pets/{proxy+}"),
        ("GET", "/pets/dog", "ANY /pets/{id}"),
        ("POST", "/pets/5", "POST /pets/{id}"),
        ("PUT", "/pets/5", "ANY /pets/{id}"),
        ("POST", "/test/5", "ANY /{proxy+}"),
        ("PUT", "/axb", "ANY /{proxy+}"),
        ("PUT", "/a.b", "PUT /a.b"),
    ],
)
def test_the_most_specific_route_is_chosen(method: str, path: str, key: str) -> None:
    for keys in (PATHS, PATHS[::-1]):
        match = api(*keys).match(method, path)
        assert match is not None
        assert match.route.key == key


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/items/"),
        ("GET", "//items"),
        ("GET", "/items/1/"),
        ("GET", "/items/1/2"),
        ("HEAD", "/items"),
        ("POST", "/items"),
        ("GET", "/all"),
        ("GET", "/all/"),
        ("GET", "/Items"),
        ("GET", ""),
    ],
)
def test_what_is_no_route_matches_none(method: str, path: str) -> None:
    assert api("GET /items", "GET /items/{id}", "ANY /all/{proxy+}").match(method, path) is None


def test_the_default_route_gets_the_rest_and_has_no_parameters() -> None:
    match = api("GET /items", "$default").match("DELETE", "/any/thing")
    root = api("GET /items", "$default").match("GET", "/")

    assert match is not None
    assert (match.route.key, match.parameters) == ("$default", {})
    assert root is not None


def test_a_greedy_parameter_keeps_its_slashes() -> None:
    match = api("GET /all/{proxy+}").match("GET", "/all/a//b/")

    assert match is not None
    assert match.parameters == {"proxy": "a//b/"}


def template(operation: dict[str, Any] | None = None, **resources: Any) -> dict[str, Any]:
    integration = {
        "uri": {"Fn::Sub": "arn:…/functions/${Toy.Arn}/invocations"},
        "payloadFormatVersion": "2.0",
        **(operation or {}),
    }
    body = {"paths": {"/toy": {"get": {"x-amazon-apigateway-integration": integration}}}}
    toy = {"Type": "AWS::ApiGatewayV2::Api", "Properties": {"Body": body}}
    return {"Resources": {"Api": toy, **resources}}


def test_a_route_names_its_function_and_how_long_it_is_waited_for() -> None:
    assert read(template()).routes == (Route("GET /toy", "Toy", "GET", "/toy", 30.0),)
    assert read(template({"timeoutInMillis": 5000})).routes[0].timeout == 5.0


def test_an_alias_leads_to_its_function() -> None:
    alias = {"Type": "AWS::Lambda::Alias", "Properties": {"FunctionName": {"Ref": "Toy"}}}
    uri = {"uri": {"Fn::Sub": "arn:…/functions/${ToyAliaslive}/invocations"}}

    assert read(template(uri, ToyAliaslive=alias)).routes[0].function == "Toy"


def test_what_is_not_served_here_is_refused() -> None:
    with pytest.raises(Refusal, match="payload format"):
        read(template({"payloadFormatVersion": "1.0"}))
    with pytest.raises(Refusal, match="no function"):
        read(template({"uri": "https://example.com"}))
    guarded = template()
    guarded["Resources"]["Api"]["Properties"]["Body"]["paths"]["/toy"]["get"]["security"] = [{"Jwt": []}]
    with pytest.raises(Refusal, match="authorizer"):
        read(guarded)
    two = template()
    two["Resources"]["Other"] = two["Resources"]["Api"]
    with pytest.raises(Refusal, match="several"):
        read(two)


def test_a_template_without_an_api_has_no_routes() -> None:
    assert read({"Resources": {}}).match("GET", "/") is None


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (("https://a.example",), "https://a.example", "https://a.example"),
        (("https://a.example",), "https://A.example", None),
        (("https://a.example",), "https://a.example.evil", None),
        (("https://a.example",), None, None),
        (("*",), "https://any.example", "*"),
        (("https://*",), "https://any.example", "https://any.example"),
        (("https://*",), "http://any.example", None),
        (("http://*",), "http://any.example", "http://any.example"),
    ],
)
def test_an_origin_is_allowed_by_name_by_scheme_or_as_any(
    origins: tuple[str, ...], origin: str | None, allowed: str | None
) -> None:
    for headers in (Cors(origins).answer(origin), Cors(origins).preflight(origin)):
        assert headers.get("access-control-allow-origin") == allowed
        assert bool(headers) is (allowed is not None)


def test_a_preflight_tells_what_is_allowed_and_an_answer_what_may_be_read() -> None:
    cors = Cors(
        ("https://a.example",), ("GET", "POST"), ("x-a", "x-b"), ("x-c",), credentials=True, max_age=0
    )

    assert cors.preflight("https://a.example") == {
        "access-control-allow-origin": "https://a.example",
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET,POST",
        "access-control-allow-headers": "x-a,x-b",
        "access-control-max-age": "0",
    }
    assert cors.answer("https://a.example") == {
        "access-control-allow-origin": "https://a.example",
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "x-c",
    }
