"""`parallelmind generate`: the completion of one prompt, or of several branches under it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from parallelmind.cli.columns import show_branches
from parallelmind.cli.single import add_single_arguments, load_single, single_options
from parallelmind.cli.terminal import NO_ANSWER, printable, tolerate_any_text
from parallelmind.errors import DataError

if TYPE_CHECKING:
    from parallelmind.engine.engine import Engine
    from parallelmind.engine.request import BranchResult
    from parallelmind.settings.sampling import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_single_arguments(parser)
    add_generate_flags(parser)


def add_generate_flags(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flags that `chat` does not have."""
    prompt = group.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help='the text to continue; "-" reads stdin')
    prompt.add_argument("--prompt_file", metavar="PATH", help="a UTF-8 file that holds it")
    group.add_argument(
        "--branch",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text under the prompt, answered in parallel with the others; may be given several times",
    )
    group.add_argument(
        "--json", action="store_true", help="print a JSON line for each answer, as `parallelmind batch` writes it"
    )


def run(args: argparse.Namespace) -> int:
    """Print the answers; 0 when all of them are whole, 1 when one could not be given."""
    tolerate_any_text()
    options, prompt = single_options(args), _prompt(args)
    engine, sampling = load_single(options), options.sampling()
    if args.json:
        return _print_json(engine, prompt, args.branch, sampling)
    if args.branch:
        return _show_branches(engine, prompt, args.branch, sampling)
    return _print_text(engine, prompt, sampling)


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt == "-":
        return sys.stdin.read()
    if args.prompt_file is None:
        return str(args.prompt)
    try:
        return Path(args.prompt_file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompt_file {args.prompt_file}: {error}; give a UTF-8 text file.") from error


def _print_text(engine: Engine, prompt: str, sampling: SamplingParams) -> int:
    from parallelmind.chat import stream_text

    # A file or a program gets the text as it is.
    shown = printable if sys.stdout.isatty() else str
    text = ""
    try:
        for piece in stream_text(engine, prompt, sampling):
            text += piece
            print(shown(piece), end="", flush=True)
    finally:
        if text:
            print(flush=True)
    if not text.strip():
        _note_empty(1, 1)
    return 0


def _show_branches(engine: Engine, prompt: str, branches: Sequence[str], sampling: SamplingParams) -> int:
    from parallelmind.engine.request import Request

    request = Request(main=prompt, branches=branches)
    shown = show_branches(Console(highlight=False), branches, engine.stream(request, sampling))
    return int(any(result is None or result.error is not None for result in shown.results))


def _print_json(engine: Engine, prompt: str, branches: Sequence[str], sampling: SamplingParams) -> int:
    from parallelmind.engine.request import Request

    request = Request(main=prompt, branches=branches)
    [result] = engine.generate(request, sampling)
    for index, (text, answer) in enumerate(zip(branches or [prompt], result.branches, strict=True)):
        print(json.dumps(_row(text, index if branches else None, answer), ensure_ascii=False), flush=True)
    if empty := sum(answer.error is None and not answer.text.strip() for answer in result.branches):
        _note_empty(empty, len(result.branches))
    return int(any(answer.error is not None for answer in result.branches))


def _note_empty(empty: int, answers: int) -> None:
    """On stderr, since stdout holds the answers alone."""
    print(NO_ANSWER if answers == 1 else f"{NO_ANSWER}: {empty} of {answers} answers are empty", file=sys.stderr)


def _row(text: str, branch: int | None, answer: BranchResult) -> dict[str, Any]:
    row: dict[str, Any] = {"input": text, "output": None if answer.error else answer.text}
    if branch is not None:
        row["branch"] = branch
    if answer.error:
        return row | {"error": answer.error}
    return row | {"finish_reason": answer.finish_reason, "output_tokens": len(answer.token_ids)}
