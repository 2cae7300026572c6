"""Requirements files, as pip reads them, and what `pip freeze` prints."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename

from parallelmind.errors import DataError
from parallelmind.io.records import shorten
from parallelmind.retrieval.project.versions import Collected, ProjectVersions, lines_of, marker_holds

MAX_BYTES = 64 * 2**20
_MAX_DEPTH = 20
_OPTION = re.compile(r"^(-r|--requirement|-c|--constraint|-e|--editable)(?:[ =]\s*|(?<=-[rce]))(.+)$")
_MAX_LENGTH = 4_000
_TRAILING_OPTIONS = re.compile(r"(?<!\s)\s+--(?:hash|config-settings?|global-option|install-option)\b.*$", re.DOTALL)
_EGG = re.compile(r"[#&]egg=([\w.-]+)")
_EDITABLE = re.compile(r"^# Editable .*\((?P<requirement>[\w.-]+==[^)\s]+)\)$")
"""`pip freeze` writes so about what is installed from a folder."""


def read_requirements(path: Path) -> ProjectVersions:
    """The requirements of a file and of those that it includes.

    Raises:
        DataError: a file cannot be read or a line is wrong; names the file and the line.
    """
    collected, constraints = Collected(str(path)), Collected(str(path))
    _read(path, collected, constraints, ())
    collected.constrain(constraints.specifiers())
    return collected.result()


def parse_requirements(text: str, source: str) -> ProjectVersions:
    """The requirements of a text, which may include no files.

    Raises:
        DataError: a line is wrong; names `source` and the line.
    """
    collected = Collected(source)
    for number, line in lines_of(text):
        where = f"{source}: line {number}"
        if (option := _OPTION.match(line)) and option.group(1) in ("-r", "--requirement", "-c", "--constraint"):
            raise DataError(f"{where} includes a file; write the requirements themselves, as numpy==1.26.4.")
        _take(line, where, collected)
    return collected.result()


def read_text(path: Path) -> str:
    """The text of a small file, whatever of the usual encodings it has.

    Raises:
        DataError: it cannot be read, is too large, or is not a text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has more than {MAX_BYTES // 2**20} MiB; it is not a list of requirements.")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions.") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as some shells redirect output
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None


def _read(path: Path, collected: Collected, constraints: Collected, including: tuple[Path, ...]) -> None:
    real = path.resolve()
    if real in including or len(including) >= _MAX_DEPTH:
        chain = " includes ".join(str(one) for one in (*including, real))
        raise DataError(f"{path} is included in itself: {chain}; take one of the -r lines out.")
    for number, line in lines_of(read_text(path)):
        where = f"{path}: line {number}"
        option = _OPTION.match(line)
        if option is None or option.group(1) in ("-e", "--editable"):
            _take(line, where, collected)
            continue
        target = option.group(2).strip().strip("'\"")
        if "://" in target:
            raise DataError(f"{where} includes {shorten(target)}, which is not a file; put it on disk first.")
        below = (*including, real)
        if option.group(1) in ("-c", "--constraint"):
            _read(path.parent / target, constraints, constraints, below)
        else:
            _read(path.parent / target, collected, constraints, below)


def _take(line: str, where: str, collected: Collected) -> None:
    if editable := _EDITABLE.match(line):
        line = editable.group("requirement")
    option = _OPTION.match(line)
    if option and (egg := _EGG.search(line)):
        collected.skip(egg.group(1), "it is installed from a repository or folder, whose version is not written")
    if not line or line.startswith(("#", "-")):
        return
    text = _TRAILING_OPTIONS.sub("", line)
    if len(text) > _MAX_LENGTH:
        raise DataError(f"{where} has {len(text):,} characters; a requirement has at most {_MAX_LENGTH:,}.")
    if _is_location(text):
        _take_location(text, text, collected)
        return
    try:
        requirement = Requirement(text)
    except (InvalidRequirement, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{where}: {shorten(text)} is not a requirement ({reason}); write one such as numpy==1.26.4."
        ) from None
    if requirement.marker and not marker_holds(str(requirement.marker), where):
        return
    if requirement.url:
        _take_location(requirement.name, requirement.url, collected)
        return
    collected.add(requirement.name, requirement.specifier, where)


def _is_location(text: str) -> bool:
    first = text.split(maxsplit=1)[0]
    return "@" not in first and (
        first.startswith((".", "/", "git+", "hg+", "svn+", "bzr+", "file:", "http:", "https:"))
        or first.endswith((".whl", ".tar.gz", ".zip"))
    )


def _take_location(name: str, location: str, collected: Collected) -> None:
    """An archive says its version in its name; a folder or a repository does not."""
    file = location.split("#")[0].rstrip("/").rpartition("/")[2]
    try:
        found, version = parse_wheel_filename(file)[:2] if file.endswith(".whl") else parse_sdist_filename(file)
    except (InvalidWheelFilename, InvalidSdistFilename):
        collected.skip(name, f"it is installed from {location}, whose version is not written")
    else:
        collected.add(found, SpecifierSet(f"=={version.public}"), location)
