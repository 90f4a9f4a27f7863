"""What each type of integration needs, checked as far as it can be without asking the service.

A field that is a SecretStr is encrypted (an App Store Connect key goes to Secrets Manager) and never
answered; the others are configuration that is. Formats are those of the services' own documentation.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from backplane.integrations import Type
from backplane.problems import NotFound, Unprocessable

MIN_RSA_BITS: Final = 2048
MAX_SECRET: Final = 4096  # characters

# How the API's paths and answers call the types that users configure.
Name = Literal[
    "expo", "app-store-connect", "google-play", "vercel", "github", "stripe", "google_analytics", "custom"
]
AnyName = Literal[Name, "supabase"]


def _bounded(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]{8,4096}", secret.get_secret_value()):
        raise ValueError("must be 8 to 4096 printable characters without spaces")
    return secret


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(secret: SecretStr) -> SecretStr:
        if not re.fullmatch(pattern, secret.get_secret_value()):
            raise ValueError(f"must be {what}")
        return secret

    return AfterValidator(check)


Token = Annotated[SecretStr, AfterValidator(_bounded)]
# What EAS takes; the others take it too.
WebhookSecret = Annotated[SecretStr, _matching(r"[\x21-\x7e]{16,1000}", "16 to 1000 printable characters")]
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")]


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @property
    def public(self) -> dict[str, Any]:
        """What is not secret."""
        return {name: value for name, value in self if value is not None and not _is_secret(value)}

    @property
    def secrets(self) -> dict[str, Any]:
        """What is encrypted in the row."""
        kept = {name: value for name, value in self if _is_secret(value)}
        for elsewhere in ("private_key", "webhook_secret"):
            kept.pop(elsewhere, None)
        return {name: _revealed(value) for name, value in kept.items()}


def _is_secret(value: Any) -> bool:
    return isinstance(value, SecretStr) or (
        isinstance(value, dict) and any(isinstance(each, SecretStr) for each in value.values())
    )


def _revealed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: each.get_secret_value() for name, each in value.items()}
    return value.get_secret_value()


class Expo(Config):
    """docs.expo.dev/accounts/programmatic-access: a personal or a robot's token."""

    access_token: Token
    username: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
    webhook_secret: WebhookSecret | None = None


def _p256(secret: SecretStr) -> SecretStr:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey

    key = _private_key(secret.get_secret_value())
    is_p256 = isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    if not is_p256:
        raise ValueError("must be the .p8 file's text as Apple gave it: a PEM with an EC P-256 private key")
    return secret


def _issuer(value: str) -> str:
    try:
        return str(UUID(value))
    except ValueError:
        raise ValueError("must be a UUID: App Store Connect, Users and Access, Integrations") from None


class AppStoreConnect(Config):
    """developer.apple.com/documentation/appstoreconnectapi: a team key."""

    issuer_id: Annotated[str, Field(max_length=36), AfterValidator(_issuer)]
    key_id: Annotated[str, Field(pattern=r"^[A-Z0-9]{10}$")]
    private_key: Annotated[SecretStr, AfterValidator(_p256)]


class ServiceAccount(BaseModel):
    """cloud.google.com/iam/docs/keys-create-delete: the key file. Google may add fields."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["service_account"]
    project_id: Text
    private_key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    private_key: SecretStr
    client_email: Annotated[str, Field(max_length=254, pattern=r"^[^\s@]+@[^\s@]+\.gserviceaccount\.com$")]
    client_id: Annotated[str, Field(pattern=r"^[0-9]{5,40}$")] | None = None
    # Tokens are asked for there: anywhere else would be handed what opens the account.
    token_uri: Literal["https://oauth2.googleapis.com/token"] | None = None

    @model_validator(mode="after")
    def _rsa(self) -> Self:
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

        key = _private_key(self.private_key.get_secret_value())
        if not isinstance(key, RSAPrivateKey) or key.key_size < MIN_RSA_BITS:
            raise ValueError("private_key must be a PEM with an RSA private key of 2048 bits or more")
        return self


def _service_account(secret: SecretStr) -> SecretStr:
    read_service_account(secret)
    return secret


def read_service_account(secret: SecretStr) -> ServiceAccount:
    """Raises ValueError, which says what is wrong and never what was sent."""
    try:
        document = json.loads(secret.get_secret_value())
    except (ValueError, RecursionError):
        raise ValueError("must be the key file's text, as JSON") from None
    try:
        return ServiceAccount.model_validate(document)
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in error.errors()
        )
        raise ValueError(f"is no service account's key file: {'; '.join(faults)}") from None


PackageName = Annotated[
    str, Field(max_length=255, pattern=r"^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+$")
]


class GooglePlay(Config):
    """The key file's text, or the JSON object itself."""

    service_account_json: Annotated[
        SecretStr,
        Field(max_length=20_000),
        AfterValidator(_service_account),
        BeforeValidator(lambda value: json.dumps(value) if isinstance(value, dict) else value),
    ]
    package_name: PackageName

    @property
    def public(self) -> dict[str, Any]:
        account = read_service_account(self.service_account_json)
        return super().public | {"client_email": account.client_email}


