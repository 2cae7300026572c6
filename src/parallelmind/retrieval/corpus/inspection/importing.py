"""Importing a package and its modules, each with a time limit."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import threading
import types
import warnings
from typing import Any, NoReturn, TextIO

from .objects import SKIPPED_MODULES

SECONDS_PER_MODULE = 60
DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


class TooSlow(BaseException):
    """It takes too long; no ordinary handler in the package should catch it."""


class TimeLimit:
    """The time that a block may take, where the system has alarms."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, self.end)
            signal.alarm(self.seconds)

    def __exit__(self, *error: object) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)

    def end(self, number: int, frame: types.FrameType | None) -> NoReturn:
        raise TooSlow("took more than " + str(self.seconds) + " seconds")


def keep_streams() -> TextIO:
    """The standard output, for us alone; the package's own leads nowhere, and its standard input is empty."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    end_with_parent(os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return results


def end_with_parent(pipe: int) -> None:
    """Exit when the other end of the pipe is closed."""

    def wait() -> None:
        while os.read(pipe, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


class Importer:
    """Imports a package and its public modules, and notes what failed and what warned."""

    def __init__(self, request: dict[str, Any], results: TextIO) -> None:
        self.package = request["package"]
        self.skipped = set(request["skipped"])
        self.results = results
        self.errors: dict[str, str] = {}
        self.warnings: dict[str, str] = {}
        self.pid = os.getpid()

    def run(self) -> None:
        if self.package in sys.modules or self.package in sys.builtin_module_names:  # such as typing, of old
            self.errors[self.package] = "ImportError: Python has a module of its own of this name"
            return
        root = self.load(self.package)
        if root is not None:
            self.load_below(root)

    def load_below(self, module: types.ModuleType) -> None:
        try:
            found = [name for _, name, _ in pkgutil.iter_modules(list(module.__path__))]
        except Exception:
            return
        for name in sorted(found):
            if name.startswith(("_", "test_")) or name in SKIPPED_MODULES or not name.isidentifier():
                continue
            child = self.load(module.__name__ + "." + name)
            if child is not None and hasattr(child, "__path__"):
                self.load_below(child)

    def load(self, name: str) -> types.ModuleType | None:
        if name in self.skipped:
            self.errors[name] = "ended the process"
            return None
        self.results.write(json.dumps({"importing": name}) + "\n")
        self.results.flush()
        try:
            with TimeLimit(SECONDS_PER_MODULE), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                module = importlib.import_module(name)
            self.note(name, module, said)
            return module if isinstance(module, types.ModuleType) else None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.errors[name] = (type(error).__name__ + ": " + str(error))[:300]
            return None
        finally:
            if os.getpid() != self.pid:  # the module forked: one of us is enough
                os._exit(0)

    def note(self, name: str, module: object, said: list[warnings.WarningMessage] | None) -> None:
        """Keep what a module says of itself: it speaks of its own name."""
        for one in said or ():
            if issubclass(one.category, DEPRECATIONS) and name.rpartition(".")[2] in str(one.message):
                self.warnings.setdefault(name, str(one.message)[:1000])
