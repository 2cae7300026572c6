"""How often pages, examples and tests of a package speak of each of its objects."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable

from parallelmind.retrieval.corpus.narrative.names import PublicNames

_NAME = re.compile(r"(?:[`@~.]|\b)([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(|`)|@([A-Za-z_][\w.]*)")
_OBJECTS_OF_A_NAME = 6
"""A name that more objects have says nothing of any of them."""
_LEAST = 1


class Frequency:
    """In how many texts each object is called, or named as code."""

    def __init__(self, names: PublicNames) -> None:
        self._texts: defaultdict[str, float] = defaultdict(float)
        self._objects = functools.cache(names.ending_in)

    def read(self, texts: Iterable[str]) -> None:
        """A name that several objects have counts for each of them in part."""
        for text in texts:
            shares: dict[str, float] = {}
            for name in {first or second for first, second in _NAME.findall(text)}:
                objects = self._objects(name)
                if len(objects) <= _OBJECTS_OF_A_NAME:
                    for path in objects:
                        shares[path] = max(shares.get(path, 0), 1 / len(objects))
            for path, share in shares.items():
                self._texts[path] += share

    def counts(self) -> dict[str, int]:
        """Of each object by path; those that hardly any text speaks of are left out."""
        return {path: round(share) for path, share in self._texts.items() if share >= _LEAST}
