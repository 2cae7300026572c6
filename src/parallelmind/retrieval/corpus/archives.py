"""Unpack wheels and source archives that are not trusted.

Nothing is written outside the target, no links are made, and sizes are checked while they are written: what an archive
says about its sizes may be a lie.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Self

from parallelmind.errors import DataError

_MIB = 2**20
_CHUNK = 256 * 1024
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError, OverflowError, ValueError, struct.error),
)
_READ_SUFFIXES = frozenset({".py", ".pyi", ".txt", ".cfg", ".toml"})
_READ_NAMES = frozenset({"RECORD", "METADATA", "WHEEL", "PKG-INFO"})
# The others unpack as much as they please at once, whatever is read of it.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LONG_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_LONGEST_HEADER = _MIB
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """An archive beyond these limits is refused."""

    members: int = 100_000
    """Files, and the folders they lie in."""
    member_bytes: int = 4096 * _MIB
    total_bytes: int = 8192 * _MIB
    ratio: int = 500
    """The largest ratio of a member's unpacked to its packed bytes, where it is larger than `ratio_from`."""
    ratio_from: int = 8 * _MIB
    depth: int = 40


def unpack(archive: Path, target: Path, limits: UnpackLimits | None = None) -> None:
    """Write the texts of a .whl, .zip or .tar.gz to `target`: Python files, stubs and metadata, else names only.

    Raises:
        DataError: the archive is damaged, or a member is refused; names the archive, the member and the reason.
    """
    limits = limits or UnpackLimits()
    budget = _Budget(archive.name, limits)
    with _explained(archive, target):
        _unpack(_members(archive, target, budget), budget)


