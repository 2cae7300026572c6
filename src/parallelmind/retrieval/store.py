"""A corpus folder: which packages and versions it holds, opened when first asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.meta import meta_file, read_meta
from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, corpus_versions
from parallelmind.retrieval.row_blocks import RowReader
from parallelmind.retrieval.source_code import SourceCode, read_source
from parallelmind.retrieval.version_index import VersionIndex
from parallelmind.retrieval.versions import choose_version, sorted_versions

_MAX_OPEN = 128
"""Each holds two open files; to open one again costs as much as thirty queries."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The dependencies of a query, by what the corpus holds."""

    versions: Mapping[str, str]
    """Corpus version of each import name."""
    missing: Mapping[str, str]
    """What cannot be served and why, by the dependency's own name."""


def default_index_path(corpus_path: Path) -> Path:
    """In the user's cache: only `corpus build` writes into a corpus."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    corpus = hashlib.sha256(os.fsencode(corpus_path.resolve())).hexdigest()[:16]
    return cache / "parallelmind" / "index" / corpus


class CorpusStore:
    """Opens version indexes lazily and keeps the last used ones; one per process."""

    def __init__(
        self,
        corpus_path: Path,
        *,
        corpus_type: str = "docstring",
        index_path: Path | None = None,
        max_open: int = _MAX_OPEN,
    ) -> None:
        """`index_path` is where derived indexes go; see `default_index_path` for where, unless given.

        Raises:
            DataError: `corpus_path` is not a folder, or holds no corpus of that type.
        """
        self._corpus_path = corpus_path
        self._corpus_type = corpus_type
        self._index_path = index_path or default_index_path(corpus_path)
        self._max_open = max_open
        self._open: OrderedDict[tuple[str, str], VersionIndex] = OrderedDict()
        found = corpus_versions(corpus_path, corpus_type)
        self._versions = {package: sorted_versions(versions) for package, versions in found.items()}
        if not self._versions:
            raise DataError(
                f"--corpus_path {corpus_path} holds no {corpus_type} corpus; make one with "
                f"parallelmind corpus build PACKAGE==VERSION --corpus_path {corpus_path} --corpus_type {corpus_type}"
            )
        self._packages: dict[str, list[str]] = {}
        for package in self._versions:
            for name in sorted({canonicalize_name(name) for name in (package, *self._distributions(package))}):
                self._packages.setdefault(name, []).append(package)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def packages(self) -> list[str]:
        """The import names it holds."""
        return list(self._versions)

    def versions(self, package: str) -> list[str]:
        """The versions of an import name, oldest first."""
        return self._versions.get(package, [])

    def packages_named(self, name: str) -> list[str]:
        """The import names of a package, given by import name or distribution.

        Raises:
            DataError: the corpus has none of that name.
        """
        if found := self.packages_of(name):
            return found
        raise DataError(f"the corpus has no {name} (it has {', '.join(self.packages())}); {self._remedy(name, '')}")

    def version(self, package: str, spelled: str) -> str:
        """The corpus version of an import name that a spelling means.

        Raises:
            DataError: there is none, or it is not a version.
        """
        found = choose_version(spelled, self._versions[package])
        if found is None:
            held = ", ".join(self._versions[package])
            raise DataError(f"the corpus has no {package} {spelled} (it has {held}); {self._remedy(package, spelled)}")
        return found

    def packages_of(self, dependency: str) -> list[str]:
        """The import names of a dependency, given by import name or distribution: `attrs` is attr and attrs."""
        return self._packages.get(canonicalize_name(dependency), [])

    def installed_beside(self, package: str, version: str) -> tuple[str, list[str]]:
        """The distribution of one version, and all the import names it installs; ("", []) if it was not built here."""
        path = meta_file(self._corpus_path, package, version)
        if not path.exists():
            return "", []
        meta = read_meta(path)
        return meta.distribution, meta.import_names

    def source_code(self, row: CorpusRow) -> SourceCode:
        """The source code of the object of a row, or why it cannot be had."""
        return read_source(self._corpus_path, row)

    def resolve(self, dependencies: Mapping[str, str]) -> Resolved:
        """Find the version of each dependency; see `choose_version` for what spellings mean."""
        versions: dict[str, str] = {}
        missing: dict[str, str] = {}
        for name, spelled in dependencies.items():
            if not (packages := self.packages_of(name)):
                missing[name] = f"the corpus has no {name}; {self._remedy(name, spelled)}"
            for package in packages:
                try:
                    version = choose_version(spelled, self._versions[package])
                except DataError as error:
                    missing[name] = f"{name}: {str(error).removesuffix('.')}"
                    break
                if version is None:
                    held = ", ".join(self._versions[package])
                    missing[name] = f"the corpus has no {name} {spelled} (it has {held}); {self._remedy(name, spelled)}"
                else:
                    versions.setdefault(package, version)
        return Resolved(versions=versions, missing=missing)

    def index(self, package: str, version: str) -> VersionIndex:
        """The index of one version; opened, and built if need be, the first time.

        Raises:
            DataError: the corpus file cannot be read, or a row of it is wrong.
            SettingsError: the index cannot be written.
        """
        key = (package, version)
        if key not in self._open:
            file = corpus_file(self._corpus_path, package, version, self._corpus_type)
            self._open[key] = VersionIndex(file, self._index_path, package=package, version=version)
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)  # closes when nobody uses it any more
        self._open.move_to_end(key)
        return self._open[key]

    def _remedy(self, name: str, spelled: str) -> str:
        wanted = f"{name}=={spelled.lstrip('=v ')}" if re.match(r"[=v\d]", spelled) else f"{name}==VERSION"
        kind = "" if self._corpus_type == "docstring" else f" --corpus_type {self._corpus_type}"
        return f"make it with: parallelmind corpus build {wanted} --corpus_path {self._corpus_path}{kind}"

    def _distributions(self, package: str) -> set[str]:
        """The distributions that its files name, from their first rows."""
        names = set()
        for version in self._versions[package]:
            path = corpus_file(self._corpus_path, package, version, self._corpus_type)
            with path.open("rb") as file:
                try:
                    row = json.loads(next((line for _, _, line in RowReader(file, path).lines()), b""))
                except ValueError:  # also a DataError: it is told when the version is opened
                    continue
            if isinstance(row, dict) and isinstance(name := row.get("distribution"), str) and name:
                names.add(name)
        return names
