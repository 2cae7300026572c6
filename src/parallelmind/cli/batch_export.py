"""`parallelmind batch-export`: answer rows into an OpenAI batch output file."""

from __future__ import annotations

import argparse
from pathlib import Path

from parallelmind.answering.openai_batch_output import export_batch
from parallelmind.cli.stderr import print_problems

EPILOG = """\
Input: the output of `parallelmind answer` over rows of `parallelmind batch-import` (other answer rows will do: their id
becomes the custom_id). Output: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, one
a row, in the same order; "body" is the server's own response, or made from the answer of the engine.

Exit codes: 0 all rows are written (those without an answer with their error), 1 rows were left out or an error,
2 wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("answers", type=Path, metavar="ANSWERS", help="the answers, JSONL")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="OpenAI batch output file, JSONL")


def run(args: argparse.Namespace) -> int:
    """Export and print the counts; 1 if rows were left out."""
    report = export_batch(args.answers, args.output)
    rows = report.answered + report.failed + report.left_out
    print(f"{rows} rows = {report.answered} answered + {report.failed} failed + {report.left_out} left out")
    print_problems(report.problems, report.left_out)
    print(f"the batch output is in {args.output}")
    return 1 if report.left_out else 0
