"""`parallelmind doctor`: whether this installation works, and what to do where it does not."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import parallelmind
from parallelmind.cli.flags import add_settings, documented_default, given
from parallelmind.cli.terminal import tolerate_any_text
from parallelmind.doctor import GROUPS, CheckResult, DoctorOptions, Subject, examine
from parallelmind.doctor.check import Check, Status

EPILOG = """\
Nothing is downloaded unless --base_model is a hub name, and nothing is left behind. The exit code is 0 when no check
failed; what is not here and need not be (a GPU, an optional package) is skipped, which is not a failure.
"""
_COLOURS = {"pass": "green", "fail": "bold red", "skip": "yellow"}
_CHINESE = {
    "imports": "模块导入",
    "training": "训练脚本",
    "inference": "推理脚本",
    "documents": "文档完整性",
    "pos2d": "pos2d 工作流程",
    "files": "文件结构",
    "pass": "✅ 通过",
    "fail": "❌ 失败",
    "skip": "跳过",
}
"""The names of groups and results in the Chinese documents, which do not have the groups that are not here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="GROUP",
        help=documented_default(f"one group of checks: {', '.join(GROUPS)}; may be given several times", "all"),
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, to stdout")
    add_settings(parser, DoctorOptions)


def run(args: argparse.Namespace) -> int:
    """0 if no check failed."""
    tolerate_any_text()
    if not args.debug:
        logging.getLogger("parallelmind").setLevel(logging.WARNING)
    options = DoctorOptions(**given(args, DoctorOptions))
    # What libraries print must not get between the lines of the JSON.
    errors = Console(stderr=True)
    with contextlib.redirect_stdout(sys.stderr), errors.status("") as status:

        def begin(group: str, check: Check) -> None:
            status.update(f"{group}: {escape(check.name)} …")

        results = examine(Subject(options=options), args.only or GROUPS, begin=begin)
    return report(results, as_json=args.json)


def report(results: Sequence[CheckResult], *, as_json: bool) -> int:
    """Print the results; returns the exit code."""
    if as_json:
        print(json.dumps(_as_json(results), ensure_ascii=False, indent=2))
    else:
        _show(Console(), results)
    return 1 if any(result.status == "fail" for result in results) else 0


def _as_json(results: Sequence[CheckResult]) -> dict[str, object]:
    counts = Counter(result.status for result in results)
    return {
        "parallelmind": parallelmind.__version__,
        "ok": not counts["fail"],
        "passed": counts["pass"],
        "failed": counts["fail"],
        "skipped": counts["skip"],
        "checks": [dataclasses.asdict(result) for result in results],
    }


def _show(console: Console, results: Sequence[CheckResult]) -> None:
    table = Table(header_style="bold")
    for title in ("group", "check", "result", "found"):
        table.add_column(title, overflow="fold")
    group = ""
    for result in results:
        if group and group != result.group:
            table.add_section()
        status = f"[{_COLOURS[result.status]}]{result.status}[/]"
        shown = "" if result.group == group else result.group
        table.add_row(shown, escape(result.name), status, escape(result.found))
        group = result.group
    console.print(table)
    failed = [result for result in results if result.status == "fail"]
    for result in failed:
        console.print(f"[bold red]{result.group}: {escape(result.name)}[/]", highlight=False)
        console.print(f"  found: {escape(result.found)}", highlight=False, soft_wrap=True)
        console.print(f"  remedy: {escape(result.remedy)}", highlight=False, soft_wrap=True)
    found = _of_groups(results)
    groups = Table.grid(padding=(0, 2))
    for name, state in found.items():
        groups.add_row(name, _CHINESE.get(name, ""), f"[{_COLOURS[state]}]{state}[/]", _CHINESE[state])
    console.print(groups)
    counts = Counter(result.status for result in results)
    verdict = f"[bold red]{counts['fail']} failed[/]" if failed else "[bold green]no check failed[/]"
    console.print(f"{verdict}: {counts['pass']} passed, {counts['skip']} skipped", highlight=False)
    if not failed and set(found) == set(GROUPS):
        console.print("✅ 所有验证通过！系统已正确配置", highlight=False)


def _of_groups(results: Sequence[CheckResult]) -> dict[str, Status]:
    """A group fails with any of its checks, and is skipped where none of them could be run."""
    found: dict[str, Status] = {}
    for result in results:
        both = {found.get(result.group, "skip"), result.status}
        found[result.group] = "fail" if "fail" in both else "pass" if "pass" in both else "skip"
    return found
