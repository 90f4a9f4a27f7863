"""What binds a session to its client behind a pooler: RDS Proxy pins it then, PgBouncer leaks it to others.

After Amazon's list, "Avoiding pinning" in the guide to RDS Proxy: session settings, prepared and discarded
statements, temporary objects, cursors, LISTEN, sequences and advisory locks by name, texts beyond 16 KB.
"""

import re

MAX_TEXT = 16 * 1024  # bytes

_COMMANDS = re.compile(
    r"""
    \s* (?:
        SET \s+ (?! LOCAL\b | TRANSACTION\b | CONSTRAINTS\b)
      | RESET \s+ \w | DISCARD\b | DEALLOCATE\b | PREPARE\b | EXECUTE\s | (UN)?LISTEN\b | LOAD\s | DECLARE\s
      | CREATE \s+ (LOCAL\s+|GLOBAL\s+)? TEMP
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CALLS = re.compile(
    r"\b(set_config|nextval|setval|currval|lastval|pg_(try_)?advisory_(un)?lock(_shared|_all)?)\s*\(",
    re.IGNORECASE,
)


def pins(text: str) -> str | None:
    """The part of a statement's text that binds its session, None where it leaves nothing behind."""
    if len(text.encode()) > MAX_TEXT:
        return f"{text[:60]}… is longer than 16 KB"
    for statement in text.split(";"):
        if found := _COMMANDS.match(statement) or _CALLS.search(statement):
            return found[0].strip()
    return None
