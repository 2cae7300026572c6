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


SETTLED = {"private": -2.0, "special": -2.5, "deprecated": -1.5}
"""What is not learned."""
WEIGHTS: Mapping[str, Weights] = {
    "bm25": Weights(
        words=6.03,
        meaning=0.0,
        features=SETTLED
        | {
            "components": -0.65,
            "side module": -1.26,
            "undocumented": 1.51,
            "module": -1.77,
            "attribute": -2.21,
            "class": 0.18,
            "exception": -0.26,
            "length of documentation": 0.33,
            "uses": 0.64,
        },
    ),
    "hybrid": Weights(
        words=3.74,
        meaning=8.65,
        features=SETTLED
        | {
            "components": -0.69,
            "side module": -2.07,
            "undocumented": 1.56,
            "module": -1.74,
            "attribute": -2.25,
            "class": 0.33,
            "exception": -0.18,
            "length of documentation": 0.42,
            "uses": 0.69,
        },
    ),
    "dense": Weights(
        words=0.0,
        meaning=11.74,
        features=SETTLED
        | {
            "components": -0.73,
            "side module": -2.03,
            "undocumented": 1.37,
            "module": -2.0,
            "attribute": -2.2,
            "class": 0.28,
            "exception": 0.03,
            "length of documentation": 0.55,
            "uses": 0.65,
        },
    ),
}
"""Of each `--ranking`."""
