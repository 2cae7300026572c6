"""The argument parser of all commands."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from parallelmind.cli.stderr import say_failed

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """Takes underscores and hyphens in flags; an error is one line, and suggests the flag that was meant."""

    more_flags: Callable[[Parser], None] | None = None
    """Adds flags that take a heavy import to know; called when a flag is given that is not among the others."""
    meant: Mapping[str, str] = {}
    """Flags of other commands, and what they are here."""

    def __init__(self, *args: object, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        raw = sys.argv[1:] if args is None else list(args)
        self._learn_more_flags(raw)
        given = [self._spelled(arg) for arg in raw]
        if self._subparsers:
            return super().parse_known_args(given, namespace)
        # Checked before argparse, which would report a required flag as missing rather than name the misspelled one.
        self._refuse_unknown(arg for arg in given if arg.startswith("--") and arg != "--" and " " not in arg)
        known, rest = super().parse_known_args(given, namespace)
        self._refuse_unknown(arg for arg in rest if arg.startswith("-"))
        return known, rest

    def error(self, message: str) -> NoReturn:
        # What is wrong with a value begins with its flag already.
        message = re.sub(r"^argument \S+: (?=--)", "", message)
        say_failed(f"error: {message} (see {self.prog} --help)")
        self.exit(USAGE_ERROR)

    def _learn_more_flags(self, args: Iterable[str]) -> None:
        names = (self._spelled(arg).partition("=")[0] for arg in args if arg.startswith("--"))
        if self.more_flags is not None and any(name not in self._option_string_actions for name in names):
            learn, self.more_flags = self.more_flags, None
            learn(self)

    def _refuse_unknown(self, flags: Iterable[str]) -> None:
        for flag in flags:
            if flag.partition("=")[0] not in self._option_string_actions:
                self.error(f"unknown flag {flag.partition('=')[0]}{self._suggestion(flag)}")

    def _spelled(self, arg: str) -> str:
        if not arg.startswith("--"):
            return arg
        name, equals, value = arg.partition("=")
        spelled = "--" + name[2:].replace("-", "_")
        return spelled + equals + value if spelled in self._option_string_actions else arg

    def _suggestion(self, unknown: str) -> str:
        name = "--" + unknown.partition("=")[0].lstrip("-").replace("-", "_").lower()
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        if name in self.meant:
            close = [self.meant[name]]
        return f"; did you mean {close[0]}?" if close else ""


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse, or exit with code 2 after one line that says what is wrong."""
    known, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(f"unexpected argument {rest[0]!r}")
    return known
