"""`parallelmind answer`: answer questions over retrieved contexts with many workers."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from parallelmind.cli.args import documented_default
from parallelmind.cli.job_flags import JobFiles, add_job_flags, file_or_url, run_options
from parallelmind.cli.logs import configure_logging
from parallelmind.cli.progress import make_progress
from parallelmind.cli.statistics import print_statistics
from parallelmind.errors import SettingsError
from parallelmind.io.remote_files import is_remote
from parallelmind.jobs.ranks import Rank, current_rank
from parallelmind.jobs.worker_files import worker_files
from parallelmind.tasks.answer import run_answer
from parallelmind.tasks.answer_options import INFERENCE_TYPES, AnswerOptions

_FIELDS = [field.name for field in dataclasses.fields(AnswerOptions)]
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
    files = parser.add_argument_group("files")
    files.add_argument("--contexts_file", type=file_or_url, required=True, metavar="FILE", help="the contexts, JSONL")
    files.add_argument("--output_file", type=file_or_url, required=True, metavar="FILE", help="the answers, JSONL")
    files.add_argument(
        "--max_samples_per_worker", type=int, metavar="N", help="the first N rows for each worker only (default: all)"
    )
    files.add_argument(
        "--no_retry_failed", action="store_false", dest="retry_failed", help="do not try failed answers again"
    )
    files.add_argument("--overwrite", action="store_true", help="drop earlier answers and start again")
    add_answer_flags(parser)
    add_job_flags(parser)
    parser.add_argument("--verbose", action="store_true", help="more log lines")


def run(args: argparse.Namespace) -> int:
    """Run the job and print its statistics; 0 if the output is complete."""
    rank = current_rank()
    args.debug = args.debug or args.verbose
    configure_logging(rank, debug=args.debug)
    args.max_samples = samples_in_all(args, rank)
    options = run_options(args, most_per_worker=args.max_samples_per_worker)
    files = JobFiles(args, args.contexts_file, args.output_file, rank)
    remote = is_remote(args.output_file)
    args.contexts_file, args.output_file = files.data, files.out
    report = run_answer(
        answer_options(args),
        progress=make_progress(args.log_interval),
        run=options,
        worker_files=not remote,
    )
    if report is not None:
        out_path = files.finish(report.out_path)
        print_statistics(report, "INFERENCE", out_path, {} if remote else worker_files(report.out_path))
    return 0


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    """What answers, and how."""
    _add_model_flags(parser.add_argument_group("model"))
    _add_server_flags(parser.add_argument_group("servers (togetherai, openai)"))


def answer_options(args: argparse.Namespace) -> AnswerOptions:
    """The options that the flags say.

    Raises:
        SettingsError: a value is wrong.
    """
    args.extra_body = _extra_body(args.extra_body)
    return AnswerOptions(**{name: getattr(args, name) for name in _FIELDS})


def samples_in_all(args: argparse.Namespace, rank: Rank) -> int | None:
    """The first rows to answer: as many for each worker as --max_samples_per_worker says."""
    if args.max_samples_per_worker is None:
        return None
    workers = rank.world_size if rank.world_size > 1 else max(1, args.workers)
    return int(args.max_samples_per_worker * workers)


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    def add(name: str, kind: Any, default: object, text: str) -> None:
        shown = "none" if default is None else default
        metavar = {int: "N", float: "X"}.get(kind, "TEXT")
        group.add_argument(name, type=kind, default=default, metavar=metavar, help=documented_default(text, shown))

    group.add_argument(
        "--model_path", metavar="MODEL", help="local folder, Hub name, or the model's name at the server"
    )
    group.add_argument(
        "--inference_type",
        choices=INFERENCE_TYPES,
        default="local",
        help=documented_default("what answers: the engine here (local, huggingface) or a server", "local"),
    )
    group.add_argument(
        "--backend",
        metavar="FILE:CLASS",
        help="your own subclass of parallelmind.answering.backends.QueryBasedInference (default: none)",
    )
    group.add_argument("--prompt_template", type=Path, metavar="FILE", help="YAML (default: the built-in prompts)")
    group.add_argument("--no_system_role", action="store_true", help="put the instructions into the user's turn")
    add("--max_new_tokens", int, 512, "at most this many tokens in an answer")
    add("--temperature", float, 0.2, "how freely tokens are drawn; 0 always takes the likeliest one")
    add("--top_p", float, 0.95, "draw from the likeliest tokens that together reach this probability")
    add("--seed", int, 0, "local: same seed, same answers")
    add("--lora_path", str, None, "local: an adapter, a .pth file or a PEFT folder")
    add("--lora_rank", int, None, "local: the rank that the adapter must have, as a check; none is the adapter's own")
    add("--batch_size", int, 16, "local: answers that are decoded at once")
    add("--device", str, None, "local: such as cuda, cpu; none is cuda, or the CPU without a GPU")
    group.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="bfloat16",
        help=documented_default("local: number format of the weights", "bfloat16"),
    )
    group.add_argument("--load_in_8bit", action="store_true", help="local: 8-bit weights (bitsandbytes)")
    group.add_argument("--load_in_4bit", action="store_true", help="local: 4-bit weights (bitsandbytes)")
    add(
        "--device_map",
        str,
        None,
        "local: auto spreads the model over all GPUs; none is one device, or the worker's GPUs",
    )
    add("--kv_cache_gb", float, None, "local: memory for keys and values; none is half of what is free")


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    def add(name: str, kind: Any, default: object, text: str) -> None:
        shown = "none" if default is None else default
        metavar = {int: "N", float: "X"}.get(kind, "TEXT")
        group.add_argument(name, type=kind, default=default, metavar=metavar, help=documented_default(text, shown))

    add("--base_url", str, None, "address of a server that speaks OpenAI's protocol, such as http://127.0.0.1:8000/v1")
    add("--api_key_env", str, None, "environment variable that holds the key; none is the service's own")
    add("--concurrency", int, 16, "requests of each worker at once")
    add("--timeout", float, 120.0, "seconds for one request")
    add("--rpm", float, None, "at most this many requests a minute, of all workers together")
    add("--tpm", float, None, "at most this many tokens a minute, of all workers together")
    add("--max_attempts", int, 8, "at most this many attempts at one question")
    add("--max_retry_seconds", float, 600.0, "seconds after the first attempt in which others may follow")
    add("--extra_body", str, None, "JSON object with further fields for each request")


def _extra_body(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"--extra_body is not JSON ({error}): {text}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"--extra_body is {text}; it must be a JSON object.")
    return value