def read_members(
    archive: Path, is_wanted: Callable[[str], bool], limits: UnpackLimits | None = None
) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files whose path in the archive is wanted; nothing is written. Larger ones are left out.

    Args:
        limits: as for `unpack`, but a file beyond `member_bytes` is left out, and the archive is read on.

    Raises:
        DataError: the archive is damaged, or a member is refused; names the archive, the member and the reason.
    """
    limits = limits or UnpackLimits()
    budget = _Budget(archive.name, replace(limits, member_bytes=UnpackLimits().member_bytes))
    nowhere = Path()
    with _explained(archive, nowhere):
        for member in _members(archive, nowhere, budget):
            budget.skip(member)
            if member.size <= limits.member_bytes and is_wanted(member.name) and (source := member.open()):
                with source:
                    content = source.read(limits.member_bytes + 1)
                if len(content) <= limits.member_bytes:
                    yield member.name, content


def unpack_wheels(wheels: Sequence[Path], target: Path, limits: UnpackLimits | None = None) -> None:
    """Write what wheels install to one folder; the limits hold for all of them together.

    Raises:
        DataError: an archive is damaged, or a member is refused; names the archive, the member and the reason.
    """
    budget = _Budget("", limits or UnpackLimits(members=300_000, total_bytes=16384 * _MIB))
    for wheel in wheels:
        budget.archive = wheel.name
        with _explained(wheel, target):
            _install(wheel, target, budget)


def _installed_name(member: str) -> str | None:
    """Where a member of a wheel goes; None for scripts and headers, which importing does not need."""
    folder, _, rest = member.partition("/")
    if not folder.endswith(".data"):
        return member
    kind, _, name = rest.partition("/")
    return name if kind in ("purelib", "platlib") else None


@contextlib.contextmanager
def _explained(archive: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except DataError:  # a ValueError, as well
        raise
    except _DAMAGED as error:
        raise DataError(f"{archive.name} is damaged: {error or type(error).__name__}; download it again.") from error
    except OSError as error:
        raise DataError(
            f"{archive.name} cannot be unpacked to {target}: {error.strerror or error}; free space, or permit it."
        ) from error


class _Budget:
    """What an archive, or several together, may still hold."""

    def __init__(self, archive: str, limits: UnpackLimits) -> None:
        self.archive, self.limits = archive, limits
        self.members = self.written = 0
        self._folders = {PurePosixPath()}

    def refuse(self, member: str, reason: str) -> DataError:
        return DataError(f"{self.archive}: member {member!r:.200} {reason}; the archive is not unpacked.")

    def count(self, member: str) -> None:
        self.members += 1
        if self.members > self.limits.members:
            raise self.refuse(member, f"is beyond the {self.limits.members:,} members an archive may have")

    def destination(self, member: str, target: Path) -> Path:
        """Where a member is written; a path that leads elsewhere is refused."""
        path = PurePosixPath(member)
        if "\0" in member or "\\" in member or path.is_absolute() or ":" in (path.parts or ("",))[0]:
            raise self.refuse(member, "has an absolute or foreign path")
        if ".." in path.parts:
            raise self.refuse(member, "leaves the target folder")
        if len(path.parts) > self.limits.depth or any(len(os.fsencode(part)) > 255 for part in path.parts):
            raise self.refuse(member, "has a path that is too long")
        for folder in path.parents:
            if folder in self._folders:
                break
            self._folders.add(folder)
            self.count(member)
        return target / path

    def copy(self, source: IO[bytes], destination: Path, member: str, packed: int) -> None:
        """Write one member, and stop as soon as it is larger than it may be."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with destination.open("wb") as file:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                self.written += len(chunk)
                self.check(member, size, packed)
                file.write(chunk)

    def skip(self, member: _Member) -> None:
        """Count a file that is not written: a tar is unpacked as a whole, and who wants all would have to write it."""
        self.written += member.size
        self.check(member.name, member.size, member.packed)

    def check(self, member: str, size: int, packed: int) -> None:
        limits = self.limits
        if size > limits.member_bytes:
            raise self.refuse(member, f"unpacks to more than {limits.member_bytes:,} bytes")
        if size > limits.ratio_from and packed and size > packed * limits.ratio:
            raise self.refuse(member, f"unpacks to more than {limits.ratio} times its packed size (a zip bomb?)")
        if self.written > limits.total_bytes:
            raise self.refuse(member, f"is beyond the {limits.total_bytes:,} bytes an archive may unpack to")


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of an archive that may be read."""

    name: str
    destination: Path
    size: int
    packed: int
    open: Callable[[], IO[bytes] | None]


def _members(archive: Path, target: Path, budget: _Budget) -> Iterator[_Member]:
    """The files, in the order of the archive; read one before the next is asked for."""
    return (_zip_members if archive.suffix in (".whl", ".zip") else _tar_members)(archive, target, budget)


def _unpack(members: Iterator[_Member], budget: _Budget) -> None:
    for member in members:
        source = member.open() if _is_read(member.destination) else None
        if source is not None:
            with source:
                budget.copy(source, member.destination, member.name, member.packed)
        else:
            budget.skip(member)
            _mark(member.destination)


def _install(archive: Path, target: Path, budget: _Budget) -> None:
    for member in _zip_members(archive, target, budget):
        name = _installed_name(member.name)
        if name is None:
            budget.skip(member)
            continue
        source = member.open()
        assert source is not None
        with source:
            budget.copy(source, budget.destination(name, target), member.name, member.packed)


def _zip_members(archive: Path, target: Path, budget: _Budget) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            budget.count(info.filename)
            destination = budget.destination(info.filename, target)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise budget.refuse(info.filename, "is a link or a special file")
            if info.flag_bits & 1:
                raise budget.refuse(info.filename, "is encrypted")
            if info.compress_type not in _METHODS:
                raise budget.refuse(info.filename, "is packed in another way than wheels are, by deflate")
            if info.is_dir():
                continue
            budget.check(info.filename, info.file_size, info.compress_size)
            opened = partial(file.open, info)
            yield _Member(info.filename, destination, info.file_size, info.compress_size, opened)


class _TarMember(tarfile.TarInfo):
    """Is not made of headers that are too large to be read at once, as they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _LONG_HEADERS and found.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {found.size:,} bytes")
        return found


def _tar_members(archive: Path, target: Path, budget: _Budget) -> Iterator[_Member]:
    packed = archive.stat().st_size
    with archive.open("rb") as opened:
        # Not "r|*": what else there is unpacks as much as it pleases at once.
        mode: Literal["r|gz", "r|"] = "r|gz" if opened.read(len(_GZIP)) == _GZIP else "r|"
    with tarfile.open(archive, mode, tarinfo=_TarMember) as file:
        for info in file:
            budget.count(info.name)
            destination = budget.destination(info.name, target)
            if info.isdir():
                continue
            if not info.isreg():
                # Links are frequent in source archives, in documentation and tests, and are of no use here.
                if not info.issym() and not info.islnk():
                    raise budget.refuse(info.name, "is a special file")
                folder = posixpath.dirname(info.name) if info.issym() else ""
                linked = posixpath.normpath(posixpath.join(folder, info.linkname))
                if linked.startswith(("/", "../")) or linked == "..":
                    raise budget.refuse(info.name, f"is a link out of the archive, to {info.linkname!r:.200}")
                continue
            budget.check(info.name, info.size, packed)
            yield _Member(info.name, destination, info.size, packed, partial(file.extractfile, info))


def _is_read(path: Path) -> bool:
    return path.suffix in _READ_SUFFIXES or path.name in _READ_NAMES


def _mark(destination: Path) -> None:
    """Of a compiled module only the name matters."""
    if destination.suffix in (".so", ".pyd"):
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.touch()
