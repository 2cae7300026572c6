"""Errors that stand in code are found, each at its place; what is no error is left alone.

In the code below `#!` names what is to be found in a line: its kind and the last component of the name. Every other
line, and every line of the second half, must be silent.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parallelmind.retrieval.check.checker import check_code
from parallelmind.retrieval.corpus_facts import CorpusFacts
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.check.library import VERSIONS, write_library

_MARK = re.compile(r"#! (.+)$")
_HERE = Path(__file__).parent
_CASES = [
    pytest.param(case, id=f"{file.stem}-{case.splitlines()[0].lstrip('# ')}")
    for file in (_HERE / "planted.txt", _HERE / "innocent.txt")
    for case in re.split(r"(?m)^(?=## )", file.read_text("utf-8"))
    if case.strip()
]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> CorpusFacts:
    return CorpusFacts(CorpusStore(write_library(tmp_path_factory.mktemp("library"))))


@pytest.mark.parametrize("case", _CASES)
def test_code(case: str, facts: CorpusFacts) -> None:
    lines = case.splitlines()
    marks = {number: mark.group(1) for number, line in enumerate(lines, start=1) if (mark := _MARK.search(line))}
    wanted = sorted((number, one.strip()) for number, mark in marks.items() for one in mark.split(","))
    found = check_code(case, "case.py", facts, VERSIONS).findings
    assert sorted((one.line, f"{one.kind} {one.name.rpartition('.')[2]}") for one in found) == wanted


def test_that_enough_is_planted() -> None:
    marks = re.findall(r"(?m)#! (.+)$", (_HERE / "planted.txt").read_text("utf-8"))
    assert sum(mark.count(",") + 1 for mark in marks) >= 60
