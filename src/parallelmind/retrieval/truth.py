"""Judge retrieval by labels that come from running the versions: is what is said true, and is it enough?

A label is `{"package", "version", "name", "label"}`: `present`, `deprecated`, `instance` (only objects of the class
have it) or `absent`. Optional: `kind` (a group to count by), `same` (other names of the same object), `doc` (how its
documentation begins), `replacement` (names that take its place). A row with `sample` instead lists public names of a
version by origin, of `counts` that there are. Only what `Retriever.retrieve` returns is looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.jsonl import read_lines
from parallelmind.io.records import load_object, show_value
from parallelmind.retrieval.context_text import Document
from parallelmind.retrieval.existence import look_up
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.retriever import ABSENT, EXACT, Retrieval
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex

LABELS = ("present", "deprecated", "instance", "absent")
ERROR = "error"
_HAS = ("present", "deprecated")
_PUBLIC = ("own", "re-export", "inherited")
"""The origins that count as a package's own public names."""
_MADE_UP = ("wrong class", "misspelled")
"""Kinds of names that never were: what is told to be used instead is a guess."""
_DEPRECATION = re.compile(r"deprecat|\blegacy\b|will be removed|was removed", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthLabel:
    package: str
    version: str
    name: str
    label: str
    kind: str = ""
    same: tuple[str, ...] = ()
    doc: str = ""
    replacement: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicNames:
    package: str
    version: str
    counts: Mapping[str, int]
    sample: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Share:
    right: int
    of: int

    @property
    def value(self) -> float | None:
        return self.right / self.of if self.of else None

    def __str__(self) -> str:
        return "–" if self.value is None else f"{self.value:.1%} ({self.right} of {self.of})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthReport:
    labels: int
    shares: Mapping[str, Share]
    """By what is measured, in the order to print."""
    coverage: Mapping[str, float]
    """Share of the public names that are found exactly, by origin, weighted by how many each version has."""
    methods: Mapping[str, Mapping[str, int]]
    """Label and kind, then the method given, then how often."""
    mistakes: Sequence[Mapping[str, Any]]

    def fields(self) -> dict[str, Any]:
        return asdict(self)


def read_truth(folder: Path) -> tuple[list[TruthLabel], list[PublicNames]]:
    """Read all `*.jsonl` of a folder.

    Raises:
        DataError: there is none, or a row is wrong; names the line and the field.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise DataError(f"--truth {folder} has no .jsonl file; give a folder of labels.")
    labels, public = [], []
    for file in files:
        for line in read_lines(file):
            row = load_object(line.content, f"{file}: line {line.number}")
            if "sample" in row:
                public.append(_public(row, f"{file}: line {line.number}"))
            else:
                labels.append(_label(row, f"{file}: line {line.number}"))
    return labels, public


def judge(
    retrieve: Callable[[Query], Retrieval],
    store: CorpusStore,
    labels: Iterable[TruthLabel],
    public: Iterable[PublicNames] = (),
) -> TruthReport:
    """Ask for every name and compare. A query that fails counts as one that says nothing."""
    tally = _Tally(retrieve, store)
    for label in labels:
        tally.add(label)
    for names in public:
        tally.cover(names)
    return tally.report()


def names_replacement(text: str, asked: str, replacement: Iterable[str]) -> bool:
    """Whether a text names one of them: in full, or its last part as a name and not as a word of a sentence."""
    last_asked = asked.rpartition(".")[2]
    for name in replacement:
        last = name.rpartition(".")[2]
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text):
            return True
        if last == last_asked:
            continue
        is_plain_word = last.isalpha() and last == last.lower()
        quoted = rf"(?:[.`'\"~]{re.escape(last)}(?!\w)|(?<!\w){re.escape(last)}\()"
        if re.search(quoted if is_plain_word else rf"(?<!\w){re.escape(last)}(?!\w)", text):
            return True
    return False


@dataclass
class _Tally:
    retrieve: Callable[[Query], Retrieval]
    store: CorpusStore
    labels: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    methods: dict[str, Counter[str]] = field(default_factory=dict)
    covered: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    mistakes: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, row: TruthLabel) -> None:
        found = self._ask(row)
        method = found.method if found else ERROR
        text = found.context.text if found else ""
        finds = self._finds(found, row.name, row.same)
        self.labels += 1
        self.methods.setdefault(f"{row.label}: {row.kind}", Counter())[method] += 1
        for name, counts in (
            ("exact given", method == EXACT),
            ("exact given right", method == EXACT and finds and row.label != ABSENT),
            ("exact expected", row.label in _HAS),
            ("exact right", row.label in _HAS and finds),
            ("absent given", method == ABSENT),
            ("absent right", method == ABSENT and row.label == ABSENT),
            ("absent expected", row.label == ABSENT),
            ("documented", row.label in _HAS and bool(row.doc)),
            ("documentation", row.label in _HAS and bool(row.doc) and finds and _squeezed(row.doc) in _squeezed(text)),
            ("instance", row.label == "instance"),
            ("instance denied", row.label == "instance" and method == ABSENT),
        ):
            self.counts[name] += counts
        self._add_advice(row, found, text, finds)
        wrong = self._wrong(row, method, finds)
        if wrong:
            shown = [document.name for document in found.context.documents[:1]] if found else []
            self._mistake(wrong, row, found, *shown)

    def _mistake(self, wrong: str, row: TruthLabel, found: Retrieval | None, *shown: str) -> None:
        self.mistakes.append(
            {"wrong": wrong, "name": row.name, "version": f"{row.package} {row.version}", "label": row.label}
            | {"kind": row.kind, "method": found.method if found else ERROR, "found": list(shown)}
        )

    def _add_advice(self, row: TruthLabel, found: Retrieval | None, text: str, finds: bool) -> None:
        says = found is not None and (found.method == ABSENT if row.label == ABSENT else finds)
        told = found.instead.names if found and found.instead else ()
        right = any(self._is_among(name, row) for name in told)
        named = says and (right or names_replacement(text, row.name, row.replacement))
        if row.replacement and row.label in (ABSENT, "deprecated"):
            self.counts[f"replaced {row.label}"] += 1
            self.counts[f"named {row.label}"] += named
            self.counts["told to use"] += bool(told)
            self.counts["told to use right"] += right
            if told and not right:
                self._mistake("another replacement is named", row, found, *told)
        elif row.label == ABSENT and row.kind in _MADE_UP:
            self.counts["made up"] += 1
            self.counts["made up, told to use"] += bool(told)
        if row.label == "deprecated":
            self.counts["deprecated"] += 1
            self.counts["told"] += says and bool(_DEPRECATION.search(text))

    def _is_among(self, told: str, row: TruthLabel) -> bool:
        """Whether what is told to be used is one of the replacements, another name of one, or a member of one.

        So it is, too, if a version has it as the same object under both names.
        """
        if any(f"{told}.".startswith(f"{name}.") for name in row.replacement):
            return True
        package = told.partition(".")[0]
        version = self.store.resolve({row.package: row.version}).versions.get(package)
        if version is None:
            return False
        index = self.store.index(package, version)
        if any(_is_same(index, told, name) for name in row.replacement):
            return True
        return any(_is_same(self.store.index(package, each), told, row.name) for each in self.store.versions(package))

    def cover(self, public: PublicNames) -> None:
        for origin, names in public.sample.items():
            labels = (TruthLabel(package=public.package, version=public.version, name=name, label="") for name in names)
            methods = [self._ask(label) for label in labels]
            exact = sum(found is not None and found.method == EXACT for found in methods)
            denied = sum(found is not None and found.method == ABSENT for found in methods)
            weight = public.counts[origin]
            self.covered.setdefault(origin, []).append((exact / len(names), weight))
            self.covered.setdefault(f"{origin}, denied", []).append((denied / len(names), weight))
            if origin in _PUBLIC:
                self.covered.setdefault("public", []).append((exact / len(names), weight))
                self.covered.setdefault("public, denied", []).append((denied / len(names), weight))

    def report(self) -> TruthReport:
        counts = self.counts
        replaced, named = (counts[f"{what} absent"] + counts[f"{what} deprecated"] for what in ("replaced", "named"))
        return TruthReport(
            labels=self.labels,
            shares={
                "exact precision": Share(counts["exact given right"], counts["exact given"]),
                "exact recall": Share(counts["exact right"], counts["exact expected"]),
                "documentation shown": Share(counts["documentation"], counts["documented"]),
                "absent precision": Share(counts["absent right"], counts["absent given"]),
                "absent recall": Share(counts["absent right"], counts["absent expected"]),
                "replacement named": Share(named, replaced),
                "replacement named, of absent": Share(counts["named absent"], counts["replaced absent"]),
                "replacement named, of deprecated": Share(counts["named deprecated"], counts["replaced deprecated"]),
                "replacement precision": Share(counts["told to use right"], counts["told to use"]),
                "replacement told of made-up names": Share(counts["made up, told to use"], counts["made up"]),
                "deprecation told": Share(counts["told"], counts["deprecated"]),
                "instance attributes denied": Share(counts["instance denied"], counts["instance"]),
            },
            coverage={
                origin: sum(share * weight for share, weight in found) / sum(weight for _, weight in found)
                for origin, found in self.covered.items()
            },
            methods={group: dict(counts) for group, counts in sorted(self.methods.items())},
            mistakes=sorted(self.mistakes, key=lambda mistake: str(mistake["wrong"])),
        )

    def _ask(self, row: TruthLabel) -> Retrieval | None:
        query = Query(
            original_item_id=row.name,
            query_index=0,
            query=f"How is {row.name} used?",
            target_api=row.name,
            dependencies={row.package: row.version},
        )
        try:
            return self.retrieve(query)
        except DataError:
            return None

    def _finds(self, found: Retrieval | None, name: str, same: Iterable[str]) -> bool:
        if found is None or found.method != EXACT or not found.context.documents:
            return False
        return bool(document_names(self.store, found.context.documents[0]) & {name, *same})

    @staticmethod
    def _wrong(row: TruthLabel, method: str, finds: bool) -> str:
        if method == ABSENT and row.label != ABSENT:
            return "a name that exists is denied"
        if method == EXACT and not finds:
            return "another object is served"
        if row.label == ABSENT and method != ABSENT:
            return "an absent name is not said to be absent"
        if row.label in _HAS and not finds:
            return "not found"
        return ""


def document_names(store: CorpusStore, document: Document) -> set[str]:
    """All names of what a document describes; of what has no row, the one that is told to exist."""
    if document.row is None:
        return {document.name}
    return set(store.index(document.package, document.version).row(document.row).names)


def _is_same(index: VersionIndex, one: str, other: str) -> bool:
    row = look_up(index, one).row
    return row is not None and row == look_up(index, other).row


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _label(row: Mapping[str, Any], where: str) -> TruthLabel:
    if row.get("label") not in LABELS:
        raise DataError(f'{where}: "label" is {show_value(row.get("label"))}; expected one of {", ".join(LABELS)}.')
    for name in ("package", "version", "name"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise DataError(f'{where}: "{name}" is {show_value(row.get(name))}; expected a text.')
    return TruthLabel(
        package=row["package"],
        version=row["version"],
        name=row["name"],
        label=row["label"],
        kind=str(row.get("kind", "")),
        same=_names(row, "same", where),
        doc=str(row.get("doc", "")),
        replacement=_names(row, "replacement", where),
    )


def _public(row: Mapping[str, Any], where: str) -> PublicNames:
    sample, counts = row["sample"], row.get("counts")
    if not isinstance(sample, dict) or not isinstance(counts, dict) or not sample.keys() <= counts.keys():
        raise DataError(f'{where}: "sample" and "counts" should be objects with the same origins.')
    return PublicNames(
        package=str(row.get("package")),
        version=str(row.get("version")),
        counts={origin: int(count) for origin, count in counts.items()},
        sample={origin: _names(sample, origin, where) for origin in sample},
    )


def _names(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = row.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f'{where}: "{name}" is {show_value(value)}; expected a list of names.')
    return tuple(value)
