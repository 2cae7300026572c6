"""`parallelmind demo`: the main job on the bundled model, in seconds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from parallelmind.cli.progress import make_progress
from parallelmind.cli.typed import typed_command, typed_path

if TYPE_CHECKING:
    from parallelmind.demos.batch import DemoRecord, DemoResult
    from parallelmind.engine.request import Event


_SECONDS_A_STEP = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("out/demo"),
        metavar="DIR",
        help="folder for the output (default: out/demo)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the batch job, stream one record, compare with one by one, print a table."""
    from parallelmind.demos.batch import (
        OneByOne,
        ParallelDemo,
        compare,
        demo_records_path,
        read_demo_records,
    )

    console = Console()
    out_path = args.out_dir / "answers.jsonl"
    records = read_demo_records()

    console.rule("1. A file of records, all branches in parallel")
    command = typed_command()
    console.print(
        f"{command} batch --base_model tiny --data_path {typed_path(demo_records_path())} --out_path {out_path} "
        "--temperature 0",
        style="cyan",
        highlight=False,
        soft_wrap=True,
    )
    parallel = ParallelDemo(out_path)
    report = parallel.run(make_progress(10.0))
    console.print(
        f"{report.records} records loaded = {report.answered} answered + {report.failed} failed; "
        f"{report.generations} answers in {report.seconds:.2f} s\n",
        highlight=False,
    )

    record = records[0]
    console.rule("2. One record: the text is read once, its branches answer side by side")
    console.print(Panel(escape(record.main.strip()), title="main", border_style="blue"))
    _show_stream(console, record, parallel.stream(record))

    console.rule("3. The same questions one by one, with transformers' generate()")
    one_by_one = OneByOne(parallel.options)
    with console.status("answering one by one …"):
        result = compare(records, parallel.outputs(), report, one_by_one)
    console.print(_table(result))
    console.print(f"\nThe answers are in [bold]{out_path}[/bold]. Next:", highlight=False)
    for line in (
        f"head -3 {out_path}",
        f"{command} batch --base_model tiny --data_path YOUR.jsonl --out_path answers.jsonl --temperature 0",
        f"{command} batch --base_model Qwen/Qwen2.5-0.5B-Instruct --as_messages "
        "--data_path YOUR.jsonl --out_path answers.jsonl",
        f"{command} batch --help",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True, style="cyan")
    console.print('YOUR.jsonl has rows like {"main": "a shared text", "branches": ["a question", "another one"]}.')
    return 0


def _show_stream(console: Console, record: DemoRecord, events: Iterator[Event]) -> None:
    texts = [""] * len(record.branches)
    done = [False] * len(record.branches)
    if not console.is_terminal:
        for event in events:
            texts[event.branch_index] += event.text
        console.print(_columns(console, record, texts, [True] * len(texts)))
        return
    shown: set[int] = set()
    with Live(_columns(console, record, texts, done), console=console, refresh_per_second=20) as live:
        for event in events:
            if event.branch_index in shown:
                # Each branch has its token of this step: the tiny model is too fast to watch, so wait a little.
                shown.clear()
                live.update(_columns(console, record, texts, done))
                time.sleep(_SECONDS_A_STEP)
            shown.add(event.branch_index)
            texts[event.branch_index] += event.text
            done[event.branch_index] = event.finish_reason is not None
        live.update(_columns(console, record, texts, done))


def _columns(console: Console, record: DemoRecord, texts: list[str], done: list[bool]) -> Columns:
    width = max(20, (console.width - 1) // max(1, min(4, console.width // 22)) - 1)
    panels = [
        Panel(
            Group(
                f"[dim]{escape(branch.strip())}[/dim]",
                f"[bold green]{escape(text.strip())}[/]{'' if end else '▌'}",
            ),
            title=f"branch {number}",
            width=width,
        )
        for number, (branch, text, end) in enumerate(zip(record.branches, texts, done, strict=True), start=1)
    ]
    return Columns(panels)


def _table(result: DemoResult) -> Table:
    table = Table(show_header=True, header_style="bold")
    table.add_column("")
    table.add_column("parallel", justify="right")
    table.add_column("one by one", justify="right")
    parallel, alone = result.parallel_seconds, result.one_by_one_seconds
    table.add_row("records", str(result.records), str(result.records))
    table.add_row("branches", str(result.branches), str(result.branches))
    share = f"{result.exact} of {result.branches} ({result.exact / result.branches:.1%})"
    table.add_row("exact answers", share, share if result.identical == result.branches else "")
    table.add_row("seconds", f"{parallel:.2f}", f"{alone:.2f}")
    table.add_row("tokens/s", f"{result.tokens / parallel:,.0f}", f"{result.tokens / alone:,.0f}")
    table.add_row("ratio", f"[bold green]{alone / parallel:.1f}×[/]", "1×")
    same = result.identical == result.branches
    verdict = "[bold green]yes, all[/]" if same else f"[red]{result.identical} of {result.branches}[/]"
    table.add_row("identical answers", verdict, "")
    return table
