"""`parallelmind contexts`: find the documentation that each query asks about."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from parallelmind.cli.flags import add_settings, given
from parallelmind.cli.job_flags import JobRunOptions, run_options
from parallelmind.cli.progress import make_progress
from parallelmind.retrieval.retriever import METHODS, RetrieverSettings
from parallelmind.retrieval.retriever_options import RetrieverOptions
from parallelmind.settings.model import TINY_MODEL
from parallelmind.tasks.contexts import ContextOptions, ContextReport, run_contexts

EPILOG = """\
Queries: a JSON object {"<id>": {"queries": [{"query", "target_api"}], "original_data": {"target_dependency":
{"numpy": "1.26.4"}}}}, or JSONL rows {"id", "query", "target_api", "dependencies"}; which of the two is recognised.

How a context is found, in this order, always in the versions of the query (see "retrieval_method" of a row):
  exact_api_match   the version has target_api, by whatever name
  rag_string_match  with --enable_str_match: a renamed module, or a name that is much alike
  absent            the version has no such API, which is proven: the context says how, and what takes its place
  rag_fallback      ranked search; the row says if it is not known whether the version has the API ("verdict")
A query that is wrong or asks for a version that the corpus lacks gets a row with "success": false and "error".

Interrupted at any moment, the same command continues where it was. Its state is in the folder OUTPUT_FILE.job.
The counts are also in OUTPUT_FILE.stats.json.

Exit codes: 0 the output is complete (failed queries are counted in the summary and have error rows),
1 an error, 2 wrong usage, 130 interrupted, 143 terminated.
"""

_LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_settings(parser, ContextOptions, RetrieverOptions, RetrieverSettings, JobRunOptions)
    parser.add_argument("--verbose", action="store_true", help="list the first failed queries in the log")


def run(args: argparse.Namespace) -> int:
    """Run the job and print its summary; 0 if the output is complete."""
    options, run = context_options(args), run_options(args)
    try:
        report = run_contexts(
            options,
            progress=make_progress(run.log_interval),
            run=run,
        )
    except KeyboardInterrupt:
        _LOGGER.warning("what is done is kept: the same command continues where it was")
        raise
    if report is not None:
        log_summary(report, verbose=args.verbose)
        print(report.options.output_file)  # for scripts: another name than was asked for, if other contexts stand there
    return 0


def context_options(args: argparse.Namespace, **further: Any) -> ContextOptions:
    """The options that the flags say, and `further` ones.

    Raises:
        SettingsError: a value is out of range.
    """
    settings = RetrieverSettings(**given(args, RetrieverSettings))
    retriever = given(args, RetrieverOptions) | {name: further.pop(name) for name in ("tokenizer",) if name in further}
    return ContextOptions(
        **given(args, ContextOptions) | further, retriever=RetrieverOptions(**retriever, settings=settings)
    )


def log_summary(report: ContextReport, *, verbose: bool, answered_by: str | None = None) -> None:
    """Log the counts and the speed of the run; `answered_by` is the model that answers, if it is known."""
    statistics = report.statistics
    found = ", ".join(f"{statistics.methods[method]} {method}" for method in METHODS)
    _LOGGER.info(
        "%d queries = %d duplicates + %d contexts; contexts = %s, %d errors",
        statistics.queries, statistics.duplicates, statistics.contexts, found, statistics.errors,
    )  # fmt: skip
    if statistics.truncated:
        retriever = report.options.retriever
        tokenizer, limit = retriever.tokenizer or TINY_MODEL, retriever.settings.max_tokens
        bundled = tokenizer == TINY_MODEL != answered_by
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
