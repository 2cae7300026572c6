"""What the release notes of a package say of its names, as they were read when the version was built.

`{version}.notes.jsonl.gz` beside the corpus file has a `Note` a line; a version without that file has nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from parallelmind.retrieval.corpus_rows import file_beside
from parallelmind.retrieval.packed_lines import damaged, read_packed, write_packed

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
    """See `write_packed`.

    Raises:
        SettingsError: the file cannot be written.
    """
    write_packed(path, map(asdict, notes))


def read_notes(path: Path) -> Iterator[Note]:
    """The entries in order.

    Raises:
        DataError: the file cannot be read, or is not such a file.
    """
    for row in read_packed(path):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in _FIELDS):
            raise damaged(path, ValueError(f"{str(row)[:200]} where an entry should be"))
        yield Note(**{name: row[name] for name in _FIELDS})
