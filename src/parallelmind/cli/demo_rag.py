"""`parallelmind demo-rag`: the same questions over two versions of a package, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parallelmind.cli.progress import make_progress
from parallelmind.cli.typed import typed_command, typed_path

_LINES_SHOWN = 7
_QUESTIONS_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("out/demo-rag"),
        metavar="DIR",
        help="folder for the output (default: out/demo-rag)",
    )
    parser.add_argument("--all", action="store_true", help="show every question, not only the first few")


def run(args: argparse.Namespace) -> int:
    """Run the pipeline on the bundled queries and corpus, and show what the versions say."""
    from parallelmind.demos.retrieval import ASSETS, run_demo_rag

    console, command = Console(), typed_command()
    console.rule("1. Queries to contexts to answers")
    console.print(
        f"{command} pipeline --queries_file {typed_path(ASSETS / 'queries.json')} "
        f"--corpus_path {typed_path(ASSETS / 'corpus')} "
        f"--output_dir {args.out_dir} --model_path tiny --max_tokens 300 --max_new_tokens 16 --temperature 0 "
        "--ignore_eos",
        style="cyan",
        highlight=False,
        soft_wrap=True,
    )
    demo = run_demo_rag(args.out_dir, lambda: make_progress(10.0))
    counts = demo.report.contexts.statistics
    methods = ", ".join(f"{count} {method}" for method, count in counts.methods.items() if count)
    answers = demo.report.answers.completion
    console.print(
        f"{counts.contexts} questions: {methods}; {answers.answered} answered, {answers.failed} failed, "
        f"{demo.report.answers.statistics.seconds:.1f} s\n",
        highlight=False,
    )
    console.rule("2. What the documentation of each version says")
    shown = demo.questions if args.all else demo.questions[:_QUESTIONS_SHOWN]
    for question in shown:
        console.print(_side_by_side(question, demo.versions))
    if rest := len(demo.questions) - len(shown):
        console.print(f"{rest} more with --all.", highlight=False)
    console.print(
        "\nThe bundled model can look facts up in short stories and nothing else: its answers show that the pipeline "
        "runs. With a real model:",
        highlight=False,
    )
    console.print(
        f"  {command} corpus build numpy==1.16.6 numpy==1.26.4 --corpus_path corpora\n"
        f"  {command} pipeline --queries_file {typed_path(ASSETS / 'queries.json')} --corpus_path corpora "
        "--output_dir out/numpy --model_path Qwen/Qwen2.5-0.5B-Instruct",
        style="cyan",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _side_by_side(question: dict[str, Any], versions: list[str]) -> Table:
    table = Table(title=escape(f"{question['query']}  ({question['target_api']})"), title_justify="left", expand=True)
    for version in versions:
        table.add_column(version, ratio=1, overflow="fold")
    rows = [question["rows"].get(version) for version in versions]
    table.add_row(*(Text(row["retrieval_method"], style="bold") if row else Text("not asked") for row in rows))
    table.add_row(*(Text(_beginning(row["context"]) if row else "") for row in rows))
    return table


def _beginning(context: str) -> str:
    lines = [line for line in context.strip().splitlines() if line.strip()]
    return "\n".join(lines[:_LINES_SHOWN]) + (" …" if len(lines) > _LINES_SHOWN else "")
