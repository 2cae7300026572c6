"""`parallelmind answer`: answer questions over retrieved contexts with many workers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from parallelmind.cli.flags import add_settings, given
from parallelmind.cli.job_flags import JobFiles, JobRunOptions, run_options
from parallelmind.cli.progress import make_progress
from parallelmind.cli.statistics import print_statistics
from parallelmind.cli.stderr import configure_logging
from parallelmind.io.remote_files import is_remote
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.worker_files import worker_files
from parallelmind.tasks.answer import run_answer
from parallelmind.tasks.answer_options import AnswerOptions

EPILOG = """\
Input rows: {"id", "query", "context", "retrieval_method", ...} as `parallelmind contexts` writes them.
Output: one row each, in input order, without the context and with "answer", "inference_time", "total_time",
"worker_rank" and "success". A row whose context failed keeps its error and costs no call; an answer that failed has
"success": false and an "error", and is tried again by the next run if that can help. Contexts that are too long for
the model are cut to its window ("context_cut": true). Of several workers each has its answers also in a file of its
own: OUTPUT_rank0.jsonl, OUTPUT_rank1.jsonl and so on, beside OUTPUT.jsonl, which has them all.

Keys come from the environment: TOGETHER_API_KEY, OPENAI_API_KEY, or the variable that --api_key_env names.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_settings(parser, AnswerOptions, JobRunOptions)
    parser.add_argument("--verbose", action="store_true", help="more log lines")


def run(args: argparse.Namespace) -> int:
    """Run the job and print its statistics; 0 if the output is complete."""
    rank = current_rank()
    args.debug = args.debug or args.verbose
    configure_logging(rank, debug=args.debug)
    settings = given(args, AnswerOptions)
    run = run_options(args, most_per_worker=settings.get("max_samples_per_worker"))
    files = JobFiles(run, settings["contexts_file"], settings["output_file"])
    remote = is_remote(settings["output_file"])
    settings |= {"contexts_file": files.data, "output_file": files.out}
    report = run_answer(
        AnswerOptions(**settings | {"max_samples": samples_in_all(settings, run)}),
        progress=make_progress(run.log_interval),
        run=run,
        worker_files=not remote,
    )
    if report is not None:
        out_path = files.finish(report.out_path)
        print_statistics(report, "INFERENCE", out_path, {} if remote else worker_files(report.out_path))
    return 0


def samples_in_all(settings: Mapping[str, Any], run: RunOptions) -> int | None:
    """The first rows to answer: as many for each worker as --max_samples_per_worker says."""
    each = settings.get("max_samples_per_worker")
    return None if each is None else int(each * run.world_size)
