"""Where Stripe may send a customer back to: the origins that may call the API, and nowhere else."""

import re
from urllib.parse import urlsplit

from backplane.config import settings
from backplane.problems import Unprocessable

# Printable ASCII without what browsers and parsers read differently: a backslash is a slash to some.
_PLAIN = re.compile(r"https?://[^\s\\<>\"`^|]+", re.ASCII)


def check(**urls: str) -> None:
    """Raises Unprocessable, naming each field whose URL is not of an allowed origin."""
    refused = [name for name, url in urls.items() if not _allowed(url)]
    if refused:
        raise Unprocessable(
            f"{' and '.join(refused)} must be a URL of your app: its origin must be one of AllowedOrigins.",
            errors=[
                {"loc": ["body", name], "msg": "Not an allowed origin", "type": "origin_not_allowed"}
                for name in refused
            ],
        )


def _allowed(url: str) -> bool:
    if not _PLAIN.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}".lower()
    except ValueError:
        return False
    return origin in {allowed.lower().rstrip("/") for allowed in settings().origins}
