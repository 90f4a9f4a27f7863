"""Migration files: plain SQL with an up and a down section, in dbmate's syntax.

NNNN_name.sql
    -- migrate:up [transaction:false]
    …
    -- migrate:down [transaction:false]
    …
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"(?P<version>\d{4,})_(?P<name>[a-z0-9_]+)\.sql")
_MARKER: Final = re.compile(r"^--[ \t]*migrate:(?P<section>\S+)[ \t]*(?P<options>.*?)[ \t]*$", re.MULTILINE)
_TRANSACTION_CONTROL: Final = frozenset({"begin", "start", "commit", "end", "rollback", "abort"})


class MigrationError(RuntimeError):
    """A migration can't be read or applied; the message names the file and the way out."""


@dataclass(frozen=True)
class Statement:
    sql: str
    line: int  # in its file, from 1


@dataclass(frozen=True)
class Section:
    statements: tuple[Statement, ...]
    in_transaction: bool


@dataclass(frozen=True)
class Migration:
    version: str
    name: str
    file: str
    up: Section
    down: Section
    checksum: str  # of the up section


def read_folder(folder: Path) -> list[Migration]:
    """Every migration in the folder, in order. Raises MigrationError."""
    if not folder.is_dir():
        raise MigrationError(f"there is no folder {folder}")
    migrations = [read(path) for path in folder.glob("*.sql")]
    # By number, as dbmate sorts file names: 0010 before 00009 would differ, hence one width.
    if len({len(migration.version) for migration in migrations}) > 1:
        raise MigrationError("the numbers of migrations must have one width: 0001, 0002, …")
    migrations.sort(key=lambda migration: migration.version)
    for one, next_one in itertools.pairwise(migrations):
        if one.version == next_one.version:
            raise MigrationError(
                f"{one.file} and {next_one.file} have the same number: renumber the newer one"
            )
    return migrations


def read(path: Path) -> Migration:
    if not (named := _NAME.fullmatch(path.name)):
        raise MigrationError(f"{path.name}: a migration is named NNNN_lower_case_words.sql")
    try:
        text = path.read_bytes().decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise MigrationError(f"{path.name}: it must be UTF-8: {error}") from error
    markers = list(_MARKER.finditer(text))
    if [marker["section"] for marker in markers] != ["up", "down"]:
        raise MigrationError(
            f"{path.name}: it needs one line `-- migrate:up` and after it one `-- migrate:down`"
        )
    up, down = markers
    if any(_statements(text[: up.start()], 1)):
        raise MigrationError(f"{path.name}:1: nothing but comments may stand before `-- migrate:up`")
    above = text[up.end() : down.start()]
    migration = Migration(
        version=named["version"],
        name=named["name"],
        file=path.name,
        up=_section(path.name, text, up, down.start()),
        down=_section(path.name, text, down, len(text)),
        checksum=hashlib.sha256(f"{up['options']}\n{above.strip()}".encode()).hexdigest(),
    )
    if not migration.up.statements:
        raise MigrationError(f"{path.name}: its up section is empty")
    return migration


def _section(file: str, text: str, marker: re.Match[str], end: int) -> Section:
    line = text.count("\n", 0, marker.start()) + 1
    if (options := marker["options"]) not in {"", "transaction:true", "transaction:false"}:
        raise MigrationError(f"{file}:{line}: `{options}` is no option; there is only transaction:false")
    in_transaction = options != "transaction:false"
    try:
        statements = tuple(_statements(text[marker.end() : end], line))
    except MigrationError as error:
        raise MigrationError(f"{file}:{error}") from error
    for statement in statements:
        first_word = statement.sql.split(maxsplit=1)[0].lower()
        if in_transaction and first_word in _TRANSACTION_CONTROL:
            raise MigrationError(
                f"{file}:{statement.line}: the transaction is the runner's; take out {first_word.upper()} or "
                f"mark the section transaction:false"
            )
    return Section(statements, in_transaction)


# ---- cutting a script into statements ----

_TOKEN: Final = re.compile(
    r"""
      (?P<comment> --[^\n]* )
    | (?P<block> /\* )
    | (?P<escaped> [eE]'(?:[^'\\]|\\.|'')*' )
    | (?P<string> '(?:[^']|'')*' )
    | (?P<quoted> "(?:[^"]|"")*" )
    | (?P<dollar> \$(?:[^\W\d]\w*)?\$ )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<number> \d[\w$.]* | \$\d+ )
    | (?P<space> \s+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE: Final = re.compile(r"/\*|\*/")


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def _statements(script: str, first_line: int) -> Iterator[Statement]:
    """Cut at the semicolons that end statements, by the rules psql goes by.

    Not at those in strings, comments, dollar quotes, parentheses (rules) and SQL-standard
    function bodies (BEGIN ATOMIC … END).
    """
    start: int | None = None  # where the current statement's first token stands
    words: list[str] = []
    parentheses = bodies = 0
    for token in _tokens(script, first_line):
        if token.text == ";" and not parentheses and not bodies:
            if start is not None:
                yield _statement(script, start, token.start, first_line)
            start, words = None, []
            continue
        start = token.start if start is None else start
        if token.kind == "word":
            words.append(token.text.lower())
            bodies = _bodies(words, bodies)
        parentheses = max(0, parentheses + {"(": 1, ")": -1}.get(token.text, 0))
    if start is not None:
        yield _statement(script, start, len(script), first_line)


def _tokens(script: str, first_line: int) -> Iterator[_Token]:
    """What is neither space nor comment. Raises MigrationError where a quote or a comment stays open."""
    position = 0
    while position < len(script):
        found = _TOKEN.match(script, position)
        assert found is not None  # noqa: S101  the last alternative takes any character
        kind, text, position = str(found.lastgroup), found[0], found.end()
        if kind == "block":
            position = _block_end(script, found.start(), first_line)
        elif kind == "dollar":
            position = _dollar_end(script, found, first_line)
        elif text in {"'", '"'}:
            raise MigrationError(f"{_line(script, found.start(), first_line)}: this {text} is never closed")
        if kind not in {"space", "comment", "block"}:
            yield _Token(kind, text, found.start(), position)


def _bodies(words: list[str], depth: int) -> int:
    """How many function bodies and CASEs in them are open after the last word."""
    kind = words[3:4] if words[1:3] == ["or", "replace"] else words[1:2]
    if words[0] != "create" or kind not in (["function"], ["procedure"]):
        return 0
    if words[-2:] == ["begin", "atomic"] or (depth and words[-1] == "case"):
        return depth + 1
    return max(0, depth - 1) if words[-1] == "end" else depth


def _block_end(script: str, start: int, first_line: int) -> int:
    depth = 0
    for edge in _BLOCK_EDGE.finditer(script, start):  # PostgreSQL's comments nest
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    raise MigrationError(f"{_line(script, start, first_line)}: this comment is never closed")


def _dollar_end(script: str, opening: re.Match[str], first_line: int) -> int:
    end = script.find(opening[0], opening.end())
    if end < 0:
        raise MigrationError(
            f"{_line(script, opening.start(), first_line)}: this {opening[0]} is never closed"
        )
    return end + len(opening[0])


def _statement(script: str, start: int, end: int, first_line: int) -> Statement:
    return Statement(script[start:end].rstrip(), _line(script, start, first_line))


def _line(script: str, position: int, first_line: int) -> int:
    return first_line + script.count("\n", 0, position)
