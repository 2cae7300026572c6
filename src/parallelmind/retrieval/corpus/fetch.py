"""Get the archive of a version without running any of its code: a wheel, or else a source archive."""

from __future__ import annotations

import difflib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.corpus.names import PackageRequest, parse_archive_name
from parallelmind.retrieval.corpus.package_index import IndexFile, PackageIndex
from parallelmind.retrieval.corpus.pip import Pip

_SHOWN_VERSIONS = 8
_MAX_SOURCE = 256 * 2**20
_NAME_PARTS_OF_SYSTEMS = ("manylinux", "linux", "macosx", "win")


@dataclass(frozen=True, slots=True)
class Archive:
    """A wheel or source archive on disk."""

    path: Path
    distribution: str
    version: str
    sha256: str

    @property
    def is_wheel(self) -> bool:
        return self.path.suffix == ".whl"


def fetch(request: PackageRequest, cache: Path, scratch: Path, python: str | None, pip: Pip) -> Archive:
    """The archive of `request`, from `cache` if it is there; a wheel for `python` (default: ours) if there is one.

    Raises:
        DataError: there is no such distribution or version, or no index can be reached.
    """
    if (cached := _cached(request, cache)) is not None:
        return open_archive(cached)
    folder = scratch / "download"
    try:
        pip.download(str(request), folder, python)
        fetched = next(folder.iterdir())
    except DataError:  # no wheel for this Python, no such version, or no network
        index = PackageIndex.configured()
        fetched = index.download(_choose(request, index.files(request.distribution)), folder)
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / fetched.name
    shutil.move(fetched, kept)
    return open_archive(kept)


def fetch_source(archive: Archive, folder: Path) -> Archive | None:
    """The source archive of the same version, kept in `folder`; None if there is none, or no index can be reached."""
    index = PackageIndex.configured()
    try:
        offered = [item for item in index.files(archive.distribution) if not item.is_wheel]
        same = [item for item in offered if str(item.version) == archive.version]
        if not same:
            return None
        return open_archive(index.download(max(same, key=_preference), folder, limit=_MAX_SOURCE))
    except (DataError, SettingsError):
        return None


def open_archive(path: Path) -> Archive:
    """Name, version and hash of a file.

    Raises:
        DataError: the file cannot be read, or its name is not that of a wheel or source archive.
    """
    try:
        distribution, version = parse_archive_name(path.name)
    except ValueError as error:
        raise DataError(f"{path} is not named as a wheel or source archive is: {error}.") from None
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions.") from error
    return Archive(path, distribution, str(version), digest)


def _cached(request: PackageRequest, cache: Path) -> Path | None:
    if request.version is None or not cache.is_dir():
        return None
    for path in sorted(cache.iterdir(), key=lambda path: path.suffix != ".whl"):
        try:
            if parse_archive_name(path.name) == (request.distribution, request.version):
                return path
        except ValueError:
            continue
    return None


def _choose(request: PackageRequest, files: Sequence[IndexFile]) -> IndexFile:
    if not files:
        raise DataError(
            f"there is no distribution {request.distribution!r} in the package index. If that is its import name,"
            " ask for the name it is installed by."
        )
    allowed = SpecifierSet(request.specifier)
    fitting = [item for item in files if allowed.contains(item.version, prereleases=bool(request.version) or None)]
    if not fitting:
        raise DataError(f"{request.distribution} has no version {request.specifier}; {_near(request, files)}.")
    usable = fitting if request.version else [item for item in fitting if not item.yanked] or fitting
    return max(usable, key=lambda item: (item.version, _preference(item)))


def _near(request: PackageRequest, files: Sequence[IndexFile]) -> str:
    versions = sorted({item.version for item in files})
    wanted = str(request.version or request.specifier)
    close = difflib.get_close_matches(wanted, [str(version) for version in versions], n=_SHOWN_VERSIONS, cutoff=0.5)
    newest = f"the newest is {versions[-1]}"
    return f"versions like it: {', '.join(close)}; {newest}" if close else newest


def _preference(item: IndexFile) -> tuple[bool, int, tuple[int, ...], bool]:
    """Wheels come first, pure ones before others, then by system and by the newest Python, whose code is like ours."""
    if not item.is_wheel:
        return (False, 0, (), item.name.endswith(".tar.gz"))
    tags = parse_wheel_filename(item.name)[3]
    tag = max(tags, key=_python_version)
    systems = len(_NAME_PARTS_OF_SYSTEMS)
    system = next((systems - n for n, part in enumerate(_NAME_PARTS_OF_SYSTEMS) if tag.platform.startswith(part)), 9)
    return (True, system, _python_version(tag), "x86_64" in tag.platform or "amd64" in tag.platform)


def _python_version(tag: Tag) -> tuple[int, ...]:
    digits = tag.interpreter.lstrip("abcdefghijklmnopqrstuvwxyz")
    return (int(digits[0]), int(digits[1:] or 0)) if digits.isdigit() else (0,)
