"""`parallelmind evaluate`: measure retrieval on labelled queries."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from parallelmind.cli.flags import add_settings, given
from parallelmind.io.atomic import refuse_same_file, replacing
from parallelmind.retrieval.compat import CompatRetriever
from parallelmind.retrieval.evaluation import Report, evaluate, read_labelled
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.retriever import EXACT, METHODS, STRING, RetrieverSettings
from parallelmind.retrieval.retriever_options import RetrieverOptions

EPILOG = """\
Labelled queries are JSONL rows {"id", "query", "target_api", "dependencies", "method", "expected"}: "method" is how the
query should be served (exact_api_match, rag_string_match, absent or rag_fallback), "expected" lists the names of the
documents that serve it. Optional: "kind", to count by, and "moved_to" of an absent API.
Rows labelled rag_string_match are left out unless --enable_str_match is given.

Exit codes: 0 measured, 1 an error, 2 wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    files = parser.add_argument_group("files")
    files.add_argument("--queries", type=Path, required=True, metavar="FILE", help="labelled queries, JSONL")
    files.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    add_settings(
        parser,
        RetrieverOptions,
        RetrieverSettings,
        leave_out=("compat", "tokenizer", "max_documents", "fixed_docs_per_query", "max_tokens"),
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables; 0 if everything could be measured."""
    if args.json:
        refuse_same_file(args.json, args.queries, flag="--json")
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
    if args.json:
        with replacing(args.json) as temporary:
            content = {"retrieval": report.fields(), "substring_rule": loose.fields()}
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"the numbers are in {args.json}", file=sys.stderr)
    return 0


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
