"""`parallelmind pipeline`: queries to contexts to answers, in one command."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from parallelmind.cli.answer import add_answer_flags, answer_options, samples_in_all
from parallelmind.cli.contexts import add_context_flags, context_options, log_summary
from parallelmind.cli.job_flags import add_job_flags, run_options
from parallelmind.cli.logs import configure_logging
from parallelmind.cli.progress import make_progress
from parallelmind.cli.statistics import print_statistics
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.worker_files import worker_files
from parallelmind.tasks.answer_options import ENGINE_TYPES
from parallelmind.tasks.pipeline import PipelineFiles, run_pipeline

EPILOG = """\
Writes OUTPUT_DIR/contexts.jsonl, OUTPUT_DIR/answers.jsonl and OUTPUT_DIR/statistics.json. Each stage is a job of its
own: interrupted at any moment, the same command continues in the stage and at the record where it was.
"""

_LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    files = parser.add_argument_group("files")
    files.add_argument("--queries_file", type=Path, required=True, metavar="FILE", help="the queries, JSON or JSONL")
    files.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="folder for all output")
    files.add_argument("--start_index", type=int, default=0, metavar="N", help="skip the first N queries (default: 0)")
    files.add_argument("--max_samples", type=int, metavar="N", help="at most N queries after those (default: all)")
    files.add_argument(
        "--max_samples_per_worker", type=int, metavar="N", help="answer the first N contexts for each worker only"
    )
    files.add_argument(
        "--no_retry_failed", action="store_false", dest="retry_failed", help="do not try failed answers again"
    )
    files.add_argument("--overwrite", action="store_true", help="drop earlier results and start again")
    add_context_flags(parser).add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="the model whose tokens --max_tokens counts (default: the one that answers)",
    )
    add_answer_flags(parser)
    add_job_flags(parser)
    parser.add_argument("--verbose", action="store_true", help="more log lines")


def run(args: argparse.Namespace) -> int:
    """Run both stages and print their statistics; 0 if the output is complete."""
    rank = current_rank()
    args.debug = args.debug or args.verbose
    configure_logging(rank, debug=args.debug)
    local_model = args.backend is None and args.inference_type in ENGINE_TYPES
    args.tokenizer = args.tokenizer or (args.model_path if local_model else None) or "tiny"
    files = PipelineFiles(args.output_dir)
    args.retry_failed, retry_answers = False, args.retry_failed
    contexts = context_options(args, files.contexts)
    args.contexts_file, args.output_file, args.retry_failed = files.contexts, files.answers, retry_answers
    args.max_samples = samples_in_all(args, rank)
    try:
        found = run_pipeline(
            contexts,
            answer_options(args),
            files,
            progress=lambda: make_progress(args.log_interval),
            run=run_options(args, most_per_worker=args.max_samples_per_worker),
        )
    except KeyboardInterrupt:
        _LOGGER.warning("what is done is kept: the same command continues where it was")
        raise
    if found is not None:
        log_summary(found.contexts, verbose=args.verbose, answered_by=args.model_path if local_model else None)
        out_path = found.answers.out_path
        print_statistics(found.answers, "INFERENCE", out_path, worker_files(out_path))
        print(f"Statistics of both stages: {found.statistics}")
    return 0
