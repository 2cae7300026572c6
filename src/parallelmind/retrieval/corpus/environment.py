"""A folder with a wheel and what it depends on, for the interpreter that inspects it; ours stays as it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.archives import unpack_wheels
from parallelmind.retrieval.corpus.fetch import Archive
from parallelmind.retrieval.corpus.pip import Pip
from parallelmind.retrieval.corpus.time_limit import time_limit

_LOWEST = (">=", "==", "~=")
_OLDEST_PYTHON = 7  # 3.7, for which the inspector and pip still work


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


def fitting_interpreter(archive: Archive) -> str | None:
    """An interpreter on PATH, of the Python version a wheel was made for."""
    for tag in parse_wheel_filename(archive.path.name)[3]:
        version = re.fullmatch(r"cp3(\d+)", tag.interpreter)
        found = shutil.which(f"python3.{version.group(1)}") if version else None
        if version is None or found is None or int(version.group(1)) < _OLDEST_PYTHON:
            continue
        command = [
            found,
            "-I",
            "-c",
            "import sys; print(sys.executable)",
        ]  # what a launcher stands for, if it works at all
        tried = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if tried.returncode == 0:
            return tried.stdout.strip()
    return None


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


def installed_versions(folder: Path) -> dict[str, str]:
    """The distributions in a folder, and their versions."""
    found = (PathDistribution(path) for path in sorted(folder.glob("*.dist-info")))
    return {canonicalize_name(str(item.metadata["Name"])): item.version for item in found}
