"""Write a file completely or not at all."""

from __future__ import annotations

import contextlib
import filecmp
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from parallelmind.errors import ParallelMindError, SettingsError


def unwritable(path: Path, error: OSError) -> SettingsError:
    """What to tell the user of a file that the disk does not take."""
    return SettingsError(f"{path} cannot be written: {error.strerror or error}; a former file is unchanged.")


@contextlib.contextmanager
def replacing(path: Path, failure: Callable[[Path, OSError], ParallelMindError] = unwritable) -> Iterator[Path]:
    """A temporary name beside `path`, whose file takes the place of `path` when the block ends well.

    Missing folders are made. Otherwise a former file stays as it was; so does one of the same content, with its time.

    Args:
        failure: makes the error that is raised where the file cannot be written (any OSError of the block).
    Raises:
        ParallelMindError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if not (path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
            temporary.replace(path)
    except OSError as error:
        raise failure(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def refuse_same_file(written: Path, read: Path, *, flag: str) -> None:
    """Raises SettingsError if the file to write, which `flag` names, would take the place of the input `read`."""
    same = written.samefile(read) if written.exists() and read.exists() else written.resolve() == read.resolve()
    if same:
        raise SettingsError(f"{flag} is the input itself ({read}); give another name.")
