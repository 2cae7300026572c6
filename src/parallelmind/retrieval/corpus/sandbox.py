"""Run a command that is not trusted: limited in time, memory and file sizes, without network where that can be had."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MIB = 2**20
_SHOWN_BYTES = 2000
# A user namespace of its own, with no network device but an unused loopback, and process ids of its own, so that
# everything the command started ends with it.
_UNSHARE = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a command may use."""

    seconds: float = 300.0
    memory_bytes: int = 4096 * _MIB
    file_bytes: int = 512 * _MIB
    open_files: int = 256

    def rlimits(self) -> dict[str, int]:
        """By the names of the resource module; the command sets them itself before anything else."""
        return {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_CPU": int(self.seconds) + 1,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended."""

    returncode: int | None
    """None if it was killed because its time was over."""
    stderr: str
    """The end of what it wrote there."""

    @property
    def failure(self) -> str:
        """What went wrong in a few words, or ""."""
        if self.returncode == 0:
            return ""
        last = self.stderr.strip().rpartition("\n")[2]
        if self.returncode is None:
            return "took too long and was stopped"
        if self.returncode > 128 or self.returncode < 0:
            number = -self.returncode if self.returncode < 0 else self.returncode - 128
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(number).name}" + (f" ({last})" if last else "")
        return f"ended with code {self.returncode}" + (f" ({last})" if last else "")


@functools.cache
def isolation() -> tuple[str, ...]:
    """The command that takes network and process ids away from another one; () if the system does not permit it."""
    if shutil.which(_UNSHARE[0]) is None:
        return ()
    try:
        tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _UNSHARE if tried.returncode == 0 else ()


def run_limited(command: Sequence[str], folder: Path, limits: Limits) -> CommandResult:
    """Run `command` in `folder`, its home, with none of our environment; it should set `limits.rlimits()` itself.

    Its standard input stays open as long as this process lives, and its standard output is discarded.
    """
    environment = {
        **{name: str(folder) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME")},
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
        "MPLBACKEND": "Agg",
    }
    log = folder / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*isolation(), *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            returncode: int | None = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            returncode = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _SHOWN_BYTES))
        return CommandResult(returncode, file.read().decode("utf-8", "replace"))
