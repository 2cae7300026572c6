"""Build the corpora of one distribution: fetch, read, inspect, merge, write."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.archives import unpack
from parallelmind.retrieval.corpus.environment import (
    dependencies_of_the_time,
    install,
    installed_versions,
    older_dependencies,
    other_interpreters,
)
from parallelmind.retrieval.corpus.fetch import Archive, fetch, fetch_source, open_archive
from parallelmind.retrieval.corpus.merge import Coverage, add_newdocs, add_runtime, paths_by_number
from parallelmind.retrieval.corpus.meta import CorpusMeta, meta_file, read_meta, write_meta
from parallelmind.retrieval.corpus.names import compiled_modules, find_import_names, parse_request, source_root
from parallelmind.retrieval.corpus.narrative.examples import Narrative, SourceText
from parallelmind.retrieval.corpus.narrative.texts import texts_of_source, texts_of_wheel
from parallelmind.retrieval.corpus.newdocs import find_newdocs
from parallelmind.retrieval.corpus.objects import PackageObject
from parallelmind.retrieval.corpus.package_index import PackageIndex
from parallelmind.retrieval.corpus.pip import Pip
from parallelmind.retrieval.corpus.release_notes import ReleaseNotes, notes_of_part, read_release_notes
from parallelmind.retrieval.corpus.rows import Origin, docstring_rows, source_rows
from parallelmind.retrieval.corpus.runtime import RuntimeReport, inspect_package
from parallelmind.retrieval.corpus.sandbox.running import Limits, printable
from parallelmind.retrieval.corpus.sandbox.sandbox import Kind, Sandbox
from parallelmind.retrieval.corpus.source_archive import find_source
from parallelmind.retrieval.corpus.static import analyse
from parallelmind.retrieval.corpus.time_limit import time_limit
from parallelmind.retrieval.corpus_rows import corpus_file, corpus_name, packed_file, write_corpus
from parallelmind.retrieval.namespaces import Head, names_file, write_namespaces
from parallelmind.retrieval.notes import notes_file, write_notes


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageTask:
    """One distribution to build."""

    request: str
    """Such as numpy==1.26.4; "" with `archive`."""
    archive: str
    """A file to build from; "" to fetch one."""
    corpus_path: str
    corpus_types: list[str]
    python: str
    """The interpreter that inspects the running package; "" for none."""
    own_python: bool
    """Whether that is the interpreter we run in ourselves."""
    timeout: float
    """Seconds for reading the files, and for each inspection."""
    sandbox: Kind = ""
    """Where pip and the package run; "" where they run as this process does."""

    @property
    def runtime_requested(self) -> str:
        """The interpreter as the meta file names it."""
        return "default" if self.python and self.own_python else self.python


def build_package(task: PackageTask, scratch: Path, on_stage: Callable[[str], None]) -> list[CorpusMeta]:
    """Write the corpora of all packages that a distribution installs.

    Raises:
        DataError: the archive cannot be had, is refused, or holds no package.
    """
    corpus_path, other_python = Path(task.corpus_path), None if task.own_python or not task.python else task.python
    pip = Pip(Sandbox(task.sandbox), scratch, corpus_path / ".wheels" / ".pip")
    on_stage("fetching")
    if task.archive:
        archive = open_archive(Path(task.archive))
    else:
        archive = fetch(parse_request(task.request), corpus_path / ".wheels", scratch, other_python, pip)
    on_stage(f"unpacking {archive.path.name}")
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    with time_limit(task.timeout, f"unpacking {archive.path.name}"):
        unpack(archive.path, unpacked)
    root = unpacked if archive.is_wheel else source_root(unpacked)
    names = find_import_names(root)
    if not names:
        raise DataError(f"{archive.path.name} holds no Python package; give the archive of one that can be imported.")
    _refuse_names_of_others(corpus_path, archive, names)
    found = {}
    for name in names:
        on_stage(f"reading {name}")
        with time_limit(task.timeout, f"reading the files of {name}"):
            found[name] = _read(root, name, [other for other in names if other != name])
    _set_places_below(found, root.relative_to(unpacked))
    on_stage("reading documentation and tests")
    source = find_source(archive, corpus_path / ".wheels", is_online=not task.archive)
    texts = _texts(source, unpacked, task.timeout)
    shutil.rmtree(unpacked)
    on_stage("reading release notes")
    told = read_release_notes(source or archive, task.timeout)
    runtime = _Runtime(task, archive, scratch, other_python, pip, on_stage)
    largest = max(names, key=lambda name: len(found[name].objects))
    return [
        _write(
            task, archive, names, found[name], runtime, texts, told if name == largest else _of_part(told, found[name])
        )
        for name in names
    ]


@dataclass(frozen=True, slots=True)
class _Texts:
    """What shows how the packages of a distribution are used."""

    texts: list[SourceText]
    source: str
    """The file name of the source archive; "" if only the wheel was there."""


def _texts(source: Archive | None, unpacked: Path, seconds: float) -> _Texts:
    if source is not None:
        with contextlib.suppress(DataError), time_limit(seconds, f"reading {source.path.name}"):
            return _Texts(texts_of_source(source), source.path.name)
    return _Texts(texts_of_wheel(unpacked), "")


def _of_part(told: ReleaseNotes, found: _Read) -> ReleaseNotes:
    lasts = {name.rpartition(".")[2] for item in found.objects.values() for name in item.names}
    return replace(told, notes=notes_of_part(told.notes, found.import_name, lasts))


def _refuse_names_of_others(corpus_path: Path, archive: Archive, names: list[str]) -> None:
    """Whoever installs a package `numpy` must not take the place of numpy's own corpus."""
    for name in names:
        path = meta_file(corpus_path, name, archive.version)
        other = read_meta(path).distribution if path.exists() else archive.distribution
        if other != archive.distribution:
            raise DataError(
                f"{archive.path.name} installs a package named {name}, and {path.parent} has {archive.version} of it"
                f" from {other}; choose another --corpus_path, or delete {path}."
            )


