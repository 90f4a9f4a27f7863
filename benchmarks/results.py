"""Tables for the terminal and for RESULTS.md, with the machine and the date they were measured on."""

import os
import platform
import re
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = """# Results

Measured by `make bench`, each table in one run, so that its ratios hold; the machines are shared, so
absolutes do not carry over. A section is replaced when its benchmark runs again.
"""


def write(
    name: str, what: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: str = ""
) -> None:
    """Prints a table and puts it into RESULTS.md in place of the section of that name."""
    table = "\n".join(_line(row) for row in (header, ["---"] * len(header), *rows))
    body = f"## {name}\n\n{what}\n\n{machine()}\n\n{table}\n"
    if notes:
        body += f"\n{notes}\n"
    print(body)
    before = RESULTS.read_text() if RESULTS.exists() else HEAD
    old = re.search(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", before, flags=re.DOTALL | re.MULTILINE)
    start, end = old.span() if old else (len(before), len(before))
    sections = (before[:start], body, before[end:])
    RESULTS.write_text("\n\n".join(section.strip() for section in sections if section.strip()) + "\n")


def machine() -> str:
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d} · {os.cpu_count()} cores ({cpu[1] if cpu else platform.machine()}) · "
        f"{memory:.0f} GiB · Linux {platform.release().split('-')[0]} · CPython {platform.python_version()}"
    )


def milliseconds(seconds: Sequence[float]) -> str:
    """Median and 99th percentile."""
    ordered = sorted(seconds)
    return f"{statistics.median(ordered) * 1000:.2f} / {ordered[int(len(ordered) * 0.99)] * 1000:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
