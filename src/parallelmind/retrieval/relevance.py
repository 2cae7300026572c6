"""What each sign that a row answers a question is worth.

The numbers come from `python -m benchmarks.fit_ranking` (conditional logistic regression on the dev part of
examples/retrieval/paraphrased.jsonl), but for those of private and special names and deprecation, of which no question
speaks; its test part says how good they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parallelmind.retrieval.prominence import FEATURES, Floats


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the scores of a question, and of the features of a row."""

    words: float
    """Of its words, as a share of the highest score."""
    meaning: float
    """Of the cosine."""
    features: Mapping[str, float]

    def prior(self, features: Floats) -> Floats:
        """[rows] of [rows, features]."""
        return np.asarray(features @ np.array([self.features[name] for name in FEATURES], np.float32), np.float32)


SETTLED: Mapping[str, float] = {"private": -2.0, "special": -2.5, "deprecated": -1.5}
"""What is not learned."""
_NONE = {name: SETTLED.get(name, 0.0) for name in FEATURES}
WEIGHTS: Mapping[str, Weights] = {
    "bm25": Weights(words=1.0, meaning=0.0, features=_NONE),
    "hybrid": Weights(words=1.0, meaning=1.0, features=_NONE),
    "dense": Weights(words=0.0, meaning=1.0, features=_NONE),
}
"""Of each `--ranking`."""
