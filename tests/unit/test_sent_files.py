"""Files as a request sends them."""

import pytest
from tests.callers import FUNCTIONS

from backplane import sent_files
from backplane.file_changes import Operation
from backplane.sent_files import File

SAVING = {"/v1/projects/<project_id>/files", "/v1/generations/<generation_id>/complete"}


@pytest.mark.parametrize(
    ("operation", "content", "bundle", "fault"),
    [
        ("upsert", "x", True, "either files or the bundle_id"),
        ("delete", None, True, "either files or the bundle_id"),
        ("upsert", None, False, "needs its content to upsert"),
        ("replace", None, False, "needs its content to replace"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    operation: Operation, content: str | None, *, bundle: bool, fault: str
) -> None:
    from uuid import UUID

    with pytest.raises(ValueError, match=fault):
        sent_files.check(operation, [File(path="a", content=content)], UUID(int=0) if bundle else None)


def test_a_bundle_deletes_nothing() -> None:
    from uuid import UUID

    with pytest.raises(ValueError, match="name the files to delete"):
        sent_files.check("delete", None, UUID(int=0))


def test_no_debug_log_spells_out_the_files_of_a_request() -> None:
    """That is megabytes, and its text is made whether it is logged or not."""
    bodies = {
        route.path: route.function.__annotations__["body"]
        for router, _ in FUNCTIONS.values()
        for route in router.routes
        if route.method == "POST" and route.path in SAVING
    }
    assert bodies.keys() == SAVING
    for body in bodies.values():
        sent = body.model_construct(files=[File(path="a", content="the contents")])
        assert "the contents" not in repr(sent)
