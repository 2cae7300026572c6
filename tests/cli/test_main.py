"""What holds for all commands."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from parallelmind.pipelines.demo_rag import ASSETS


def test_a_reader_that_ends_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)  # as `head` does when it has its lines
    command = [sys.executable, "-m", "parallelmind", "check-workers", "--skip_inference"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "command",
    [
        ["demo", "--out_dir"],
        ["demo-rag", "--out_dir"],
        ["demo-train", "--out_dir"],
        ["pipeline", "--queries_file", str(ASSETS / "queries.json"), "--corpus_path", str(ASSETS / "corpus"),
         "--model_path", "tiny", "--output_dir"],
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_made_is_an_error(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([*command, str(tmp_path / "file" / "folder")]) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "file") in error


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.jsonl.job/board.json")

    monkeypatch.setattr("parallelmind.cli.check_workers.run", full)
    assert main(["check-workers"]) == 1
    assert capsys.readouterr().err == (
        "error: out.jsonl.job/board.json: No space left on device; make room and start the same command again\n"
    )


def test_another_error_of_the_system_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("parallelmind.cli.check_workers.run", broken)
    with pytest.raises(OSError, match="Input/output error"):
        main(["check-workers"])
