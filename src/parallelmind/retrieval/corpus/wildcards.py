"""Names that `from x import *` gives where x is compiled, or computes its `__all__`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from parallelmind.retrieval.corpus.objects import is_test_module

# numpy.core passes on what the modules it imports from pass on, and these compute that in a loop (extend_all).
_EXTENDS_ALL = re.compile(r"^\s*(?:__all__ \+=|__all__\.extend\(|extend_all\()", re.MULTILINE)


class Wildcards:
    """Completes `from x import *` with the names of `x.__all__` that griffe could not find, as x is compiled."""

    def __init__(self, root: Any, imports: Mapping[str, list[str]], griffe: Any) -> None:
        self._modules = {module.path: module for module in modules(root)}
        self._imports = {path: imports.get(path, []) for path in self._modules}
        self._griffe = griffe
        self._known: dict[str, set[str]] = {}

    def complete(self) -> None:
        """Add the names, as attributes where they are defined and as aliases where they are imported."""
        for path, module in self._modules.items():
            inherited = {name for source in self._imports[path] for name in self._exports(source)}
            for name in self._exports(path) - module.members.keys() - inherited:
                module.set_member(name, self._griffe.Attribute(name))
        while any(self._pass_on(path, module) for path, module in self._modules.items()):
            continue

    def _pass_on(self, path: str, module: Any) -> bool:
        missing = [
            (name, source) for source in self._imports[path] for name in self._exports(source) - module.members.keys()
        ]
        for name, source in missing:
            alias = self._griffe.Alias(name, f"{source}.{name}", parent=module, wildcard_imported=True)
            module.members[name] = alias
        return bool(missing)

    def _exports(self, path: str, seen: frozenset[str] = frozenset()) -> set[str]:
        """What `from path import *` gives: `path.__all__`, or without one its own wildcard imports."""
        module = self._modules.get(path)
        if module is None or path in seen:
            return set()
        if path not in self._known:
            names = {name for name in module.exports or () if isinstance(name, str) and name.isidentifier()}
            if module.exports is None or _EXTENDS_ALL.search("\n".join(module.lines)):
                for source in self._imports[path]:
                    names |= self._exports(source, seen | {path})
            if seen:
                return names
            self._known[path] = names
        return self._known[path]


def modules(module: Any) -> Iterator[Any]:
    """A module and all below it, but for tests."""
    yield module
    for name, member in list(module.members.items()):
        if not member.is_alias and member.is_module and not is_test_module(name):
            yield from modules(member)
