"""The versions that are installed in an environment of Python."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

from parallelmind.errors import DataError
from parallelmind.retrieval.project.versions import ProjectVersions

CURRENT = "current"
_PATIENCE_SECONDS = 30
_ASK = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('platlib'))"


def is_environment(path: Path) -> bool:
    """Whether a folder is a virtual environment or another installation of Python."""
    return (path / "pyvenv.cfg").is_file() or bool(_folders_below(path))


def read_environment(path: Path | None) -> ProjectVersions:
    """What is installed in an environment: a folder, an interpreter, or None for the one that runs this.

    Nothing that is installed there is run.

    Raises:
        DataError: there is no environment.
    """
    source = str(path) if path else sys.prefix
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=_folders(path) if path else sys.path):
        if name := distribution.metadata["Name"]:
            versions.setdefault(canonicalize_name(name), distribution.version)  # as an import takes the first
    if not versions:
        raise DataError(f"{source} has no packages installed; name a virtual environment, its Python, or a lockfile.")
    return ProjectVersions(source=source, versions=dict(sorted(versions.items())))


def _folders(path: Path) -> list[str]:
    if path.is_dir():
        return _folders_below(path)
    if (path.parent.parent / "pyvenv.cfg").is_file() and (found := _folders_below(path.parent.parent)):
        return found
    try:
        done = subprocess.run(
            [path.absolute(), "-I", "-S", "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(
            f"{path} is not a Python that can be asked ({error}); name a virtual environment or a lockfile."
        ) from error
    return _unique(done.stdout.splitlines())


def _folders_below(path: Path) -> list[str]:
    found = [*path.glob("lib/python3*/site-packages"), *path.glob("lib64/python3*/site-packages")]
    return _unique([str(one.resolve()) for one in (*found, *path.glob("Lib/site-packages"))])


def _unique(folders: list[str]) -> list[str]:
    return list(dict.fromkeys(folders))
