"""Lockfiles: uv.lock, poetry.lock, pdm.lock, pylock.toml, Pipfile.lock; and the dependencies in pyproject.toml."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from parallelmind.errors import DataError
from parallelmind.io.records import show_value
from parallelmind.retrieval.project.requirements import parse_requirements, read_text
from parallelmind.retrieval.project.versions import Collected, LockedPackage, ProjectVersions, chosen, marker_holds

_OWN = ("virtual", "editable", "directory")
"""How uv.lock says that a package is the project itself, or a part of it."""


def read_lockfile(path: Path) -> ProjectVersions:
    """The versions of a lockfile or pyproject.toml, by the name of the file.

    Raises:
        DataError: it cannot be read, or is not such a file; names the file and the place.
    """
    return _READERS["pylock.toml" if path.name.startswith("pylock.") else path.name](path)


def is_lockfile(path: Path) -> bool:
    """Whether a file of this name is read by `read_lockfile`."""
    return path.name in _READERS or (path.name.startswith("pylock.") and path.suffix == ".toml")


def _locked(key: str, markers_of: Callable[[dict[str, Any]], Any]) -> Callable[[Path], ProjectVersions]:
    def read(path: Path) -> ProjectVersions:
        return chosen(_entries(_toml(path), path, key, markers_of), str(path), marker_holds)

    return read


def _entries(
    content: dict[str, Any], path: Path, key: str, markers_of: Callable[[dict[str, Any]], Any]
) -> Iterator[LockedPackage]:
    packages = content.get(key, [])
    if not isinstance(packages, list):
        raise DataError(f"{path}: {key} is {show_value(packages)}; expected tables [[{key}]].")
    for place, package in enumerate(packages, start=1):
        where = f"{path}: [[{key}]] number {place}"
        if not isinstance(package, dict):
            raise DataError(f"{where} is {show_value(package)}; expected a table.")
        name, version = _text(package, "name", where), package.get("version")
        source = package.get("source")
        if version is None or (isinstance(source, dict) and any(kind in source for kind in _OWN)):
            continue
        markers = markers_of(package)
        if markers is not None and not isinstance(markers, str | list):
            markers = None
        several = (markers,) if isinstance(markers, str) else tuple(filter(None, map(str, markers or ())))
        yield LockedPackage(canonicalize_name(name), _text(package, "version", where), several)


def _poetry_marker(package: dict[str, Any]) -> Any:
    if isinstance(markers := package.get("markers"), dict):  # one for each group
        markers = list(markers.values())
    pythons = package.get("python-versions", "*")
    if markers is None and isinstance(pythons, str) and pythons != "*":
        return [_python_marker(alternative) for alternative in pythons.split("||")]
    return markers


def _python_marker(spelled: str) -> str:
    parts = (part.strip() for part in spelled.split(","))
    try:
        ranges = [str(one) for part in parts for one in SpecifierSet(part if part[:1] in "<>=!~" else f"=={part}")]
    except InvalidSpecifier:
        return ""
    bounds = (one.partition(one.lstrip("<>=!~")) for one in ranges)
    return " and ".join(f"python_full_version {operator} '{version}'" for operator, version, _ in bounds)


def _pipfile(path: Path) -> ProjectVersions:
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); make it again with pipenv lock.") from None
    collected = Collected(str(path))
    for section in ("default", "develop"):
        packages = content.get(section, {}) if isinstance(content, dict) else None
        if not isinstance(packages, dict):
            raise DataError(f"{path}: {section!r} is {show_value(packages)}; expected an object.")
        for name, entry in packages.items():
            where = f"{path}: {section}.{name}"
            if not isinstance(entry, dict) or not isinstance(entry.get("version", ""), str):
                raise DataError(f"{where} is {show_value(entry)}; expected an object with a version.")
            if (marker := entry.get("markers")) and not marker_holds(str(marker), where):
                continue
            if "version" not in entry:
                collected.skip(name, f"{path} names no version of it")
                continue
            try:
                collected.add(name, SpecifierSet(entry["version"]), where)
            except InvalidSpecifier:
                raise DataError(f"{where}: {entry['version']!r} is not a version such as ==1.26.4.") from None
    return collected.result()


def _pyproject(path: Path) -> ProjectVersions:
    project = _toml(path).get("project", {})
    dependencies = project.get("dependencies", []) if isinstance(project, dict) else None
    if not isinstance(dependencies, list) or not all(isinstance(one, str) for one in dependencies):
        raise DataError(f"{path}: project.dependencies is {show_value(dependencies)}; expected a list of texts.")
    return parse_requirements("\n".join(dependencies), f"{path}: project.dependencies")


def _toml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not TOML: {error}; make it again with the tool that wrote it.") from None


def _text(package: dict[str, Any], key: str, where: str) -> str:
    value = package.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {key} is {show_value(value)}; expected a text.")
    return value


_READERS: dict[str, Callable[[Path], ProjectVersions]] = {
    "uv.lock": _locked("package", lambda package: package.get("resolution-markers")),
    "poetry.lock": _locked("package", _poetry_marker),
    "pdm.lock": _locked("package", lambda package: package.get("marker")),
    "pylock.toml": _locked("packages", lambda package: package.get("marker")),
    "Pipfile.lock": _pipfile,
    "pyproject.toml": _pyproject,
}
LOCKFILES = tuple(_READERS)
