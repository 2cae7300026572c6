"""Progress of a corpus build: a line for each package at work on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from parallelmind.retrieval.corpus.build import BuildResult


_LOGGER = logging.getLogger(__name__)


class _Lines:
    """A log line for each stage."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clear away."""

    def stage(self, package: str, stage: str) -> None:
        _LOGGER.info("%s: %s", package, stage)

    def done(self, result: BuildResult) -> None:
        if result.kept:
            _LOGGER.info("%s: is there already", result.name)
        elif not result.error:
            _LOGGER.info("%s: done", result.name)


class _Spinners(_Lines):
    """One line a package at work."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.fields[name]}: {task.description}"), TimeElapsedColumn(), console=console
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, package: str, stage: str) -> None:
        with self._lock:
            if package not in self._tasks:
                self._tasks[package] = self._progress.add_task(stage, name=package)
            self._progress.update(self._tasks[package], description=stage)

    def done(self, result: BuildResult) -> None:
        with self._lock:
            if result.name in self._tasks:
                self._progress.remove_task(self._tasks.pop(result.name))
        super().done(result)


def make_progress() -> _Lines:
    """Spinners if stderr is a terminal, else lines."""
    return _Spinners(Console(stderr=True)) if sys.stderr.isatty() else _Lines()
