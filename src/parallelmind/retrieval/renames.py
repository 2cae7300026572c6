"""The table of renamed modules and removed APIs, `renames.yaml`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from parallelmind.retrieval.versions import sort_key


@dataclass(frozen=True, slots=True)
class _Removal:
    removed_in: str
    use: str


@dataclass(frozen=True)
class RenameTable:
    """What is known about names besides the corpora."""

    import_conventions: Mapping[str, str]
    modules: Mapping[str, Sequence[str]]
    removed: Mapping[str, _Removal]

    def spelled_out(self, name: str) -> str:
        """`np.array` as `numpy.array`."""
        first, dot, rest = name.partition(".")
        return self.import_conventions.get(first, first) + dot + rest

    def other_names(self, name: str) -> Iterator[str]:
        """The name below renamed modules, the longest module first; none of them need exist."""
        components = name.split(".")
        for length in range(len(components) - 1, 0, -1):
            module, rest = ".".join(components[:length]), ".".join(components[length:])
            for other in (*self.modules.get(module, ()), *self._former.get(module, ())):
                yield f"{other}.{rest}"

    def removal(self, name: str, version: str) -> tuple[str, str] | None:
        """(first release without it, what takes its place or ""), if `version` is without it."""
        known = self.removed.get(name)
        if known is None or sort_key(version) < sort_key(known.removed_in):
            return None
        return known.removed_in, known.use

    def former_name(self, name: str, version: str) -> str | None:
        """What an API was called that `version` does not have yet under this name."""
        for former, known in self.removed.items():
            if known.use == name and sort_key(version) < sort_key(known.removed_in):
                return former
        return None

    @functools.cached_property
    def _former(self) -> Mapping[str, Sequence[str]]:
        former: dict[str, list[str]] = {}
        for module, targets in self.modules.items():
            for target in targets:
                former.setdefault(target, []).append(module)
        return former


@functools.cache
def load_renames() -> RenameTable:
    """The bundled table."""
    text = resources.files("parallelmind.retrieval").joinpath("renames.yaml").read_text(encoding="utf-8")
    content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return RenameTable(
        import_conventions=content["import_conventions"],
        modules=content["modules"],
        removed={name: _Removal(**entry) for name, entry in content["removed"].items()},
    )
