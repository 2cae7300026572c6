"""Checking code against the versions of packages that it is to run with."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from parallelmind.errors import DataError
from parallelmind.retrieval.check.findings import Report
from parallelmind.retrieval.check.judge import Judge
from parallelmind.retrieval.check.source import MAX_CHARACTERS, parse_source
from parallelmind.retrieval.check.statements import Statements
from parallelmind.retrieval.check.survey import survey
from parallelmind.retrieval.facts import Facts


def check_code(
    text: str, path: str, facts: Facts | None, versions: Mapping[str, str], *, max_characters: int = MAX_CHARACTERS
) -> Report:
    """What is wrong with a text; `versions` are those of import names, `path` is what findings call it.

    Without any versions there need be no facts: then it is parsed, and its imports are told.

    Only what is certain is told: of a value or a name that may be several things nothing is said.

    Raises:
        DataError: it is not code of Python, too long, or nested too deeply.
    """
    source = parse_source(text, path, max_characters=max_characters)
    judge = Judge(facts, versions, source)
    try:
        Statements(judge, survey(source.tree)).module(source.tree)
    except RecursionError:
        raise DataError(f"{path} is nested too deeply to be checked; take its longest expressions apart.") from None
    findings = sorted(judge.findings.values(), key=lambda one: (one.line, one.column, one.kind))
    return Report(tuple(findings), frozenset(_imported(source.tree)))


def imported_names(text: str, path: str) -> frozenset[str]:
    """The first components of all that a text imports; none, if it is not code of Python."""
    try:
        return frozenset(_imported(parse_source(text, path).tree))
    except DataError:
        return frozenset()


def _imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found
