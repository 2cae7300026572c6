"""What a demo shows can be copied into the shell it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parallelmind.cli.typed import typed_command, typed_path
from tests.programs import command_line


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in `.venv/bin` below the current folder, as it was started."""
    path = tmp_path / ".venv" / "bin" / "parallelmind"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with command_line(path):
        yield path


def test_a_program_below_this_folder(program: Path) -> None:
    assert typed_command() == ".venv/bin/parallelmind"


def test_a_program_on_the_path(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert typed_command() == "parallelmind"


def test_another_program_of_that_name_on_the_path(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = program.parents[2] / "other" / "parallelmind"
    other.parent.mkdir()
    other.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert typed_command() == ".venv/bin/parallelmind"


def test_a_module() -> None:
    with command_line("/somewhere/parallelmind/__main__.py"):
        assert typed_command() == "python -m parallelmind"


def test_paths(program: Path) -> None:
    assert typed_path(program) == ".venv/bin/parallelmind"
    assert typed_path(Path("/elsewhere/file")) == "/elsewhere/file"
