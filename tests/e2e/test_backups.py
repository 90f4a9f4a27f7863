"""Backups in the local cloud: the functions as the template has them, on S3 and the embedded server."""

from typing import Any

from local.invoke import Answer, invoke
from local.running import read
from tests.e2e.local_cloud import Cloud


def call(stack: Cloud, name: str, event: dict[str, Any]) -> Answer:
    return invoke(read(stack.data / "stack.json"), name, event)


def test_the_running_stack_is_backed_up_and_the_backup_proven(stack: Cloud) -> None:
    backup = call(stack, "backup", {})
    assert not backup.failed, backup.value
    assert backup.value["ok"] is True
    drill = call(stack, "restore_drill", {"name": backup.value["key"]})
    assert not drill.failed, drill.value
    assert drill.value == {
        "ok": True,
        "key": backup.value["key"],
        "seconds": drill.value["seconds"],
        "differences": [],
    }
    health = call(stack, "health", {}).value["checks"]["backup"]
    assert health["age_hours"] == 0.0
    assert health["verified_at"]
