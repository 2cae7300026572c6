"""Where encoded samples are: in memory, or in files (`cache.py`); what planning needs of them is at hand in both."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from parallelmind.data.encoder import EncodedSample
from parallelmind.data.planned import PlannedBranch, PlannedSample


class SampleStore(Protocol):
    """Encoded samples in the order of the data."""

    def __len__(self) -> int: ...

    def planned(self, sample: int) -> PlannedSample: ...

    def main(self, sample: int) -> Sequence[int]:
        """The tokens of the main of a sample."""

    def branch(self, branch: PlannedBranch) -> tuple[Sequence[int], bytes]:
        """The tokens of a branch, and which of them are supervised, one byte each."""


class MemoryStore:
    """Samples that are held in memory."""

    def __init__(self, samples: Sequence[EncodedSample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def planned(self, sample: int) -> PlannedSample:
        found = self.samples[sample]
        branches = [
            PlannedBranch(sample, place, branch.number, len(branch), sum(branch.loss_mask))
            for place, branch in enumerate(found.branches)
        ]
        return PlannedSample(found.where, found.loose, len(found.main), branches)

    def main(self, sample: int) -> Sequence[int]:
        return self.samples[sample].main

    def branch(self, branch: PlannedBranch) -> tuple[Sequence[int], bytes]:
        found = self.samples[branch.sample].branches[branch.place]
        return found.ids, found.loss_mask


class JoinedStore:
    """The samples of several stores, one after the other."""

    def __init__(self, stores: Sequence[SampleStore]):
        self.stores = stores
        self._ends = list(accumulate(map(len, stores)))

    @property
    def sizes(self) -> list[int]:
        """The samples of each store."""
        return list(map(len, self.stores))

    def __len__(self) -> int:
        return self._ends[-1]

    def planned(self, sample: int) -> PlannedSample:
        store, start = self._at(sample)
        found = store.planned(sample - start)
        if start:
            found = found._replace(branches=[branch._replace(sample=sample) for branch in found.branches])
        return found

    def main(self, sample: int) -> Sequence[int]:
        store, start = self._at(sample)
        return store.main(sample - start)

    def branch(self, branch: PlannedBranch) -> tuple[Sequence[int], bytes]:
        store, start = self._at(branch.sample)
        return store.branch(branch._replace(sample=branch.sample - start))

    def _at(self, sample: int) -> tuple[SampleStore, int]:
        """The store of a sample, and the number of its first one."""
        index = bisect_right(self._ends, sample)
        return self.stores[index], self._ends[index - 1] if index else 0
