"""The source archive beside a wheel: what it has besides the code, release notes and documentation, is read as text.

Nothing of it is run, unpacked to disk or built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.version import Version

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus.archives import UnpackLimits, read_members
from parallelmind.retrieval.corpus.fetch import Archive, fetch_source, open_archive
from parallelmind.retrieval.corpus.names import parse_archive_name

_MIB = 2**20
_LIMITS = UnpackLimits(member_bytes=4 * _MIB)
_TEXT_BYTES = 64 * _MIB


def find_source(archive: Archive, cache: Path, *, is_online: bool) -> Archive | None:
    """The source archive of the version of `archive`: that one itself, one beside it, or one that an index offers.

    Args:
        cache: the folder that keeps it, for the next time.
        is_online: whether an index may be asked.

    Returns:
        None if there is none, or it cannot be had.
    """
    if not archive.is_wheel:
        return archive
    kept = cache / "sources"
    for folder in (kept, archive.path.parent):
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            if _is_source_of(archive, path.name):
                return open_archive(path)
    return fetch_source(archive, kept) if is_online else None


def source_texts(source: Archive, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """(path, text) of the files with a wanted path, below the only folder of the archive, in the archive's order.

    Files of more than 4 MiB are left out, and what is beyond 64 MiB of text is not read.

    Raises:
        DataError: the archive is damaged, or refused.
    """
    left = _TEXT_BYTES
    for name, content in read_members(source.path, lambda name: is_wanted(_below(name)), _LIMITS):
        left -= len(content)
        if left < 0:
            return
        yield _below(name), content.decode("utf-8-sig", "replace")


def _below(name: str) -> str:
    return name.removeprefix("./").partition("/")[2]


def _is_source_of(archive: Archive, name: str) -> bool:
    if name.endswith(".whl"):
        return False
    try:
        return parse_archive_name(name) == (archive.distribution, Version(archive.version))
    except (DataError, ValueError):
        return False
