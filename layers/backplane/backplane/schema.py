"""Which schema this code was written against. A test compares it with functions/migrate/migrations/."""

LATEST_MIGRATION = "0060"
