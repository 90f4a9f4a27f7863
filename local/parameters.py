"""The template's parameters in a local stack: the run's own secrets, or what `.env` replaces."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict

from local.application import put_secret
from local.aws import Client
from local.credentials import Credentials
from local.issuer import ORIGINS

SSL_MODES = ("disable", "require", "verify-ca", "verify-full")  # the template's


@dataclass(frozen=True)
class Senders:
    """Who signs what we receive. Of several secrets the first signs and all verify."""

    stripe_secrets: list[str]
    stripe_api_key: str  # empty: Stripe is never asked
    stripe_api_base: str  # empty: Stripe's own address
    clerk_secrets: list[str]
    issuer: str
    jwt_key: str  # PEM; empty: the issuer's JWKS
    platform_admins: str
    supabase_client_id: str  # empty: nobody connects Supabase
    supabase_client_secret: str
    supabase_redirect_uri: str

    @classmethod
    def of(cls, overrides: Mapping[str, str], credentials: Credentials, local_issuer: str) -> "Senders":
        return cls(
            stripe_secrets=_list(overrides.get("STRIPE_WEBHOOK_SECRET"))
            or [credentials.stripe_webhook_secret()],
            stripe_api_key=overrides.get("STRIPE_API_KEY", ""),
            stripe_api_base=overrides.get("STRIPE_API_BASE", ""),
            clerk_secrets=_list(overrides.get("CLERK_WEBHOOK_SECRET"))
            or [credentials.clerk_webhook_secret()],
            issuer=overrides.get("CLERK_ISSUER", local_issuer).rstrip("/"),
            jwt_key=overrides.get("CLERK_JWT_KEY", ""),
            platform_admins=overrides.get("PLATFORM_ADMINS", ""),
            supabase_client_id=overrides.get("SUPABASE_CLIENT_ID", ""),
            supabase_client_secret=overrides.get("SUPABASE_CLIENT_SECRET", ""),
            supabase_redirect_uri=overrides.get("SUPABASE_REDIRECT_URI", ""),
        )


def parameters(senders: Senders, owner_url: str, api_port: int, client: Client) -> dict[str, str]:
    """Values by name, with the senders' secrets put into Secrets Manager."""
    origins = dict.fromkeys([*ORIGINS, f"http://localhost:{api_port}", f"http://127.0.0.1:{api_port}"])
    return {
        **_database(owner_url),
        "Stage": "local",
        "StripeWebhookSecretArn": put_secret(client, "stripe-webhook", json.dumps(senders.stripe_secrets)),
        "StripeApiKeySecretArn": _stripe_api_key(senders.stripe_api_key, client),
        "StripeApiBase": senders.stripe_api_base,
        "ClerkWebhookSecretArn": put_secret(client, "clerk-webhook", json.dumps(senders.clerk_secrets)),
        "ClerkIssuer": senders.issuer,
        "ClerkJwtKey": senders.jwt_key,
        "PlatformAdmins": senders.platform_admins,
        "AllowedOrigins": ",".join(origins),
        "SupabaseClientSecretArn": _supabase_client(senders, client),
        "SupabaseRedirectUri": senders.supabase_redirect_uri,
    }


def _stripe_api_key(key: str, client: Client) -> str:
    """The secret's ARN, or none: then what needs Stripe's API answers 503."""
    return put_secret(client, "stripe-api-key", json.dumps({"key": key})) if key else ""


def _supabase_client(senders: Senders, client: Client) -> str:
    """The secret's ARN, or none: then connecting Supabase answers 503."""
    if not senders.supabase_client_id:
        return ""
    app = {"client_id": senders.supabase_client_id, "client_secret": senders.supabase_client_secret}
    return put_secret(client, "supabase-client", json.dumps(app))


def _database(owner_url: str) -> dict[str, str]:
    """Functions get a whole URL beside these, which wins; they are true all the same."""
    target = conninfo_to_dict(owner_url)
    ssl_mode = str(target.get("sslmode", ""))
    return {
        "DatabaseHost": str(target.get("host", "localhost")),
        "DatabasePort": str(target.get("port", 5432)),
        "DatabaseName": str(target.get("dbname", "backplane")),
        "DatabaseSslMode": ssl_mode if ssl_mode in SSL_MODES else "disable",
    }


def _list(value: str | None) -> list[str]:
    return [part.strip() for part in (value or "").split(",") if part.strip()]
