"""Sandboxes where paths, libraries and processes are out of the ordinary."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from parallelmind.retrieval.corpus.sandbox.interpreter import find_interpreter
from parallelmind.retrieval.corpus.sandbox.sandbox import Sandbox
from tests.retrieval.corpus.sandboxes import KINDS, sandbox_or_skip
from tests.retrieval.corpus.test_sandbox import MIB, answers, run


@pytest.fixture(params=KINDS)
def apart(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_or_skip(request.param)


def test_a_library_of_yours_does_not_open_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LD_PRELOAD puts it into every program, and so into the interpreter; LD_LIBRARY_PATH may find it at home."""
    with open("/proc/self/maps") as maps:
        used = {line.split(None, 5)[5].strip() for line in maps if ".so" in line and line.count("/")}
    library = next(path for path in sorted(used) if "/libm.so" in path or "/libm-" in path)
    copied = shutil.copy(library, tmp_path / os.path.basename(library))
    monkeypatch.setenv("LD_PRELOAD", str(copied))
    assert str(tmp_path) not in find_interpreter.__wrapped__(sys.executable).folders
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert str(tmp_path) in find_interpreter.__wrapped__(sys.executable).folders
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path) not in find_interpreter.__wrapped__(sys.executable).folders


@pytest.mark.parametrize("place", ["caf\udce9", "a b\n漢:="])
def test_paths_of_any_kind(apart: Sandbox, tmp_path: Path, place: str) -> None:
    try:
        (tmp_path / place).mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    assert answers(apart, tmp_path / place, "print(1)") == [1]


def test_folders_in_shared_memory(apart: Sandbox) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.chmod(folder, 0o755)
        assert answers(apart, Path(folder), "print(1)") == [1]


def test_memory_of_processes_whose_first_thread_has_ended(apart: Sandbox, tmp_path: Path) -> None:
    """Of such a process /proc/PID shows no memory."""
    code = """
        import ctypes, os, threading, time
        def hold():
            held = bytearray(b"x") * (150 * 2**20)
            time.sleep(20)
        for _ in range(3):
            if os.fork() == 0:
                threading.Thread(target=hold).start()
                ctypes.CDLL(None).syscall(ctypes.c_long(EXIT), 0)
        time.sleep(20)
        """.replace("EXIT", "60" if os.uname().machine == "x86_64" else "93")
    result, _ = run(apart, tmp_path, code, memory_bytes=400 * MIB)
    assert result.excess == "took more than 400 MiB of memory"
