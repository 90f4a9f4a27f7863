"""Programs of Debian's packages, which no wheel carries: found here, or fetched without being root."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backplane" / "debian"


@dataclass(frozen=True)
class Program:
    path: Path
    libraries: tuple[Path, ...] = ()  # folders of what the machine lacks

    def copied_to(self, folder: Path) -> "Program":
        """Where another user may run it: a cache in a home is its owner's."""
        copies = tuple(
            Path(shutil.copytree(library, folder / f"lib{number}", symlinks=True))
            for number, library in enumerate(self.libraries)
        )
        return Program(Path(shutil.copy2(self.path, folder)), copies)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LD_LIBRARY_PATH": os.pathsep.join(map(str, self.libraries))}

    def runs(self) -> bool:
        try:
            said = subprocess.run(
                [self.path, "--version"], env=self.environment, capture_output=True, check=False
            )
        except OSError:
            return False
        return said.returncode == 0


def program(name: str, packages: Sequence[str]) -> Program:
    """The program, which is in the first of the packages; the others are its libraries.

    Skips the test where there is none to be had, and fails it where CI is true: nothing is proven then.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found and Program(Path(found)).runs():
        return Program(Path(found))
    kept = CACHE / name
    if not kept.is_dir():
        _fetch(packages, kept)
    paths = [path for path in kept.rglob(name) if path.parent.name in {"bin", "sbin"}]
    libraries = tuple(sorted({path.parent for path in kept.rglob("*.so.*")}))
    for path in paths:
        if (cached := Program(path, libraries)).runs():
            return cached
    raise _without(f"{name} was fetched into {kept} and does not run: install it, or remove the folder")


def _fetch(packages: Sequence[str], target: Path) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    downloads = partial / "packages"
    downloads.mkdir(parents=True)
    try:
        subprocess.run(["apt-get", "download", *packages], cwd=downloads, check=True, capture_output=True)
        for package in downloads.glob("*.deb"):
            subprocess.run(["dpkg", "--extract", package, partial], check=True, capture_output=True)
        shutil.rmtree(downloads)
        if not target.exists():
            partial.rename(target)  # when whole
    except (OSError, subprocess.CalledProcessError) as error:
        raise _without(
            f"{packages[0]} is not installed, and apt-get download can't have it: {error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _without(why: str) -> BaseException:
    outcome = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    return outcome.Exception(why)
