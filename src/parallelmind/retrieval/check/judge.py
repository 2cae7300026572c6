"""Questions to the facts about the uses that code makes of packages; wrong ones become findings."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from parallelmind.io.records import shorten
from parallelmind.retrieval.check.arguments import misfit
from parallelmind.retrieval.check.findings import MAX_FINDINGS, Finding
from parallelmind.retrieval.check.guards import Kind
from parallelmind.retrieval.check.source import Source
from parallelmind.retrieval.check.values import Instance, Thing, Value
from parallelmind.retrieval.facts import Facts, Verdict
from parallelmind.retrieval.signatures import return_annotation
from parallelmind.retrieval.version_index import public_name

_SHOWN = 300
_CALLED = ("function", "method", "class")
_SELF = re.compile(r"(?:typing\.|typing_extensions\.)?Self")
_VARIABLE = re.compile(r"~?_?(?:[A-Z]|[A-Z]\w{0,3}|Self\w*)")
"""Of a type: in what `__enter__` returns it can only be the type of the object itself."""
_PLAIN = re.compile(r"[\w.]+")


class Judge:
    """Knows the versions of the packages that a file may use, and keeps what is found."""

    def __init__(self, facts: Facts | None, versions: Mapping[str, str], source: Source) -> None:
        """`versions` are those of import names."""
        self._facts, self._versions, self._source = facts, versions, source
        self.findings: dict[tuple[int, int, Kind, str], Finding] = {}

    def knows(self, package: str) -> bool:
        return package in self._versions

    def verdict(self, thing: Thing | Instance, *, of_instance: bool = False, is_called: bool = False) -> Verdict:
        """What is known about a name; of an instance, about the name of its class."""
        version = self._versions[thing.package]
        assert self._facts is not None
        return self._facts.lookup(thing.package, version, thing.name, of_instance=of_instance, is_called=is_called)

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
        """Judge that a name is used; `node` ends with `ends_with`, which is the place to show."""
        if len(self.findings) >= MAX_FINDINGS:
            return Verdict(status="unknown", name=thing.name, evidence="")
        verdict = self.verdict(thing, of_instance=of_instance, is_called=is_called)
        package = f"{thing.package} {self._versions[thing.package]}"
        if verdict.status == "absent" and "absent" not in silent:
            message = f"{thing.name} does not exist in {package}"
            self._add("absent", thing, verdict, message, verdict.evidence, self._place(node, ends_with))
        elif verdict.status == "present" and verdict.deprecated and "deprecated" not in silent:
            message = f"{thing.name} is deprecated in {package}"
            self._add("deprecated", thing, verdict, message, verdict.deprecated, self._place(node, ends_with))
        return verdict

    def call(self, thing: Thing, call: ast.Call, silent: frozenset[Kind]) -> Value:
        """Judge the arguments of a call; returns what the call gives."""
        verdict = self.verdict(thing)
        if verdict.status != "present" or verdict.row is None or verdict.row.type not in _CALLED:
            return None
        if verdict.parameters is not None and "arguments" not in silent:
            by_class = verdict.row.type != "class" and not thing.bound and self._is_in_class(thing)
            found = misfit(call, verdict.parameters, keywords_only=by_class)
            if found is not None:
                package = f"{thing.package} {self._versions[thing.package]}"
                proof = f"its signature is {shorten(verdict.row.signature, _SHOWN)}"
                message = f"{thing.name} of {package} {found.message}"
                place = self._place(found.node, "")
                self._add("arguments", thing, verdict, message, proof, place)
        if verdict.row.type == "class":
            return Instance(thing.package, public_name(verdict.row))
        return self._returned(thing, verdict)

    def entered(self, value: Value) -> Value:
        """What `with value as x` binds."""
        if not isinstance(value, Instance):
            return None
        for name in ("__enter__", "__aenter__"):
            enter = Thing(value.package, f"{value.name}.{name}", bound=True)
            verdict = self.verdict(enter)
            if verdict.status == "present" and verdict.row is not None:
                return self._returned(enter, verdict)
        return None

    def annotated(self, thing: Thing) -> Value:
        """The value of a variable whose annotation is a thing."""
        verdict = self.verdict(thing)
        if verdict.status != "present" or verdict.row is None or verdict.row.type != "class":
            return None
        return Instance(thing.package, public_name(verdict.row))

    def _is_in_class(self, thing: Thing) -> bool:
        parent = Thing(thing.package, thing.name.rpartition(".")[0])
        row = self.verdict(parent).row if "." in parent.name else None
        return row is not None and row.type == "class"

    def _returned(self, thing: Thing, verdict: Verdict) -> Value:
        """An object of the class that the function says it returns."""
        assert verdict.row is not None
        annotation = return_annotation(verdict.row.signature)
        if not _PLAIN.fullmatch(annotation):
            return None
        owner = thing.name.rpartition(".")[0]
        is_entering = thing.name.endswith(("__enter__", "__aenter__"))
        if _SELF.fullmatch(annotation) or (is_entering and _VARIABLE.fullmatch(annotation)):
            return self.annotated(Thing(thing.package, owner)) if thing.bound else None
        scope = verdict.row.path.rpartition(".")[0]
        while (row := self.verdict(Thing(thing.package, scope)).row) is not None and row.type == "class":
            scope = scope.rpartition(".")[0]  # a method sees the names of its module, and not those of its class
        for full in (f"{scope}.{annotation}", annotation):
            if full.startswith(f"{thing.package}.") and (found := self.annotated(Thing(thing.package, full))):
                return found
        return None

    def _place(self, node: ast.AST, ends_with: str) -> tuple[int, int]:
        line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        if ends_with:
            line = getattr(node, "end_lineno", line)
            offset = max(getattr(node, "end_col_offset", offset) - len(ends_with.encode()), 0)
        return line, self._source.column(line, offset)

    def _add(
        self, kind: Kind, thing: Thing, verdict: Verdict, message: str, proof: str, place: tuple[int, int]
    ) -> None:
        instead = verdict.replacement if kind != "arguments" else None
        self.findings.setdefault(
            (*place, kind, thing.name),
            Finding(
                path=self._source.path, line=place[0], column=place[1], kind=kind, name=thing.name,
                package=thing.package, version=self._versions[thing.package], message=message, proof=proof,
                replacement=instead.name if instead else "", replacement_source=instead.evidence if instead else "",
            ),
        )  # fmt: skip
