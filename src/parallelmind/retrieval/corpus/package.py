"""Build the corpora of one distribution: fetch, read, inspect, merge, write."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.archives import unpack
from parallelmind.retrieval.corpus.calls import only_call
from parallelmind.retrieval.corpus.deprecation import deprecation_of
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
from parallelmind.retrieval.corpus.newdocs import find_newdocs
from parallelmind.retrieval.corpus.objects import PackageObject, is_public
from parallelmind.retrieval.corpus.package_index import PackageIndex
from parallelmind.retrieval.corpus.pip import Pip
from parallelmind.retrieval.corpus.release_notes import ReleaseNotes, notes_of_part, read_release_notes
from parallelmind.retrieval.corpus.runtime import RuntimeReport, inspect_package
from parallelmind.retrieval.corpus.sandbox.running import Limits, printable
from parallelmind.retrieval.corpus.sandbox.sandbox import Kind, Sandbox
from parallelmind.retrieval.corpus.static import analyse
from parallelmind.retrieval.corpus.time_limit import time_limit
from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, write_corpus
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
    shutil.rmtree(unpacked)
    on_stage("reading release notes")
    wheels, is_online = corpus_path / ".wheels", not task.archive
    told = read_release_notes(archive, wheels, is_online=is_online, seconds=task.timeout)
    runtime = _Runtime(task, archive, scratch, other_python, pip, on_stage)
    largest = max(names, key=lambda name: len(found[name].objects))
    return [
        _write(task, archive, names, found[name], runtime, told if name == largest else _of_part(told, found[name]))
        for name in names
    ]


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
    origin = Origin(
        distribution=archive.distribution,
        version=archive.version,
        wheel=archive.path.name,
        wheel_sha256=archive.sha256,
    )
    corpus_path, rows = Path(task.corpus_path), {}
    for kind in task.corpus_types:
        made = docstring_rows(objects, origin) if kind == "docstring" else source_rows(objects, origin)
        rows[kind] = write_corpus(corpus_file(corpus_path, import_name, archive.version, kind), made)
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
        runtime_documented=coverage.runtime_documented if coverage else None,
        static_documented=coverage.static_documented if coverage else None,
    )
    write_meta(corpus_path, meta)
    return meta


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The archive that rows come from."""

    distribution: str
    version: str
    wheel: str
    wheel_sha256: str


def docstring_rows(objects: Mapping[str, PackageObject], origin: Origin) -> Iterator[CorpusRow]:
    """A row for each object that has a public name, sorted by path."""
    for item in _public(objects.values()):
        yield _row(item, origin)


def source_rows(objects: Mapping[str, PackageObject], origin: Origin) -> Iterator[CorpusRow]:
    """A row for each object that has a public name and source code, sorted by path."""
    for item in _public(objects.values()):
        if item.code:
            yield replace(_row(item, origin), doc=_clean(item.code), source="static")


def _public(objects: Iterable[PackageObject]) -> list[PackageObject]:
    return sorted((item for item in objects if any(map(is_public, item.names))), key=lambda item: item.path)


def _row(item: PackageObject, origin: Origin) -> CorpusRow:
    aliases = {name for name in item.names if is_public(name)} - {item.path}
    return CorpusRow(
        path=_clean(item.path),
        aliases=tuple(_clean(name) for name in sorted(aliases, key=lambda name: (name.count("."), len(name), name))),
        doc=_clean(item.doc),
        type=_clean(item.type),
        signature=_clean(item.signature),
        parameters=item.parameters,
        deprecated=_clean(deprecation_of(item)),
        calls=_clean(only_call(item)),
        home="" if _is_below(item.home, item.path.partition(".")[0]) else _clean(item.home),
        members=tuple(_clean(name) for name in sorted(item.members)),
        source=item.source,
        distribution=origin.distribution,
        version=origin.version,
        wheel=origin.wheel,
        wheel_sha256=origin.wheel_sha256,
    )


def _is_below(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
