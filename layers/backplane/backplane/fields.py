"""Types of fields that the bodies of several functions' routes have."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from backplane.requests import stored_bytes

MAX_CONFIG_BYTES = 64 * 1024

Url = Annotated[str, Field(max_length=2000, pattern=r"^https?://[^\s/]\S*$")]


def _bounded(config: dict[str, Any]) -> dict[str, Any]:
    if stored_bytes(config) > MAX_CONFIG_BYTES:
        raise ValueError(f"at most {MAX_CONFIG_BYTES} bytes of JSON are kept")
    return config


Config = Annotated[dict[str, Any], AfterValidator(_bounded)]  # free-form, the caller's own
