"""`parallelmind demo-train`: LoRA with 2D RoPE on the bundled model, in minutes on a CPU."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from parallelmind.cli.train_progress import make_train_progress
from parallelmind.cli.typed import typed_command
from parallelmind.errors import SettingsError
from parallelmind.settings.model import DEFAULT_STRIDE

if TYPE_CHECKING:
    from parallelmind.columnar import Visibility
    from parallelmind.demos.train import DemoTask, Measured, Trained


EPILOG = """\
1. The bundled model answers questions on a story; with 2D RoPE switched on, untuned, it answers much worse; LoRA
   training on generated records brings it back.
2. Every branch states a fact and asks for one that only another branch states. Branches that do not see each other
   (isolated) can only guess; under columnar visibility they learn to read what the others have written.

Exit codes: 0 done and both as they should be, 1 an accuracy is too low or an error, 2 wrong usage.
"""
_RECALLED_AT_LEAST = 0.95
_COOPERATION_GAINS_AT_LEAST = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("out/demo_train"),
        metavar="DIR",
        help="folder for the output (default: out/demo_train)",
    )
    parser.add_argument(
        "--max_steps",
        type=int,
        metavar="N",
        help="steps of each training at most, for a quick look (default: 100 for the first task, 200 for the second)",
    )
    parser.add_argument(
        "--records",
        type=int,
        default=1000,
        metavar="N",
        help="records of each training; a tenth as many are held out to measure accuracy on (default: 1000)",
    )


def run(args: argparse.Namespace) -> int:
    """Train both tasks and print the accuracies before and after; 0 if both reached what they should."""
    if args.records < 1:
        raise SettingsError(f"--records is {args.records}; it must be 1 or more.")
    began = time.monotonic()
    console = Console()
    recalled = _recall(console, args)
    console.print()
    gained = _cooperate(console, args)
    console.print(f"\n{time.monotonic() - began:.0f} seconds in all. Next:", highlight=False)
    for command in (
        f"{typed_command()} show {args.out_dir}/cooperation.jsonl --visibility columnar",
        f"{typed_command()} batch --base_model tiny --lora_path {args.out_dir}/lora/cooperation_columnar_final.pth "
        f"--data_path {args.out_dir}/cooperation_held_out.jsonl --out_path {args.out_dir}/answers.jsonl "
        "--temperature 0",
        f"{typed_command()} train --help",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True, style="cyan")
    good = recalled >= _RECALLED_AT_LEAST and gained >= _COOPERATION_GAINS_AT_LEAST
    if not good:
        console.print(
            f"[red]Not as it should be: at least {_RECALLED_AT_LEAST:.0%} recalled, and columnar better by at least "
            f"{_COOPERATION_GAINS_AT_LEAST * 100:.0f} points.[/]"
        )
    return 0 if good else 1


def _recall(console: Console, args: argparse.Namespace) -> float:
    from parallelmind.demos.train import RECALL, measure, prepare

    console.rule("1. What 2D RoPE costs an untuned model, and what LoRA brings back")
    _, held_out = prepare(RECALL, args.out_dir, args.records)
    console.print("A story of eight facts is main, eight questions are its branches.", highlight=False)
    alone = measure(held_out, patch_rope=False)
    untuned = measure(held_out, patch_rope=True, branch_stride=DEFAULT_STRIDE)
    trained = _train(console, RECALL, "isolated", args)
    tuned = measure(held_out, adapter=trained.report.written)
    rows = [
        ("bundled model, without 2D RoPE", alone),
        (f"with 2D RoPE (split, ratio 0.5, stride {DEFAULT_STRIDE}), untuned", untuned),
        (f"with 2D RoPE, after {trained.report.steps} steps of LoRA ({trained.seconds:.0f} s)", tuned),
    ]
    _show(console, rows, [trained])
    return tuned.share


def _cooperate(console: Console, args: argparse.Namespace) -> float:
    from parallelmind.demos.train import COOPERATION, measure, prepare

    console.rule("2. Branches that need each other")
    _, held_out = prepare(COOPERATION, args.out_dir, args.records)
    console.print("Each of four branches states one fact and asks for one that only another states.", highlight=False)
    shown, rows, runs = [], [], []
    visibilities: tuple[Visibility, ...] = ("isolated", "columnar")
    for visibility in visibilities:
        trained = _train(console, COOPERATION, visibility, args)
        tuned = measure(held_out, adapter=trained.report.written)
        rows.append((f"{visibility}, after {trained.report.steps} steps of LoRA ({trained.seconds:.0f} s)", tuned))
        shown.append(tuned.share)
        runs.append(trained)
    untuned = measure(held_out, patch_rope=True, visibility="columnar")
    _show(console, [("columnar, untuned", untuned), *rows], runs)
    return shown[1] - shown[0]


def _train(console: Console, task: DemoTask, visibility: Visibility, args: argparse.Namespace) -> Trained:
    from parallelmind.demos.train import command, train, train_options

    options = train_options(task, args.out_dir, visibility, args.max_steps)
    console.print(f"{command(options)} …", highlight=False, soft_wrap=True, style="dim")
    return train(options, make_train_progress())


def _show(console: Console, rows: list[tuple[str, Measured]], runs: list[Trained]) -> None:
    table = Table(show_header=True, header_style="bold")
    table.add_column("on held-out records")
    table.add_column("exact answers", justify="right")
    for name, measured in rows:
        table.add_row(name, f"{measured.right} of {measured.asked} ([bold]{measured.share:.1%}[/])")
    console.print(table)
    for trained in runs:
        if trained.report.report is not None:
            console.print(f"report: [bold]{trained.report.report}[/bold]", highlight=False, soft_wrap=True)
