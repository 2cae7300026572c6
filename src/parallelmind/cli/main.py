"""The command `parallelmind` and its subcommands, one module each.

A subcommand module has `add_arguments(parser)` and `run(args) -> exit code`; `commands.py` lists them all.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import parallelmind
from parallelmind.cli.args import Parser, parse
from parallelmind.cli.commands import COMMANDS, overview, prepare_parser
from parallelmind.cli.stderr import configure_logging, say_failed
from parallelmind.errors import ParallelMindError
from parallelmind.jobs.ranks import current_rank

# Read by OpenMP when torch is imported, later. Threads that spin while they wait cost more than everything else as soon
# as another program runs: measured on 2 cores beside one busy process, 6.1 s against 0.5 s, and no loss on idle cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_INTERRUPTED = (130, 143)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0 success, 1 error, 2 wrong usage, 130 interrupted, 141 nobody reads the output any more, 143 terminated.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    before = signal.signal(signal.SIGTERM, _terminate)
    caught: BaseException
    try:
        args = parse(_parser(given), given)
        configure_logging(current_rank(), debug=args.debug)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ParallelMindError as error:
        caught, message, code = error, f"error: {error}", 1
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141
        if error.errno not in _NO_SPACE:
            raise
        caught, code = error, 1
        message = f"error: {error.filename or 'writing'}: {error.strerror}; make room and start the same command again"
    except KeyboardInterrupt as error:
        caught, message, code = error, "interrupted", 143 if isinstance(error, _Terminated) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if "--debug" in given:
        traceback.print_exception(caught)
    say_failed(message, interrupted=isinstance(caught, KeyboardInterrupt))
    return code


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command as the program that this process is, and end with its exit code.

    Where it was interrupted the process ends without waiting for its threads, and without taking torch down in order,
    which takes seconds.
    """
    # Worker processes search no current folder for modules: a json.py there would take the place of Python's own.
    given = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        code = main(argv)
    finally:  # for whoever runs this in a process of his own
        if given is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = given
    if code in _INTERRUPTED:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _parser(given: Sequence[str]) -> Parser:
    # Modules of commands import what their flags need: only that of the command which is given is imported.
    parser = Parser(
        prog="parallelmind",
        usage="parallelmind COMMAND [FLAGS]",
        description=overview(),
        epilog="`parallelmind COMMAND --help` lists the flags of a command.",
    )
    version = f"parallelmind {parallelmind.__version__}"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    commands = parser.add_subparsers(prog="parallelmind", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name in COMMANDS:
        command = commands.add_parser(name)
        if given and given[0] == name:
            command.set_defaults(run=prepare_parser(command, name))
            command.add_argument("--debug", action="store_true", help="more log lines, and tracebacks of errors")
    return parser


def _reader_is_gone() -> bool:
    """Whether the program that read our output has ended, as `head` does; the rest of the output is then discarded."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(state & select.POLLERR for _, state in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated
