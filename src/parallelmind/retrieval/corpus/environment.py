"""A folder with a wheel and what it depends on, for the interpreter that inspects it; ours stays as it is."""

from __future__ import annotations

import contextlib
import email
import functools
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.archives import unpack_wheels
from parallelmind.retrieval.corpus.fetch import Archive
from parallelmind.retrieval.corpus.package_index import PackageIndex
from parallelmind.retrieval.corpus.pip import Pip
from parallelmind.retrieval.corpus.time_limit import time_limit

_LOWEST = (">=", "==", "~=")
_OLDEST_PYTHON = 7  # 3.7, for which the inspector and pip still work
_MOST_INTERPRETERS = 4
_MOST_METADATA = 2**22


def install(
    archive: Archive, folder: Path, python: str | None, pip: Pip, seconds: float, constraints: Sequence[str] = ()
) -> None:
    """Unpack a wheel and its dependencies, which are wheels too, in some seconds at most: none of their code is run.

    Raises:
        DataError: there are none for this interpreter, or one is refused; says why.
    """
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder.with_name("wheels")
    shutil.rmtree(wheels, ignore_errors=True)
    try:
        pip.download(archive.path, wheels, python, dependencies=True, constraints=constraints)
    except DataError as error:
        raise DataError(f"{archive.path.name} does not install for this interpreter: {error}") from error
    # In the sandbox root is nobody, who could not read what only root may; around it nobody else comes here.
    mask = os.umask(0o022)
    try:
        with time_limit(seconds, f"unpacking {archive.path.name} and what it depends on"):
            unpack_wheels(sorted(wheels.glob("*.whl")), folder)
    finally:
        os.umask(mask)
    shutil.rmtree(wheels)


def other_interpreters(archive: Archive, own: tuple[int, int]) -> Iterator[str]:
    """Interpreters of this machine that a wheel may run on, other than ours: the likeliest first, a few at most.

    That is the Python version it was made for; for wheels that name none, older ones from the newest on, as code of old
    fails on what later versions dropped, and then newer ones.
    """
    tags = parse_wheel_filename(archive.path.name)[3]
    made_for = {int(found.group(1)) for tag in tags if (found := re.fullmatch(r"cp3(\d+)", tag.interpreter))}
    is_stable = any(tag.abi == "abi3" for tag in tags)
    known = {minor: paths for minor, paths in installed_interpreters().items() if minor != own[1]}
    if made_for and not is_stable:
        minors = sorted(made_for & known.keys(), reverse=True)
    else:
        lowest = max([_OLDEST_PYTHON, *made_for])
        older = sorted((minor for minor in known if lowest <= minor < own[1]), reverse=True)
        minors = older + sorted(minor for minor in known if minor > own[1])
    allowed = _required_python(archive)
    for minor in [minor for minor in minors if allowed.contains(f"3.{minor}")][:_MOST_INTERPRETERS]:
        if program := next(filter(None, map(_program, known[minor])), None):
            yield program


@functools.cache
def installed_interpreters() -> dict[int, list[str]]:
    """Of Python 3, by minor version: on PATH, of pyenv, asdf, rye, uv and the system."""
    from findpython.providers import ALL_PROVIDERS

    found: dict[int, list[str]] = {}
    for kind in ALL_PROVIDERS.values():
        provider = kind.create()
        for python in provider.find_pythons() if provider is not None else ():
            named = re.fullmatch(r"python3\.(\d+)", python.executable.name)
            if named and int(named.group(1)) >= _OLDEST_PYTHON:
                found.setdefault(int(named.group(1)), []).append(str(python.executable))
    return found


def _program(path: str) -> str | None:
    """What a launcher stands for, if it works at all."""
    command = [path, "-I", "-c", "import sys; print(sys.executable)"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return tried.stdout.strip() if tried.returncode == 0 else None


def _required_python(archive: Archive) -> SpecifierSet:
    with (
        contextlib.suppress(OSError, zipfile.BadZipFile, InvalidSpecifier, KeyError),
        zipfile.ZipFile(archive.path) as file,
    ):
        name = next(name for name in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        if file.getinfo(name).file_size <= _MOST_METADATA:
            return SpecifierSet(email.message_from_bytes(file.read(name)).get("Requires-Python") or "")
    return SpecifierSet()


def older_dependencies(folder: Path, distribution: str) -> list[str]:
    """Constraints on the direct dependencies of an installed distribution: an older major version than the one there.

    Old packages rarely say that they need an older numpy; pip then takes the newest, and importing them fails.
    """
    installed: dict[str, PathDistribution] = {}
    for path in folder.glob("*.dist-info"):
        found = PathDistribution(path)
        installed[canonicalize_name(str(found.metadata["Name"]))] = found
    needed = installed[distribution].requires if distribution in installed else None
    rules = []
    for text in needed or ():
        try:
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            major = Version(installed[name].version).major
            asked = [rule.version.removesuffix(".*") for rule in requirement.specifier if rule.operator in _LOWEST]
            lowest = [Version(version).major for version in asked]
        except (InvalidRequirement, InvalidVersion, KeyError):
            continue
        rule = f"{name}<{major}"
        if major > max(lowest, default=0) and rule not in rules:
            rules.append(rule)
    return rules


def dependencies_of_the_time(folder: Path, archive: Archive, index: PackageIndex) -> list[str]:
    """Constraints on all that is installed with a distribution: nothing newer than a month after its release.

    Empty if the index does not say when files were uploaded, or cannot be asked.
    """
    try:
        released = [item.uploaded for item in index.files(archive.distribution) if str(item.version) == archive.version]
        latest = _month_after(min(filter(None, released), default=""))
        rules = []
        for name, version in installed_versions(folder).items() if latest else ():
            if name == archive.distribution:
                continue
            items = [item for item in index.files(name) if item.is_wheel and item.uploaded and not item.yanked]
            of_the_time = [item.version for item in items if item.uploaded <= latest and not item.version.is_prerelease]
            if of_the_time and max(of_the_time) < Version(version):
                rules.append(f"{name}<={max(of_the_time)}")
    except (DataError, ValueError):
        return []
    return rules


def _month_after(moment: str) -> str:
    if not moment:
        return ""
    return (datetime.fromisoformat(moment) + timedelta(days=30)).isoformat()


def installed_versions(folder: Path) -> dict[str, str]:
    """The distributions in a folder, and their versions."""
    found = (PathDistribution(path) for path in sorted(folder.glob("*.dist-info")))
    return {canonicalize_name(str(item.metadata["Name"])): item.version for item in found}
