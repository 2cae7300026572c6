"""Folders derived from a corpus file: made once, by one process, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from parallelmind.errors import SettingsError


def cached_folder(folder: Path, build: Callable[[Path], None], *, flag: str = "") -> Path:
    """Return `folder`, filled by `build(temporary folder)` unless it exists; safe with many processes.

    Raises:
        SettingsError: the folder cannot be written; `flag` is the one that chooses the place.
    """
    if folder.is_dir():
        return folder
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if folder.is_dir():  # made by another process while we waited
                return folder
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                build(temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be written: {error.strerror or error}; free space, or permit it"
            f"{f', or choose another place with {flag}' if flag else ''}."
        ) from error
    return folder
