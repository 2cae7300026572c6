"""What holds for all commands."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import TextIOWrapper
from pathlib import Path

import pytest

import parallelmind
from parallelmind.cli.args import parse
from parallelmind.cli.commands import COMMANDS, GROUPS
from parallelmind.cli.main import _parser, main
from parallelmind.demos.retrieval import ASSETS


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


def without_folders(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A disk that makes no folder any more."""

    def fail(path: str, *_: object) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "mkdir", fail)


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    without_folders(monkeypatch, errno.ENOSPC)
    assert main(["check-workers"]) == 1
    said = f"error: {tempfile.gettempdir()}/\\w+: No space left on device; make room and start the same command again\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_a_full_disk_below_the_output_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "wb", buffering=0) as full, redirect_stdout(TextIOWrapper(full, write_through=True)):
        assert main(["check-workers"]) == 1
    assert capsys.readouterr().err == (
        "error: writing: No space left on device; make room and start the same command again\n"
    )


def test_another_error_of_the_system_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    without_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        main(["check-workers"])


def test_the_overview_has_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for title, group in GROUPS.items():
        section = shown.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()[::2]] == list(group)
        for name, command in group.items():
            assert f"$ parallelmind {name} {command.example}".rstrip() in section


def test_the_overview_and_the_version_import_nothing_heavy() -> None:
    """Within 0.3 s on an idle machine."""
    program = (
        "import sys\nfrom parallelmind.cli.main import main\n"
        "try:\n    main([sys.argv[1]])\nexcept SystemExit: pass\n"
        "print(*({'torch', 'transformers', 'numpy', 'rich', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", program, flag], capture_output=True, text=True, timeout=60)
        assert done.stderr.strip() == "", done.stderr
    assert done.stdout == f"parallelmind {parallelmind.__version__}\n"


def test_no_command_imports_torch_before_it_runs_a_model() -> None:
    """Answers over HTTP or of a class of the user, contexts and corpora never wait for it."""
    program = (
        "import importlib, sys\nfrom parallelmind.cli.commands import COMMANDS\n"
        "for name in COMMANDS: importlib.import_module('parallelmind.cli.' + name.replace('-', '_'))\n"
        "print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_the_parser_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    *_, title, example = capsys.readouterr().out.rstrip().splitlines()
    assert title == "Example:"
    words = shlex.split(example)
    assert words[:2] == ["parallelmind", name]
    parse(_parser(words[1:]), words[1:])


@pytest.mark.parametrize("name", ["build", "list", "show"])
def test_help_of_the_corpus_commands_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["corpus", name, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: parallelmind corpus {name} ")
    *_, title, example = shown.rstrip().splitlines()
    words = shlex.split(example)
    assert (title, words[:3]) == ("Example:", ["parallelmind", "corpus", name])
    parse(_parser(words[1:]), words[1:])


@pytest.mark.parametrize("start", [["-m", "parallelmind"], ["-P", "-c", "from parallelmind.__main__ import main"]])
def test_modules_in_the_current_folder_are_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: list[str]
) -> None:
    for name in ("grp", "json", "argparse", "logging", "socket", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder')\n")
    (tmp_path / "corpora").mkdir()
    command = [sys.executable, *start, "corpus", "list", "--corpus_path", "corpora"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of the current folder" not in done.stderr


def test_workers_do_not_search_the_current_folder(tmp_path: Path) -> None:
    for name in ("grp", "json", "multiprocessing", "socket", "pickle", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)\n")
    code = (
        "import sys, parallelmind.cli.main, multiprocessing as m\n"
        "worker = m.get_context('spawn').Process(target=print, args=('worked',))\n"
        "worker.start(); worker.join(); sys.exit(worker.exitcode)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "worked\n"), done.stderr
