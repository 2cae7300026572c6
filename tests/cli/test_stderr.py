"""An error of a command that torchrun started in several processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from parallelmind.cli import stderr


@pytest.mark.parametrize(
    ("environ", "interrupted", "expected"),
    [
        ({}, False, "error: no\n"),
        ({"RANK": "3", "WORLD_SIZE": "4"}, False, "error: no\n"),  # a launcher that does not end the others
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "LOCAL_RANK": "0"}, False, "error: no\n"),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "LOCAL_RANK": "3"}, False, "rank 3: error: no\n"),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "LOCAL_RANK": "3"}, True, ""),
        ({}, True, "error: no\n"),
    ],
)
def test_who_says_it(
    environ: dict[str, str],
    interrupted: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The first process at once; another one only after the time in which torchrun would have ended it."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    file = tmp_path / "error.json"
    stderr.say_failed("error: no", interrupted=interrupted, environ=environ | {"TORCHELASTIC_ERROR_FILE": str(file)})
    assert capsys.readouterr().err == expected
    assert bool(waited) == expected.startswith("rank")
    assert file.exists() != interrupted
    if not interrupted:
        assert json.loads(file.read_text())["message"]["message"] == "error: no"
