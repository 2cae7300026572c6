"""Runs documented command lines as they are written, in a folder that has the checkout's entry points."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parallelmind.cli import main as commands
from parallelmind.settings.setting import described
from tests.programs import run_program
from tests.settings.classes import CLASSES, settings_class

ROOT = Path(__file__).parents[2]
_ENTRY_POINTS = ("parallel_generate.py", "scripts", "trainer", "utils")


def link_checkout(folder: Path) -> Path:
    """Make `folder` look like a checkout, so that runs can write beside the entry points."""
    folder.mkdir(exist_ok=True)
    for name in _ENTRY_POINTS:
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_line(
    line: str, *more: object, cwd: Path, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """The words of `line` and then `more` as a process, with the `python` and `torchrun` of this environment.

    torchrun takes a free port, as with --standalone: its default port may be taken.
    """
    removed = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    found_first = [variables.pop("PATH", ""), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment |= {"PATH": os.pathsep.join(filter(None, found_first)), "OMP_NUM_THREADS": "1", "PET_STANDALONE": "1"}
    command = [*shlex.split(line), *map(str, more)]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment | variables,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def run_script(line: str, *more: object, cwd: Path, stdin: str = "") -> None:
    """The words of `python SCRIPT …` and then `more`, in this process, which has imported what takes long already."""
    python, script, *flags = shlex.split(line)
    assert python == "python"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        patch.chdir(cwd)
        assert run_program(script, *flags, *more, stdin=stdin) == 0


def parsed(*words: str) -> dict[str, Any]:
    """What a command makes of its flags: the defaults, of those that are not given."""
    classes = [settings_class(path) for path in CLASSES[words[0]]]
    defaults = {one.name: one.default for cls in reversed(classes) for one in described(cls)}
    return defaults | vars(commands.parse(commands._parser(words), words))


def refusal(command: str, required: dict[str, str], lacking: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says when one of its required flags is left out."""
    with pytest.raises(SystemExit) as ended:
        commands.main([command, *(word for flag in required if flag != lacking for word in (flag, required[flag]))])
    assert ended.value.code == 2
    return capsys.readouterr().err
