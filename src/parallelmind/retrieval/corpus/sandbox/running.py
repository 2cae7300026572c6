"""Run a command that is not trusted, and end it with all it started when it takes too much."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import selectors
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_MIB = 2**20
_CHUNK = 64 * 1024
_SHOWN_BYTES = 2000
_LOOK_SECONDS = 0.2
_FOLDER_SECONDS = 1.0
_LAST_WORDS_SECONDS = 2.0
# In /proc/PID; not every kernel has the first, nor may everyone read it.
_MEMORY_FILES = (("smaps_rollup", rb"^(?:Swap)?Pss:\s+(\d+)"), ("status", rb"^Vm(?:RSS|Swap):\s+(\d+)"))
_NPROC_PER_NAMESPACE = (5, 14)  # the version of Linux that counts processes per user namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a command may use."""

    seconds: float = 300.0
    memory_bytes: int = 4096 * _MIB
    """Of each process, and of all together."""
    processes: int = 128
    threads: int = 1024
    """Of all processes together; held in a sandbox only, as elsewhere they are counted with all of the user's."""
    scratch_bytes: int = 512 * _MIB
    """What may be written, but for writable folders of the host."""
    folder_bytes: int = 16384 * _MIB
    """In the writable folders of the host."""
    file_bytes: int = 512 * _MIB
    open_files: int = 256
    output_bytes: int = 512 * _MIB
    log_bytes: int = 64 * _MIB

    def of_process(self) -> dict[str, int]:
        """Limits of one process, by the names of the resource module."""
        return {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_CPU": int(self.seconds) + 1,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 1,  # with 0 a crash would still start the program that core_pattern names
        }

    def in_namespace(self) -> dict[str, int]:
        """Limits that count by user, and so can be set only where the command has a user of its own."""
        version = re.match(r"(\d+)\.(\d+)", platform.release())
        counted = version is not None and tuple(map(int, version.groups())) >= _NPROC_PER_NAMESPACE
        return {"RLIMIT_NPROC": self.threads} if counted else {}


def printable(text: str) -> str:
    """In one line, without characters that command a terminal, or that no file can hold."""

    def shown(char: str) -> str:
        if unicodedata.category(char) not in ("Cc", "Cs"):
            return char
        return " " if char in "\t\n\v\f\r" else "\N{REPLACEMENT CHARACTER}"

    return "".join(map(shown, text))


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended."""

    returncode: int | None
    """None if it was ended because it took too much."""
    stderr: str
    """The end of what it wrote there."""
    excess: str = ""
    """What it took too much of, if it did."""
    survived: bool = False
    """Whether something that it started outlived it."""

    @property
    def failure(self) -> str:
        """What went wrong in a few words, or ""."""
        if self.excess:
            return f"{self.excess} and was stopped"
        if self.returncode in (0, None):
            return ""
        last = printable(self.stderr.strip().rpartition("\n")[2])
        said = f" ({last})" if last else ""
        if self.returncode > 128 or self.returncode < 0:
            number = -self.returncode if self.returncode < 0 else self.returncode - 128
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(number).name}{said}"
        return f"ended with code {self.returncode}{said}"


def run_limited(
    command: Sequence[str],
    environment: Mapping[str, str],
    limits: Limits,
    output: Path,
    *,
    folder: str = "/",
    watched: Sequence[Path] = (),
) -> CommandResult:
    """Run `command` in `folder` with this environment and nothing else of ours; its standard output goes to a file.

    Its standard input stays open as long as this process lives. `watched` folders count against `limits.folder_bytes`.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdin, process.stdout, process.stderr, selectors.DefaultSelector() as selector:
            said = bytearray()
            watch = _Watch(process, limits, watched)
            for stream, sink in ((process.stdout, file), (process.stderr, None)):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, sink)
            try:
                while process.poll() is None and not watch.excess():
                    _read(selector, watch, said, _LOOK_SECONDS)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            # What it wrote before it ended; and as the last reader of a pipe leaves with the last writer, who is left.
            end = time.monotonic() + _LAST_WORDS_SECONDS
            while selector.get_map() and not watch.too_much and time.monotonic() < end:
                _read(selector, watch, said, _LOOK_SECONDS)
            survived = bool(selector.get_map()) and not watch.too_much
    returncode = None if watch.too_much else process.returncode
    return CommandResult(returncode, bytes(said).decode("utf-8", "replace"), watch.too_much, survived)


class _Watch:
    """Whether a process and all it started take more than they may."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits, folders: Sequence[Path]) -> None:
        self._process, self._limits, self._folders = process, limits, folders
        self._end = time.monotonic() + limits.seconds
        self._next_look = self._next_folder_look = time.monotonic()
        self.output = self.log = 0
        self.too_much = ""

    def excess(self) -> str:
        self.too_much = self.too_much or self._find()
        return self.too_much

    def _find(self) -> str:
        limits, now = self._limits, time.monotonic()
        if now > self._end:
            return "took too long"
        if self.output > limits.output_bytes:
            return f"wrote more than {limits.output_bytes // _MIB:,} MiB of results"
        if self.log > limits.log_bytes:
            return f"wrote more than {limits.log_bytes // _MIB:,} MiB of messages"
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            found = _processes(self._process.pid)
            if len(found) > limits.processes:
                return f"started more than {limits.processes} processes"
            # Memory that processes share is counted for each of them at first: a sum that is small enough is quick.
            if _memory(found, "rss") > limits.memory_bytes and _memory(found, "pss") > limits.memory_bytes:
                return f"took more than {limits.memory_bytes // _MIB:,} MiB of memory"
        if self._folders and now >= self._next_folder_look:
            self._next_folder_look = now + _FOLDER_SECONDS
            if sum(map(_size, self._folders)) > limits.folder_bytes:
                return f"wrote more than {limits.folder_bytes // _MIB:,} MiB"
        return ""


def _read(selector: selectors.BaseSelector, watch: _Watch, said: bytearray, seconds: float) -> None:
    for key, _ in selector.select(seconds):
        chunk = os.read(key.fd, _CHUNK)
        if not chunk:
            selector.unregister(key.fileobj)
        elif key.data is None:
            watch.log += len(chunk)
            said += chunk
            del said[:-_SHOWN_BYTES]
        else:
            watch.output += len(chunk)
            key.data.write(chunk)


def _processes(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def _memory(processes: Sequence[psutil.Process], kind: str) -> int:
    """Bytes of memory of processes ("rss", or "pss": each one's part of what several share), with what is swapped."""
    if sys.platform == "linux":
        return sum(_memory_on_linux(process.pid, kind) for process in processes)
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def _memory_on_linux(pid: int, kind: str) -> int:
    # Where the first thread has ended before the others, only theirs show what the process has.
    places = [Path(f"/proc/{pid}")]
    with contextlib.suppress(OSError):  # it may have ended by now
        places += Path(f"/proc/{pid}/task").glob("*")
    for name, sizes in _MEMORY_FILES if kind == "pss" else _MEMORY_FILES[1:]:
        for place in places:
            with contextlib.suppress(OSError):
                if found := re.findall(sizes, (place / name).read_bytes(), re.MULTILINE):
                    return 1024 * sum(map(int, found))
    return 0


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total
