"""A corpus of two packages that code in the tests is checked against: `kiln` in two versions, and `glaze`."""

from __future__ import annotations

from pathlib import Path

from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, write_corpus

VERSIONS = {"kiln": "2.0.0", "glaze": "1.0"}


def _row(
    path: str, *aliases: str, kind: str = "function", signature: str = "", doc: str = "", **more: object
) -> CorpusRow:
    given = {"source": "runtime", "distribution": path.partition(".")[0]} | more
    return CorpusRow(path=path, aliases=aliases, type=kind, signature=signature, doc=doc, **given)  # type: ignore[arg-type]


def _module(path: str, *members: str) -> CorpusRow:
    return _row(path, kind="module", members=members)


_COMMON = [
    _row("kiln.core.Kiln", "kiln.Kiln", kind="class", signature="(size: int, *, fuel: str = 'wood') -> None"),
    _row("kiln.core.Kiln.load", "kiln.Kiln.load", kind="method", signature="(pot, /, shelf=0, *more)"),
    _row("kiln.core.Kiln.of", "kiln.Kiln.of", kind="method", signature="(plan, *, strict=False) -> kiln.core.Kiln"),
    _row("kiln.core.Kiln.heat", "kiln.Kiln.heat", kind="property"),
    _row("kiln.core.Kiln.__enter__", "kiln.Kiln.__enter__", kind="method", signature="() -> Self"),
    _row("kiln.core.Shelf", "kiln.Shelf", kind="class", signature="()", members=("__enter__",)),
    _row("kiln.core.Shelf.__enter__", "kiln.Shelf.__enter__", kind="method", signature="()"),
    _row("kiln.core.Error", "kiln.Error", kind="class"),
    _row("kiln.core.fire", "kiln.fire", signature="(pots, hours=1, *, cone=<object object at 0x1>) -> kiln.core.Kiln"),
    _row("kiln.core.anything", "kiln.anything", signature="(*args, **kwargs)"),
    _row("kiln.core.written", "kiln.written", signature="(one)", doc="written(one, two=None)\n\nCompiled."),
    _row("kiln.core.stub", "kiln.stub", signature="(one: int = ...) -> None"),
    _row("kiln.core.smoke", "kiln.smoke", doc="Smoke the pots.\n\n.. deprecated:: 1.8\n   Use :func:`fire` instead."),
    _row("kiln.core.parameter", "kiln.parameter", signature="(a=1, b=2)", doc="Do.\n\n.. deprecated:: 1.2 *b* goes."),
    _row("kiln.core.LIMIT", "kiln.LIMIT", kind="attribute"),
    _row("kiln.core.standard", "kiln.standard", kind="attribute"),
    _module("kiln.tools", "weigh"),
    _row("kiln.tools.weigh", signature="(pot, unit='g')"),
]  # fmt: skip
_NAMES = (
    "Error",
    "Kiln",
    "LIMIT",
    "Shelf",
    "anything",
    "core",
    "fire",
    "parameter",
    "smoke",
    "standard",
    "stub",
    "tools",
    "written",
)
_OLD = [
    _module("kiln", *_NAMES, "stack"),
    _module("kiln.core", *_NAMES, "stack"),
    _row("kiln.core.stack", "kiln.stack", signature="(pots)", doc="Stack pots by size."),
    _row("kiln.core.Kiln.cool", "kiln.Kiln.cool", kind="method", signature="()", doc="Cool slowly."),
    *_COMMON,
]  # fmt: skip
_NEW = [
    _module("kiln", *_NAMES, "arrange"),
    _module("kiln.core", *_NAMES, "arrange"),
    _row("kiln.tools.stack", signature="(pots)", doc="Stack pots by size."),
    *_COMMON,
]
_GLAZE = [
    _module("glaze", "dip", "Bucket"),
    _row("glaze.dip", signature="(pot)"),
    _row("glaze.Bucket", kind="class", signature="(litres=5)", members=("stir",)),
    _row("glaze.Bucket.stir", kind="method", signature="(times)"),
]


def write_library(folder: Path) -> Path:
    for package, version, rows in (("kiln", "1.9.0", _OLD), ("kiln", "2.0.0", _NEW), ("glaze", "1.0", _GLAZE)):
        file = corpus_file(folder, package, version)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_corpus(file, rows)
    return folder
