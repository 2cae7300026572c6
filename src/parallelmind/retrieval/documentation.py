"""The documentation of the versions that a project uses: looked up, searched, compared, and code checked against it.

What the command line and the server for coding agents share. One thread at a time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from parallelmind.errors import DataError, SettingsError
from parallelmind.io.records import shorten
from parallelmind.retrieval.changes import Change
from parallelmind.retrieval.check.checker import check_code
from parallelmind.retrieval.check.findings import Report
from parallelmind.retrieval.check.source import MAX_CHARACTERS
from parallelmind.retrieval.corpus.names import parse_request
from parallelmind.retrieval.corpus_facts import CorpusFacts
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.facts import Facts, Verdict
from parallelmind.retrieval.matching import SimilarNames, find_exact
from parallelmind.retrieval.project.versions import ProjectVersions
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.renames import load_renames
from parallelmind.retrieval.source_code import SourceCode
from parallelmind.retrieval.store import CorpusStore

MAX_NAME, MAX_QUERY = 300, 4_000
_SIMILAR = 5
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


class MissingCorpusError(DataError):
    """A version that was asked for has no corpus."""

    def __init__(self, message: str, request: str) -> None:
        super().__init__(message)
        self.request = request
        """What builds it, such as `numpy==1.26.4`."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a look-up."""

    package: str
    version: str
    verdict: Verdict
    similar: tuple[str, ...] = ()
    """Names much like one that is not there."""
    source: SourceCode | None = None
    """If it was asked for, and the name has a row."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found."""

    package: str
    version: str
    name: str
    row: CorpusRow


@dataclass(frozen=True, slots=True)
class Checked:
    """Checked code, and what of it could not be judged."""

    report: Report
    versions: Mapping[str, str]
    """The packages that it imports and that were judged."""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """Packages of the project that it imports and that were not, and why."""


