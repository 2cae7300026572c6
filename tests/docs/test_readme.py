"""What the README shows is what happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from tests.docs.blocks import ROOT, blocks_of, commands_of

BLOCKS = blocks_of("README.md")


def typed(name: str) -> list[str]:
    """The first command of a name, without `parallelmind`."""
    commands = (command for block in BLOCKS if block.is_shell for command in commands_of(block))
    return next(list(command.words[1:]) for command in commands if command.words[:2] == ("parallelmind", name))


def lines(text: str) -> list[object]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.half_precision
def test_the_record_and_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown is the first record of the file and its answers; the others are answered as well."""
    record, answers = (lines(block.text) for block in BLOCKS if block.language == "json")
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    assert lines(Path("examples/records.jsonl").read_text(encoding="utf-8"))[:1] == record
    assert main([*typed("batch"), "--workers", "0"]) == 0
    written = lines(Path("out/answers.jsonl").read_text(encoding="utf-8"))
    assert written[: len(answers)] == answers
    outputs = [str(row["output"]).strip() for row in written if isinstance(row, dict)]
    assert outputs[2:] == ["12", "35", "蓝色", "kitchen", "Delhi", "24", "golf", "画家", "鸽子", "星期三", "44"]


def test_the_python_example(capsys: pytest.CaptureFixture[str]) -> None:
    text = next(block.text for block in BLOCKS if block.language == "python")
    exec(compile(text, "README.md", "exec"), {"__name__": "__readme__"})
    first = capsys.readouterr().out.splitlines()[0]
    assert "26" in first
    assert "91" in first


@pytest.mark.half_precision
def test_the_generate_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed("generate")) == 0
    assert capsys.readouterr().out.strip() == "26"
