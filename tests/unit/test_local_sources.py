"""Whether files have changed."""

import os
import threading
import time
from pathlib import Path

import pytest
from local.sources import Sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text("before")
    return tmp_path


def test_an_edition_stays_while_nothing_changes(folder: Path) -> None:
    sources = Sources([folder])

    assert sources.edition() == sources.edition()


@pytest.mark.parametrize("change", ["write", "add", "remove", "replace", "touch"])
def test_every_change_is_a_greater_edition(folder: Path, change: str) -> None:
    sources = Sources([folder])
    before = sources.edition()
    module = folder / "package" / "module.py"
    match change:
        case "write":
            module.write_text("behind")  # as long as before
        case "add":
            (folder / "package" / "data.sql").write_text("")
        case "remove":
            module.unlink()
        case "replace":
            (folder / ".new").write_text("before")
            (folder / ".new").rename(module)
        case "touch":
            os.utime(module, (0, 0))  # no way to hide a change

    assert sources.edition() > before


@pytest.mark.parametrize(
    "name", ["__pycache__/module.pyc", ".module.py.swp", ".git/index", "module.py~", "4.tmp"]
)
def test_what_editors_and_python_leave_is_no_change(folder: Path, name: str) -> None:
    sources = Sources([folder])
    before = sources.edition()
    (folder / "package" / name).parent.mkdir(exist_ok=True)
    (folder / "package" / name).write_text("left")

    assert sources.edition() == before


def test_a_file_alone_can_be_looked_at(folder: Path) -> None:
    file = folder / "package" / "module.py"
    sources = Sources([file])
    before = sources.edition()
    (folder / "package" / "other.py").write_text("")
    assert sources.edition() == before
    file.write_text("after")
    assert sources.edition() > before


def test_a_link_to_a_folder_above_does_no_harm(folder: Path) -> None:
    (folder / "package" / "above").symlink_to(folder)

    assert Sources([folder]).edition()


def test_a_folder_that_is_not_there_is_empty_until_it_is(folder: Path) -> None:
    sources = Sources([folder / "later"])
    before = sources.edition()
    (folder / "later").mkdir()
    (folder / "later" / "module.py").write_text("")

    assert sources.edition() > before


def test_editions_of_different_sources_are_in_order(folder: Path) -> None:
    first = Sources([folder]).edition()

    assert Sources([folder]).edition() > first


def test_a_change_waits_for_the_file_to_be_quiet(folder: Path) -> None:
    sources = Sources([folder])
    before = sources.edition()
    module = folder / "package" / "module.py"
    written = threading.Event()

    def write_slowly() -> None:
        with module.open("w") as file:
            for _ in range(10):
                file.write("x")
                file.flush()
                time.sleep(0.01)
            written.set()

    module.write_text("")
    writer = threading.Thread(target=write_slowly)
    writer.start()
    after = sources.edition()
    was_written = written.is_set()
    writer.join()

    assert after > before
    assert was_written
    assert sources.edition() == after


def test_files_that_are_never_quiet_are_of_the_edition_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Sources([folder])
    before = sources.edition()
    monkeypatch.setattr("local.sources.QUIET", 1000.0)
    monkeypatch.setattr("local.sources.PATIENCE", 0.05)
    (folder / "package" / "module.py").write_text("after")

    assert sources.edition() == before
    monkeypatch.undo()
    assert sources.edition() > before
