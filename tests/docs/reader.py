"""A reader who types what a document says, from its top to its end, in a folder of his own."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.docs.blocks import ROOT, Block, Command, commands_of
from tests.docs.rules import ADDED, ENVIRONMENT, NEEDS, PREPARED, SUBSTITUTED, not_run
from tests.docs.usage import check_usage, run_script

_LINKED = ("scripts", "trainer", "utils", "model", "parallel", "examples", "benchmarks")
"""Folders of the checkout that commands name by relative paths."""
_TYPED = "The hat costs 91 dollars. How much does the hat cost?\nquit\n"
_SERVER = re.compile(r"http://127\.0\.0\.1:8000")


class Reader:
    """Runs the commands and Python blocks of one document in order; each leaves its files to the next.

    Args:
        desk: holds the files of `tests/docs/desk.py`.
        folder: where it works, on copies of them; made here.
        server: gives the address of a server with the bundled model.
        capture: pytest's, which has what commands print.
    """

    def __init__(self, document: str, desk: Path, folder: Path, server: Callable[[], str], capture: Any):
        self.document = document
        self.folder = folder
        self._desk = desk
        self._server = server
        self._capture = capture
        self._names: dict[str, Any] = {"__name__": "__document__"}
        self._section = 0
        self._shown = ""
        shutil.copytree(desk, folder)
        for name in _LINKED:
            (folder / name).symlink_to(ROOT / name)
        for path, adapter in PREPARED.get(document, {}).items():
            _put_adapter(folder / adapter, folder / path)

    def read(self, block: Block) -> None:
        """Do what a block says; a block that is neither commands nor Python is at most a file."""
        if block.section != self._section:
            self._section = block.section
            self._clear_results()
        with patch.dict(os.environ, ENVIRONMENT):
            if block.file_name is not None:
                path = self.folder / block.file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(substituted(block.text), encoding="utf-8")
                if block.is_shell:  # a script for another machine
                    for command in commands_of(block):
                        assert not command.words or not_run(str(command)), f"{command.where}: {command}"
                        self.run(command)
            elif block.is_shell:
                for command in commands_of(block):
                    self.run(command)
            elif block.language == "python":
                self._execute(block)
            elif block.language == "json" and self._shown:
                # What a document shows below `cat FILE` is what the file holds.
                assert block.text == self._shown, f"{block.document}:{block.line} shows other rows:\n{self._shown}"
                self._shown = ""

    def run(self, command: Command) -> None:
        """Run a command, or check its usage where a rule says so; fails with what it printed."""
        for name, value in command.environment:
            os.environ[name] = os.path.expandvars(value)
        if not command.words:
            return
        if (rule := not_run(str(command))) is not None:
            if rule.check:
                check_usage(command.words)
            return
        words = shlex.split(substituted(str(command)))
        self._make_room(words)
        self._capture.readouterr()
        typed = self._left(command) if command.piped_from else _TYPED
        with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), encoding="utf-8")):
            code = self._dispatch(words)
        printed, said = self._capture.readouterr()
        self._shown = printed if words[0] == "cat" else ""
        if command.output is not None:
            (self.folder / command.output).write_text(printed, encoding="utf-8")
        for need in NEEDS:
            if re.search(need.pattern, str(command)) and not need.there():
                assert code == 1, f"{command.where}: {command} works without what it needs?\n{said}"
                assert need.said in said, f"{command.where}: {command} does not say {need.said}:\n{said}"
                return
        assert code == 0, f"{command.where}: {command} ended with {code}\n{printed[-2000:]}\n{said[-4000:]}"

    def _clear_results(self) -> None:
        # A section is read by itself: its answers may go to a file that an earlier one has used for another job.
        for job in self.folder.glob("*.job"):
            shutil.rmtree(job)
            result = job.with_suffix("")
            result.unlink(missing_ok=True)
            if (self._desk / result.name).is_file():
                shutil.copy(self._desk / result.name, result)

    def _make_room(self, words: list[str]) -> None:
        # A file of the desk that this command is to make.
        for flag, value in itertools.pairwise(words):
            if flag in ("--output_file", "--out_path") and not (self.folder / f"{value}.job").exists():
                (self.folder / value).unlink(missing_ok=True)

    def _dispatch(self, words: list[str]) -> int:
        from parallelmind.cli.main import main

        match words:
            case ["parallelmind", name, *given] | ["python", "-m", "parallelmind", name, *given]:
                try:
                    with _ended_when_ready():
                        return main([name, *given, *_added(name, given)])
                except SystemExit as end:  # --help, or wrong usage
                    return int(end.code or 0)
            case ["python", script, *given] if (ROOT / script).is_file() and not Path(script).is_absolute():
                return run_script(script, [*given, *_added_to_script(script, given)])
            case ["python", *_] | ["bash", *_] | ["cat", *_] | ["head", *_] | ["ls", *_] | ["gzip", *_] | ["zcat", *_]:
                return self._process([sys.executable, *words[1:]] if words[0] == "python" else words)
            case ["curl", *_]:
                url = [_SERVER.sub(self._server(), word) for word in words[1:]]
                return self._process(["curl", "--fail-with-body", "--silent", "--show-error", *url])
        raise AssertionError(f"{self.document}: neither run nor listed in tests/docs/rules.py: {shlex.join(words)}")

    def _process(self, words: list[str]) -> int:
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=300)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode

    def _left(self, command: Command) -> str:
        assert command.piped_from[0] in ("echo", "printf", "cat", "zcat"), f"{command.where}: {command.piped_from}"
        words = list(command.piped_from)
        return subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=True).stdout

    def _execute(self, block: Block) -> None:
        text = substituted(block.text)
        if _SERVER.search(text):
            text = _SERVER.sub(self._server(), text)
        code = compile("\n" * (block.line - 1) + text, str(ROOT / block.document), "exec")
        with patch.object(sys, "path", [str(ROOT), *sys.path]):
            exec(code, self._names)


def substituted(text: str) -> str:
    """A text with the substitutions of `rules.py`."""
    for pattern, replacement in SUBSTITUTED:
        text = re.sub(pattern, replacement, text)
    return text


def _added(name: str, given: list[str]) -> list[str]:
    added = list(ADDED.get(name, ()))
    if name in ("batch", "contexts", "answer", "pipeline") and "--workers" not in given:
        added += ["--workers", "0"]  # in this process, which has imported everything
    return added


def _added_to_script(script: str, given: list[str]) -> list[str]:
    if script.startswith("trainer/"):
        return _added("train", given)
    if script == "scripts/inference_hf_lora.py":
        return _added("generate", given)
    if script == "scripts/parallel_inference_hf_lora.py":
        return _added("batch", given)
    if script.endswith("multi_worker_inference.py") and "test_" not in script:
        return _added("answer", given)
    if script.endswith("batch_context_generator.py"):
        return _added("contexts", given)
    return []


class _EndWhenReady(logging.Handler):
    """Sends the signal that ends `parallelmind serve` once it says that the model answers."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("ready:"):
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _ended_when_ready() -> Iterator[None]:
    handler, logger = _EndWhenReady(), logging.getLogger("parallelmind.server.run")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _put_adapter(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
        shutil.copy(source.with_suffix(".parallelmind.json"), target.with_suffix(".parallelmind.json"))
