"""`parallelmind check-pos2d`: how pos2d flows through a model, shown and checked."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parallelmind.cli.args import documented_default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base_model",
        default="tiny",
        metavar="MODEL",
        help="Hub name, local folder, or tiny: the bundled model (default: tiny)",
    )
    parser.add_argument("--device", help=documented_default("such as cuda, cuda:1, cpu", "cuda, or cpu without a GPU"))
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help=documented_default("number format of the weights", "float32 on a CPU, bfloat16 elsewhere"),
    )


def run(args: argparse.Namespace) -> int:
    """0 if everything holds."""
    from parallelmind.doctor.check import DoctorOptions, perform
    from parallelmind.doctor.pos2d import STRIDE, flow_checks, load_flow

    console = Console()
    flow = load_flow(DoctorOptions(base_model=args.base_model, device=args.device, dtype=args.dtype))
    dtype = str(flow.model.dtype).removeprefix("torch.")
    console.print(
        f"{args.base_model} in {dtype} on {flow.device}. {len(flow.pairs)} of its frequency pairs turn by the branch "
        f"position, from pair {flow.pairs[0]} to {flow.pairs[-1]} (pair 0 is the fastest). A row of main with "
        f"{len(flow.main)} tokens and {len(flow.branches)} branches, at stride {STRIDE}:\n",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("token", "branch id", "branch position", "time", header_style="bold")
    for place, branch in enumerate(flow.row.branch_ids.tolist()):
        position, time = flow.pos2d[0, place].tolist()
        table.add_row(str(place), f"{branch}" + (" (main)" if branch == 0 else ""), str(position), str(time))
    console.print(table)
    console.print(f"\nDifferences are of logits, of which the largest is {flow.scale:.3g}.", highlight=False)
    failures = 0
    for check in flow_checks(lambda: flow):
        outcome = perform(check)
        failed = outcome.status == "fail"
        failures += failed
        mark = "[bold red]FAIL[/]" if failed else "[green]ok  [/]"
        console.print(f"{mark} {escape(outcome.name)}: {escape(outcome.found)}", highlight=False, soft_wrap=True)
    if failures:
        console.print(f"[bold red]{failures} checks failed[/]", highlight=False)
        return 1
    console.print("all checks passed", highlight=False)
    return 0
