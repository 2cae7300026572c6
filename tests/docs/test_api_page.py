"""docs/api.md describes what `parallelmind` exports."""

from __future__ import annotations

import re

import pytest

import parallelmind
from tests.docs.api_page import GROUPS, PATH, Group, render


def test_the_page_is_up_to_date() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run: python -m tests.docs.api_page"


def test_every_exported_name_is_there_once() -> None:
    assert sorted(name for group in GROUPS for name in group.names) == sorted(parallelmind.__all__)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.title)
def test_the_program_of_a_group_uses_each_of_its_names(group: Group) -> None:
    """That the programs run is the matter of tests/docs/test_commands.py."""
    rest = group.example.partition("\n\n")[2]
    used = re.findall(r"\w+", rest)
    assert set(group.names) <= set(used), set(group.names) - set(used)
