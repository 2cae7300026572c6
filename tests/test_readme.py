"""What the README shows is what happens."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands() -> list[list[str]]:
    words = shlex.split("".join(blocks("sh")), comments=True)
    found: list[list[str]] = []
    for word in words:
        if word == ".venv/bin/parallelmind":
            found.append([])
        elif word == "make":
            found.append([word])
        else:
            found[-1].append(word)
    return found


def test_the_record_and_its_answers(tmp_path: Path) -> None:
    record, answers = blocks("json")[0], blocks("json")[1].splitlines()
    (tmp_path / "records.jsonl").write_text(record, encoding="utf-8")
    batch = next(command for command in commands() if command[0] == "batch")
    run("-m", "parallelmind", *batch, "--dtype", "float32", cwd=tmp_path)
    written = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == [json.loads(line) for line in answers]


def test_the_python_example(tmp_path: Path) -> None:
    printed = run("-c", blocks("python")[0], cwd=tmp_path)
    first = printed.splitlines()[0]
    assert "26" in first
    assert "91" in first


def test_the_generate_command(tmp_path: Path) -> None:
    generate = next(command for command in commands() if command[0] == "generate")
    assert run("-m", "parallelmind", *generate, "--dtype", "float32", cwd=tmp_path).strip() == "26"


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make (\S+?)[`\s]", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_pictures_and_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (Path(__file__).parents[1] / link).exists(), link
