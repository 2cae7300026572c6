"""`parallelmind batch`: answer the records of a JSONL file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from parallelmind.cli.flags import add_settings, given
from parallelmind.cli.job_flags import JobFiles, JobRunOptions, run_options
from parallelmind.cli.progress import make_progress
from parallelmind.errors import JobError, first_line, is_out_of_memory
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_settings(parser, BatchOptions, JobRunOptions)


def run(args: argparse.Namespace) -> int:
    """Run the job and print its summary; 0 if the output is complete."""
    run = run_options(args)
    settings = given(args, BatchOptions)
    try:
        files = JobFiles(run, settings["data_path"], settings["out_path"])
        options = BatchOptions(**settings | {"data_path": files.data, "out_path": files.out})
        report = run_batch(options, progress=make_progress(run.log_interval), run=run)
        out_path = None if report is None else files.finish(report.out_path)
    except KeyboardInterrupt:
        _LOGGER.warning("what is done is kept: the same command continues where it was")
        raise
    except Exception as error:
        if is_out_of_memory(error):
            size = settings.get("batch_size", BatchOptions.batch_size)
            raise JobError(
                f"out of memory with --batch_size {size}; start the same command with a smaller one: it continues "
                f"where it was. ({first_line(error)})"
            ) from error
        raise
    if report is not None:
        _log_summary(report, out_path)
    return 0


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
