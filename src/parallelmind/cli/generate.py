"""`parallelmind generate`: the completion of one prompt."""

from __future__ import annotations

import argparse
import sys

from parallelmind.cli.single import add_single_arguments, load_engine, sampling_params

__all__ = ["HELP", "add_arguments", "run"]

HELP = "print the completion of a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_single_arguments(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help='the text to continue; "-" reads stdin')


def run(args: argparse.Namespace) -> int:
    """Stream the completion to stdout; 0 when it is whole."""
    from parallelmind.pipelines.chat import stream_text

    sampling = sampling_params(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    for piece in stream_text(load_engine(args), prompt, sampling):
        print(piece, end="", flush=True)
    print()
    return 0
