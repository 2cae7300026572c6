"""`parallelmind chat`: a conversation on the terminal, or piped."""

from __future__ import annotations

import argparse
import sys

from parallelmind.cli.single import add_single_arguments, load_engine, sampling_params
from parallelmind.errors import RequestError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "talk with a model"
_EPILOG = "quit, exit or Ctrl-D ends the chat; Ctrl-C stops an answer."
_ENDINGS = {"quit", "exit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_single_arguments(parser)
    parser.epilog = _EPILOG


def run(args: argparse.Namespace) -> int:
    """Read messages and stream the replies until the end of input."""
    from parallelmind.pipelines.chat import ChatSession

    session = ChatSession(load_engine(args), sampling_params(args))
    while True:
        try:
            message = input("User: ").strip()
        except EOFError:
            print()
            return 0
        if message.lower() in _ENDINGS:
            return 0
        if not message:
            continue
        print("Assistant: ", end="", flush=True)
        reply = session.reply(message)
        try:
            for piece in reply:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            reply.close()
            print(" [stopped]", end="")
        except RequestError as error:
            print(f"\nerror: {error}", end="", file=sys.stderr)
        print()