class _Runtime:
    """Installs the archive once and inspects its packages."""

    def __init__(
        self,
        task: PackageTask,
        archive: Archive,
        scratch: Path,
        python: str | None,
        pip: Pip,
        on_stage: Callable[[str], None],
    ) -> None:
        self._task, self._archive, self._python, self._pip, self._on_stage = task, archive, python, pip, on_stage
        self.scratch, self._folder = scratch, scratch / "installed"
        self._interpreter, self._failure = task.python, ""
        self._tried: set[str] = set()
        self._is_settled = False
        """Whether a package of the distribution runs with what is installed."""
        if not archive.is_wheel:
            self._failure = "a source archive is not built"
        elif task.python:
            on_stage(f"installing {archive.path.name} apart")
            try:
                self._install()
            except DataError as error:
                self._failure = str(error)

    def _install(self) -> None:
        """For our interpreter, or else for another one that the wheel may run on."""
        try:
            self._install_for(self._python)
        except DataError:
            if not any(map(self._is_installed_for, self._others())):
                raise

    def _is_installed_for(self, other: str) -> bool:
        self._on_stage(f"installing {self._archive.path.name} for {other}")
        try:
            self._install_for(other)
        except DataError:
            return False
        self._interpreter = self._python = other
        return True

    def _others(self) -> Iterator[str]:
        """Interpreters that were not tried yet; none if one was named."""
        if self._task.own_python:
            for other in other_interpreters(self._archive, sys.version_info[:2]):
                if other not in self._tried:
                    self._tried.add(other)
                    yield other

    def _install_for(self, python: str | None, constraints: Sequence[str] = ()) -> None:
        install(self._archive, self._folder, python, self._pip, self._task.timeout, constraints)

    @property
    def dependencies(self) -> dict[str, str]:
        return installed_versions(self._folder)

    def inspect(self, import_name: str) -> RuntimeReport | None:
        """None if it was not asked for."""
        if not self._task.python:
            return None
        if self._failure:
            return RuntimeReport(failure=self._failure)
        if self._is_settled:
            return self._inspect(import_name)
        first = report = self._inspect_with_older(import_name)
        while report.failure and any(map(self._is_installed_for, self._others())):
            report = self._inspect_with_older(import_name)
        self._is_settled = not report.failure
        return first if report.failure else report

    def _inspect_with_older(self, import_name: str) -> RuntimeReport:
        """What it says of itself; if it cannot be imported, with dependencies of its time, or else older ones."""
        first = self._inspect(import_name)
        for find in (self._rules_of_the_time, self._rules_for_older):
            if not first.failure or not (rules := find()):
                continue
            self._on_stage(f"trying {', '.join(rules)}")
            try:
                self._install_for(self._python, rules)
            except DataError:
                continue
            report = self._inspect(import_name)
            if not report.failure:
                return report
        return first

    def _rules_of_the_time(self) -> list[str]:
        index = PackageIndex.configured()
        return dependencies_of_the_time(self._folder, self._archive, index) if not self._task.archive else []

    def _rules_for_older(self) -> list[str]:
        return older_dependencies(self._folder, self._archive.distribution)

    def _inspect(self, import_name: str) -> RuntimeReport:
        self._on_stage(f"inspecting {import_name}")
        sandbox, limits = Sandbox(self._task.sandbox), Limits(seconds=self._task.timeout)
        return inspect_package(sandbox, self._interpreter, self._folder, import_name, self.scratch, limits)


@dataclass(frozen=True, slots=True)
class _Read:
    """What the files of one package say."""

    import_name: str
    objects: dict[str, PackageObject]
    resolve: Callable[[str], str]
    unread: list[str]
    compiled: list[str]


