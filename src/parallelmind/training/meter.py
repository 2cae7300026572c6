"""Tokens per second between two log lines, and the lines themselves on disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from parallelmind.data.collator import BatchInfo
from parallelmind.errors import TrainingError


class Meter:
    """Counts the tokens of this process since it was last read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        self._since = self._clock()
        self._useful = self._padded = self._supervised = 0

    def add(self, info: BatchInfo) -> None:
        self._useful += info.useful_tokens
        self._padded += info.padded_tokens
        self._supervised += info.supervised_tokens

    def read(self, processes: int) -> dict[str, float]:
        """Rates over all processes, taken to be alike; begins anew."""
        seconds = max(self._clock() - self._since, 1e-9)
        rates = {
            "tokens_per_second": self._useful * processes / seconds,
            "padded_tokens_per_second": self._padded * processes / seconds,
            "supervised_tokens_per_second": self._supervised * processes / seconds,
        }
        self.restart()
        return {name: round(rate, 1) for name, rate in rates.items()}


def peak_memory() -> int:
    """The most bytes that this process has held at once: on its GPU, or of the machine's memory where it has none."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


class MetricsLog:
    """One JSON line for every log entry of a run; a resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path):
        self._path = path
        self.entries: list[dict[str, Any]] = []

    def open(self, step: int) -> None:
        """Keep the entries up to a step."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            if entry.get("step", 0) <= step and step > 0:
                self.entries.append(entry)
        self._write("w", self.entries)

    def last(self, name: str, default: Any) -> Any:
        """The last value of a name; the default where no entry has it."""
        return next((entry[name] for entry in reversed(self.entries) if name in entry), default)

    def append(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self._write("a", [entry])

    def _write(self, mode: str, entries: list[dict[str, Any]]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError as error:
            raise TrainingError(
                f"{self._path}: could not be written ({error.strerror}); make room, then start the same command again."
            ) from error
