"""What the release notes of a package say of its names, as they were read when the version was built.

`{version}.notes.jsonl.gz` beside the corpus file has a `Note` a line; a version without that file has nothing to say.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.io.atomic import replacing
from parallelmind.retrieval.corpus_rows import file_beside

_BYTES_PER_LINE = 2**20
_FIELDS = ("text", "version", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An entry of the release notes."""

    text: str
    """In one line, without markup but backquotes."""
    version: str
    """The one under whose heading it stands; "" if that does not say."""
    source: str
    """The file in the source archive."""

    def cited(self, package: str) -> str:
        """A sentence."""
        return f"The release notes of {f'{package} {self.version}'.strip()} say: {self.text}"


def notes_file(corpus_file: Path) -> Path:
    """The file of release notes beside a corpus file; it need not exist."""
    return file_beside(corpus_file, "notes")


def write_notes(path: Path, notes: Iterable[Note]) -> None:
    """Write a file that appears only when it is complete, the same for the same content.

    Raises:
        SettingsError: the file cannot be written.
    """
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file,
    ):
        for note in notes:
            file.write(json.dumps(asdict(note), ensure_ascii=False).encode() + b"\n")


def read_notes(path: Path) -> Iterator[Note]:
    """The entries in order.

    Raises:
        DataError: the file cannot be read, or is not such a file.
    """
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(_BYTES_PER_LINE):
                row = json.loads(line)
                if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in _FIELDS):
                    raise ValueError(f"{str(row)[:200]} where an entry should be")
                yield Note(**{name: row[name] for name in _FIELDS})
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read ({reason}); build the corpus again with --overwrite.") from None
