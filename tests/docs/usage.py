"""Whether a command could be run as it stands: the real parsers take its flags, its files and targets exist."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

from packaging.requirements import Requirement

from tests.docs.blocks import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_PIP_VALUES = {"--index-url", "--extra-index-url", "--constraint", "-c", "-r", "--find-links"}
_SRUN_FLAG = re.compile(r"--?[\w-]+(=.*)?$")


def check_usage(words: Sequence[str]) -> None:
    """Fail unless the command is right as far as can be told without running it."""
    match list(words):
        case ["parallelmind", *given] | ["python", "-m", "parallelmind", *given]:
            _parse(given)
        case ["python", script, *given] if script.endswith(".py") and (ROOT / script).is_file():
            with _parsing_only():
                run_script(script, given)
        case ["torchrun", *given]:
            _torchrun(given)
        case ["srun", *rest]:
            while rest and _SRUN_FLAG.match(rest[0]):
                rest = rest[1:]
            check_usage(rest)
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target} in Makefile"
        case ["pip" | "pip3", "install", *given] | ["python" | "python3", "-m", "pip", "install", *given]:
            _pip(given)
        case ["bash", script, *_]:
            assert (ROOT / script).is_file(), f"no file {script}"
        case ["ray", *given]:
            _ray(given)
        case ["uvicorn", application, *given]:
            _uvicorn(application, given)
        case _:
            raise AssertionError(f"no way to check {list(words)}: add one to tests/docs/usage.py")


def run_script(script: str, given: Sequence[str]) -> int:
    """Run one of the project's scripts in this process, as `python script …` does; returns its exit code."""
    path = ROOT / script
    with patch.object(sys, "argv", [script, *given]), patch.object(sys, "path", [str(path.parent), *sys.path]):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def _parse(given: Sequence[str]) -> int:
    from parallelmind.cli.args import parse
    from parallelmind.cli.main import _parser

    try:
        parse(_parser(given), given)
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"the parser refuses {list(given)}") from end
    return 0


@contextmanager
def _parsing_only() -> Iterator[None]:
    with patch("parallelmind.cli.main.main", _parse):
        yield


def _torchrun(given: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    # Variables of a cluster's shell have no value here.
    known = get_args_parser().parse_args([os.path.expandvars(word) for word in given])
    check_usage(["python", known.training_script, *known.training_script_args])


def _pip(given: Sequence[str]) -> None:
    wanted, words = [], iter(given)
    for word in words:
        if word in _PIP_VALUES:
            next(words)
        elif not word.startswith("-"):
            wanted.append(word)
    extras = PROJECT["optional-dependencies"]
    for word in wanted:
        if word.endswith(".whl"):
            continue
        local = re.fullmatch(r"\.(?:\[(?P<extras>[\w,]+)\])?", word)
        if local is None:
            requirement = Requirement(word)
            named = requirement.extras if requirement.name == PROJECT["name"] else set()
        else:
            named = set((local["extras"] or "").split(",")) - {""}
        assert named <= extras.keys(), f"{word}: pyproject.toml has no extra {named - extras.keys()}"


def _ray(given: Sequence[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of the libraries it imports
        from ray.scripts.scripts import cli

    assert given[0] in cli.commands, f"ray has no command {given[0]}"
    cli.commands[given[0]].make_parser(ctx=cli.commands[given[0]].context_class(cli)).parse_args(list(given[1:]))


def _uvicorn(application: str, given: Sequence[str]) -> None:
    from uvicorn.main import main

    main.make_parser(ctx=main.context_class(main)).parse_args([application, *given])
    module, _, name = application.partition(":")
    assert (ROOT / "src" / (module.replace(".", "/") + ".py")).is_file(), module
    assert name == "app"


@cache
def flags_of(command: str) -> frozenset[str]:
    """Every flag of a command and its subcommands."""
    from parallelmind.cli.main import _parser

    parsers, found = [_parser([command])], set()
    while parsers:
        parser = parsers.pop()
        learn = getattr(parser, "more_flags", None)
        if learn is not None:
            learn(parser)
        found |= set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return frozenset(found)
