"""What tools take and give, as the schemas that clients are sent, and the answers as text."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from parallelmind.io.records import shorten
from parallelmind.retrieval.change_kinds import KINDS, Kind
from parallelmind.retrieval.changes import Change
from parallelmind.retrieval.context_text import example_text, shown_signature
from parallelmind.retrieval.corpus_rows import Example, summary
from parallelmind.retrieval.documentation import MAX_NAME, MAX_QUERY, Checked, Found, Hit
from parallelmind.retrieval.sections import SAID_IN
from parallelmind.retrieval.shortening import shortened

MAX_SOURCE, MAX_REQUIREMENTS, MAX_VERSION = 100_000, 100_000, 100
_MAX_DOCUMENTATION, _MAX_SIGNATURE, _MAX_CHANGES = 12_000, 1_500, 500
_VERSION = "such as 1.26.4, or a range such as >=1.20,<2; by default what the project's lockfile or requirements say"

_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
_Version = Annotated[str, Field(max_length=MAX_VERSION)]


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LookupArguments(_Arguments):
    name: _Name = Field(description="dotted name, such as pandas.DataFrame.append; np. and pd. are understood")
    version: _Version = Field("", description=f"version of the package, {_VERSION}")
    include_source: bool = Field(False, description="also give its source code, where the archive is still there")


class SearchArguments(_Arguments):
    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY)] = Field(description="a question, or words")
    package: Annotated[str, Field(max_length=MAX_NAME)] = Field(
        "", description="the package to search in, by import name or distribution; by default all of the project"
    )
    version: _Version = Field("", description=f"version of the package, {_VERSION}")


class DiffArguments(_Arguments):
    package: _Name = Field(description="import name or distribution, such as numpy")
    old: Annotated[str, Field(min_length=1, max_length=MAX_VERSION)] = Field(alias="from", description="older version")
    new: Annotated[str, Field(min_length=1, max_length=MAX_VERSION)] = Field(alias="to", description="newer version")


class CheckArguments(_Arguments):
    source: Annotated[str, Field(max_length=MAX_SOURCE)] = Field(description="Python code; it is read and never run")
    requirements: Annotated[str, Field(max_length=MAX_REQUIREMENTS)] = Field(
        "", description="lines such as numpy==1.26.4; by default the project's lockfile or requirements"
    )


class ExampleItem(BaseModel):
    code: str
    source: str = Field(description="the page, docstring or test that has it")
    introduction: str = Field("", description="what is said right before it")


class MentionItem(BaseModel):
    text: str
    source: str


class LookupResult(BaseModel):
    status: Literal["present", "absent", "unknown"]
    name: str
    package: str
    version: str
    evidence: str = Field(description="why the status is what it is")
    kind: str = Field("", description="function, class, method, property, attribute, module …")
    signature: str = ""
    defined_as: str = ""
    deprecated: str = Field(
        "", description='what the version says about the end of this API; "" if it is not deprecated'
    )
    replacement: str = Field("", description="what to use instead")
    replacement_source: str = Field("", description="where it says so")
    members: list[str] = []
    similar: list[str] = Field([], description="names much like one that is not there")
    documentation: str = ""
    truncated: bool = Field(False, description="the documentation is longer than what is given here")
    examples: list[ExampleItem] = Field([], description="besides those of the documentation itself")
    mentions: list[MentionItem] = Field([], description="what pages of the package's documentation say about it")
    source: str = Field("", description="source code, if it was asked for")
    source_place: str = ""
    source_problem: str = Field("", description="why there is no source code")


class SearchHit(BaseModel):
    name: str
    package: str
    version: str
    kind: str
    signature: str
    summary: str


class SearchResult(BaseModel):
    hits: list[SearchHit] = Field(description="the best first; lookup gives all about one")


class ChangeItem(BaseModel):
    kind: Kind
    name: str
    new_name: str = ""
    evidence: str


class DiffResult(BaseModel):
    package: str
    old_version: str
    new_version: str
    changes: list[ChangeItem]
    total: int = Field(description="of all changes; those that would be too many are left out")


class FindingItem(BaseModel):
    line: int
    column: int
    kind: Literal["absent", "deprecated", "arguments"]
    name: str
    package: str
    version: str
    message: str
    proof: str
    replacement: str = ""
    replacement_source: str = ""


class CheckResult(BaseModel):
    findings: list[FindingItem] = Field(description="in order; after many of them the rest of the code is not judged")
    versions: dict[str, str] = Field(description="the packages that were judged")
    not_judged: dict[str, str] = Field(description="packages that the code imports and that were not, and why")


def lookup_result(found: Found) -> LookupResult:
    verdict, row = found.verdict, found.verdict.row
    document = row.doc.strip() if row else ""
    given = document
    if len(document) > _MAX_DOCUMENTATION:
        given = shortened(document, _MAX_DOCUMENTATION, len, lambda text, most: text[:most].rpartition("\n")[0])
    return LookupResult(
        status=verdict.status,
        name=verdict.name,
        package=found.package,
        version=found.version,
        evidence=verdict.evidence,
        kind=row.type if row else "",
        signature=shorten(shown_signature(row), _MAX_SIGNATURE) if row else "",
        defined_as=row.path if row else "",
        deprecated=verdict.deprecated,
        replacement=verdict.replacement.name if verdict.replacement else "",
        replacement_source=verdict.replacement.evidence if verdict.replacement else "",
        members=list(row.members) if row else [],
        similar=list(found.similar),
        documentation=given,
        truncated=given != document,
        examples=[ExampleItem(**one._asdict()) for one in row.examples] if row else [],
        mentions=[MentionItem(**one._asdict()) for one in row.mentions] if row else [],
        source=found.source.text if found.source else "",
        source_place=found.source.place if found.source else "",
        source_problem=found.source.problem if found.source else "",
    )


def lookup_text(result: LookupResult) -> str:
    where = f"{result.package} {result.version}"
    if result.status == "present":
        lines = [f"{result.name}{result.signature}", f"({result.kind or 'object'} of {where}, {result.defined_as})"]
        if result.deprecated:
            lines.append(f"Deprecated: {result.deprecated}")
    elif result.status == "absent":
        lines = [f"{result.name} does not exist in {where}: {result.evidence}."]
    else:
        lines = [f"It is not known whether {where} has {result.name}: {result.evidence}."]
    if result.replacement:
        source = f" ({result.replacement_source})" if result.replacement_source else ""
        lines.append(f"Use {result.replacement}{source}.")
    if result.similar:
        lines.append(f"Much like it: {', '.join(result.similar)}.")
    if result.documentation:
        lines += ["", result.documentation + ("…" if result.truncated else "")]
    elif result.members:
        lines.append(f"Members: {', '.join(result.members)}.")
    lines += [f"\n{SAID_IN}{one.source}: {one.text}" for one in result.mentions]
    lines += [f"\n{example_text(Example(**one.model_dump()))}" for one in result.examples]
    if result.source:
        lines.append(f"\nSource in {result.source_place}:\n\n{indent(result.source, '    ')}")
    elif result.source_problem:
        lines.append(f"\nNo source code: {result.source_problem}")
    return "\n".join(lines)


def search_result(hits: Sequence[Hit]) -> SearchResult:
    return SearchResult(
        hits=[
            SearchHit(
                name=hit.name,
                package=hit.package,
                version=hit.version,
                kind=hit.row.type,
                signature=shorten(hit.row.signature, _MAX_SIGNATURE),
                summary=summary(hit.row.doc),
            )
            for hit in hits
        ]
    )


def search_text(result: SearchResult) -> str:
    if not result.hits:
        return "No document shares a word with the query; ask in other words."
    return "\n".join(
        f"{hit.name}{shorten(hit.signature, 200)} ({hit.package} {hit.version})\n  {hit.summary or 'no documentation'}"
        for hit in result.hits
    )


def diff_result(package: str, old: str, new: str, changes: Sequence[Change]) -> DiffResult:
    first = sorted(changes, key=lambda change: KINDS.index(change.kind))[:_MAX_CHANGES]
    return DiffResult(
        package=package,
        old_version=old,
        new_version=new,
        changes=[
            ChangeItem(
                kind=one.kind, name=one.name, new_name=one.new_name, evidence=shorten(one.evidence, _MAX_SIGNATURE)
            )
            for one in first
        ],
        total=len(changes),
    )


def diff_text(result: DiffResult) -> str:
    head = f"{result.package} {result.old_version} to {result.new_version}: {result.total} changes"
    left_out = result.total - len(result.changes)
    lines = [head + (f", of which {left_out} are left out here" if left_out else "")]
    for change in result.changes:
        target = f" to {change.new_name}" if change.new_name else ""
        lines.append(f"{change.kind}: {change.name}{target} ({shorten(change.evidence, 300)})")
    return "\n".join(lines)


def check_result(checked: Checked) -> CheckResult:
    return CheckResult(
        findings=[FindingItem.model_validate(one.fields()) for one in checked.report.findings],
        versions=dict(checked.versions),
        not_judged=dict(checked.unjudged),
    )


def check_text(result: CheckResult) -> str:
    judged = ", ".join(f"{name} {version}" for name, version in result.versions.items()) or "no package"
    lines = [f"{len(result.findings)} findings; judged: {judged}"]
    for one in result.findings:
        instead = f"; use {one.replacement}" if one.replacement else ""
        lines.append(f"line {one.line}, column {one.column}: {one.kind}: {one.message} ({one.proof}){instead}")
    lines += [f"uses of {name} are not judged: {reason}" for name, reason in result.not_judged.items()]
    return "\n".join(lines)
