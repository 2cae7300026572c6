"""`parallelmind batch-import`: an OpenAI batch file into context rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from parallelmind.answering.openai_batch import import_batch
from parallelmind.cli.flags import documented_default
from parallelmind.cli.stderr import print_problems

EPILOG = """\
Input: {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}, one a line;
"/v1/completions" too. Output: context rows for `parallelmind answer --contexts_file`, in the same order; what a body
says about sampling wins over the flags. `parallelmind batch-export` is the way back.

A request that cannot be asked becomes a row with its error, and ends as an error under its custom_id. Lines without a
custom_id of their own (none, or that of an earlier line) are left out and listed.

Exit codes: 0 all lines have their row, 1 lines were left out or an error, 2 wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("input", type=Path, metavar="INPUT", help="OpenAI batch file, JSONL")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the contexts, JSONL")
    parser.add_argument(
        "--target",
        choices=["http", "engine"],
        default="http",
        help=documented_default(
            "what will answer: a server, which gets the bodies as they are, or the engine here (--inference_type "
            "local), in which case requests for what it cannot do are refused now",
            "http",
        ),
    )


def run(args: argparse.Namespace) -> int:
    """Import and print the counts; 1 if lines were left out."""
    report = import_batch(args.input, args.output, target=args.target)
    lines = report.requests + report.refused + report.left_out
    print(f"{lines} lines = {report.requests} requests + {report.refused} refused + {report.left_out} left out")
    print_problems(report.problems, report.refused + report.left_out)
    print(f"context rows are in {args.output}")
    return 1 if report.left_out else 0
