"""docs/cli.md says what the parsers say."""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

import pytest

from parallelmind.cli.commands import COMMANDS
from tests.docs.help_pages import PATH, SCRIPTS, parser_of, render
from tests.docs.usage import run_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    return render()


def test_the_page_is_up_to_date(page: str) -> None:
    assert PATH.read_text(encoding="utf-8") == page, "run: python -m tests.docs.help_pages"


def test_the_page_is_the_same_on_every_terminal(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert render() == page
    assert str(ROOT) not in page
    assert str(Path.home()) not in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_and_its_help_is_there(command: str, page: str) -> None:
    section = page.split(f"\n## parallelmind {command}\n")[1].split("\n## ")[0]
    for action in parser_of(command)._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        for flag in action.option_strings:
            assert f"`{flag}" in section
        assert " ".join((action.help or "").replace("%%", "%").split()[:3]) in section.replace("&lt;", "<")


@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_run_the_command_they_stand_beside(command: str) -> None:
    script, *flags = SCRIPTS[command].split()
    commands: list[str] = []
    ran = lambda argv: commands.append(argv[0])  # noqa: E731
    with patch("parallelmind.cli.main.main", ran), patch("parallelmind.cli.single_script.run_command", ran):
        run_script(script, flags)
    assert commands == [command]
