"""What a save makes of a project's files: the rules of its operations, without a database or a bucket."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from backplane import file_paths
from backplane.problems import Conflict, NotFound, TooLarge, Unprocessable

MAX_FILES = 5_000
MAX_TOTAL_BYTES = 50 * 1024**2  # of the contents of a project's files
MOST_NAMED = 20  # paths an error names

Operation = Literal["upsert", "create", "update", "replace", "delete"]
Contents = Mapping[str, str]  # by path


class IndexedFile(BaseModel):
    path: str
    bytes: int
    sha256: str


class Counts(BaseModel):
    """Of the files that a save named, and of those that it took away."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class NewFile:
    path: str
    content: str | None  # None: where it is to be deleted


@dataclass(frozen=True, slots=True)
class Tree:
    """All files of a version to be: its object, and what the database keeps of it."""

    body: bytes
    sha256: str
    index: list[IndexedFile]
    total_bytes: int
    counts: Counts


def apply(
    operation: Operation, named: list[NewFile], index: list[IndexedFile], load: Callable[[], Contents]
) -> Tree | Counts:
    """The tree that a save makes, or merely its counts where it changes nothing.

    `index` is the version's that it begins from; `load` fetches that one's contents, if it must. Raises
    Unprocessable (paths), Conflict (create of what is there), NotFound (update or delete of what is not),
    TooLarge.
    """
    _check_paths(named)
    before = {file.path: file for file in index}
    _check_presence(operation, named, before)
    if operation == "delete":
        gone = {file.path for file in named}
        new: dict[str, str] = {}
    else:
        new = {file.path: file.content for file in named if file.content is not None}
        gone = before.keys() - new.keys() if operation == "replace" else set()
    indexed = {path: _indexed(path, content) for path, content in new.items()}
    counts = Counts(
        created=len(new.keys() - before.keys()),
        updated=sum(path in before and before[path] != file for path, file in indexed.items()),
        unchanged=sum(before.get(path) == file for path, file in indexed.items()),
        deleted=len(gone),
    )
    if not (counts.created or counts.updated or counts.deleted):
        return counts
    kept = before.keys() - gone - new.keys()
    return _tree({**{path: before[path] for path in kept}, **indexed}, new, load if kept else dict, counts)


def tree_of(contents: Contents, index: list[IndexedFile], before: list[IndexedFile]) -> Tree | Counts:
    """A version's contents once more, in place of another version's."""
    return apply("replace", [NewFile(file.path, contents[file.path]) for file in index], before, dict)


def parse(body: bytes) -> Contents:
    files: Contents = json.loads(body)["files"]
    return files


def _tree(files: dict[str, IndexedFile], new: Contents, load: Callable[[], Contents], counts: Counts) -> Tree:
    total = sum(file.bytes for file in files.values())
    if len(files) > MAX_FILES or total > MAX_TOTAL_BYTES:
        raise TooLarge(
            f"The project would have {len(files)} files of {total} bytes; at most {MAX_FILES} files of"
            f" {MAX_TOTAL_BYTES} bytes together are kept. Upload assets instead: POST …/uploads."
        )
    if folder := file_paths.is_both(files):
        raise _unfit(f"{folder!r} would be a file and a folder: delete the one or move the other.")
    kept = load()
    contents = {path: new[path] if path in new else kept[path] for path in sorted(files)}
    body = json.dumps({"files": contents}, ensure_ascii=False, separators=(",", ":")).encode()
    return Tree(body, hashlib.sha256(body).hexdigest(), [files[path] for path in contents], total, counts)


def _indexed(path: str, content: str) -> IndexedFile:
    data = content.encode()
    return IndexedFile(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _check_paths(named: list[NewFile]) -> None:
    if len(named) > MAX_FILES:
        raise TooLarge(f"At most {MAX_FILES} files are saved at once; these are {len(named)}.")
    seen: set[str] = set()
    errors = []
    for number, file in enumerate(named):
        fault = file_paths.fault(file.path) or ("comes twice" if file.path in seen else None)
        seen.add(file.path)
        if fault:
            location = ["body", "files", number, "path"]
            errors.append({"loc": location, "msg": f"The path {fault}", "type": "invalid_path"})
    if errors:
        raise Unprocessable(
            f"{len(errors)} of the paths can't be a file's: see errors.", errors=errors[:MOST_NAMED]
        )


def _check_presence(operation: Operation, named: list[NewFile], before: Mapping[str, IndexedFile]) -> None:
    there = [file.path for file in named if file.path in before]
    missing = [file.path for file in named if file.path not in before]
    if operation == "create" and there:
        raise Conflict(f"There is already {_listed(there)}. Use update or upsert.")
    if operation in {"update", "delete"} and missing:
        raise NotFound(f"There is no {_listed(missing)} to {operation}.")


def _listed(paths: list[str]) -> str:
    more = len(paths) - MOST_NAMED
    return ", ".join(repr(path) for path in paths[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _unfit(detail: str) -> Unprocessable:
    errors = [{"loc": ["body", "files"], "msg": detail, "type": "invalid_path"}]
    return Unprocessable(detail, errors=errors)
