"""`parallelmind chat`: a conversation on the terminal, or piped."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from parallelmind.cli.chat_commands import COMMANDS_HELP, ChatCommands
from parallelmind.cli.chat_input import MessageReader
from parallelmind.cli.single import add_single_arguments, load_single, single_options
from parallelmind.cli.terminal import NO_ANSWER, printable, stoppable, tolerate_any_text
from parallelmind.errors import ParallelMindError

if TYPE_CHECKING:
    from parallelmind.chat import ChatSession


_ENDINGS = {"quit", "exit"}
_INTERRUPTED = 130
_GOODBYE = "再见！"
_BUNDLED = """\
The bundled model answers questions about a short story that stands above them, and nothing else. For example:
    /main Story: Emma likes blue. The age of Dan is 26. The hat costs 91 dollars.
    How old is Dan?"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_single_arguments(parser)
    add_chat_flags(parser)
    parser.epilog = "In the chat:\n" + COMMANDS_HELP.replace("%", "%%")


def add_chat_flags(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flags that `generate` does not have."""
    group.add_argument("--system", default="", metavar="TEXT", help="system message (default: none)")


def run(args: argparse.Namespace) -> int:
    """Read messages and stream the replies until the end of input; 130 after Ctrl-C twice at the prompt."""
    from parallelmind.chat import ChatSession
    from parallelmind.settings.model import TINY_MODEL

    tolerate_any_text()
    options = single_options(args)
    session = ChatSession(load_single(options), options.sampling(), notify=_notify)
    session.conversation.system = args.system
    reader, console = MessageReader(), Console(highlight=False)
    commands = ChatCommands(session, reader, console)
    hint = _BUNDLED if options.base_model == TINY_MODEL else ""
    if sys.stdin.isatty():
        console.print(f"{options.base_model} listens; /help lists what you can type.", style="dim")
        if hint:
            console.out(hint, style="dim", highlight=False)
            hint = ""
    interrupted = False
    while True:
        try:
            line = reader.read("User: ")
            interrupted = False
            if line.strip().lower() in _ENDINGS:
                print(_GOODBYE)
                return 0
            if not _answer(session, commands, console, line) and hint:
                console.out(hint, style="dim", highlight=False)
                hint = ""
        except EOFError:
            print(f"\n{_GOODBYE}")
            return 0
        except ParallelMindError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # terminated
                raise
            print()
            if interrupted or not sys.stdin.isatty():
                print(_GOODBYE)
                return _INTERRUPTED
            interrupted = True
            console.print("Ctrl-C again quits.", style="dim")


def _answer(session: ChatSession, commands: ChatCommands, console: Console, line: str) -> bool:
    """Do what a line asks for; False if the model had nothing to say."""
    if not line.strip():
        return True
    if line.startswith("/") and not line.startswith("//"):
        commands.run(line)
        return True
    started = False
    try:
        with stoppable() as stop:
            print("Assistant: ", end="", flush=True)
            for piece in stop.cuts(session.reply(line.removeprefix("/").strip())):
                shown = printable(piece if started else piece.lstrip())
                started = started or bool(shown)
                print(shown, end="", flush=True)
            if stop.pressed:
                print(" [stopped]", end="")
            elif not started:
                console.print(NO_ANSWER, style="dim", end="")
            return started or stop.pressed
    finally:
        print(flush=True)


def _notify(text: str) -> None:
    print(f"[{text}]", file=sys.stderr, flush=True)
