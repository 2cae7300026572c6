"""`parallelmind generate`: a prompt from a flag, a file or stdin, branches under it, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from tests.cli.test_chat import STORY
from tests.programs import command_line

FLAGS = ["--base_model", "tiny", "--dtype", "float32", "--device", "cpu", "--temperature", "0"]
FLAGS += ["--repetition_penalty", "1"]
QUESTIONS = ["How old is Dan?", "How much does the hat cost?"]


def branches(*questions: str) -> list[str]:
    return [word for question in questions for word in ("--branch", question)]


def test_prompt_from_stdin_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command_line("parallelmind", stdin=STORY + QUESTIONS[0]):
        assert main(["generate", *FLAGS, "--prompt", "-"]) == 0
    assert capsys.readouterr().out == " 26\n"
    path = tmp_path / "prompt.txt"
    path.write_text(STORY + QUESTIONS[1], encoding="utf-8-sig")  # as editors of Windows save it
    assert main(["generate", *FLAGS, "--prompt_file", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "input": STORY + QUESTIONS[1],
        "output": " 91",
        "finish_reason": "stop",
        "output_tokens": 4,
    }


def test_branches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *FLAGS, "--prompt", STORY, *branches(*QUESTIONS)]) == 0
    assert capsys.readouterr().out == "[1] How old is Dan?\n26\n[2] How much does the hat cost?\n91\n"
    assert main(["generate", *FLAGS, "--prompt", STORY, *branches(*QUESTIONS, "x " * 3000), "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["branch"], row["input"], row["output"]) for row in rows[:2]] == [
        (0, QUESTIONS[0], " 26"),
        (1, QUESTIONS[1], " 91"),
    ]
    assert rows[2]["output"] is None
    assert "too long" in rows[2]["error"]


def test_an_empty_answer_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """What a program reads from stdout stays the answers alone."""
    silent = ["--stop", " 26"]
    assert main(["generate", *FLAGS, *silent, "--prompt", STORY + QUESTIONS[0]]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "(the model answered nothing)"
    assert main(["generate", *FLAGS, *silent, "--prompt", STORY, *branches(*QUESTIONS), "--json"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["output"] for line in said.out.splitlines()] == ["", " 91"]
    assert said.err.splitlines()[-1] == "(the model answered nothing): 1 of 2 answers are empty"
    assert main(["generate", *FLAGS, *silent, "--prompt", STORY, *branches(*QUESTIONS)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["[1] How old is Dan?", "(the model answered nothing)"]
    assert main(["generate", *FLAGS, "--prompt", STORY + QUESTIONS[0]]) == 0
    assert "nothing" not in capsys.readouterr().err


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *FLAGS, "--prompt_file", str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", *FLAGS, "--prompt", "a", "--prompt_file", "b"])
    assert "not allowed with" in capsys.readouterr().err
