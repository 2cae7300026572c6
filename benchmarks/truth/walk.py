"""List what a version has: its public modules, their names, and the members of their classes.

Runs like `probe.py` in the environment of one version. Reads `{"roots": [...], "prelude": "..."}` from stdin and writes
a line `[name, type, origin]` for each public name, then one `{"unimportable": {module: error}}`.

A class's members are listed once, under the shortest of its public names. `origin` is `own` (defined in the package),
`re-export` (the package's, under another name), `foreign` (another package's object, reached here), `inherited` (from a
class of the package), `foreign inherited`, `dunder` (own special methods), `instance` (only on instances).
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

from truth.probe import MISSING, instance_attributes, kind_of

_SKIPPED = {"tests", "conftest", "__main__", "migrations"}
_PLAIN = (str, bytes, int, float, complex, bool, tuple, list, dict, set, frozenset, type(None))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = json.load(sys.stdin)
    exec(task.get("prelude", ""), {})
    warnings.simplefilter("ignore")
    walk = Walk(task["roots"])
    for row in walk.rows():
        answers.write(json.dumps(row) + "\n")
    answers.write(json.dumps({"unimportable": walk.unimportable}) + "\n")
    answers.flush()


class Walk:
    def __init__(self, roots: list[str]) -> None:
        self.roots = roots
        self.unimportable: dict[str, str] = {}
        self._classes: dict[int, tuple[str, Any]] = {}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        modules = [module for root in self.roots for module in self._modules(root)]
        for path, module in modules:
            yield path, "module", "own"
            for name in sorted(dir(module)):
                yield from self._of_module(path, module, name)
        for path, owner in sorted(self._classes.values(), key=lambda found: found[0]):
            yield from self._of_class(path, owner)

    def _modules(self, root: str) -> Iterator[tuple[str, types.ModuleType]]:
        module = self._import(root)
        if module is None:
            return
        yield root, module
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if found.name.isidentifier() and not found.name.startswith("_") and found.name not in _SKIPPED:
                yield from self._modules(f"{root}.{found.name}")

    def _import(self, path: str) -> types.ModuleType | None:
        try:
            return importlib.import_module(path)
        except (Exception, SystemExit) as error:
            self.unimportable[path] = f"{type(error).__name__}: {error}"[:120]
            return None

    def _of_module(self, path: str, module: types.ModuleType, name: str) -> Iterator[tuple[str, str, str]]:
        full = f"{path}.{name}"
        try:
            value = getattr(module, name)
        except Exception:
            return
        if name.startswith("_"):
            if name in ("__version__", "__all__"):
                yield full, "attribute", "dunder"
            return
        if isinstance(value, types.ModuleType):
            if not self._is_own(value.__name__):
                yield full, "module", "foreign"
            return
        origin = self._origin(path, value)
        yield full, kind_of(module, full, value), origin
        if inspect.isclass(value) and origin != "foreign":
            known = self._classes.get(id(value))
            if known is None or (full.count("."), full) < (known[0].count("."), known[0]):
                self._classes[id(value)] = full, value

    def _origin(self, path: str, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return "own"
        home = getattr(value, "__module__", None)
        if home == path or not isinstance(home, str):
            return "own"
        if self._is_own(home):
            return "re-export" if inspect.isclass(value) or inspect.isroutine(value) else "own"
        return "foreign" if inspect.isclass(value) or inspect.isroutine(value) else "own"

    def _is_own(self, module: str) -> bool:
        return any(module == root or module.startswith((root + ".", f"_{root}.")) for root in self.roots)

    def _of_class(self, path: str, owner: type) -> Iterator[tuple[str, str, str]]:
        names = set(dir(owner))
        for name in sorted(names):
            full = f"{path}.{name}"
            home = next((base for base in owner.__mro__ if name in vars(base)), owner)
            value = inspect.getattr_static(owner, name, MISSING)
            try:
                value = getattr(owner, name, value)
            except Exception:
                continue
            if name.startswith("_"):
                if home is owner and name.startswith("__") and inspect.isroutine(value):
                    yield full, "method", "dunder"
                continue
            inherited = "inherited" if self._is_own(home.__module__) else "foreign inherited"
            yield full, kind_of(owner, full, value), "own" if home is owner else inherited
        for name in sorted(set(instance_attributes(owner)) - names):
            if not name.startswith("_"):
                yield f"{path}.{name}", "attribute", "instance"


if __name__ == "__main__":
    main()
