"""The command `parallelmind` and its subcommands, one module each.

A subcommand module has `HELP`, `add_arguments(parser)` and `run(args) -> exit code`.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from parallelmind.cli.args import Parser, parse
from parallelmind.cli.failures import say_failed
from parallelmind.cli.logs import configure_logging
from parallelmind.errors import ParallelMindError
from parallelmind.jobs.ranks import current_rank

__all__ = ["main"]

# Read by OpenMP when torch is imported, later. Threads that spin while they wait cost more than everything else as soon
# as another program runs: measured on 2 cores beside one busy process, 6.1 s against 0.5 s, and no loss on idle cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "batch": "parallelmind.cli.batch",
    "chat": "parallelmind.cli.chat",
    "generate": "parallelmind.cli.generate",
    "demo": "parallelmind.cli.demo",
    "demo-train": "parallelmind.cli.demo_train",
    "convert": "parallelmind.cli.convert",
    "train": "parallelmind.cli.train",
    "show": "parallelmind.cli.show",
    "merge": "parallelmind.cli.merge",
    "answer": "parallelmind.cli.answer",
    "pipeline": "parallelmind.cli.pipeline",
    "demo-rag": "parallelmind.cli.demo_rag",
    "batch-import": "parallelmind.cli.batch_import",
    "batch-export": "parallelmind.cli.batch_export",
    "check-workers": "parallelmind.cli.check_workers",
    "corpus": "parallelmind.cli.corpus",
    "serve": "parallelmind.cli.serve",
    "contexts": "parallelmind.cli.contexts",
    "evaluate": "parallelmind.cli.evaluate",
    "doctor": "parallelmind.cli.doctor",
    "check-pos2d": "parallelmind.cli.check_pos2d",
}


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


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


def _parser(given: Sequence[str]) -> Parser:
    # Modules of commands import what their flags need; of a command that is known, only its own.
    chosen = given[0] if given and given[0] in COMMANDS else None
    parser = Parser(prog="parallelmind", description="Parallel branches for Hugging Face causal language models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module_name in COMMANDS.items():
        if chosen not in (None, name):
            continue
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="more log lines, and tracebacks of errors")
        command.set_defaults(run=module.run)
    return parser


def _reader_is_gone() -> bool:
    """Whether the program that read our output has ended, as `head` does; what is left of it then goes nowhere."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(state & select.POLLERR for _, state in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated
