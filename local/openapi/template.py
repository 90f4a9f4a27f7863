"""The gateway as template.yaml has it: which requests go to which function, and what browsers may do."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

FILE = Path(__file__).resolve().parents[2] / "template.yaml"


@dataclass(frozen=True)
class GatewayRoute:
    method: str  # or ANY
    path: str
    login: str | None  # the database's, of the function it leads to

    def leads(self, method: str, path: str) -> bool:
        """Whether it is an operation's way; the operation's path has its names in it."""
        pattern = re.sub(r"\\{\w+\\\+\\}", ".+", re.escape(self.path))
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", pattern)
        return self.method in {"ANY", method} and re.fullmatch(pattern, path) is not None


@cache
def routes() -> list[GatewayRoute]:
    return [
        GatewayRoute(event["Properties"]["Method"], event["Properties"]["Path"], _login(properties))
        for properties in _functions()
        for event in properties.get("Events", {}).values()
        if event["Type"] == "HttpApi"
    ]


def cors() -> dict[str, Any]:
    """Of the origins in AllowedOrigins. Preflights are the gateway's."""
    allowed = _template()["Resources"]["Api"]["Properties"]["CorsConfiguration"]
    return {
        "allow_methods": allowed["AllowMethods"],
        "allow_headers": allowed["AllowHeaders"],
        "expose_headers": allowed["ExposeHeaders"],
        "max_age": allowed["MaxAge"],
    }


def _functions() -> list[dict[str, Any]]:
    found = _template()["Resources"].values()
    return [each["Properties"] for each in found if each["Type"] == "AWS::Serverless::Function"]


def _login(properties: dict[str, Any]) -> str | None:
    variables: dict[str, str] = properties.get("Environment", {}).get("Variables", {})
    return variables.get("DATABASE_USER")


@cache
def _template() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml_parse(FILE.read_text())
    return parsed
