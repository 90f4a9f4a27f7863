"""Which names files may have: a path means the same wherever it is written out, and leads nowhere else.

Paths are compared byte by byte: `App.tsx` and `app.tsx` are two files, as they are to the builds' Linux.
"""

import re
import unicodedata
from collections.abc import Iterable
from itertools import accumulate

MAX_BYTES = 1024

_DRIVE = re.compile(r"[A-Za-z]:")


def fault(path: str) -> str | None:
    """What is wrong with a path; None: nothing."""
    if not path:
        return "is empty"
    if len(path.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return f"has more than {MAX_BYTES} bytes"
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute"
    if "\\" in path:
        return "holds a backslash: folders end with /"
    if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in path):
        return "holds a control character"
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts:
        return "is not in normal form: leave out empty parts, . and .."
    return None


def is_both(paths: Iterable[str]) -> str | None:
    """A path among these that is a file and also another one's folder."""
    files = set(paths)
    for path in files:
        folders = accumulate(path.split("/")[:-1], lambda above, name: f"{above}/{name}")
        if found := next((folder for folder in folders if folder in files), None):
            return found
    return None
