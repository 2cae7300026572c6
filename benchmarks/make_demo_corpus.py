"""Make src/parallelmind/assets/rag: a few rows of two real versions of numpy, and questions about both.

    parallelmind corpus build numpy==1.16.6 numpy==1.26.4 --corpus_path corpora
    python benchmarks/make_demo_corpus.py --corpus_path corpora

A row is taken from every version that has it, and as it is, so that what the small corpora say of an API is what the
whole ones say. numpy is BSD-3-Clause; its licence lies beside the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, write_corpus
from parallelmind.retrieval.matching import find_exact
from parallelmind.retrieval.namespaces import Head, Namespace, names_file, write_namespaces
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex

ASSETS = Path(__file__).parents[1] / "src" / "parallelmind" / "assets" / "rag"
VERSIONS = ("1.16.6", "1.26.4")
ASKED = {
    "numpy.bool": "May I write numpy.bool as a dtype?",
    "numpy.asscalar": "How do I turn an array of one element into a Python number?",
    "numpy.random.default_rng": "How do I make a random generator with a seed?",
    "numpy.broadcast_shapes": "Which shape do these shapes broadcast to?",
    "numpy.linspace": "How do I get evenly spaced numbers along an axis?",
    "numpy.unique": "How does unique treat NaN?",
    "numpy.concatenate": "Can I choose the dtype when I join arrays?",
    "numpy.pad": "Which mode does pad use if I name none?",
    "numpy.stack": "How do I join arrays along a new axis?",
    "numpy.percentile": "Which parameter chooses how a percentile between two values is found?",
    "numpy.rot90": "How do I turn an array by 90 degrees?",
    "numpy.cumsum": "What is the cumulative sum?",
    "numpy.lib.stride_tricks.sliding_window_view": "How do I get sliding windows over an array?",
    "": "How do I construct an array by repeating another one a number of times?",
}
BESIDE = (
    *("numpy", "numpy.random", "numpy.lib.stride_tricks", "numpy.tile", "numpy.repeat", "numpy.bool_", "numpy.vstack"),
    *(
        "numpy.hstack",
        "numpy.arange",
        "numpy.logspace",
        "numpy.quantile",
        "numpy.median",
        "numpy.cumprod",
        "numpy.split",
    ),
    *("numpy.flip", "numpy.random.seed", "numpy.random.RandomState", "numpy.broadcast_to", "numpy.asarray"),
)
MOST_ALIASES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus_path", type=Path, required=True)
    args = parser.parse_args()
    store = CorpusStore(args.corpus_path)
    for version in VERSIONS:
        index = store.index("numpy", version)
        places = {find_exact(index, name) for name in (*ASKED, *BESIDE) if name}
        rows = [shortened(index.row(place)) for place in sorted(place for place in places if place is not None)]
        file = corpus_file(ASSETS / "corpus", "numpy", version)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_namespaces(names_file(file), *excerpt(index, rows))
        print(file, write_corpus(file, rows), "rows", file.stat().st_size, "bytes")
    items: dict[str, Any] = {
        f"numpy {version}": {
            "queries": [{"query": query, "target_api": api} for api, query in ASKED.items()],
            "original_data": {"target_dependency": {"numpy": version}},
        }
        for version in VERSIONS
    }
    (ASSETS / "queries.json").write_text(json.dumps(items, indent=1) + "\n", encoding="utf-8")


def shortened(row: CorpusRow) -> CorpusRow:
    """The row with the shortest of its aliases: a class of numpy has hundreds of them."""
    aliases = sorted(row.aliases, key=lambda name: (name.count("."), len(name), name))[:MOST_ALIASES]
    return dataclasses.replace(row, aliases=tuple(aliases))


def excerpt(index: VersionIndex, rows: Sequence[CorpusRow]) -> tuple[Head, list[Namespace]]:
    """All names of the modules that questions are asked about, and which of them the rows describe."""
    numbers = {name: number for number, row in enumerate(rows) for name in row.names}
    modules = sorted({name.rpartition(".")[0] for name in (*ASKED, *BESIDE) if "." in name} | {"numpy.lib"})
    found = {name: place for name in modules if (place := index.module(name)) is not None}
    places = {name: number for number, name in enumerate(found)}

    def target(name: str) -> str:
        return f"s{places[name]}" if name in places else f"o{numbers[name]}" if name in numbers else ""

    spaces = []
    for name, place in found.items():
        space = index.namespace(place)
        names = {member: target(f"{name}.{member}") for member in space.names}
        spaces.append(
            dataclasses.replace(space, names=names, modules=(name,), object=numbers.get(name), said={}, raises=())
        )
    return Head(python=index.python, objects=[row.path for row in rows]), spaces


if __name__ == "__main__":
    main()
