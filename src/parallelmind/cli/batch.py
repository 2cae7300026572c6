"""`parallelmind batch`: answer the records of a JSONL file."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from parallelmind.cli.args import add_model_flags, add_sampling_flags, documented_default
from parallelmind.cli.job_flags import JobFiles, add_job_flags, file_or_url, run_options
from parallelmind.cli.progress import make_progress
from parallelmind.errors import JobError
from parallelmind.jobs.ranks import current_rank
from parallelmind.tasks.batch import BatchReport, run_batch
from parallelmind.tasks.batch_options import BatchOptions

EPILOG = """\
Input rows: {"main": "...", "branches": ["...", "..."]} or {"text": "..."}; an "id" is copied to the output.
Output: one row per answer with "input" and "output", in input order; a record or branch that cannot be
answered has a row with "output": null and "error".

Interrupted at any moment, the same command continues where it was. Its state is in the folder OUT_PATH.job.

Exit codes: 0 the output is complete (failed records are counted in the summary and have error rows),
1 an error, 2 wrong usage, 130 interrupted, 143 terminated.
"""

_LOGGER = logging.getLogger(__name__)
_FIELDS = [field.name for field in dataclasses.fields(BatchOptions)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    files = parser.add_argument_group("files")
    files.add_argument("--data_path", type=file_or_url, required=True, metavar="FILE", help="input JSONL")
    files.add_argument("--out_path", type=file_or_url, required=True, metavar="FILE", help="output JSONL")
    files.add_argument("--max_samples", type=int, metavar="N", help="only the first N records (default: all)")
    files.add_argument("--retry_failed", action="store_true", help="try the records that failed before again")
    files.add_argument(
        "--overwrite", action="store_true", help="drop earlier results and start again (leave it out to continue)"
    )
    add_model_flags(parser)
    rows = parser.add_argument_group("rows and batches")
    _add_count(rows, "--branches_per_sample", 4, "fixed mode: branches in each row")
    _add_count(
        rows, "--max_branches_per_sample", None, "dynamic mode: at most this many branches in a row; 0 is fixed mode"
    )
    _add_count(
        rows, "--min_branches_per_sample", 1, "dynamic mode: at least this many branches in a row, where possible"
    )
    _add_count(rows, "--batch_size", 16, "branches that run at once")
    rows.add_argument("--batch_by_samples", action="store_true", help="--batch_size counts rows instead of branches")
    _add_count(rows, "--max_total_tokens", 0, "at most this many tokens of main and prompts in a row; 0 is no limit")
    add_sampling_flags(parser, top_k=0, repetition_penalty=1.0)
    running = parser.add_argument_group("running")
    _add_count(running, "--num_workers", 1, "threads that read and tokenise ahead; 0 is none")
    running.add_argument(
        "--kv_cache_gb",
        type=float,
        metavar="GB",
        help=documented_default("memory for keys and values", "half of what is free"),
    )
    add_job_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the job and print its summary; 0 if the output is complete."""
    if args.max_branches_per_sample == 0:
        args.max_branches_per_sample = None
    args.stop = tuple(args.stop)
    rank, run = current_rank(), run_options(args)
    try:
        files = JobFiles(args, args.data_path, args.out_path, rank)
        args.data_path, args.out_path = files.data, files.out
        options = BatchOptions(**{name: getattr(args, name) for name in _FIELDS})
        report = run_batch(options, progress=make_progress(args.log_interval), run=run)
        out_path = None if report is None else files.finish(report.out_path)
    except KeyboardInterrupt:
        _LOGGER.warning("what is done is kept: the same command continues where it was")
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported for this alone
            raise JobError(
                f"out of memory with --batch_size {args.batch_size}; start the same command with "
                f"a smaller one: it continues where it was. ({error})"
            ) from error
        raise
    if report is not None:
        _log_summary(report, out_path)
    return 0


def _add_count(group: argparse._ArgumentGroup, name: str, default: int | None, text: str) -> None:
    shown = "none" if default is None else default
    group.add_argument(name, type=int, default=default, metavar="N", help=documented_default(text, shown))


def _log_summary(report: BatchReport, out_path: str | Path | None) -> None:
    _LOGGER.info(
        "%d records loaded = %d answered + %d failed; %d generations finished (生成完成), %d error rows",
        report.records, report.answered, report.failed, report.generations, report.failed_rows,
    )  # fmt: skip
    for line, reason in report.failures:
        _LOGGER.warning("failed: %s", reason if reason.startswith("line ") else f"line {line}: {reason}")
    if more := report.failed - len(report.failures):
        _LOGGER.warning('failed: %d more; their rows in the output have an "error"', more)
    if report.retryable:
        _LOGGER.warning("--retry_failed tries %d of the failed records again", report.retryable)
    elif report.failed:
        _LOGGER.warning("none of the failed records can succeed as they are: mend them or the settings")
    if report.seconds:
        _LOGGER.info(
            "%d tokens generated in %.1f s: %.1f tokens/s; %d prompt tokens",
            report.generated_tokens, report.seconds, report.generated_tokens / report.seconds, report.prompt_tokens,
        )  # fmt: skip
    _LOGGER.info("answers are in %s", out_path)
