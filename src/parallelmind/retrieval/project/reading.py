"""The versions of a project, from whatever says them."""

from __future__ import annotations

import os
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.retrieval.project.environment import CURRENT, is_environment, read_environment
from parallelmind.retrieval.project.lockfiles import LOCKFILES, is_lockfile, read_lockfile
from parallelmind.retrieval.project.requirements import read_requirements
from parallelmind.retrieval.project.versions import ProjectVersions

_IN_A_FOLDER = (
    "uv.lock",
    "poetry.lock",
    "pdm.lock",
    "pylock.toml",
    "Pipfile.lock",
    "requirements.txt",
    "pyproject.toml",
)


def read_project(spelled: str) -> ProjectVersions:
    """Read a lockfile, a requirements file, the output of `pip freeze`, an environment, or a project's folder.

    An environment is the folder of a virtual environment, a path of a Python, or `current` for the one that runs this.
    In a project's folder the first of uv.lock, poetry.lock, pdm.lock, pylock.toml, Pipfile.lock, requirements.txt and
    pyproject.toml counts.

    Raises:
        DataError: it cannot be read, or is wrong; names the file and the line or place.
    """
    if spelled == CURRENT:
        return read_environment(None)
    path = Path(spelled)
    if path.is_dir():
        if is_environment(path):
            return read_environment(path)
        for name in _IN_A_FOLDER:
            if (path / name).is_file():
                return read_project(str(path / name))
        raise DataError(f"{path} has none of {', '.join(_IN_A_FOLDER)}; name a file, or an environment of Python.")
    if not path.exists():
        raise DataError(f"{path} does not exist; name a lockfile, requirements file, environment, or {CURRENT}.")
    if is_lockfile(path):
        return read_lockfile(path)
    if path.suffix == ".lock":
        raise DataError(f"{path} is none of {', '.join(LOCKFILES)}, which are read; name another file.")
    if path.suffix in ("", ".exe") and os.access(path, os.X_OK):
        return read_environment(path)
    return read_requirements(path)


def read_projects(spelled: tuple[str, ...]) -> ProjectVersions:
    """Read several; what an earlier one says counts."""
    found = [read_project(one) for one in spelled]
    versions = {name: version for one in reversed(found) for name, version in one.versions.items()}
    skipped = {name: why for one in reversed(found) for name, why in one.skipped.items() if name not in versions}
    return ProjectVersions(source=", ".join(one.source for one in found), versions=versions, skipped=skipped)
