"""What a function gets beside the template's variables: this machine's database and AWS."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from local.aws import CREDENTIALS, Client
from local.function import Function
from local.owner import as_role


@dataclass(frozen=True)
class Wiring:
    functions: list[Function]
    database_urls: Mapping[str, str]  # by role


def connect(
    functions: Iterable[Function],
    client: Client,
    *,
    aws_url: str,
    lambda_url: str,
    owner_url: str,
    direct_url: str | None,
    pgtools: str | None = None,
) -> Wiring:
    """Each function with its role's DATABASE_URL: the template names the role and its secret.

    A function that names no role is the owner's (migrate), and so is the server that drills are held on.
    """
    urls: dict[str, str] = {}
    connected = []
    for function in functions:
        variables = {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": aws_url,
            "AWS_ENDPOINT_URL_LAMBDA": lambda_url,  # functions invoke each other here, not at moto
            "AWS_SAM_LOCAL": "true",
            **function.environment,
        }
        role = variables.get("DATABASE_USER")
        if role:
            urls[role] = urls.get(role) or as_role(owner_url, role, _password(client, variables))
            variables["DATABASE_URL"] = urls[role]
            if direct_url:
                variables["DATABASE_DIRECT_URL"] = as_role(direct_url, role, _password(client, variables))
        elif "DATABASE_HOST" in variables:
            variables["DATABASE_URL"] = owner_url
            variables |= {"DATABASE_DIRECT_URL": direct_url} if direct_url else {}
        if "DRILL_DATABASE_HOST" in variables:
            variables["DRILL_DATABASE_URL"] = direct_url or owner_url
        if pgtools and "BACKUP_BUCKET" in variables:
            variables["PG_TOOLS"] = pgtools
        connected.append(replace(function, environment=variables))
    return Wiring(connected, urls)


def _password(client: Client, variables: Mapping[str, str]) -> str:
    secret = client("secretsmanager").get_secret_value(SecretId=variables["DATABASE_SECRET_ARN"])
    password: str = json.loads(secret["SecretString"])["password"]
    return password
