"""Which processes write a job, noted beside its lock for those who find it held."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from parallelmind.io.urls import shown_urls

_NAME = "writer.json"
_COMMAND_SHOWN = 120


def note_writer(folder: Path) -> None:
    """Note that this process writes the job in the folder.

    Raises:
        OSError: the file cannot be written.
    """
    process = psutil.Process()
    writer = {
        "host": socket.gethostname(),
        "pid": process.pid,
        "created": process.create_time(),
        "command": shown_urls(" ".join(process.cmdline())),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    temporary = folder / f"{_NAME}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(writer) + "\n", encoding="utf-8")
    temporary.replace(folder / _NAME)


def describe_writer(folder: Path) -> str:
    """In brackets, the process that writes and what it started; "" if nobody noted anything."""
    try:
        writer: dict[str, Any] = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        host, pid, since = writer["host"], int(writer["pid"]), writer["since"]
        command = str(writer["command"])[:_COMMAND_SHOWN]
        processes = f"process {pid} on {host}"
        if host == socket.gethostname():
            processes += _others(pid, float(writer["created"]))
        return f" ({processes}, since {since}: {command})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _others(pid: int, created: float) -> str:
    """The process that started it, where that started others like it, and those it started."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.create_time() == created:
            started = [child.pid for child in process.children(recursive=True)]
            stopped = " (it is stopped; kill -CONT lets it go on)" if process.status() == psutil.STATUS_STOPPED else ""
            return stopped + (f" with {', '.join(map(str, started))}" if started else "")
    return ""
