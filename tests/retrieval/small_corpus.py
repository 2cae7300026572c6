"""A small corpus of two versions of a package `box`, and one of `lid`, written as a user's would lie on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, write_corpus
from parallelmind.retrieval.namespaces import Head, Namespace, names_file, write_namespaces

OLD, NEW = "1.2.3", "2.0.0"


def row(path: str, doc: str, *aliases: str, kind: str = "function", **fields: object) -> CorpusRow:
    given = {"signature": "", "source": "runtime", "distribution": "box-dist"} | fields
    return CorpusRow(path=path, doc=doc, aliases=aliases, type=kind, **given)  # type: ignore[arg-type]


def old_rows() -> list[CorpusRow]:
    return [
        row("box", "Boxes of all kinds.", kind="module", members=("Crate", "fold", "tape", "weigh")),
        row("box.core.crate.Crate", "A crate of planks.", "box.Crate", kind="class", members=("open", "seal")),
        row("box.core.crate.Crate.open", "Lift the top off.", "box.Crate.open", kind="method", signature="(self)"),
        row("box.core.crate.Crate.seal", "Nail the top on.", kind="method"),
        row("box.paper.fold", "Fold a sheet of paper along its middle.", "box.fold", signature="(sheet, *, times=1)"),
        row(
            "box.paper.tape",
            "Tape two edges together.",
            "box.tape",
            deprecated="Deprecated since 1.2: use glue instead.",
        ),
        row("box.weigh", "Weigh a parcel in grams."),
        row("box.measureLength", "Measure how long a ribbon is, in metres."),
    ]


def new_rows() -> list[CorpusRow]:
    return [
        row("box", "Boxes of all kinds.", kind="module", members=("Crate", "fold", "glue", "scales", "weigh_")),
        row("box.core.crate.Crate", "A crate of planks, version two.", "box.Crate", kind="class", members=("open",)),
        row("box.core.crate.Crate.open", "Lift the top off gently.", "box.Crate.open", kind="method"),
        row("box.paper.fold", "Fold a sheet of paper twice.", "box.fold", signature="(sheet)"),
        row("box.glue", "Glue two edges together.", signature="(left, right)"),
        row("box.scales", "Instruments.", kind="module", members=("weigh",)),
        row("box.scales.weigh", "Weigh a parcel in grams."),
        row("box.weigh_", "A scalar type that has nothing to do with parcels.", kind="class"),
    ]


def lid_rows() -> list[CorpusRow]:
    return [
        row("lid", "Lids.", kind="module", distribution="lid"),
        row("lid.press", "Press a lid down until it clicks."),
    ]


def write_small_corpus(folder: Path, corpus_type: str = "docstring") -> Path:
    for package, version, rows in (("box", OLD, old_rows()), ("box", NEW, new_rows()), ("lid", "0.1", lid_rows())):
        write_version(folder, package, version, rows, corpus_type)
    return folder


def write_version(
    folder: Path, package: str, version: str, rows: list[CorpusRow], corpus_type: str = "docstring"
) -> Path:
    """A version of a package as if it had run; its corpus file."""
    file = corpus_file(folder, package, version, corpus_type)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_corpus(file, rows)
    write_namespaces(names_file(file), *namespaces_of(rows))
    return file


def namespaces_of(rows: Iterable[CorpusRow]) -> tuple[Head, list[Namespace]]:
    """As they would have been found if the package of these rows had run."""
    rows = list(rows)
    classes = {name for row in rows if row.type == "class" for name in row.names}
    names: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows):
        for name in row.names:
            parent, _, last = name.rpartition(".")
            names.setdefault(parent, {})[last] = f"o{number}"
            while parent:
                parent, _, last = parent.rpartition(".")
                names.setdefault(parent, {}).setdefault(last, "")
    spaces = sorted({*names, *classes, *(row.path for row in rows if row.type == "module")} - {""})
    numbers = {name: number for number, name in enumerate(spaces)}
    objects = {name: number for number, row in enumerate(rows) for name in row.names}
    made = [
        Namespace(
            kind="class" if name in classes else "module",
            name=name,
            names={
                member: f"s{numbers[f'{name}.{member}']}" if f"{name}.{member}" in numbers else target
                for member, target in names.get(name, {}).items()
            },
            modules=() if name in classes else (name,),
            object=objects.get(name),
        )
        for name in spaces
    ]
    return Head(python="3.11.7", objects=[row.path for row in rows]), made
