"""`parallelmind contexts`: find the documentation that each query asks about."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from parallelmind.cli.args import documented_default
from parallelmind.cli.job_flags import add_job_flags, run_options
from parallelmind.cli.progress import make_progress
from parallelmind.cli.retrieval_flags import add_corpus_flags, retriever_options
from parallelmind.retrieval.retriever import METHODS, RetrieverSettings
from parallelmind.tasks.contexts import ContextOptions, ContextReport, run_contexts

EPILOG = """\
Queries: a JSON object {"<id>": {"queries": [{"query", "target_api"}], "original_data": {"target_dependency":
{"numpy": "1.26.4"}}}}, or JSONL rows {"id", "query", "target_api", "dependencies"}; which of the two is recognised.

How a context is found, in this order, always in the versions of the query (see "retrieval_method" of a row):
  exact_api_match   target_api is equal to a name in the corpus, or leads to one by re-exports
  rag_string_match  with --enable_str_match: a renamed module, or a name that is much alike
  absent            the version has no such API: the context says so, how that is known, and what takes its place
  rag_fallback      ranked search
A query that is wrong or asks for a version that the corpus lacks gets a row with "success": false and "error".

Interrupted at any moment, the same command continues where it was. Its state is in the folder OUTPUT_FILE.job.
The counts are also in OUTPUT_FILE.stats.json.

Exit codes: 0 the output is complete (failed queries are counted in the summary and have error rows),
1 an error, 2 wrong usage, 130 interrupted, 143 terminated.
"""

_LOGGER = logging.getLogger(__name__)
_DEFAULTS = RetrieverSettings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    files = parser.add_argument_group("files")
    files.add_argument("--queries_file", type=Path, required=True, metavar="FILE", help="the queries, JSON or JSONL")
    files.add_argument("--output_file", type=Path, required=True, metavar="FILE", help="the contexts, JSONL")
    files.add_argument(
        "--start_index", type=int, default=0, metavar="N", help=documented_default("skip the first N queries", 0)
    )
    files.add_argument("--max_samples", type=int, metavar="N", help="at most N queries after those (default: all)")
    files.add_argument("--retry_failed", action="store_true", help="try the queries that failed before again")
    files.add_argument(
        "--overwrite", action="store_true", help="drop earlier results and start again (leave it out to continue)"
    )
    files.add_argument("--verbose", action="store_true", help="list the first failed queries in the log")
    add_context_flags(parser).add_argument(
        "--tokenizer",
        "--model_path",
        default="tiny",
        metavar="MODEL",
        help=documented_default(
            "the model whose tokens --max_tokens counts, the one that will answer: Hub name or local folder",
            "the bundled tokenizer, which counts English text about twice",
        ),
    )
    add_job_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the job and print its summary; 0 if the output is complete."""
    options = context_options(args, args.output_file)
    try:
        report = run_contexts(
            options,
            progress=make_progress(args.log_interval),
            run=run_options(args),
        )
    except KeyboardInterrupt:
        _LOGGER.warning("what is done is kept: the same command continues where it was")
        raise
    if report is not None:
        log_summary(report, verbose=args.verbose)
        print(report.options.output_file)  # for scripts: another name than was asked for, if other contexts stand there
    return 0


def context_options(args: argparse.Namespace, output_file: Path) -> ContextOptions:
    """The options that the flags of `add_context_flags` say."""
    settings = RetrieverSettings(
        max_documents=args.max_documents,
        fixed_docs_per_query=args.fixed_docs_per_query,
        max_tokens=args.max_tokens,
        enable_str_match=args.enable_str_match,
        jump_exact_match=args.jump_exact_match,
    )
    return ContextOptions(
        queries_file=args.queries_file,
        output_file=output_file,
        retriever=retriever_options(args, settings),
        start_index=args.start_index,
        max_samples=args.max_samples,
        retry_failed=args.retry_failed,
        overwrite=args.overwrite,
    )


def add_context_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How contexts are found and how long they are; returns the group of the latter."""
    add_corpus_flags(parser).add_argument(
        "--compat",
        action="store_true",
        help="the looser matching of older tools, for comparison: parts of names match, and queries with the same text "
        "are duplicates whatever versions they name",
    )
    context = parser.add_argument_group("context")
    for name, text in (
        ("max_documents", "at most this many documents in a context that was found by search"),
        ("fixed_docs_per_query", "documents in such a context; 0: as many as fit, up to --max_documents"),
        ("max_tokens", "at most this many tokens in a context; 0: no limit"),
    ):
        default = getattr(_DEFAULTS, name)
        context.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=documented_default(text, default)
        )
    return context


def log_summary(report: ContextReport, *, verbose: bool, answered_by: str | None = None) -> None:
    """Log the counts and the speed of the run; `answered_by` is the model that answers, if it is known."""
    statistics = report.statistics
    found = ", ".join(f"{statistics.methods[method]} {method}" for method in METHODS)
    _LOGGER.info(
        "%d queries = %d duplicates + %d contexts; contexts = %s, %d errors",
        statistics.queries, statistics.duplicates, statistics.contexts, found, statistics.errors,
    )  # fmt: skip
    if statistics.truncated:
        tokenizer, limit = report.options.retriever.tokenizer, report.options.retriever.settings.max_tokens
        bundled = tokenizer == "tiny" != answered_by
        hint = " (the bundled one; --tokenizer takes that of the answering model)" if bundled else ""
        _LOGGER.info("%d contexts were cut at %d tokens of %s%s", statistics.truncated, limit, tokenizer, hint)
    for reason, count in statistics.error_reasons.items():
        _LOGGER.warning("error: %d times: %s", count, reason)
    if verbose:
        for place, reason in report.failures:
            _LOGGER.warning("failed: row %d: %s", place, reason)
    if statistics.errors:
        _LOGGER.warning("--retry_failed tries the failed queries again, once the corpus has what they need")
    if report.seconds:
        done = statistics.contexts - report.resumed
        _LOGGER.info("%d contexts in %.1f s: %.0f a second", done, report.seconds, done / report.seconds)
    _LOGGER.info("contexts are in %s, these counts in %s", report.options.output_file, report.options.statistics_file)
