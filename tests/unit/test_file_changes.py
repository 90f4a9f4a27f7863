"""What a save makes of a project's files, and which paths it takes."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import file_changes, file_paths
from backplane.file_changes import Contents, Counts, IndexedFile, NewFile, Operation, Tree
from backplane.problems import Conflict, NotFound, Problem, TooLarge, Unprocessable


def nothing_to_load() -> Contents:
    raise AssertionError("the contents are not needed")


def tree(files: dict[str, str]) -> Tree:
    made = file_changes.apply("replace", [NewFile(*each) for each in files.items()], [], nothing_to_load)
    assert isinstance(made, Tree)
    return made


def save(operation: Operation, named: dict[str, str | None], before: dict[str, str]) -> Tree | Counts:
    index = tree(before).index if before else []
    return file_changes.apply(operation, [NewFile(*each) for each in named.items()], index, lambda: before)


def saved(operation: Operation, named: dict[str, str | None], before: dict[str, str]) -> Contents:
    made = save(operation, named, before)
    assert isinstance(made, Tree)
    contents = file_changes.parse(made.body)
    assert [file.path for file in made.index] == sorted(contents)
    assert made.total_bytes == sum(len(content.encode()) for content in contents.values())
    return contents


BEFORE = {"App.tsx": "app", "src/a.ts": "a"}


@pytest.mark.parametrize(
    ("operation", "named", "after", "counts"),
    [
        ("upsert", {"src/a.ts": "A", "b": "b", "App.tsx": "app"},
         {"App.tsx": "app", "src/a.ts": "A", "b": "b"},
         Counts(created=1, updated=1, unchanged=1)),
        ("create", {"b": "b"}, {**BEFORE, "b": "b"}, Counts(created=1)),
        ("update", {"App.tsx": ""}, {**BEFORE, "App.tsx": ""}, Counts(updated=1)),
        ("replace", {"App.tsx": "app", "b": "b"}, {"App.tsx": "app", "b": "b"},
         Counts(created=1, unchanged=1, deleted=1)),
        ("replace", {}, {}, Counts(deleted=2)),
        ("delete", {"App.tsx": None}, {"src/a.ts": "a"}, Counts(deleted=1)),
    ],
)  # fmt: skip
def test_an_operation_makes_what_its_name_says_and_counts_it(
    operation: Operation, named: dict[str, str | None], after: dict[str, str], counts: Counts
) -> None:
    made = save(operation, named, BEFORE)
    assert isinstance(made, Tree)
    assert made.counts == counts
    assert saved(operation, named, BEFORE) == after


@pytest.mark.parametrize("operation", ["upsert", "update", "replace"])
def test_what_is_the_same_makes_no_version_and_loads_nothing(operation: Operation) -> None:
    named = [NewFile(*each) for each in BEFORE.items()]
    made = file_changes.apply(operation, named, tree(BEFORE).index, nothing_to_load)
    assert made == Counts(unchanged=2)


def test_contents_that_the_save_brings_along_are_not_loaded() -> None:
    named = [NewFile("App.tsx", "other"), NewFile("src/a.ts", "other")]
    made = file_changes.apply("upsert", named, tree(BEFORE).index, nothing_to_load)
    assert isinstance(made, Tree)


def test_create_refuses_what_is_there_and_update_and_delete_what_is_not() -> None:
    with pytest.raises(Conflict, match=r"App\.tsx"):
        save("create", {"App.tsx": "x", "new": "x"}, BEFORE)
    for operation in ("update", "delete"):
        with pytest.raises(NotFound, match="new"):
            save(operation, {"App.tsx": "x", "new": "x"}, BEFORE)


# ---- paths ----

HOSTILE = [
    "", "/", "/etc/passwd", "//host/share", "a//b", "a/", "a/.", "./a", ".", "..", "../a", "a/../b", "a/..",
    "a\\b", "\\\\host\\share", "..\\a", "C:/a", "c:a", "C:.\\a", "a\x00", "\x00", "a\nb", "a\r", "\x1b[2J",
    "a\x7f",
    "a\x85b", "\ud800", "a" * 1025, "é" * 513, "/".join(["a"] * 513),
]  # fmt: skip
FINE = [
    "a", "App.tsx", "src/app/(tabs)/index.tsx", ".env", ".github/workflows/ci.yml", "...", "a...b", "..a",
    "a..",
    "a b", " ", "[id].tsx",
    "%2e%2e/a", "日本語/ファイル", "e\u0301", "a" * 1024, "é" * 512, "-rf", "__proto__",
    "ab:c", "~", "$HOME", "CON", "\u202etxt.exe",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE, ids=ascii)
def test_a_hostile_path_is_refused_and_named_by_its_place(path: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        save("upsert", {"fine": "x", path: "x"}, {})
    assert refused.value.errors[0]["loc"] == ["body", "files", 1, "path"]


@pytest.mark.parametrize("path", FINE, ids=ascii)
def test_an_unusual_path_is_a_files_all_the_same(path: str) -> None:
    assert saved("upsert", {path: "x"}, {}) == {path: "x"}


@given(st.text(st.sampled_from([*"ab./\\:C\x00\n é"]), max_size=12))
def test_a_path_that_is_taken_stays_in_its_folder_and_is_its_own_normal_form(path: str) -> None:
    import posixpath

    if file_paths.fault(path) is None:
        assert posixpath.normpath(path) == path
        assert not path.startswith(("/", "../"))
        assert posixpath.normpath(posixpath.join("/project", path)).startswith("/project/")


def test_paths_are_compared_byte_by_byte() -> None:
    contents = {"readme.md": "1", "README.md": "2", "é": "3", "e\u0301": "4"}
    assert saved("upsert", dict(contents), {}) == contents


def test_a_path_that_comes_twice_is_refused() -> None:
    with pytest.raises(Unprocessable) as refused:
        file_changes.apply("upsert", [NewFile("a", "1"), NewFile("a", "2")], [], dict)
    assert refused.value.errors[0]["loc"] == ["body", "files", 1, "path"]


@pytest.mark.parametrize(
    ("named", "before"),
    [
        ({"a": "", "a/b": ""}, {}),
        ({"a/b/c": ""}, {"a": ""}),
        ({"a": ""}, {"a/b/c": ""}),
        ({"a-b": "", "a/b": "", "a": ""}, {}),
    ],
)
def test_no_path_is_a_file_and_a_folder(named: dict[str, str | None], before: dict[str, str]) -> None:
    with pytest.raises(Unprocessable, match="file and a folder"):
        save("upsert", named, before)
    assert saved("replace", {"a-b": "", "a/b": ""}, {"a": ""}) == {"a-b": "", "a/b": ""}


# ---- bounds ----


def test_a_project_has_so_many_files_and_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_changes, "MAX_FILES", 2)
    monkeypatch.setattr(file_changes, "MAX_TOTAL_BYTES", 10)
    assert saved("create", {"b": "é" * 4}, {"a": "xx"}) == {"a": "xx", "b": "é" * 4}
    for named in ({"b": "é" * 5}, {"b": "", "c": ""}, {"b": "", "c": "", "d": ""}):
        with pytest.raises(TooLarge):
            save("upsert", dict(named), {"a": "xx"})


# ---- whatever is saved ----

paths = st.sampled_from(["a", "b", "c", "d/e", "d/f"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(
    before=st.dictionaries(paths, texts),
    operation=st.sampled_from(get_args(Operation)),
    named=st.dictionaries(paths, texts, min_size=1),
)
def test_any_save_is_what_a_dictionary_would_make_of_it(
    before: dict[str, str], operation: Operation, named: dict[str, str]
) -> None:
    expected = dict(before)
    if operation == "replace":
        expected = dict(named)
    elif operation == "delete":
        expected = {path: content for path, content in before.items() if path not in named}
    else:
        expected |= named
    try:
        made = save(operation, dict(named), before)
    except Problem:
        missing, there = named.keys() - before.keys(), named.keys() & before.keys()
        assert (operation == "create" and there) or (operation in {"update", "delete"} and missing)
        return
    if isinstance(made, Counts):
        assert expected == before
    else:
        assert json.loads(made.body) == {"files": expected}
        assert expected != before
        assert made.index == sorted(made.index, key=lambda file: file.path)
        assert all(isinstance(file, IndexedFile) for file in made.index)
