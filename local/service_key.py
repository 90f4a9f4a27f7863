"""The service key of a run, with every scope, kept in the database as any other key."""

import psycopg

from backplane.keys import hash_secret, mint_key
from backplane.scopes import SCOPES_OF_KEY
from local.credentials import Credentials


def seed(owner_url: str, credentials: Credentials) -> str:
    """Make sure the database knows the key; the key. It stays the same from run to run."""
    key = credentials.get("service_key", lambda: mint_key("service").key)
    _, prefix, secret = key.split("_")
    with psycopg.connect(owner_url) as connection:
        connection.execute(
            """
            INSERT INTO platform.api_keys (kind, name, prefix, secret_hash, scopes)
            VALUES ('service', 'the local cloud', %(prefix)s, %(hash)s, %(scopes)s)
            ON CONFLICT (prefix) DO UPDATE
            SET scopes = excluded.scopes
            """,
            {"prefix": prefix, "hash": hash_secret(secret), "scopes": sorted(SCOPES_OF_KEY["service"])},
        )
    return key
