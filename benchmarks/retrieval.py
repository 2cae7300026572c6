"""Quality and speed of the context stage on real corpora, beside a substring scan and, if installed, rank_bm25.

    parallelmind corpus build numpy==1.26.4 pandas==2.2.2 --corpus_path corpora
    python benchmarks/retrieval.py --corpus_path corpora

The large version has 50,000 documents: the rows of all corpora in the folder, under new names, again and again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine

from parallelmind.jobs.statistics import Silent
from parallelmind.retrieval.compat import substring_match
from parallelmind.retrieval.corpus_rows import (
    CorpusRow,
    corpus_file,
    corpus_versions,
    read_corpus,
    summary,
    write_corpus,
)
from parallelmind.retrieval.keyword_search import KeywordSearch, search_terms
from parallelmind.retrieval.matching import find_exact
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.retriever import Retriever, RetrieverSettings
from parallelmind.retrieval.retriever_options import RetrieverOptions
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex
from parallelmind.tasks.contexts import ContextOptions, ContextWorker, run_contexts

DOCUMENTS = 50_000
QUALITY = {"numpy": "1.26.4", "pandas": "2.2.2"}
PER_PACKAGE = 500
LEAST_WORDS = 4
SEED = 20


@dataclass(frozen=True)
class Timing:
    """Seconds of single calls."""

    seconds: Sequence[float]

    @classmethod
    def of(cls, call: Callable[[Any], object], inputs: Iterable[Any]) -> Timing:
        seconds = []
        for value in inputs:
            started = time.perf_counter()
            call(value)
            seconds.append(time.perf_counter() - started)
        return cls(seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        return f"{self.median * 1e3:.3f} ms median, {ordered[int(len(ordered) * 0.99)] * 1e3:.3f} ms p99"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus_path", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=500, help="timed calls of each kind (default: 500)")
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results")
    args = parser.parse_args()
    drawn = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*quality(args.corpus_path, drawn), *speed(args.corpus_path, Path(folder), args.calls, drawn)]
        rows += stage(args.corpus_path, Path(folder), drawn)
    table = "\n".join(["| what | result |", "|---|---|", *(f"| {what} | {result} |" for what, result in rows)])
    print(table)
    if args.save:
        load = f"Load average at the end: {os.getloadavg()[0]:.1f}. Times are of one process.\n"
        print("saved", machine.save("retrieval", "Context stage: quality and speed", table, f"\n{load}"))


def quality(corpus_path: Path, drawn: random.Random) -> Iterator[tuple[str, str]]:
    """Summaries as questions, each to be answered by a document with that summary."""
    store = CorpusStore(corpus_path)
    indexes = [store.index(package, version) for package, version in QUALITY.items()]
    alone, together = [], []
    for index in indexes:
        for text, rows in questions(index, drawn):
            alone.append(rank_of(Ranker().search([index], text, 10), index, rows))
            together.append(rank_of(Ranker().search(indexes, text, 10), index, rows))
    names = " + ".join(f"{package} {version}" for package, version in QUALITY.items())
    yield f"first sentences as queries, {names}, the version known", hits(alone)
    yield "the same, searching both packages at once", hits(together)
    meaning = [
        rank_of(Ranker().search([index], text, 10), index, rows) for index, text, rows in without_summary(store, drawn)
    ]
    yield "second sentences as queries (not weighted in the index), the version known", hits(meaning)


def questions(index: VersionIndex, drawn: random.Random) -> list[tuple[str, set[int]]]:
    rows: dict[str, set[int]] = {}
    for place, row in enumerate(index.all_rows()):
        text = summary(row.doc)
        if len(text.split()) >= LEAST_WORDS:
            rows.setdefault(text, set()).add(place)
    return [(text, rows[text]) for text in drawn.sample(sorted(rows), PER_PACKAGE)]


def without_summary(store: CorpusStore, drawn: random.Random) -> Iterator[tuple[VersionIndex, str, set[int]]]:
    for package, version in QUALITY.items():
        index = store.index(package, version)
        rows: dict[str, set[int]] = {}
        for place, row in enumerate(index.all_rows()):
            rest = row.doc.strip().split("\n\n", 1)[-1] if summary(row.doc) else ""
            text = summary(rest)
            if len(text.split()) >= 2 * LEAST_WORDS and "----" not in text and ">>>" not in text:
                rows.setdefault(text, set()).add(place)
        for text in drawn.sample(sorted(rows), min(PER_PACKAGE, len(rows))):
            yield index, text, rows[text]


def rank_of(found: Sequence[tuple[VersionIndex, int]], index: VersionIndex, rows: set[int]) -> int | None:
    return next((rank for rank, hit in enumerate(found, start=1) if hit[0] is index and hit[1] in rows), None)


def hits(ranks: Sequence[int | None]) -> str:
    shares = (
        f"hit@{depth} {sum(rank is not None and rank <= depth for rank in ranks) / len(ranks):.3f}"
        for depth in (1, 5, 10)
    )
    return f"{', '.join(shares)} ({len(ranks)} queries)"


def speed(corpus_path: Path, folder: Path, calls: int, drawn: random.Random) -> Iterator[tuple[str, str]]:
    file = corpus_file(folder / "large", "large", "1.0")
    file.parent.mkdir(parents=True)
    write_corpus(file, large_rows(corpus_path))
    started = time.perf_counter()
    index = CorpusStore(folder / "large").index("large", "1.0")
    built = time.perf_counter() - started
    started = time.perf_counter()
    KeywordSearch(index)
    ranked = time.perf_counter() - started
    yield f"building the indexes of {index.rows:,} documents", f"{built:.1f} s names, {ranked:.1f} s ranked search"
    started = time.perf_counter()
    index = CorpusStore(folder / "large").index("large", "1.0")
    opened = time.perf_counter() - started
    started = time.perf_counter()
    search = KeywordSearch(index)
    yield "opening them", f"{opened * 1e3:.0f} ms, {(time.perf_counter() - started) * 1e3:.0f} ms"

    names = [name for name, _ in index.all_names()]
    asked = [drawn.choice(names) for _ in range(calls)]
    exact = Timing.of(lambda name: find_exact(index, name), asked)
    yield "exact look-up", str(exact)
    yield "exact look-up of names that are not there", str(Timing.of(lambda name: find_exact(index, name + "x"), asked))
    read = Timing.of(lambda name: index.row(index.find(name) or 0), asked)
    yield "exact look-up with its documentation read", str(read)
    pairs = list(index.all_names())
    scan = Timing.of(lambda name: substring_match(pairs, name + "x"), asked[: max(1, calls // 20)])
    yield (
        "the substring scan it replaces, names that are not there",
        f"{scan}; {scan.median / exact.median:,.0f} times the look-up",
    )

    texts = [text for text, _ in questions(index, drawn)][:calls]
    fallback = Timing.of(lambda text: search.search(text, 10), texts)
    yield "ranked search, first sentences", str(fallback)
    store = CorpusStore(folder / "large")
    retriever = Retriever(store, RetrieverSettings(max_tokens=0))
    whole = Timing.of(lambda text: retriever.retrieve(query(0, text, "", {"large": "1.0"})), texts)
    yield "the same as a whole query, its context included", str(whole)
    if importlib.util.find_spec("rank_bm25"):
        yield from peer(index, texts[: max(1, calls // 20)], fallback)
    else:
        yield "rank_bm25", "not installed, not measured"


def large_rows(corpus_path: Path) -> Iterator[CorpusRow]:
    count = copy = 0
    while True:
        for package, versions in corpus_versions(corpus_path).items():
            for version in versions:
                prefix = f"large.c{copy}.{package}_{version.replace('.', '_')}."
                for row in read_corpus(corpus_file(corpus_path, package, version)):
                    # A copy has words of its own, or every document would be there several times.
                    doc = row.doc if copy == 0 else f"{row.doc}\n\nCopy {copy}."
                    aliases = tuple(prefix + alias for alias in row.aliases)
                    yield replace(row, path=prefix + row.path, aliases=aliases, doc=doc)
                    count += 1
                    if count == DOCUMENTS:
                        return
        copy += 1


def peer(index: VersionIndex, texts: Sequence[str], ours: Timing) -> Iterator[tuple[str, str]]:
    from rank_bm25 import BM25Okapi

    started = time.perf_counter()
    ranking = BM25Okapi([search_terms(f"{row.path}\n{row.signature}\n{row.doc}") for row in index.all_rows()])
    built = time.perf_counter() - started
    timing = Timing.of(lambda text: ranking.get_top_n(search_terms(text), range(index.rows), 10), texts)
    ratio = timing.median / ours.median
    yield (
        "rank_bm25 on the same documents",
        f"{timing}; {ratio:,.0f} times ours; {built:.0f} s to build, at every start",
    )


def stage(corpus_path: Path, folder: Path, drawn: random.Random) -> Iterator[tuple[str, str]]:
    store = CorpusStore(corpus_path)
    asked = []
    for package, version in QUALITY.items():
        index = store.index(package, version)
        names = sorted({name for name, _ in index.all_names()})
        for name in drawn.sample(names, min(5000, len(names))):
            asked.append((f"How is {name} used?", name, {package: version}))
    drawn.shuffle(asked)
    for max_tokens in (0, 4000):
        options = RetrieverOptions(corpus_path=corpus_path, settings=RetrieverSettings(max_tokens=max_tokens))
        queries = [query(place, *one) for place, one in enumerate(asked)]
        worker = ContextWorker(options.make())
        for one in queries[:50]:
            worker._result(one)
        started = time.perf_counter()
        for one in queries:
            worker._result(one)
        rate = len(queries) / (time.perf_counter() - started)
        tokens = "no token limit" if not max_tokens else f"--max_tokens {max_tokens} with the bundled tokenizer"
        yield (
            f"exact queries to rows, one process, {tokens}",
            f"{rate:,.0f} queries/s ({len(queries):,} different APIs)",
        )
    path = folder / "queries.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for place, (text, api, dependencies) in enumerate(asked):
            row = {"id": place, "query": text, "target_api": api, "dependencies": dependencies}
            file.write(json.dumps(row) + "\n")
    started = time.perf_counter()
    report = run_contexts(
        ContextOptions(queries_file=path, output_file=folder / "out.jsonl", retriever=options), progress=Silent()
    )
    assert report is not None
    rate = report.statistics.contexts / (time.perf_counter() - started)
    yield "the same from file to file: reading, job, merge, statistics", f"{rate:,.0f} queries/s"


def query(place: int, text: str, api: str, dependencies: dict[str, str]) -> Query:
    return Query(original_item_id=place, query_index=0, query=text, target_api=api, dependencies=dependencies)


if __name__ == "__main__":
    main()
