"""Disturb a job at random moments until it is complete, and compare with what it should be."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

KILLS = ("worker", "worker", "launcher")
"""Two workers to one launcher, so that a few kills hit both whatever the machine's speed."""
EVERYTHING = ("worker", "launcher", "pause worker", "pause worker", "pause launcher", "edit", "edit")


def make_input(path: Path, records: int, chance: random.Random) -> Path:
    """Records of different sizes, equal ones, ids that come again, Chinese text, blank lines."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(records):
            file.write(_line(n, chance) + "\n" * (n % 50 == 0))
    return path


def expected_rows(data: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines() if line]
    return [{"n": row["n"], "twice": 2 * row["n"], "text": row["text"]} for row in rows]


@dataclass
class Chaos:
    """Starts `command` again and again; between the starts, and while it runs, it disturbs."""

    command: Sequence[str]
    data: Path
    out: Path
    chance: random.Random
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the run."""
    workers: Sequence[int] = (1, 2, 3)
    """How many a run may have; none: the command says it."""
    kinds: Sequence[str] = KILLS
    also: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    """Further actions, by their name in `kinds`."""
    longest_pause: float = 1.0
    """Seconds between two actions at most."""
    done: Counter[str] = field(default_factory=Counter)
    _next: list[str] = field(default_factory=list)

    def run_until_complete(self, actions: int) -> None:
        """Disturb so often, or as often as the job allows; then let it end."""
        while True:
            process = self._start()
            while sum(self.done.values()) < actions and process.poll() is None:
                time.sleep(self.chance.uniform(0, self.longest_pause))
                self._act(process)
            if process.poll() is None:
                process.wait(timeout=300)
            if process.returncode == 0:
                return
            if self.chance.random() < 0.5:
                self._tear()

    def _start(self) -> subprocess.Popen[bytes]:
        options = dict(self.options)
        if self.workers:
            options["workers"] = self.chance.choice(self.workers)
        command = [*self.command, str(self.data), str(self.out), json.dumps(options)]
        path = os.pathsep.join([os.getcwd(), *sys.path])
        log = self.out.with_suffix(".log").open("ab")
        with log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path})

    def _act(self, launcher: subprocess.Popen[bytes]) -> None:
        if not self._next:
            self._next = self.chance.sample(self.kinds, len(self.kinds))
        action = self._next[-1]
        if action in ("worker", "pause worker", "rank"):
            found = _children_of(launcher, "spawn_main" if action != "rank" else "tests.chaos.launcher")
            if not found:
                return
            victim = self.chance.choice(found)
            with contextlib.suppress(psutil.NoSuchProcess):
                _pause(victim, self.chance) if action == "pause worker" else victim.kill()
        elif action == "launcher":
            launcher.kill()
            launcher.wait()
        elif action == "pause launcher":
            with contextlib.suppress(psutil.NoSuchProcess):
                _pause(psutil.Process(launcher.pid), self.chance)
        elif action == "edit":
            self._edit()
        else:
            self.also[action]()
        self.done[self._next.pop()] += 1

    def _edit(self) -> None:
        """Change, remove, repeat, move and add some lines: into the file, or by another one in its place."""
        lines = self.data.read_text("utf-8").splitlines(keepends=True)
        for _ in range(self.chance.randrange(1, 20)):
            place = self.chance.randrange(len(lines))
            how = self.chance.randrange(5)
            if how == 0:
                lines[place] = _line(self.chance.randrange(10**6), self.chance)
            elif how == 1:
                del lines[place]
            elif how == 2:
                lines.insert(self.chance.randrange(len(lines)), lines[place])
            elif how == 3:
                lines.insert(self.chance.randrange(len(lines)), lines.pop(place))
            else:
                lines.append(_line(self.chance.randrange(10**6), self.chance))
        target = self.data if self.chance.random() < 0.5 else self.data.with_suffix(".new")
        target.write_text("".join(lines), encoding="utf-8")
        if target != self.data:
            target.replace(self.data)

    def _tear(self) -> None:
        """What a power cut may leave: a journal whose last bytes are missing. Its writer is gone."""
        journal = self.out.with_name(self.out.name + ".job") / "ledger.sqlite-wal"
        if not _orphans() and journal.exists() and journal.stat().st_size > 200:
            os.truncate(journal, journal.stat().st_size - self.chance.randrange(1, 150))
            self.done["torn"] += 1


def _line(n: int, chance: random.Random) -> str:
    return json.dumps({"n": n, "id": n % 7, "text": "字" * chance.randrange(200)}, ensure_ascii=False) + "\n"


def _pause(process: psutil.Process, chance: random.Random) -> None:
    process.suspend()
    time.sleep(chance.choice([0.05, 0.5, 3.0]))
    process.resume()


def _children_of(launcher: subprocess.Popen[bytes], command: str) -> list[psutil.Process]:
    """Its processes with this in their command, as soon as it has one; none if it ends before that."""
    while launcher.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(launcher.pid).children(recursive=True)
            if found := [child for child in children if _runs(child, command)]:
                return found
        time.sleep(0.01)
    return []


def _runs(process: psutil.Process, command: str) -> bool:
    try:
        return command in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _orphans() -> bool:
    """Processes whose launcher was killed, and that have not noticed yet."""
    names = ("spawn_main", "tests.chaos.launcher")
    return any(process.ppid() == 1 and any(_runs(process, name) for name in names) for process in psutil.process_iter())


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", name, *map(str, arguments)]
