"""Files beside a corpus that hold a JSON value a line, compressed, and are read from the beginning."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.atomic import replacing

_BYTES_PER_LINE = 2**26


def write_packed(path: Path, values: Iterable[Any]) -> None:
    """Write a file that appears only when it is complete, the same for the same content.

    Raises:
        SettingsError: the file cannot be written.
    """
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file,
    ):
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def read_packed(path: Path) -> Iterator[Any]:
    """The values in order.

    Raises:
        DataError: the file cannot be read, or is not such a file.
    """
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(_BYTES_PER_LINE):
                yield json.loads(line)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> DataError:
    """Says that a file is not what a build wrote, and what to do."""
    reason = f"{type(error).__name__}: {error}"
    return DataError(f"{path} cannot be read ({reason}); build the corpus again with --overwrite.")
