"""Make labelled.jsonl: the hand-written queries, and queries drawn from corpora with a fixed seed.

    parallelmind corpus build numpy==1.16.6 numpy==1.26.4 pandas==1.5.3 pandas==2.2.2 \\
        scikit-learn==0.24.2 scikit-learn==1.5.0 scipy==1.7.3 scipy==1.11.4 --corpus_path corpora
    python benchmarks/make_labelled.py --corpus_path corpora

Drawn from each version: names that must be found exactly, and summaries of docstrings as questions, without the name,
for ranked search. Drawn from each pair of versions: names of public modules that the later one does not have. What is
drawn is labelled by the corpora; the hand-written part is labelled by the projects' release notes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parallelmind.retrieval.corpus_rows import summary
from parallelmind.retrieval.matching import find_exact
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex

HERE = Path(__file__).parents[1] / "examples" / "retrieval"
SEED = 20
PAIRS = {
    "numpy": ("1.16.6", "1.26.4"),
    "pandas": ("1.5.3", "2.2.2"),
    "sklearn": ("0.24.2", "1.5.0"),
    "scipy": ("1.7.3", "1.11.4"),
}
EXACT_PER_VERSION = 10
SUMMARIES_PER_VERSION = 25
ABSENT_PER_PAIR = 10
LEAST_WORDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus_path", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "labelled.jsonl")
    args = parser.parse_args()
    store = CorpusStore(args.corpus_path)
    rows = [json.loads(line) for line in (HERE / "handwritten.jsonl").read_text(encoding="utf-8").splitlines()]
    drawn = random.Random(SEED)
    for package, (older, newer) in PAIRS.items():
        before, after = store.index(package, older), store.index(package, newer)
        for index in (before, after):
            rows += [*exact(index, drawn), *summaries(index, drawn)]
        rows += absent(before, after, drawn)
    numbered = [{"id": f"drawn-{place:03d}"} | row for place, row in enumerate(rows)]
    with args.output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in numbered)
    print(f"{len(numbered)} labelled queries in {args.output}")


def exact(index: VersionIndex, drawn: random.Random) -> Iterator[dict[str, Any]]:
    names = [name for name, row in index.all_names() if is_public(name) and index.row(row).doc]
    for name in drawn.sample(names, EXACT_PER_VERSION):
        yield labelled(index, f"How is {name} used?", name, "exact_api_match", [name], "exact, drawn")


def summaries(index: VersionIndex, drawn: random.Random) -> Iterator[dict[str, Any]]:
    names: dict[str, list[str]] = {}
    for row in index.all_rows():
        text = summary(row.doc)
        if len(text.split()) >= LEAST_WORDS:
            names.setdefault(text, []).extend(row.names)
    public = sorted(text for text, found in names.items() if any(map(is_public, found)))
    for text in drawn.sample(public, SUMMARIES_PER_VERSION):
        yield labelled(index, text, "", "rag_fallback", names[text], "summary, drawn")


def absent(before: VersionIndex, after: VersionIndex, drawn: random.Random) -> Iterator[dict[str, Any]]:
    gone = sorted(
        name
        for name, row in before.all_names()
        if is_public(name)
        and before.row(row).type in ("function", "class", "method")
        and before.row(row).doc
        and find_exact(after, name) is None
        and name == before.public(row)
    )
    for name in drawn.sample(gone, min(ABSENT_PER_PAIR, len(gone))):
        yield labelled(after, f"How is {name} used?", name, "absent", [], "removed, drawn")


def is_public(name: str) -> bool:
    parts = name.split(".")
    return not any(part.startswith("_") or part in ("tests", "conftest", "testing", "distutils") for part in parts)


def labelled(
    index: VersionIndex, query: str, target: str, method: str, expected: list[str], kind: str
) -> dict[str, Any]:
    return {
        "query": query,
        "target_api": target,
        "dependencies": {index.package: index.version},
        "method": method,
        "expected": expected,
        "kind": kind,
    }


if __name__ == "__main__":
    main()
