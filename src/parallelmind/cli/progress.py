"""Progress of a run: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_LOGGER = logging.getLogger(__name__)
_REFRESH_SECONDS = 0.1
_WORKERS_NAMED = 8


class BarProgress:
    """A bar with rate and time left."""

    def __init__(self, console: Console) -> None:
        self._bar = RichProgress(
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._shown = 0.0

    def start(self, *, total: int, done: int) -> None:
        self._started = time.monotonic()
        self._done_before = done
        self._last = (done, "")
        self._task = self._bar.add_task("records", total=total, completed=done, rates="")
        self._bar.start()

    def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: Mapping[int, int]) -> None:
        elapsed = time.monotonic() - self._started
        rates = _rates(done - self._done_before, failed, generated_tokens, elapsed)
        self._last = (done, "; ".join([rates, *_shares(by_worker)]))
        if time.monotonic() - self._shown >= _REFRESH_SECONDS:
            self._show()

    def stop(self) -> None:
        self._show()
        self._bar.stop()

    def _show(self) -> None:
        self._shown = time.monotonic()
        done, rates = self._last
        self._bar.update(self._task, completed=done, rates=rates)


class LogProgress:
    """A line at most every `interval` seconds."""

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock

    def start(self, *, total: int, done: int) -> None:
        self._total, self._done_before = total, done
        self._started = self._shown = self._clock()

    def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: Mapping[int, int]) -> None:
        now = self._clock()
        if now - self._shown < self._interval:
            return
        self._shown = now
        elapsed, new = now - self._started, done - self._done_before
        left = duration(elapsed / new * (self._total - done)) if new else "unknown"
        rates = _rates(new, failed, generated_tokens, elapsed)
        line = [f"{done} of {self._total} records, {rates}, time left {left}", *_shares(by_worker)]
        _LOGGER.info("%s", "; ".join(line))

    def stop(self) -> None:
        """Nothing to clear away."""


def make_progress(interval: float) -> BarProgress | LogProgress:
    """A bar if stderr is a terminal, else lines."""
    return BarProgress(Console(stderr=True)) if sys.stderr.isatty() else LogProgress(interval)


def _rates(records: int, failed: int, tokens: int, seconds: float) -> str:
    seconds = max(seconds, 1e-6)
    rates = f"{records / seconds:.2f} records/s, {tokens / seconds:.0f} tokens/s"
    return f"{rates}, {failed} failed" if failed else rates


def _shares(by_worker: Mapping[int, int]) -> list[str]:
    """The counts of each worker, if there are several; of many workers, the least and the most."""
    if len(by_worker) < 2:
        return []
    if len(by_worker) <= _WORKERS_NAMED:
        return [", ".join(f"worker {rank}: {count}" for rank, count in sorted(by_worker.items()))]
    least, most = (choose(by_worker, key=lambda rank: by_worker[rank]) for choose in (min, max))
    return [f"{len(by_worker)} workers, from {by_worker[least]} (worker {least}) to {by_worker[most]} (worker {most})"]


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
