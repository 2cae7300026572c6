"""What changed between two versions of a package, object by object."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from parallelmind.retrieval.change_kinds import Kind
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.existence import ABSENT, PRESENT, UNKNOWN, look_up
from parallelmind.retrieval.noted import end_noted
from parallelmind.retrieval.renames import RenameTable
from parallelmind.retrieval.replacement import find_replacement
from parallelmind.retrieval.version_index import VersionIndex

_POSITIONAL_ONLY, _EITHER, _VAR_POSITIONAL, _KEYWORD, _VAR_KEYWORD = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference."""

    kind: Kind
    name: str
    """In the version in which it is."""
    new_name: str = ""
    """What takes its place."""
    evidence: str = ""
    """What shows it."""

    def fields(self) -> dict[str, Any]:
        """As a JSON object, without what is empty."""
        return {name: value for name, value in asdict(self).items() if value}


def compare(old: VersionIndex, new: VersionIndex, table: RenameTable) -> Iterator[Change]:
    """All differences between two versions of one package, sorted by name.

    An object is named as users write it. What is gone with the class or module that it belongs to is not told apart.
    """
    found = sorted(_compare(old, new, table), key=lambda change: (change.name, change.kind))
    replaced = {change.new_name for change in found}
    yield from (change for change in found if change.kind != "added" or change.name not in replaced)


def _compare(old: VersionIndex, new: VersionIndex, table: RenameTable) -> Iterator[Change]:
    for place in range(old.rows):
        name = old.public(place)
        before = old.row(place)
        found = look_up(new, name)
        if found.verdict == PRESENT:
            if found.row is not None:
                yield from _changed(name, before, new.row(found.row), new)
        elif _is_there(new, name.rpartition(".")[0]):
            if found.verdict == UNKNOWN:
                if look_up(old, name).verdict == PRESENT:
                    yield Change(kind="unknown", name=name, evidence=found.evidence)
                continue
            other = find_replacement(new, name, table, old, found.deprecated or before.deprecated)
            if other is None:
                said = before.deprecated or end_noted(new, name) or found.evidence
                yield Change(kind="removed", name=name, evidence=said)
            else:
                same = other.name.rpartition(".")[2] == name.rpartition(".")[2]
                kind: Kind = "moved" if same else "renamed"
                yield Change(kind=kind, name=name, new_name=other.name, evidence=other.evidence)
    for place in range(new.rows):
        name = new.public(place)
        found = look_up(old, name)
        if found.verdict == ABSENT and _is_there(old, name.rpartition(".")[0]):
            yield Change(kind="added", name=name, evidence=found.evidence)


def _is_there(index: VersionIndex, parent: str) -> bool:
    return not parent or look_up(index, parent).verdict == PRESENT


def _changed(name: str, before: CorpusRow, after: CorpusRow, new: VersionIndex) -> Iterator[Change]:
    if after.deprecated and not before.deprecated:
        yield Change(kind="deprecated", name=name, evidence=after.deprecated)
    if said := signature_changes(before, after):
        yield Change(kind="signature", name=name, evidence="; ".join(said) + ".")


def signature_changes(before: CorpusRow, after: CorpusRow) -> list[str]:
    """How the parameters differ, in words; [] if they do not, or if those of one version are not known."""
    if before.parameters is None or after.parameters is None or before.parameters == after.parameters == ():
        return []
    old = {name: (kind, optional) for name, kind, optional in before.parameters}
    new = {name: (kind, optional) for name, kind, optional in after.parameters}
    words = []
    for name in old.keys() - new.keys():
        words.append(f"{name} is gone")
    for name in [name for name, *_ in after.parameters if name not in old]:
        words.append(f"{name} is new" + ("" if new[name][1] else ", and must be given"))
    for name in [name for name, *_ in before.parameters if name in new]:
        (was, could), (now, can) = old[name], new[name]
        if was != now:
            words.append(f"{name} {_KIND_WORDS[now]}")
        if could != can:
            words.append(f"{name} {'can be left out' if can else 'must be given'}")
    defaults, later = _defaults(before.signature), _defaults(after.signature)
    for name in [name for name, *_ in before.parameters if name in defaults and name in later]:
        if defaults[name] != later[name]:
            words.append(f"the default of {name} is {later[name]}, was {defaults[name]}")
    shared = [name for name, *_ in before.parameters if name in new]
    if shared != [name for name, *_ in after.parameters if name in old]:
        words.append("the order of the parameters differs")
    return sorted(words)


_KIND_WORDS = {
    _POSITIONAL_ONLY: "is given by position only",
    _EITHER: "may be given by position and by name",
    _VAR_POSITIONAL: "takes any number of arguments",
    _KEYWORD: "is given by name only",
    _VAR_KEYWORD: "takes any names",
}


def _defaults(signature: str) -> dict[str, str]:
    """The default values as they are written, by parameter, as far as they are expressions."""
    try:
        node = ast.parse(f"def f{signature}: ...").body[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    assert isinstance(node, ast.FunctionDef)
    places = [*node.args.posonlyargs, *node.args.args]
    values: dict[str, str] = {}
    for argument, default in zip(reversed(places), reversed(node.args.defaults), strict=False):
        values[argument.arg] = ast.unparse(default)
    for argument, keyword in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if keyword is not None:
            values[argument.arg] = ast.unparse(keyword)
    return values
