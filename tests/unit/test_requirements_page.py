"""docs/requirements.md says of every requirement what is there: it must be whole, and true."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "requirements.md"
MIGRATIONS = ROOT / "functions" / "migrate" / "migrations"
LAYER = ROOT / "layers" / "backplane" / "backplane"

ITEMS = {"S0": 42, "S1": 18, "S2": 25, "S3": 39, "S4": 32}
STATES = ("built", "in part", "planned")
NOTHING = "—"

_ROW = re.compile(r"\| (S\d)\.(\d+) \|")
_COUNT = re.compile(r"\| (S\d .+|All) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|")
_HEADING = re.compile(r"## (S\d) ")
_CODE = re.compile(r"`([^`]+)`")
_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/\S*)")
_COLUMNS = 5


@dataclass(frozen=True)
class Row:
    section: str
    source: str
    number: int
    cells: tuple[str, ...]

    @property
    def item(self) -> str:
        return f"{self.source}.{self.number}"

    @property
    def state(self) -> str:
        return self.cells[2].partition(":")[0]

    @property
    def places(self) -> list[str]:
        return _CODE.findall(self.cells[3])

    @property
    def proofs(self) -> list[str]:
        return _CODE.findall(self.cells[4])


@cache
def rows() -> tuple[Row, ...]:
    found = []
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := _HEADING.match(line):
            section = heading[1]
        if row := _ROW.match(line):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            found.append(Row(section, row[1], int(row[2]), cells))
    return tuple(found)


# ---- what a place can be ----


@cache
def sql() -> str:
    files = (path.read_text(encoding="utf-8") for path in sorted(MIGRATIONS.glob("*.sql")))
    return "\n".join(file.partition("-- migrate:down")[0] for file in files)


def is_sql_object(name: str) -> bool:
    """`schema.object`, or `schema.table.column`."""
    schema, _, rest = name.partition(".")
    made, _, column = rest.partition(".")
    creation = re.compile(
        rf"^ *CREATE (?:TABLE|VIEW|TYPE|FUNCTION|PROCEDURE) {re.escape(f'{schema}.{made}')}\b(.*?);$",
        re.DOTALL | re.MULTILINE,
    )
    creations = [match[1] for match in creation.finditer(sql())]
    if not column:
        return bool(creations)
    return any(re.search(rf"^    \"?{re.escape(column)}\"? ", body, re.MULTILINE) for body in creations)


@cache
def definitions(path: Path) -> frozenset[str]:
    """The names a module defines at its top."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names.update(target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return frozenset(names)


def is_python_name(name: str) -> bool:
    """`module.name`, of a module of the layer."""
    module, _, defined = name.partition(".")
    path = LAYER / f"{module}.py"
    return path.is_file() and defined in definitions(path)


@cache
def routes() -> frozenset[str]:
    """What functions declare on their routers, and what template.yaml gives to those without one."""
    declared = {
        f"{node.func.attr.upper()} {node.args[0].value}"
        for path in ROOT.glob("functions/*/*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "router"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }
    template = (ROOT / "template.yaml").read_text(encoding="utf-8")
    given = re.findall(r"Method: (GET|POST), Path: (/\S+?)\}", template)
    return frozenset(declared) | {f"{method} {path}" for method, path in given}


def is_place(name: str) -> bool:
    if _ROUTE.fullmatch(name):
        return name in routes()
    return is_sql_object(name) or is_python_name(name) or (ROOT / name).exists()


def is_proof(name: str) -> bool:
    """`tests/…/test_x.py`, or one test of it as pytest names it."""
    path, _, test = name.partition("::")
    file = ROOT / path
    if not (path.startswith("tests/") and file.name.startswith("test_") and file.is_file()):
        return False
    return not test or (test.startswith("test_") and test in definitions(file))


# ---- the page ----


def test_every_item_has_one_row_in_its_sources_table_in_order() -> None:
    expected = [
        (source, f"{source}.{number}") for source, last in ITEMS.items() for number in range(1, last + 1)
    ]
    assert [(row.section, row.item) for row in rows()] == expected


def test_every_row_has_five_filled_cells() -> None:
    bad = [row.item for row in rows() if len(row.cells) != _COLUMNS or not all(row.cells)]
    assert not bad


def test_a_state_is_one_of_three_and_in_part_says_which_part() -> None:
    bad = [
        row.item
        for row in rows()
        if row.state not in STATES or (row.cells[2] != row.state) != (row.state == "in part")
    ]
    assert not bad


def test_the_counts_are_those_of_the_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = {
        match[1].partition(" ")[0]: tuple(int(match[group]) for group in range(2, 6))
        for match in _COUNT.finditer(page)
    }
    assert written == dict(counts())


def counts() -> Iterator[tuple[str, tuple[int, ...]]]:
    for source in (*ITEMS, "All"):
        states = Counter(row.state for row in rows() if source in (row.source, "All"))
        yield source, (sum(states.values()), *(states[state] for state in STATES))


def test_every_place_is_there() -> None:
    assert not [f"{row.item}: {name}" for row in rows() for name in row.places if not is_place(name)]


def test_every_proof_is_there() -> None:
    assert not [f"{row.item}: {name}" for row in rows() for name in row.proofs if not is_proof(name)]


def test_cells_of_places_and_proofs_hold_nothing_else() -> None:
    bad = [
        row.item
        for row in rows()
        for cell in row.cells[3:]
        if cell != NOTHING and _CODE.sub("", cell).strip(", ")
    ]
    assert not bad


def test_what_is_built_has_a_place_and_a_proof() -> None:
    assert not [row.item for row in rows() if row.state == "built" and not (row.places and row.proofs)]


def test_what_is_there_in_part_has_a_place() -> None:
    assert not [row.item for row in rows() if row.state == "in part" and not row.places]


def test_what_is_planned_has_neither_place_nor_proof() -> None:
    assert not [row.item for row in rows() if row.state == "planned" and (row.places or row.proofs)]


@pytest.mark.parametrize(
    "name",
    [
        "billing.nothing",
        "identity.users.nothing",
        "ledger.nothing",
        "GET /v1/nothing",
        "functions/nothing/nothing.py",
        "billing.user",  # the beginning of a name is not the name
    ],
)
def test_a_place_that_is_not_there_is_not_taken_for_one(name: str) -> None:
    assert not is_place(name)


@pytest.mark.parametrize(
    "name",
    [
        "tests/unit/test_nothing.py",
        "tests/unit/test_requirements_page.py::test_nothing",
        "tests/unit/test_requirements_page.py::is_proof",
        "tests/conftest.py",
        "functions/credits/credits.py",
    ],
)
def test_a_proof_that_is_none_is_not_taken_for_one(name: str) -> None:
    assert not is_proof(name)
