"""Kill workers and launchers at random moments until a job is complete, and compare with what it should be."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


def make_input(path: Path, records: int, chance: random.Random) -> Path:
    """Records of different sizes, ids that come again, Chinese text, blank lines."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(records):
            row = {"n": n, "id": n % 7, "text": "字" * chance.randrange(200)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n" + "\n" * (n % 50 == 0))
    return path


def expected_rows(data: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines() if line]
    return [{"n": row["n"], "twice": 2 * row["n"], "text": row["text"]} for row in rows]


@dataclass
class Chaos:
    """Starts `command` again and again; between the starts, and while it runs, it kills."""

    command: Sequence[str]
    """With {workers} where the number of workers belongs."""
    out: Path
    chance: random.Random
    longest_pause: float = 1.0
    """Seconds between two kills at most."""
    kills: dict[str, int] = field(default_factory=lambda: {"worker": 0, "launcher": 0, "torn": 0})
    _victims: list[str] = field(default_factory=list)
    """Of the next kills: two workers to one launcher, so that a few kills hit both whatever the machine's speed."""

    def run_until_complete(self, kills: int) -> None:
        """Kill `kills` times, or as often as the job allows; then let it end."""
        while True:
            process = self._start()
            while sum(self.kills.values()) < kills and process.poll() is None:
                time.sleep(self.chance.uniform(0, self.longest_pause))
                self._kill(process)
            if process.poll() is None:
                process.wait(timeout=300)
            self._bury(process)
            if process.returncode == 0:
                return
            if self.chance.random() < 0.5:
                self._tear()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [part.format(workers=self.chance.choice([1, 2, 3])) for part in self.command]
        path = os.pathsep.join([os.getcwd(), *sys.path])
        log = self.out.with_suffix(".log").open("ab")
        with log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path})

    def _kill(self, launcher: subprocess.Popen[bytes]) -> None:
        if not self._victims:
            self._victims = self.chance.sample(["worker", "worker", "launcher"], 3)
        if self._victims[-1] == "worker":
            if workers := _workers_of(launcher):
                self.chance.choice(workers).kill()
                self.kills[self._victims.pop()] += 1
        else:
            launcher.kill()
            launcher.wait()
            self.kills[self._victims.pop()] += 1

    def _bury(self, launcher: subprocess.Popen[bytes]) -> None:
        assert launcher.returncode is not None

    def _tear(self) -> None:
        """What a power cut may leave: a journal whose last bytes are missing. Its writer is gone."""
        journal = self.out.with_name(self.out.name + ".job") / "ledger.sqlite-wal"
        if not _orphans() and journal.exists() and journal.stat().st_size > 200:
            os.truncate(journal, journal.stat().st_size - self.chance.randrange(1, 150))
            self.kills["torn"] += 1


def _workers_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Its worker processes, as soon as it has one; none if it ends before that."""
    while launcher.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(launcher.pid).children(recursive=True)
            if workers := [child for child in children if _is_worker(child)]:
                return workers
        time.sleep(0.01)
    return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _orphans() -> bool:
    """Workers whose launcher was killed, and that have not noticed yet."""
    return any(_is_worker(process) and process.ppid() == 1 for process in psutil.process_iter())


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", name, *map(str, arguments)]
