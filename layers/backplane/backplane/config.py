"""Settings, read once from the environment that template.yaml gives a function."""

from functools import cache
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Stage = Literal["local", "dev", "staging", "prod"]


class Settings(BaseSettings):
    """One field an environment variable of the same name in capitals. Empty means unset."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    stage: Stage = "dev"

    # Database: either a whole URL (the laptop, tests) or its parts and a secret (AWS).
    database_url: SecretStr | None = None
    database_direct_url: SecretStr | None = None  # around a pooler, for migrations, backups and drills
    database_host: str = "localhost"
    database_port: int = 5432
    database_name: str = "backplane"
    database_user: str | None = None  # unset: the username in the secret
    database_secret_arn: str | None = None  # {"username"?, "password"}
    database_sslmode: str = "verify-full"
    database_prepare_threshold: int | None = None  # unset: never prepare (RDS Proxy)
    # cluster-… or prx-…, what database_host leads to: sign in there with IAM tokens instead of the password
    database_iam_resource_id: str | None = None

    # Passwords the migrate function gives to the roles it creates.
    app_database_secret_arn: str | None = None
    system_database_secret_arn: str | None = None
    backup_database_secret_arn: str | None = None

    # Backups, and the drill that restores the newest into a scratch database, here or on a server of its own.
    backup_bucket: str | None = None
    backup_snapshot_over_bytes: int = Field(default=20 * 1024**3, ge=0)  # a larger database gets a snapshot
    backup_keep_daily: int = Field(default=7, ge=1)
    backup_keep_weekly: int = Field(default=4, ge=0)
    backup_keep_monthly: int = Field(default=12, ge=0)
    database_cluster: str | None = None  # Aurora's; unset: there are no snapshots to take
    drill_database_url: SecretStr | None = None
    drill_database_host: str | None = None
    drill_database_secret_arn: str | None = (
        None  # {"username", "password"} of a login that may create databases
    )

    # Projects' files and uploads.
    files_bucket: str | None = None
    deleted_project_days: int = Field(default=30, ge=1, le=3650)  # a deleted project can be restored for
    max_upload_bytes: int = Field(default=100 * 1024**2, gt=0, le=5 * 1024**3)  # S3 takes no larger POST

    # The largest artefact of a build that is copied.
    max_artifact_bytes: int = Field(default=2 * 1024**3, gt=0)

    # Senders.
    stripe_webhook_secret_arn: str | None = None
    stripe_api_key_secret_arn: str | None = None  # {"key"}; unset: Stripe is never asked
    stripe_api_base: str | None = None  # unset: Stripe's own address; an emulator's otherwise
    clerk_webhook_secret_arn: str | None = None
    clerk_instance_id: str | None = None  # ins_…; given, events of other instances have no effect

    # Callers.
    clerk_issuer: str = "https://clerk.example.com"
    clerk_jwks_url: str | None = None  # unset: the issuer's /.well-known/jwks.json
    clerk_jwt_key: str | None = None  # PEM; unset: fetched from the JWKS
    allowed_origins: str = ""
    platform_admins: str = ""
    hash_key_secret_arn: str | None = None

    # Encrypted fields: the KMS key that encrypts, and those (separated by commas) that may only decrypt.
    field_key_arn: str | None = None
    former_field_key_arns: str = ""
    integration_secrets_prefix: str | None = None  # of names in Secrets Manager, <stack>/integrations/

    # Supabase's OAuth app.
    supabase_client_secret_arn: str | None = None  # {"client_id", "client_secret"}; unset: nobody connects
    supabase_redirect_uri: str | None = None  # the page of your app that Supabase sends the user back to
    supabase_api_base: str = "https://api.supabase.com"  # or a fake's

    # Events out.
    event_bus_name: str = "default"
    outbox_publisher_function: str | None = None  # unset: nobody is poked, the schedule publishes

    # Kept for so many days: the bodies of settled webhooks, and events that were published.
    webhook_body_days: int = Field(default=30, ge=1, le=3650)
    published_event_days: int = Field(default=30, ge=1, le=3650)

    public_url: str | None = None  # of the API; unset: the host that a request came to
    max_body_bytes: int = Field(default=1024 * 1024, gt=0)

    @property
    def livemode(self) -> bool:
        """Whether Stripe's live events are ours; every stage but prod takes test events."""
        return self.stage == "prod"

    @property
    def origins(self) -> frozenset[str]:
        return _split(self.allowed_origins)

    @property
    def admins(self) -> frozenset[str]:
        return _split(self.platform_admins)

    @property
    def former_field_keys(self) -> tuple[str, ...]:
        return tuple(sorted(_split(self.former_field_key_arns)))


def _split(value: str) -> frozenset[str]:
    return frozenset(part.strip() for part in value.split(",") if part.strip())


@cache
def settings() -> Settings:
    return Settings()