def _read(root: Path, import_name: str, beside: Sequence[str]) -> _Read:
    static = analyse(root, import_name, beside)
    objects = add_newdocs(static.objects, find_newdocs(root, import_name), static.resolve)
    return _Read(import_name, objects, static.resolve, static.unread, compiled_modules(root, import_name))


def _set_places_below(found: Mapping[str, _Read], folder: Path) -> None:
    """Places in an archive begin with the folder that its packages are in."""
    for item in (one for read in found.values() for one in read.objects.values()):
        item.place = item.place and (folder / item.place).as_posix()


def _add_source_newdocs(
    found: _Read, archive: Archive, scratch: Path, seconds: float
) -> tuple[dict[str, PackageObject], str]:
    """`add_newdoc` calls that are compiled into a wheel, from the source archive: numpy's ufuncs."""
    folder = scratch / "source"
    folder.mkdir(exist_ok=True)
    source = fetch_source(archive, folder) if archive.is_wheel else None
    if source is None:
        return found.objects, ""
    with time_limit(seconds, f"reading {source.path.name}"):
        unpack(source.path, folder / "unpacked")
        docs = find_newdocs(source_root(folder / "unpacked"), found.import_name)
        return add_newdocs(found.objects, docs, found.resolve), source.path.name


def _write(
    task: PackageTask,
    archive: Archive,
    names: list[str],
    found: _Read,
    runtime: _Runtime,
    texts: _Texts,
    told: ReleaseNotes,
) -> CorpusMeta:
    import_name = found.import_name
    report = runtime.inspect(import_name)
    objects = found.objects
    coverage: Coverage | None = None
    source_archive = ""
    if report is not None and report.objects:
        objects, coverage = add_runtime(objects, report.objects)
        for name, said in report.module_warnings.items():
            if name in objects and not objects[name].deprecated:
                objects[name].deprecated = said
    elif not task.archive and any(item.source == "add_newdoc" for item in found.objects.values()):
        objects, source_archive = _add_source_newdocs(found, archive, runtime.scratch, task.timeout)
    narrative_failure = _add_examples(task, archive, import_name, objects, texts)
    origin = Origin(
        distribution=archive.distribution,
        version=archive.version,
        wheel=archive.path.name,
        wheel_sha256=archive.sha256,
    )
    corpus_path, rows = Path(task.corpus_path), {}
    for kind in task.corpus_types:
        made = docstring_rows(objects, origin) if kind == "docstring" else source_rows(objects, origin)
        plain = corpus_path / import_name / corpus_name(archive.version, kind)
        rows[kind] = write_corpus(packed_file(plain), made)
        plain.unlink(missing_ok=True)  # of an older builder
    asked = names_file(corpus_file(corpus_path, import_name, archive.version))
    if report is not None and report.namespaces:
        paths = paths_by_number(objects, report.objects)
        head = Head(python=report.python, objects=paths, errors=report.module_errors)
        write_namespaces(asked, head, report.namespaces)
    else:
        asked.unlink(missing_ok=True)
    noted = notes_file(corpus_file(corpus_path, import_name, archive.version))
    if told.notes:
        write_notes(noted, told.notes)
    else:
        noted.unlink(missing_ok=True)
    documented = Counter(row.source for row in docstring_rows(objects, origin) if row.doc)
    inspected = report is not None and not report.failure
    meta = CorpusMeta(
        import_name=import_name,
        version=archive.version,
        distribution=archive.distribution,
        import_names=names,
        wheel=archive.path.name,
        wheel_sha256=archive.sha256,
        source_archive=source_archive,
        notes=len(told.notes),
        notes_archive=told.archive,
        notes_failure=printable(told.failure),
        unread_files=list(map(printable, found.unread)),
        rows=rows,
        documented=dict(sorted(documented.items())),
        runtime_requested=task.runtime_requested,
        runtime_python=report.python if report is not None else "",
        runtime_failure=report.failure if report is not None else "",
        module_errors=report.module_errors if report is not None else {},
        compiled_modules=list(map(printable, found.compiled)),
        sandbox=task.sandbox if inspected else "",
        dependencies=runtime.dependencies if inspected else {},
        texts=len(texts.texts),
        texts_archive=texts.source,
        texts_failure=narrative_failure,
        with_examples=sum(bool(item.examples) for item in objects.values()),
        with_mentions=sum(bool(item.mentions) for item in objects.values()),
        runtime_documented=coverage.runtime_documented if coverage else None,
        static_documented=coverage.static_documented if coverage else None,
    )
    write_meta(corpus_path, meta)
    return meta


def _add_examples(
    task: PackageTask, archive: Archive, import_name: str, objects: Mapping[str, PackageObject], texts: _Texts
) -> str:
    """Returns why there are none; "" if they were looked for."""
    narrative = Narrative(import_name, objects, f"{archive.distribution} {archive.version}")
    try:
        with time_limit(task.timeout, f"looking for examples of {import_name}"):
            narrative.read(texts.texts)
    except DataError as error:
        return str(error)
    narrative.give()
    return ""
