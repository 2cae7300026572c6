"""The tools by name: what each takes, gives and does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from parallelmind.errors import DataError
from parallelmind.retrieval.check.checker import imported_names
from parallelmind.retrieval.documentation import Documentation
from parallelmind.retrieval.project.requirements import parse_requirements
from parallelmind.retrieval.project.versions import ProjectVersions
from parallelmind.server.documentation import forms

_SHOWN_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool; `answer` and `lacking` run in the thread of the documentation."""

    description: str
    takes: type[BaseModel]
    gives: type[BaseModel]
    answer: Callable[[Documentation, Any], tuple[BaseModel, str]]
    """The result, and the same as text."""
    lacking: Callable[[Documentation, Any], list[str]] = lambda _, __: []
    """What to build before; other tools say it by raising MissingCorpusError."""


def parse_arguments(tool: Tool, name: str, given: Mapping[str, Any]) -> BaseModel:
    """The arguments of a call.

    Raises:
        DataError: one is missing, unknown, of another type or too long; the text does not repeat it.
    """
    try:
        return tool.takes.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        shown = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in problems[:_SHOWN_PROBLEMS])
        raise DataError(f"{name} cannot be called so: {shown}; see its input schema.") from None


def _lookup(documentation: Documentation, given: forms.LookupArguments) -> tuple[BaseModel, str]:
    result = forms.lookup_result(documentation.lookup(given.name, given.version, include_source=given.include_source))
    return result, forms.lookup_text(result)


def _search(documentation: Documentation, given: forms.SearchArguments) -> tuple[BaseModel, str]:
    result = forms.search_result(documentation.search(given.query, given.package, given.version))
    return result, forms.search_text(result)


def _diff(documentation: Documentation, given: forms.DiffArguments) -> tuple[BaseModel, str]:
    result = forms.diff_result(*documentation.diff(given.package, given.old, given.new))
    return result, forms.diff_text(result)


def _check_code(documentation: Documentation, given: forms.CheckArguments) -> tuple[BaseModel, str]:
    project = _project(documentation, given)
    checked = documentation.check(given.source, "source", project, max_characters=forms.MAX_SOURCE)
    result = forms.check_result(checked)
    return result, forms.check_text(result)


def _lacking_for_code(documentation: Documentation, given: forms.CheckArguments) -> list[str]:
    return documentation.missing(imported_names(given.source, "source"), _project(documentation, given))


def _project(documentation: Documentation, given: forms.CheckArguments) -> ProjectVersions:
    project = (
        parse_requirements(given.requirements, "requirements") if given.requirements.strip() else documentation.project
    )
    if not project.versions:
        what = (
            "requirements have no line that names a version"
            if given.requirements.strip()
            else "requirements are missing, and the server was started without --requirements"
        )
        raise DataError(f"{what}; give lines such as numpy==1.26.4.")
    return project


TOOLS = {
    "lookup": Tool(
        "Whether an API exists in the exact version of its package that the project uses, with proof; its signature, "
        "documentation and examples in that version, whether it is deprecated, and what takes its place.",
        forms.LookupArguments,
        forms.LookupResult,
        _lookup,
    ),
    "search": Tool(
        "Find APIs of the exact version of a package by a question or by words.",
        forms.SearchArguments,
        forms.SearchResult,
        _search,
    ),
    "diff": Tool(
        "What changed between two versions of a package: removed, moved, renamed and deprecated APIs, signatures.",
        forms.DiffArguments,
        forms.DiffResult,
        _diff,
    ),
    "check_code": Tool(
        "Check Python code, without running it, against the exact versions of its packages: every use that does not "
        "exist, is deprecated, or is called with arguments it does not take, with line, proof and replacement. "
        "Only what is certain is told.",
        forms.CheckArguments,
        forms.CheckResult,
        _check_code,
        _lacking_for_code,
    ),
}
