"""Learn what each sign that a row answers a question is worth, from the dev questions: conditional logistic regression.

    python -m benchmarks.fit_ranking --corpus_path corpora

prints the numbers that `parallelmind/retrieval/relevance.py` holds. The test questions are not looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from parallelmind.io.jsonl import read_lines
from parallelmind.io.records import load_object
from parallelmind.retrieval.dense_search import make_embedder
from parallelmind.retrieval.prominence import FEATURES
from parallelmind.retrieval.ranking import Version
from parallelmind.retrieval.relevance import SETTLED, WEIGHTS
from parallelmind.retrieval.store import CorpusStore

QUESTIONS = Path(__file__).parent.parent / "examples" / "retrieval" / "paraphrased.jsonl"
CANDIDATES = 250
PENALTY, STEPS = 0.02, 200
LEARNED = tuple(name for name in FEATURES if name not in SETTLED)
RANKINGS = ("bm25", "hybrid", "dense")

Case = tuple[str, torch.Tensor, torch.Tensor]
"""Package, [candidates, words, cosine and features], and which of them are right."""


def read_cases(store: CorpusStore, *, part: str) -> list[Case]:
    """The best candidates of each question, by words and by meaning, with their signs."""
    embedder = make_embedder("local", None)
    versions: dict[tuple[str, str], Version] = {}
    cases = []
    for line in read_lines(QUESTIONS):
        question = load_object(line.content, f"{QUESTIONS}: line {line.number}")
        if question["part"] != part or question["kind"] != "paraphrase":
            continue
        ((dependency, _),) = question["dependencies"].items()
        expected = set(question["expected"])
        vector = embedder.embed([question["query"]])[0]
        signs, right, features = [], [], []
        for package, version in store.resolve(question["dependencies"]).versions.items():
            index = store.index(package, version)
            if (package, version) not in versions:
                versions[package, version] = Version(index, WEIGHTS["hybrid"], embedder)
            found = versions[package, version]
            one = found.signs(question["query"], vector)
            assert one.cosines is not None
            signs.append(np.stack([one.words, one.cosines], 1))
            features.append(np.asarray(found.features, np.float32))
            rows = [row for name in expected if (row := index.find(name)) is not None]
            right.append(np.isin(np.arange(index.rows), rows))
        scores, known, labels = np.concatenate(signs), np.concatenate(features), np.concatenate(right)
        best = np.union1d(np.argsort(-scores[:, 0])[:CANDIDATES], np.argsort(-scores[:, 1])[:CANDIDATES])
        scores[:, 0] /= scores[:, 0].max(initial=1e-6)
        columns = [FEATURES.index(name) for name in LEARNED]
        case = np.concatenate([scores[best], known[best][:, columns]], 1).astype(np.float32)
        if labels[best].any():
            cases.append((dependency, torch.from_numpy(case), torch.from_numpy(labels[best])))
    return cases


def fit(cases: Sequence[Case], used: Sequence[int]) -> torch.Tensor:
    """The weight of each sign: those not in `used` are 0."""
    mask = torch.zeros(2 + len(LEARNED))
    mask[list(used)] = 1
    weights = torch.zeros(len(mask), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for _ in range(STEPS):
        loss = PENALTY * (weights**2).mean()
        for _, signs, right in cases:
            scores = signs @ (weights * mask)
            loss = loss + (scores.logsumexp(0) - scores[right].logsumexp(0)) / len(cases)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights.detach() * mask


def reciprocal_ranks(cases: Sequence[Case], weights: torch.Tensor) -> list[float]:
    found = []
    for _, signs, right in cases:
        order = (signs @ weights).argsort(descending=True)
        found.append(1 / (1 + int(right[order].nonzero()[0])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus_path", type=Path, required=True)
    parser.add_argument("--index_path", type=Path)
    options = parser.parse_args()
    cases = read_cases(CorpusStore(options.corpus_path, index_path=options.index_path), part="dev")
    packages = sorted({package for package, _, _ in cases})
    signs = range(2, 2 + len(LEARNED))
    for ranking, used in zip(RANKINGS, ([0, *signs], [0, 1, *signs], [1, *signs]), strict=True):
        left_out = []
        for package in packages:
            weights = fit([case for case in cases if case[0] != package], used)
            left_out += reciprocal_ranks([case for case in cases if case[0] == package], weights)
        words, meaning, *features = fit(cases, used).tolist()
        print(f"{ranking}: {len(cases)} questions, mean reciprocal rank {np.mean(left_out):.3f} with packages left out")
        print(f"  words={words:.2f}, meaning={meaning:.2f}, features={{")
        print("".join(f'    "{name}": {value:.2f},\n' for name, value in zip(LEARNED, features, strict=True)) + "  }")


if __name__ == "__main__":
    main()