class Vercel(Config):
    """vercel.com/docs/rest-api. Vercel makes its webhooks' secrets itself: it is given here."""

    access_token: Token
    team_id: Annotated[str, Field(pattern=r"^team_[A-Za-z0-9]{1,60}$")] | None = None
    vercel_project_id: Annotated[str, Field(pattern=r"^prj_[A-Za-z0-9]{1,60}$")] | None = None
    webhook_secret: WebhookSecret | None = None


# The classic ones of before 2021 are 40 hex digits, and still good.
GITHUB_TOKEN = r"(gh[pousr]_[A-Za-z0-9_.-]{8,1000}|github_pat_[A-Za-z0-9_]{8,255}|[0-9a-f]{40})"  # noqa: S105  a pattern


class GitHub(Config):
    """docs.github.com: the token is for polling; callbacks need the webhook's secret only."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9](-?[A-Za-z0-9]){0,38}/[A-Za-z0-9._-]{1,100}$")]
    access_token: (
        Annotated[SecretStr, _matching(GITHUB_TOKEN, "a GitHub token, ghp_… or github_pat_…")] | None
    ) = None
    webhook_secret: WebhookSecret | None = None


class Stripe(Config):
    """docs.stripe.com/keys: of the site's own account, not of the platform's."""

    secret_key: Annotated[
        SecretStr, _matching(r"(sk|rk)_(test|live)_[A-Za-z0-9]{10,240}", "a key, sk_… or rk_…")
    ]
    publishable_key: Annotated[str, Field(pattern=r"^pk_(test|live)_[A-Za-z0-9]{10,240}$")]
    endpoint_secret: Annotated[SecretStr, _matching(r"whsec_[A-Za-z0-9+/=]{10,240}", "whsec_…")] | None = None

    @model_validator(mode="after")
    def _of_one_mode(self) -> Self:
        if ("_live_" in self.secret_key.get_secret_value()) is not ("_live_" in self.publishable_key):
            raise ValueError("both keys must be of the same mode, test or live")
        return self


class GoogleAnalytics(Config):
    """developers.google.com/analytics: a GA4 stream; the secret is for the Measurement Protocol."""

    measurement_id: Annotated[str, Field(pattern=r"^G-[A-Z0-9]{4,20}$")]
    api_secret: Annotated[SecretStr, _matching(r"[A-Za-z0-9_-]{10,100}", "an API secret")] | None = None


Setting = Annotated[str, Field(max_length=2000)] | int | float | bool
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")]


class Custom(Config):
    """Another service: what is called how, and its secrets by name."""

    name: Text
    url: Annotated[str, Field(max_length=2000, pattern=r"^https://[^\s/@]+(/\S*)?$")] | None = None
    settings: Annotated[dict[FieldName, Setting], Field(max_length=50)] = {}
    secret_values: Annotated[
        dict[FieldName, Annotated[SecretStr, Field(min_length=1, max_length=MAX_SECRET)]],
        Field(max_length=20),
    ] = {}

    @property
    def public(self) -> dict[str, Any]:
        return {name: value for name, value in super().public.items() if name != "secret_values"}


TYPES: Final[Mapping[Name, type[Config]]] = {
    "expo": Expo,
    "app-store-connect": AppStoreConnect,
    "google-play": GooglePlay,
    "vercel": Vercel,
    "github": GitHub,
    "stripe": Stripe,
    "google_analytics": GoogleAnalytics,
    "custom": Custom,
}


# As the database calls them.
STORED: Final[Mapping[AnyName, Type]] = {
    "expo": "expo",
    "app-store-connect": "app_store_connect",
    "google-play": "google_play",
    "vercel": "vercel",
    "github": "github",
    "stripe": "stripe",
    "google_analytics": "google_analytics",
    "custom": "custom",
    "supabase": "supabase",
}
NAMES: Final[Mapping[Type, AnyName]] = {stored: name for name, stored in STORED.items()}


def named(word: str) -> AnyName:
    """The type that a path names. Raises NotFound."""
    for name in STORED:
        if name == word:
            return name
    raise NotFound(f"There is no such type of integration. There are {', '.join(STORED)}.")


def configured(word: str) -> Name:
    """The type that a path names, of those that are set up by a configuration. Raises NotFound."""
    name = named(word)
    if name == "supabase":
        raise NotFound("Supabase is connected by its own consent: POST /v1/integrations/supabase/connect.")
    return name


def read(name: Name, config: Mapping[str, Any]) -> Config:
    """Raises Unprocessable, which names the places and never what was sent."""
    try:
        return TYPES[name].model_validate(config)
    except ValidationError as error:
        errors = [
            {"loc": ["body", "config", *each["loc"]], "msg": each["msg"], "type": each["type"]}
            for each in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    where = ", ".join(dict.fromkeys(".".join(map(str, each["loc"])) for each in errors))
    raise Unprocessable(
        f"The configuration is not one of {name}: see errors for what is wrong with {where}.", errors=errors
    )


def _private_key(pem: str) -> Any:
    """None where it is none, or has a password."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
