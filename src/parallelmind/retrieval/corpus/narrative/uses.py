"""Which APIs of a package code uses, and where: resolved as `check` resolves names, in code that is never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from parallelmind.errors import DataError
from parallelmind.retrieval.changes import Change
from parallelmind.retrieval.check.guards import Kind
from parallelmind.retrieval.check.judge import Judge
from parallelmind.retrieval.check.source import Source, parse_source
from parallelmind.retrieval.check.statements import Statements
from parallelmind.retrieval.check.survey import bound_names, survey
from parallelmind.retrieval.check.values import Instance, Thing, Value
from parallelmind.retrieval.corpus.narrative.names import PublicNames
from parallelmind.retrieval.corpus.objects import PackageObject, is_public
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.facts import Verdict

_VERSION = "this"
_LONGEST = 400_000
_PROMPT = re.compile(r"(?:>>>|\.\.\.)(?: |$)|(?:In \[\d+\]:|   ?\.{3,}:) ?")
_GIVES_ITSELF = re.compile(r"def __a?enter__\(self\)[^\n]*:\n(?:(?! {0,4}def ).*\n)*?\s+return self\b")


@dataclass(frozen=True, slots=True)
class Use:
    """One use of an API."""

    path: str
    line: int
    is_call: bool
    fails: bool
    """It is meant to fail, or to warn."""


class _Facts:
    """What is known of names while a package is built: those that are there."""

    def __init__(self, names: PublicNames) -> None:
        self.names = names
        self._rows: dict[str, CorpusRow] = {}

    def lookup(
        self, package: str, version: str, name: str, *, of_instance: bool = False, is_called: bool = False
    ) -> Verdict:
        item = self.names.get(name)
        if item is None:
            return Verdict(status="unknown", name=name, evidence="")
        return Verdict(status="present", name=name, evidence="", row=self._row(item))

    def diff(self, package: str, old: str, new: str) -> list[Change]:
        return []

    def _row(self, item: PackageObject) -> CorpusRow:
        if item.path not in self._rows:
            aliases = tuple(name for name in sorted(item.names) if is_public(name) and name != item.path)
            self._rows[item.path] = CorpusRow(
                path=item.path, aliases=aliases, doc="", type=item.type, signature=item.signature
            )
        return self._rows[item.path]


class Witness(Judge):
    """Judges nothing, and remembers what is used."""

    def __init__(self, facts: _Facts, source: Source) -> None:
        super().__init__(facts, {facts.names.package.partition(".")[0]: _VERSION}, source)
        self._known = facts.names
        self.uses: list[Use] = []

    def use(
        self,
        thing: Thing,
        node: ast.AST,
        silent: frozenset[Kind],
        *,
        of_instance: bool = False,
        is_called: bool = False,
        ends_with: str = "",
    ) -> Verdict:
        verdict = self.verdict(thing, of_instance=of_instance, is_called=is_called)
        if verdict.row is not None and isinstance(node, ast.Attribute | ast.Name):
            is_call = is_called or isinstance(node, ast.Name)
            self.uses.append(Use(verdict.row.path, node.lineno, is_call, fails="absent" in silent))
        return verdict

    def note(self, path: str, node: ast.expr) -> None:
        """A class that another one is derived from is used as if it was called."""
        self.uses.append(Use(path, node.lineno, is_call=True, fails=False))

    def entered(self, value: Value) -> Value:
        """The object itself, where the code of its class says so."""
        if not isinstance(value, Instance):
            return None
        item = self._known.get(value.name)
        return value if item is not None and _GIVES_ITSELF.search(item.code) else None


class _Statements(Statements):
    """Also knows what a class has that is derived from one of the package."""

    def _class(self, node: ast.ClassDef) -> None:
        super()._class(node)
        if len(node.bases) != 1:
            return
        value = self.value(node.bases[0])
        if not isinstance(value, Thing) or not isinstance(self.judge, Witness):
            return
        item = self.judge.verdict(value).row
        if item is None or item.type != "class":
            return
        self.judge.note(item.path, node.bases[0])
        own = bound_names(node.body)
        if not any(self.judge.verdict(Thing(value.package, f"{value.name}.{name}")).row for name in own):
            self.scope.bind(node.name, value)


class Code:
    """Code that uses a package: all of a file, or the blocks of a page one after another."""

    def __init__(self, names: PublicNames, conventions: dict[str, str]) -> None:
        """`conventions` are the names by which packages are usually imported: np for numpy."""
        self._facts = _Facts(names)
        self._top = names.package.partition(".")[0]
        self._usual = [f"import {self._top}"]
        self._usual += [f"import {full} as {short}" for short, full in conventions.items() if full == self._top]
        self.body: list[ast.stmt] = []
        self.lines: list[str] = []
        self._length = 0

    def add(self, text: str) -> bool:
        """More of it; whether it is code of Python."""
        if self._length + len(text) > _LONGEST:
            return False
        try:
            tree = parse_source(text, "").tree
        except DataError:
            return False
        if self.lines:
            ast.increment_lineno(tree, len(self.lines))
        self.body += tree.body
        self.lines += text.splitlines()
        self._length += len(text)
        return True

    def uses(self, *, is_complete: bool) -> Iterator[Use]:
        """All uses; in code that is not complete the package is imported, though nothing says so."""
        before = [] if is_complete else ast.parse("\n".join(self._usual)).body
        tree = ast.Module([*before, *self.body], [])
        witness = Witness(self._facts, Source("", tree, self.lines))
        try:
            _Statements(witness, survey(tree)).module(tree)
        except RecursionError:
            return
        yield from witness.uses


def without_prompts(text: str) -> str:
    """The code of a session of the interpreter, its output as empty lines, so that line numbers stay."""
    lines = text.splitlines()
    if not any(_PROMPT.match(line) for line in lines):
        return text
    found = ((line, _PROMPT.match(line)) for line in lines)
    return "\n".join(line[prompt.end() :] if prompt else "" for line, prompt in found)
