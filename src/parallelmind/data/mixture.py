"""In which order the samples of several files come in an epoch, and how often."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mixture:
    """The share of each file in an epoch, which has as many samples as all files together.

    A file whose share is larger than itself is taken whole as often as it fits in, and so is every other; the rest of
    a share is a random part of the file, another one in each epoch. Without weights every sample comes once.
    """

    weights: Sequence[float] = ()

    def order(self, sizes: Sequence[int], *, seed: str, shuffle: bool) -> Sequence[int]:
        """The samples of an epoch, numbered over all files of these sizes."""
        if not self.weights and not shuffle:
            return range(sum(sizes))
        rng = random.Random(seed)
        order = array("q")
        start = 0
        for size, share in zip(sizes, self.shares(sizes), strict=True):
            whole, rest = divmod(share, size) if size else (0, 0)
            for _ in range(whole):
                order.extend(range(start, start + size))
            order.extend(sorted(start + place for place in rng.sample(range(size), rest)))
            start += size
        if shuffle:
            rng.shuffle(order)
        return order

    def shares(self, sizes: Sequence[int]) -> list[int]:
        """How many samples of an epoch are of each file."""
        if not self.weights:
            return list(sizes)
        # A file of which nothing is left has no share, whatever its weight.
        most = max(self.weights)  # the sum of very large ones is no number
        weights = [weight / most if size else 0.0 for weight, size in zip(self.weights, sizes, strict=True)]
        exact = [sum(sizes) * weight / sum(weights) for weight in weights]
        shares = [int(share) for share in exact]
        by_rest = sorted(range(len(sizes)), key=lambda file: shares[file] - exact[file])
        for file in by_rest[: sum(sizes) - sum(shares)]:
            shares[file] += 1
        return shares
