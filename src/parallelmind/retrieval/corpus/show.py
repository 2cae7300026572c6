"""Look up packages and objects in a folder of corpora, for people."""

from __future__ import annotations

import difflib
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.meta import CorpusMeta, read_metas
from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, corpus_versions, read_corpus


def matching_metas(corpus_path: Path, name: str, version: str | None) -> list[CorpusMeta]:
    """Corpora of an import or distribution name, of one version or all."""
    return [
        meta
        for meta in read_metas(corpus_path)
        if name in (meta.import_name, meta.distribution) and version in (None, meta.version)
    ]


def find_objects(corpus_path: Path, name: str, version: str | None) -> list[CorpusRow]:
    """The object of a dotted name, in one version or in each.

    Raises:
        DataError: no version has it; names the nearest.
    """
    found: list[CorpusRow] = []
    names: set[str] = set()
    for package, versions in corpus_versions(corpus_path).items():
        if not f"{name}.".startswith(f"{package}."):
            continue
        for each in versions:
            if version in (None, each):
                for row in read_corpus(corpus_file(corpus_path, package, each)):
                    names.update(row.names)
                    if name in row.names:
                        found.append(row)
    if not found:
        close = difflib.get_close_matches(name, names, n=5)
        hint = f"nearest: {', '.join(close)}" if close else "parallelmind corpus list shows what there is"
        raise DataError(f"{corpus_path} has no {name}" + (f" in version {version}" if version else "") + f"; {hint}.")
    return found
