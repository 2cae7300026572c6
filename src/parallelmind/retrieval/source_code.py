"""The source code of an object, from the archive that its row was made of; what is read is bounded, and never run."""

from __future__ import annotations

import functools
import hashlib
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.archives import UnpackLimits, read_members
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.sections import SOURCE_IN

_MAX_LINES, _MAX_CHARACTERS = 150, 8_000
_LONGEST_FILE = 8 * 2**20
_PLACE = re.compile(r"(.+):(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class SourceCode:
    """The code of an object, or why it cannot be had."""

    text: str = ""
    place: str = ""
    """Such as `flask/app.py, lines 81-120 of flask-3.1.0-py3-none-any.whl`."""
    truncated: bool = False
    problem: str = ""

    def shown(self) -> str:
        """As a part of a document; "" if there is none."""
        if not self.text:
            return ""
        more = " Only the beginning:" if self.truncated else ""
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", self.text)), 0)
        return f"{SOURCE_IN}{self.place}:{more}\n\n{fence}python\n{self.text}\n{fence}"


def read_source(corpus_path: Path, row: CorpusRow) -> SourceCode:
    """The source code of a row's object, of at most 150 lines."""
    found = _PLACE.fullmatch(row.place)
    if found is None:
        return SourceCode(problem=f"{row.path} has no source code in Python that its corpus knows of.")
    archive = next((path for path in _places(corpus_path, row.wheel) if path.is_file()), None)
    if archive is None:
        return SourceCode(
            problem=f"{row.wheel} is not in {corpus_path / '.wheels'}: build the version again, or put it there."
        )
    stat = archive.stat()
    if row.wheel_sha256 and _digest(archive, stat.st_mtime_ns, stat.st_size) != row.wheel_sha256:
        return SourceCode(problem=f"{archive} is not what the corpus was built from; delete it, and build again.")
    file, first, last = found.group(1), int(found.group(2)), int(found.group(3))
    try:
        content = _member(archive, file, stat.st_mtime_ns)
    except DataError as error:
        return SourceCode(problem=str(error))
    lines = content.splitlines()[first - 1 : last]
    text = textwrap.dedent("\n".join(lines[:_MAX_LINES]))
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS].rpartition("\n")[0]
    place = f"{file}, lines {first}-{last} of {row.wheel}"
    return SourceCode(text=text.rstrip(), place=place, truncated=text.count("\n") + 1 < len(lines))


def _places(corpus_path: Path, name: str) -> list[Path]:
    """Where the builder keeps archives; a name that is a path leads nowhere."""
    if not name or Path(name).name != name:
        return []
    return [corpus_path / ".wheels" / name, corpus_path / ".wheels" / "sources" / name]


@functools.lru_cache(64)
def _digest(archive: Path, changed: int, size: int) -> str:
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(32)
def _member(archive: Path, name: str, changed: int) -> str:
    limits = UnpackLimits(member_bytes=_LONGEST_FILE)
    for _, content in read_members(archive, lambda member: member == name, limits):
        return content.decode("utf-8", "replace")
    raise DataError(f"{archive} has no {name} that can be read; build the version again.")
