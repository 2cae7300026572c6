"""What a project says about the versions of its dependencies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from parallelmind.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectVersions:
    """Distributions by their normalised names."""

    source: str
    """The file or folder it was read from."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """A version (1.26.4), a range (>=1.20,<2), or "" where any version will do."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Dependencies whose version cannot be told, and why."""


@dataclass(slots=True)
class Collected:
    """Requirements as they are found; a distribution that is named again must fit all of them."""

    source: str
    _wanted: dict[str, SpecifierSet] = field(default_factory=dict)
    _places: dict[str, str] = field(default_factory=dict)
    _skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, specifier: SpecifierSet, place: str) -> None:
        """Take a requirement.

        Raises:
            DataError: it contradicts one before.
        """
        name = canonicalize_name(name)
        before = self._wanted.get(name, SpecifierSet())
        pins = {exact for one in (before, specifier) if (exact := exact_version(one))}
        if len(pins) > 1:
            raise DataError(
                f"{place}: {name}{specifier} contradicts {name}{before} of {self._places[name]}; keep one of them."
            )
        self._wanted[name] = before & specifier
        self._places.setdefault(name, place)

    def constrain(self, constraints: Mapping[str, SpecifierSet]) -> None:
        """Narrow what is required; what is not required stays out."""
        for name in self._wanted.keys() & constraints.keys():
            self._wanted[name] &= constraints[name]

    def skip(self, name: str, reason: str) -> None:
        self._skipped[name] = reason

    def specifiers(self) -> dict[str, SpecifierSet]:
        return dict(self._wanted)

    def result(self) -> ProjectVersions:
        versions = {name: exact_version(wanted) or str(wanted) for name, wanted in sorted(self._wanted.items())}
        skipped = {name: reason for name, reason in self._skipped.items() if name not in versions}
        return ProjectVersions(source=self.source, versions=versions, skipped=skipped)


def exact_version(specifier: SpecifierSet) -> str:
    """The one version that a specifier allows, without what a builder added to it (+cpu); "" if it allows several."""
    for one in specifier:
        if one.operator in ("==", "===") and not one.version.endswith(".*"):
            try:
                return Version(one.version).public
            except InvalidVersion:
                return one.version
    return ""


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One entry of a lockfile."""

    name: str
    version: str
    markers: tuple[str, ...] = ()
    """It is installed where one of them holds; always, if there are none."""


def chosen(packages: Iterable[LockedPackage], source: str, holds: Callable[[str, str], bool]) -> ProjectVersions:
    """The version of each package that a lockfile installs here.

    A lockfile may have several versions of a package, for different Pythons and systems. Where their markers leave
    more than one, the version cannot be told.
    """
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    ordered = sorted(packages, key=lambda package: package.name)
    for name, group in itertools.groupby(ordered, key=lambda package: package.name):
        entries = list(group)
        if len({entry.version for entry in entries}) > 1:
            entries = [
                entry for entry in entries if not entry.markers or any(holds(one, source) for one in entry.markers)
            ]
        found = {entry.version for entry in entries}
        if len(found) == 1:
            versions[name] = found.pop()
        else:
            every = ", ".join(sorted(found)) or "none"
            skipped[name] = f"{source} has several versions of it, and for this system {every}"
    return ProjectVersions(source=source, versions=versions, skipped=skipped)


def marker_holds(text: str, where: str) -> bool:
    """Whether an environment marker is true of this Python and system, without extras.

    Raises:
        DataError: it is not a marker; `where` says where it stands.
    """
    try:
        return Marker(text).evaluate({"extra": ""})
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName) as error:
        raise DataError(f"{where}: {text!r} is not an environment marker ({str(error).splitlines()[0]}).") from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the logical lines of a requirements file: continued ones joined, without comments."""
    started, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        started = started or number
        if line.lstrip().startswith("#"):
            line = "" if parts else line
        elif " #" in line or "\t#" in line:
            line = line[: min(place for mark in (" #", "\t#") if (place := line.find(mark)) >= 0)]
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        parts.append(line)
        yield started, "".join(parts).strip()
        started, parts = 0, []
    if parts:
        yield started, "".join(parts).strip()
