"""migration_file.py: what a file may look like, and where its statements begin."""

from pathlib import Path

import pytest
from migration_file import Migration, MigrationError, read, read_folder

PLAIN = """\
-- A table of things.
-- migrate:up
CREATE TABLE things (id int);

-- migrate:down
DROP TABLE things;
"""


def written(folder: Path, text: str, name: str = "0001_things.sql") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def migration(folder: Path, up: str, down: str = "SELECT 1;") -> Migration:
    return read(written(folder, f"-- migrate:up\n{up}\n-- migrate:down\n{down}\n"))


def statements(folder: Path, up: str) -> list[str]:
    return [statement.sql for statement in migration(folder, up).up.statements]


def test_a_file_has_an_up_and_a_down_section(tmp_path: Path) -> None:
    found = read(written(tmp_path, PLAIN))
    assert (found.version, found.name) == ("0001", "things")
    assert [(s.sql, s.line) for s in found.up.statements] == [("CREATE TABLE things (id int)", 3)]
    assert [(s.sql, s.line) for s in found.down.statements] == [("DROP TABLE things", 6)]
    assert found.up.in_transaction


def test_a_section_may_leave_the_transaction(tmp_path: Path) -> None:
    text = PLAIN.replace("migrate:up", "migrate:up transaction:false")
    found = read(written(tmp_path, text))
    assert not found.up.in_transaction
    assert found.down.in_transaction


def test_the_checksum_is_of_the_up_section_alone(tmp_path: Path) -> None:
    before = read(written(tmp_path, PLAIN)).checksum
    assert read(written(tmp_path, PLAIN.replace("DROP TABLE", "DROP TABLE IF EXISTS"))).checksum == before
    assert read(written(tmp_path, PLAIN.replace("\n", "\r\n"))).checksum == before
    assert read(written(tmp_path, PLAIN.replace("id int", "id bigint"))).checksum != before
    assert read(written(tmp_path, PLAIN.replace("up\n", "up transaction:false\n"))).checksum != before


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SELECT 1;", "needs one line `-- migrate:up`"),
        ("-- migrate:up\nSELECT 1;", "needs one line `-- migrate:up`"),
        ("-- migrate:down\nSELECT 1;\n-- migrate:up\nSELECT 1;", "needs one line `-- migrate:up`"),
        ("-- migrate:up\nSELECT 1;\n-- migrate:up\nSELECT 1;\n-- migrate:down", "needs one line"),
        ("SELECT 1;\n-- migrate:up\nSELECT 1;\n-- migrate:down", "nothing but comments"),
        ("-- migrate:up\n-- nothing\n-- migrate:down\nSELECT 1;", "up section is empty"),
        ("-- migrate:up transaction:maybe\nSELECT 1;\n-- migrate:down", "`transaction:maybe` is no option"),
        ("-- migrate:up\n\nBEGIN;\n-- migrate:down", r"0001_things\.sql:3: the transaction is the runner's"),
        ("-- migrate:up\nSELECT 1;\ncommit ;\n-- migrate:down", r":3: the transaction is the runner's"),
        ("-- migrate:up\nSELECT 'a;\n-- migrate:down", "0001_things.sql:2: this ' is never closed"),
        ("-- migrate:up\nSELECT 1;\nDO $x$ it;\n-- migrate:down", r":3: this \$x\$ is never closed"),
        ("-- migrate:up\n/* a /* b */\nSELECT 1;\n-- migrate:down", ":2: this comment is never closed"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(MigrationError, match=complaint) as refused:
        read(written(tmp_path, text))
    assert str(refused.value).startswith("0001_things.sql:")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0001_things.sql"
    path.write_bytes(b"-- migrate:up\nSELECT '\xff';\n-- migrate:down\n")
    with pytest.raises(MigrationError, match="must be UTF-8"):
        read(path)


@pytest.mark.parametrize("name", ["1_things.sql", "0001-things.sql", "0001_Things.sql", "things.sql"])
def test_a_file_is_named_number_and_words(tmp_path: Path, name: str) -> None:
    written(tmp_path, PLAIN, name)
    with pytest.raises(MigrationError, match="is named NNNN_lower_case_words"):
        read_folder(tmp_path)


def test_a_number_is_used_once(tmp_path: Path) -> None:
    written(tmp_path, PLAIN, "0001_one.sql")
    written(tmp_path, PLAIN, "0001_two.sql")
    with pytest.raises(MigrationError, match="have the same number"):
        read_folder(tmp_path)


def test_numbers_have_one_width_so_that_names_sort_as_numbers(tmp_path: Path) -> None:
    written(tmp_path, PLAIN, "0002_one.sql")
    written(tmp_path, PLAIN, "00010_two.sql")
    with pytest.raises(MigrationError, match="one width"):
        read_folder(tmp_path)


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    for name in ("0010_c.sql", "0002_b.sql", "0001_a.sql"):
        written(tmp_path, PLAIN, name)
    assert [found.version for found in read_folder(tmp_path)] == ["0001", "0002", "0010"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="there is no folder"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "whole",
    [
        "SELECT 'a;b'",
        "SELECT 'it''s;'",
        r"SELECT E'\';'",
        'SELECT 1 AS "a;b"',
        "SELECT 1 /* ; /* ; */ ; */ + 1",
        "SELECT 1 -- ;\n + 1",
        "DO $$ BEGIN PERFORM 1; END $$",
        "DO $a$ SELECT '$$;'; $a$",
        "SELECT $1_not_a_quote$ FROM a$b$c",
        "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END",
        "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC SELECT 1; END",
    ],
)
def test_a_semicolon_inside_ends_nothing(tmp_path: Path, whole: str) -> None:
    assert statements(tmp_path, f"SELECT 0;\n{whole};\nSELECT 2;") == ["SELECT 0", whole, "SELECT 2"]


def test_a_statement_begins_after_the_comments_above_it(tmp_path: Path) -> None:
    found = migration(tmp_path, "-- first\nSELECT 1;\n\n/* second\n */ SELECT 2;").up.statements
    assert [(s.sql, s.line) for s in found] == [("SELECT 1", 3), ("SELECT 2", 6)]


def test_the_last_semicolon_may_be_missing(tmp_path: Path) -> None:
    assert statements(tmp_path, "SELECT 1;;\nSELECT 2") == ["SELECT 1", "SELECT 2"]


def test_an_end_of_a_case_outside_of_a_function_is_no_transaction_control(tmp_path: Path) -> None:
    assert len(statements(tmp_path, "SELECT CASE WHEN true THEN 1 END; SELECT 2;")) == 2
