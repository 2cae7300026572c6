"""`parallelmind evaluate`: measure retrieval on labelled queries."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from parallelmind.cli.flags import add_settings, given
from parallelmind.errors import SettingsError
from parallelmind.io.atomic import refuse_same_file, replacing
from parallelmind.retrieval.compat import CompatRetriever
from parallelmind.retrieval.evaluation import Report, evaluate, read_labelled
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.retriever import EXACT, METHODS, STRING, RetrieverSettings
from parallelmind.retrieval.retriever_options import RetrieverOptions
from parallelmind.retrieval.truth import ERROR, TruthReport, judge, read_truth

_MISTAKES_SHOWN = 40

EPILOG = """\
Labelled queries are JSONL rows {"id", "query", "target_api", "dependencies", "method", "expected"}: "method" is how the
query should be served (exact_api_match, rag_string_match, absent or rag_fallback), "expected" lists the names of the
documents that serve it. Optional: "kind", to count by, and "moved_to" of an absent API.
"part" (dev, test) counts ranked queries by part as well.
Rows labelled rag_string_match are left out unless --enable_str_match is given.

--truth judges what is said of names by labels that come from running the versions: how often documentation and "does
not exist" are true and given, whether replacements and deprecations are told, how many of the replacements are right,
and how many public names are found.

Exit codes: 0 measured, 1 an error, 2 wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    files = parser.add_argument_group("files")
    files.add_argument("--queries", type=Path, metavar="FILE", help="labelled queries, JSONL")
    files.add_argument("--truth", type=Path, metavar="DIR", help="labels of names, JSONL files in a folder")
    files.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    add_settings(
        parser,
        RetrieverOptions,
        RetrieverSettings,
        leave_out=("compat", "tokenizer", "max_documents", "fixed_docs_per_query", "max_tokens"),
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables; 0 if everything could be measured."""
    if not args.queries and not args.truth:
        raise SettingsError("nothing to measure; give --queries FILE, --truth DIR, or both.")
    if args.json and args.queries:
        refuse_same_file(args.json, args.queries, flag="--json")
    numbers = (_queries(args) if args.queries else {}) | (_truth(args) if args.truth else {})
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(numbers, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"the numbers are in {args.json}", file=sys.stderr)
    return 0


def _queries(args: argparse.Namespace) -> dict[str, Any]:
    settings = RetrieverSettings(
        **given(args, RetrieverSettings) | {"max_documents": 10, "fixed_docs_per_query": 10, "max_tokens": 0}
    )
    options = RetrieverOptions(**given(args, RetrieverOptions), settings=settings)
    rows = read_labelled(args.queries)
    labelled = [row for row in rows if settings.enable_str_match or row.method != STRING]
    named = [row for row in labelled if row.query.target_api]
    with contextlib.closing(options.make()) as retriever, contextlib.closing(options.open_store()) as store:
        report = evaluate(retriever.retrieve, store, labelled)
        loosely = CompatRetriever(store, settings, ranker=Ranker(), budget=None)
        loose = evaluate(loosely.retrieve, store, named)
    print(_tables(report, loose, left_out=len(rows) - len(labelled), named=len(named)))
    return {"retrieval": report.fields(), "substring_rule": loose.fields()}


def _truth(args: argparse.Namespace) -> dict[str, Any]:
    """Contexts are made as `parallelmind contexts` makes them by default, so what is cut off is not told."""
    settings = RetrieverSettings(**given(args, RetrieverSettings))
    options = RetrieverOptions(**given(args, RetrieverOptions), settings=settings)
    labels, public = read_truth(args.truth)
    with contextlib.closing(options.make()) as retriever, contextlib.closing(options.open_store()) as store:
        report = judge(retriever.retrieve, store, labels, public)
    print(_truth_tables(report))
    return {"truth": report.fields()}


def _truth_tables(report: TruthReport) -> str:
    lines = [f"{report.labels} labelled names", "", "| what | share |", "|---|---|"]
    lines += [f"| {name} | {share} |" for name, share in report.shares.items()]
    lines += ["", "| public names | found exactly | denied |", "|---|---|---|"]
    for origin, share in report.coverage.items():
        if not origin.endswith(", denied"):
            lines.append(f"| {origin} | {share:.1%} | {report.coverage[f'{origin}, denied']:.1%} |")
    given = [*METHODS, ERROR]
    lines += ["", f"| label: kind | {' | '.join(given)} |", "|---" * (len(given) + 1) + "|"]
    for group, counts in report.methods.items():
        lines.append(f"| {group} | {' | '.join(str(counts.get(method, 0)) for method in given)} |")
    lines += [f"wrong: {json.dumps(mistake, ensure_ascii=False)}" for mistake in report.mistakes[:_MISTAKES_SHOWN]]
    return "\n".join(lines)


def _tables(report: Report, loose: Report, *, left_out: int, named: int) -> str:
    lines = [f"{report.queries} labelled queries, {report.right} served right"]
    if left_out:
        lines.append(f"{left_out} labelled {STRING} left out: they need --enable_str_match")
    lines += ["", "| method | expected | given | right | precision | recall |", "|---|---|---|---|---|---|"]
    for method in METHODS:
        score = report.methods[method]
        shares = f"{_share(score.precision)} | {_share(score.recall)}"
        lines.append(f"| {method} | {score.expected} | {score.given} | {score.right} | {shares} |")
    if report.ranked:
        hits = ", ".join(f"hit@{depth} {value:.3f}" for depth, value in report.hits.items())
        lines += ["", f"ranked search, {report.ranked} queries: {hits}, MRR {report.mrr:.3f}"]
    for name, rank in report.parts.items():
        hits = ", ".join(f"hit@{depth} {value:.3f}" for depth, value in rank.hits.items())
        lines.append(f"- {name}, {rank.queries} queries: {hits}, MRR {rank.mrr:.3f}")
    lines += [f"not served, {count}: {reason}" for reason, count in report.errors.items()]
    if report.moved:
        lines += ["", f"what takes the place of absent APIs: {report.moved_right} of {report.moved} right"]
    lines += ["", "| kind | right | queries |", "|---|---|---|"]
    lines += [f"| {kind} | {right} | {queries} |" for kind, (right, queries) in report.kinds.items()]
    exact = loose.methods[EXACT]
    lines += [
        "",
        f"The substring rule (--compat) on the {named} queries that name an API: {exact.given} called {EXACT}, "
        f"{exact.given - exact.right} of them wrongly (precision {_share(exact.precision)}).",
    ]
    for mistake in report.mistakes:
        lines.append(f"wrong: {json.dumps(mistake, ensure_ascii=False)}")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
