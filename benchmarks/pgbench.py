"""PostgreSQL's own load driver, which is as fast as a client gets: the limit to compare with."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local.postgres_programs import bin_dir

THREADS = 2


@dataclass(frozen=True)
class Run:
    transactions: int
    rate: float  # a second; of a timed run that of its last second, when every connection is warm


def run(
    script: Path,
    url: str,
    clients: int,
    *,
    seconds: int | None = None,
    transactions: int = 1,
    variables: Mapping[str, int],
) -> Run:
    """Runs a script of one statement, prepared, from so many connections: for `seconds`, or
    `transactions` times each. Raises RuntimeError where a transaction failed.
    """
    length = (
        ["--transactions", str(transactions)]
        if seconds is None
        else ["--time", str(seconds), "--progress", "1"]
    )
    defined = [item for name, value in variables.items() for item in ("--define", f"{name}={value}")]
    done = subprocess.run(  # noqa: S603  the wheel's program
        [
            *(str(bin_dir() / "pgbench"), "--no-vacuum", "--protocol", "prepared", "--file", str(script)),
            *("--client", str(clients), "--jobs", str(min(clients, THREADS)), *length, *defined, url),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    count = re.search(r"actually processed: (\d+)", done.stdout)
    rates = re.findall(r"^progress: .*?([\d.]+) tps", done.stderr, re.MULTILINE)
    rates = rates or re.findall(r"^tps = ([\d.]+) \(without", done.stdout, re.MULTILINE)
    if done.returncode or count is None or not rates:
        raise RuntimeError(f"pgbench failed on {script.name}:\n{done.stdout}\n{done.stderr}")
    return Run(int(count[1]), float(rates[-1]))
