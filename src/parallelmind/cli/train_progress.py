"""Progress of a training run: a bar on a terminal, a line at each log entry elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from parallelmind.cli.progress import duration

_LOGGER = logging.getLogger(__name__)


class LogTrainProgress:
    """A log line for each entry."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock

    def start(self, *, total: int | None, done: int) -> None:
        self._total, self._before, self._done = total, done, done
        self._started = self._clock()

    def step(self, done: int) -> None:
        self._done = done

    def log(self, entry: dict[str, Any]) -> None:
        of = "" if self._total is None else f"/{self._total}"
        _LOGGER.info("step %s%s %s%s", entry["step"], of, _shown(entry), self._left())

    def stop(self) -> None:
        """Nothing to clear away."""

    def _left(self) -> str:
        new = self._done - self._before
        if self._total is None or not new:
            return ""
        seconds = (self._clock() - self._started) / new * (self._total - self._done)
        return f", time left {duration(seconds)}"


class BarTrainProgress:
    """A bar with the latest loss, rates and time left; evaluations stay as log lines."""

    def __init__(self, console: Console):
        self._bar = RichProgress(
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[latest]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )

    def start(self, *, total: int | None, done: int) -> None:
        self._task = self._bar.add_task("steps", total=total, completed=done, latest="")
        self._bar.start()

    def step(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def log(self, entry: dict[str, Any]) -> None:
        if "eval_loss" in entry:
            _LOGGER.info("step %s %s", entry["step"], _shown(entry))
        else:
            self._bar.update(self._task, latest=_shown(entry))

    def stop(self) -> None:
        self._bar.stop()


def make_train_progress() -> BarTrainProgress | LogTrainProgress:
    """A bar if stderr is a terminal, else lines."""
    return BarTrainProgress(Console(stderr=True)) if sys.stderr.isatty() else LogTrainProgress()


def _shown(entry: dict[str, Any]) -> str:
    if "eval_loss" in entry:
        exact = f", exact answers {entry['eval_exact']:.1%}" if "eval_exact" in entry else ""
        return f"held-out loss {entry['eval_loss']:.4f}{exact}"
    if "loss" not in entry:
        return ", ".join(f"{name} {value}" for name, value in entry.items() if name != "step")
    return (
        f"loss {entry['loss']:.4f}, {entry['tokens_per_second']:.0f} tokens/s "
        f"({entry['padded_tokens_per_second']:.0f} padded), lr {entry['learning_rate']:.2g}"
    )
