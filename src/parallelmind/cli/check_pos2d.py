"""`parallelmind check-pos2d`: how pos2d flows through a model, shown and checked."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parallelmind.cli.flags import add_settings, given
from parallelmind.doctor.check import DoctorOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, DoctorOptions, leave_out=("lora_path", "lora_rank"))


def run(args: argparse.Namespace) -> int:
    """0 if everything holds."""
    from parallelmind.doctor.check import perform
    from parallelmind.doctor.pos2d import STRIDE, flow_checks, load_flow

    console = Console()
    options = DoctorOptions(**given(args, DoctorOptions))
    flow = load_flow(options)
    dtype = str(flow.model.dtype).removeprefix("torch.")
    console.print(
        f"{options.base_model} in {dtype} on {flow.device}. {len(flow.pairs)} of its frequency pairs turn by the "
        f"branch position, from pair {flow.pairs[0]} to {flow.pairs[-1]} (pair 0 is the fastest). A row of main with "
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
        result = perform("pos2d", check)
        failed = result.status == "fail"
        failures += failed
        mark = "[bold red]FAIL[/]" if failed else "[green]ok  [/]"
        console.print(f"{mark} {escape(result.name)}: {escape(result.found)}", highlight=False, soft_wrap=True)
    if failures:
        console.print(f"[bold red]{failures} checks failed[/]", highlight=False)
        return 1
    console.print("all checks passed", highlight=False)
    return 0
