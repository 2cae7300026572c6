"""From the name of an API to its row in one version: equal names first, likeness only when asked for."""

from __future__ import annotations

import difflib
from collections import defaultdict

import numpy as np

from parallelmind.retrieval.renames import RenameTable
from parallelmind.retrieval.version_index import VersionIndex

_LIKE_ENOUGH = 0.8
_QUALIFIER_LIKE_ENOUGH = 0.85
_CANDIDATES = 16
_ROWS_COMPARED = 200


def find_exact(index: VersionIndex, name: str) -> int | None:
    """The row whose path or alias is `name`, or that is reached by following the re-exports on the way to it.

    `pkg.Class.method` is found below `pkg.core.Class` if `pkg.Class` is an alias of that; never by a part of a name.
    """
    row = index.find(name)
    if row is not None:
        return row
    components = name.split(".")
    for length in range(len(components) - 1, 0, -1):
        start = index.find(".".join(components[:length]))
        if start is not None:
            return _follow(index, start, components[length:])
    return None


def _follow(index: VersionIndex, row: int, components: list[str]) -> int | None:
    for component in components:
        below = (index.find(f"{name}.{component}") for name in index.row(row).names)
        found = next((child for child in below if child is not None), None)
        if found is None:
            return None
        row = found
    return row


def find_renamed(index: VersionIndex, name: str, table: RenameTable) -> int | None:
    """The row with this name below a module that other versions call otherwise."""
    for other in table.other_names(name):
        row = find_exact(index, other)
        if row is not None:
            return row
    return None


def nearest_ancestor(index: VersionIndex, name: str) -> tuple[int, str] | None:
    """The row of the longest beginning of `name` that exists, and the component that does not exist below it."""
    components = name.split(".")
    for length in range(len(components) - 1, 0, -1):
        row = find_exact(index, ".".join(components[:length]))
        if row is not None:
            return row, components[length]
    return None


class SimilarNames:
    """Finds misspelled names of one version, by the pairs of letters that last components share."""

    def __init__(self, index: VersionIndex) -> None:
        self._names = index.last_components()
        places: dict[str, list[int]] = defaultdict(list)
        sizes = np.zeros(len(self._names), dtype=np.float32)
        for place, name in enumerate(self._names):
            pairs = _pairs(name)
            sizes[place] = len(pairs)
            for pair in pairs:
                places[pair].append(place)
        self._places = {pair: np.array(found, dtype=np.int32) for pair, found in places.items()}
        self._sizes = sizes

    def find(self, index: VersionIndex, name: str) -> int | None:
        """The row most like `name`, if it is like enough.

        Either the last component is the same and what stands before it nearly so, or what stands before it leads to the
        same object and the last component is nearly the same.
        """
        qualifier, _, last = name.rpartition(".")
        row = _same_last_component(index, qualifier, last)
        if row is not None:
            return row
        for other in self.like(last):
            row = find_exact(index, f"{qualifier}.{other}" if qualifier else other)
            if row is not None:
                return row
        return None

    def like(self, last: str) -> list[str]:
        """The last components that are like `last`, the most similar first."""
        pairs = _pairs(last)
        found = [self._places[pair] for pair in pairs if pair in self._places]
        if not found:
            return []
        shared = np.bincount(np.concatenate(found), minlength=len(self._names))
        likeness = 2 * shared / (self._sizes + len(pairs))
        nearest = np.argsort(-likeness, kind="stable")[:_CANDIDATES]
        ratios = [(_ratio(last, self._names[place]), self._names[place]) for place in nearest]
        return [other for ratio, other in sorted(ratios, key=lambda pair: -pair[0]) if ratio >= _LIKE_ENOUGH]


def _same_last_component(index: VersionIndex, qualifier: str, last: str) -> int | None:
    best: tuple[float, int] | None = None
    for row in index.rows_ending_in(last)[:_ROWS_COMPARED]:
        others = [other for other, _, end in (name.rpartition(".") for name in index.row(row).names) if end == last]
        likeness = max(_qualifier_likeness(qualifier, other) for other in others)
        if likeness >= _QUALIFIER_LIKE_ENOUGH and (best is None or likeness > best[0]):
            best = likeness, row
    return best and best[1]


def _qualifier_likeness(asked: str, found: str) -> float:
    """1 if one leads to the other by leaving components out: `DataFrame` and `pandas.DataFrame`."""
    shorter, longer = sorted((asked.split("."), found.split(".")), key=len)
    rest = iter(longer)
    if not asked or all(component in rest for component in shorter):
        return 1.0
    return _ratio(asked, found)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.casefold(), other.casefold()).ratio()


def _pairs(name: str) -> set[str]:
    padded = f"^{name.casefold()}$"
    return {padded[place : place + 2] for place in range(len(padded) - 1)}