class Documentation:
    """A corpus folder, and the versions that a project uses of what is in it."""

    def __init__(self, corpus_path: Path, project: ProjectVersions | None, *, index_path: Path | None = None) -> None:
        self.corpus_path, self.project = corpus_path, project or ProjectVersions(source="")
        self._index_path = index_path
        self._store: CorpusStore | None = None
        self._facts: Facts | None = None
        self._ranker = Ranker()

    def close(self) -> None:
        """Close the corpus; what is asked next opens it as it is then."""
        if self._store is not None:
            self._store.close()
        self._store = self._facts = None

    def lookup(self, name: str, version: str = "", *, include_source: bool = False) -> Found:
        """What is known about a dotted name, in `version` or in the one that the project uses.

        Raises:
            MissingCorpusError: the version has no corpus.
            DataError: it is not a name, or nothing says which version is meant.
        """
        name = load_renames().spelled_out(dotted_name(name))
        package, found = self._version_of(name.partition(".")[0], version)
        verdict = self._opened().lookup(package, found, name)
        similar = () if verdict.status == "present" else self._similar(package, found, name)
        row = verdict.row if include_source else None
        return Found(package, found, verdict, similar, None if row is None else self._opened_store().source_code(row))

    def search(self, query: str, package: str = "", version: str = "", *, count: int = 5) -> list[Hit]:
        """The documents that serve a question best, of one package or of all that the project uses.

        Raises:
            MissingCorpusError: the version has no corpus.
            DataError: there is nothing to search in, or the query is too long.
        """
        if not query.strip() or len(query) > MAX_QUERY:
            raise DataError(f"query has {len(query):,} characters; write from 1 to {MAX_QUERY:,}.")
        if package:
            versions = dict([self._version_of(package, version)])
        elif version:
            raise DataError("version is given without package; name the package that it is of.")
        elif not (versions := dict(self._resolved(self.project.versions)[0])):
            raise DataError(f"package is missing, and no project says which packages are meant. {self._held()}")
        store = self._opened_store()
        hits = self._ranker.search([store.index(name, found) for name, found in versions.items()], query, count)
        return [Hit(index.package, index.version, index.public(row), index.row(row)) for index, row in hits]

    def diff(self, package: str, old: str, new: str) -> tuple[str, str, str, list[Change]]:
        """(import name, older version, newer version, changes) between two versions of a package.

        Raises:
            MissingCorpusError: one of the versions has no corpus.
            DataError: it is not a package or version.
        """
        name, before = self._version_of(package, old)
        _, after = self._version_of(package, new)
        return name, before, after, self._opened().diff(name, before, after)

    def check(
        self, text: str, path: str, project: ProjectVersions | None = None, *, max_characters: int = MAX_CHARACTERS
    ) -> Checked:
        """Check code against the versions of `project`, by default those of this one; see `check_code`.

        Raises:
            DataError: the code cannot be read.
        """
        wanted = (project or self.project).versions
        versions, missing = self._resolved(wanted)
        facts = self._opened() if versions else None
        report = check_code(text, path, facts, versions, max_characters=max_characters)
        unjudged = {name: reason for name in report.imported if (reason := missing.get(distribution_of(name)))}
        used = {name: version for name, version in sorted(versions.items()) if name in report.imported}
        return Checked(report, used, dict(sorted(unjudged.items())))

    def missing(self, imported: Iterable[str], project: ProjectVersions | None = None) -> list[str]:
        """What to build so that code which imports these names can be judged, such as `numpy==1.26.4`."""
        versions = (project or self.project).versions
        lacking = self._resolved(versions)[1]
        names = {distribution_of(name) for name in imported} & lacking.keys()
        return sorted(build_request(name, versions[name]) for name in names)

    def _version_of(self, name: str, spelled: str) -> tuple[str, str]:
        """(import name, version in the corpus) of a package that is named by import name or distribution."""
        name = name.strip()
        if not name or len(name) > MAX_NAME:
            raise DataError(f"{shorten(name)!r} is not the name of a package; write one such as numpy.")
        distribution = distribution_of(name)
        store = self._store_or_none()
        packages = store.packages_of(name) if store else []
        wanted = spelled.strip() or self._wanted(name, packages)
        if store is None or not packages:
            request = build_request(distribution, wanted)
            raise MissingCorpusError(f"the corpus has no {name}; {self._remedy(request)}", request)
        found = store.resolve({name: wanted})
        if name in found.missing:
            raise MissingCorpusError(found.missing[name], build_request(distribution, wanted))
        package = name if name in found.versions else next(iter(found.versions))
        return package, found.versions[package]

    def _wanted(self, name: str, packages: list[str]) -> str:
        versions = self.project.versions
        store = self._store
        for other in (canonicalize_name(name), distribution_of(name)):
            if other in versions:
                return versions[other]
        for other, spelled in versions.items():  # attrs is also imported as attr
            if store is not None and set(store.packages_of(other)) & set(packages):
                return spelled
        if reason := self.project.skipped.get(distribution_of(name)):
            raise DataError(f"the version of {name} cannot be told: {reason}; give the version.")
        where = f"{self.project.source} does not name {name}" if self.project.source else "no project was given"
        raise DataError(f"version is missing, and {where}; give the version. {self._held(packages)}")

    def _resolved(self, wanted: Mapping[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """(versions by import name, why others cannot be had by distribution)."""
        store = self._store_or_none()
        if store is None:
            reasons = {name: f"the corpus has no {name}; {self._remedy(build_request(name, spelled))}"
                       for name, spelled in wanted.items()}  # fmt: skip
            return {}, reasons
        found = store.resolve(wanted)
        return found.versions, found.missing

    def _similar(self, package: str, version: str, name: str) -> tuple[str, ...]:
        index = self._opened_store().index(package, version)
        qualifier, _, last = name.rpartition(".")
        same = [f"{qualifier}.{other}" for other in SimilarNames(index).like(last)]
        elsewhere = [index.public(row) for row in index.rows_ending_in(last)[:_SIMILAR]]
        here = [other for other in same if find_exact(index, other) is not None]
        return tuple(dict.fromkeys([*here, *elsewhere]))[:_SIMILAR]

    def _held(self, packages: Iterable[str] = ()) -> str:
        store = self._store_or_none()
        if store is None:
            return f"{self.corpus_path} holds no corpus."
        held = [f"{name} {', '.join(store.versions(name))}" for name in (list(packages) or store.packages())]
        return f"The corpus has {'; '.join(held)}."

    def _remedy(self, request: str) -> str:
        return f"make it with: parallelmind corpus build {request} --corpus_path {self.corpus_path}"

    def _opened(self) -> Facts:
        if self._facts is None:
            self._facts = CorpusFacts(self._opened_store())
        return self._facts

    def _store_or_none(self) -> CorpusStore | None:
        """The store, unless the folder holds nothing yet."""
        is_empty = self._store is None and not any(self.corpus_path.glob("*/*.jsonl*"))
        return None if is_empty else self._opened_store()

    def _opened_store(self) -> CorpusStore:
        if self._store is None:
            self._store = CorpusStore(self.corpus_path, index_path=self._index_path)
        return self._store


def dotted_name(text: str) -> str:
    """A name as it was typed, without call brackets and quotes.

    Raises:
        DataError: it is not a dotted name.
    """
    name = unicodedata.normalize("NFKC", text.strip().strip("`'\"")) if len(text) <= MAX_NAME else text
    name = name.removesuffix("()")
    if len(name) > MAX_NAME or not _DOTTED.fullmatch(name):
        raise DataError(f"{shorten(text)!r} is not a dotted name; write one such as numpy.linalg.norm.")
    return name


def distribution_of(name: str) -> str:
    """The normalised distribution of an import name; the name itself where they are not known to differ."""
    try:
        return parse_request(name).distribution
    except SettingsError:
        return canonicalize_name(name)


def build_request(distribution: str, spelled: str) -> str:
    """What `corpus build` takes for a distribution in a version, a range, or any version."""
    return f"{distribution}{spelled if spelled[:1] in '<>=!~' else f'=={spelled}' if spelled else ''}"
