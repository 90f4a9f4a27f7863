"""`make demo`: every row right on a scratch stack, and a wrong row is an exit status."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from local import demo, story, story_rows
from local.story import Mismatch, Row, Story
from tests.e2e.local_cloud import PATIENCE, ROOT

NOBODY = cast("Story", None)


def test_every_row_is_right_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "local.demo"],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT / 'layers' / 'backplane'}{os.pathsep}{ROOT}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^ *\d+  .*?  (ok|WRONG) ", done.stdout, re.MULTILINE)
    assert rows == ["ok"] * len(story_rows.STORY)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_row_is_told_and_exits_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    def right(_: Story) -> str:
        return "as it should be"

    def wrong(_: Story) -> str:
        raise Mismatch("the balance is 1 and should be 2")

    def broken(_: Story) -> Any:
        raise ConnectionResetError("gone")

    rows = [Row("wrong", wrong), Row("broken", broken), Row("right", right)]
    assert demo.tell(NOBODY, rows) == 1
    told = capsys.readouterr().out
    assert "WRONG  the balance is 1 and should be 2" in told
    assert "WRONG  ConnectionResetError: gone" in told
    assert "ok     as it should be" in told
    assert "1 of 3 rows are right" in told
    assert demo.tell(NOBODY, [Row("right", right)]) == 0


def test_what_differs_is_a_mismatch() -> None:
    story.expect("it", 1, 1)
    with pytest.raises(Mismatch, match="it is 1 and should be 2"):
        story.expect("it", 1, 2)
