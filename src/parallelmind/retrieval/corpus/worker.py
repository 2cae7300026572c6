"""The process that builds one package: `build` starts it, with a task and a folder for what it needs for a while.

A package's files can crash whatever reads them, or fill the memory; in here that ends one package and not the build.
Standard output has one JSON object a line: {"stage"}, at the end {"metas"} or {"error"}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from parallelmind.errors import ParallelMindError
from parallelmind.retrieval.corpus.package import PackageTask, build_package

_MEMORY = 12 * 2**30
_FILE = 8 * 2**30
TERMINATED = 143


def main(arguments: list[str]) -> int:
    """Build, and say how far it is."""
    task, scratch = PackageTask(**json.loads(arguments[0])), Path(arguments[1])
    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit()
    try:
        metas = build_package(task, scratch, lambda stage: _say(stage=stage))
    except ParallelMindError as error:
        _say(error=str(error))
        return 1
    except MemoryError:
        _say(error=f"reading {task.request or task.archive} took more than {_MEMORY // 2**30} GiB; leave it out.")
        return 1
    _say(metas=[dataclasses.asdict(meta) for meta in metas])
    return 0


def _say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, value in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_FSIZE, _FILE), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
