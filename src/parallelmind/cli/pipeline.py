"""`parallelmind pipeline`: queries to contexts to answers, in one command."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from parallelmind.cli.answer import samples_in_all
from parallelmind.cli.contexts import context_options, log_summary
from parallelmind.cli.flags import add_settings, given
from parallelmind.cli.job_flags import JobRunOptions, run_options
from parallelmind.cli.progress import make_progress
from parallelmind.cli.statistics import print_statistics
from parallelmind.cli.stderr import configure_logging
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.worker_files import worker_files
from parallelmind.retrieval.retriever import RetrieverSettings
from parallelmind.retrieval.retriever_options import RetrieverOptions
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.contexts import ContextOptions
from parallelmind.tasks.pipeline import PipelineFiles, run_pipeline

EPILOG = """\
Writes OUTPUT_DIR/contexts.jsonl, OUTPUT_DIR/answers.jsonl and OUTPUT_DIR/statistics.json. Each stage is a job of its
own: interrupted at any moment, the same command continues in the stage and at the record where it was.
"""

_LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="folder for all output")
    # --retry_failed and --overwrite are those of the answers, --max_samples and --tokenizer those of the contexts.
    ours = ("contexts_file", "output_file")
    add_settings(
        parser, AnswerOptions, ContextOptions, RetrieverOptions, RetrieverSettings, JobRunOptions, leave_out=ours
    )
    parser.add_argument("--verbose", action="store_true", help="more log lines")


def run(args: argparse.Namespace) -> int:
    """Run both stages and print their statistics; 0 if the output is complete."""
    rank = current_rank()
    args.debug = args.debug or args.verbose
    configure_logging(rank, debug=args.debug)
    files = PipelineFiles(args.output_dir)
    settings = given(args, AnswerOptions) | {"contexts_file": files.contexts, "output_file": files.answers}
    run = run_options(args, most_per_worker=settings.get("max_samples_per_worker"))
    settings["max_samples"] = samples_in_all(settings, run)
    answers = AnswerOptions(**settings)
    local_model = answers.model_path if answers.uses_engine else None
    contexts = context_options(
        args, output_file=files.contexts, retry_failed=False, tokenizer=getattr(args, "tokenizer", None) or local_model
    )
    try:
        found = run_pipeline(
            contexts,
            answers,
            files,
            progress=lambda: make_progress(run.log_interval),
            run=run,
        )
    except KeyboardInterrupt:
        _LOGGER.warning("what is done is kept: the same command continues where it was")
        raise
    if found is not None:
        log_summary(found.contexts, verbose=args.verbose, answered_by=local_model)
        out_path = found.answers.out_path
        print_statistics(found.answers, "INFERENCE", out_path, worker_files(out_path))
        print(f"Statistics of both stages: {found.statistics}")
    return 0
