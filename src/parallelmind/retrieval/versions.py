"""From a version as a dependency spells it to one that the corpus holds."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from parallelmind.errors import DataError
from parallelmind.io.records import shorten


def sort_key(version: str) -> tuple[int, Version, str]:
    """Orders versions as releases; names that are not versions come first."""
    try:
        return (1, Version(version), version)
    except InvalidVersion:
        return (0, Version("0"), version)


def sorted_versions(versions: Sequence[str]) -> list[str]:
    return sorted(versions, key=sort_key)


def choose_version(spelled: str, available: Sequence[str]) -> str | None:
    """The corpus version that `spelled` means, or None if there is none.

    - `1.26.4`, `==1.26.4` and `v1.26.4` mean that version; `1.26` is 1.26.0, as in pip;
    - `1.26`, when the corpus has no 1.26.0, is the newest 1.26.x that it has; `1` likewise;
    - `latest` is the newest that the corpus has;
    - ranges (`>=1.20,<2`, `~=1.26`, `1.26.*`) mean the newest version in them.

    Raises:
        DataError: `spelled` is not a version or range.
    """
    text = spelled.strip()
    if text in available:
        return text
    if text.lower() == "latest":
        return _newest(available, SpecifierSet())
    exact = text.removeprefix("===").removeprefix("==").strip()
    try:
        wanted = Version(exact)
    except InvalidVersion:
        return _newest(available, _range(text))
    for version in available:
        if _parsed(version) == wanted:
            return version
    if len(wanted.release) < 3 and str(wanted) == wanted.base_version and text == exact:
        return _newest(available, SpecifierSet(f"=={exact.removeprefix('v')}.*"))
    return None


def _range(text: str) -> SpecifierSet:
    try:
        # "1.26.*" alone is not a specifier of pip, but its meaning is plain.
        return SpecifierSet(f"=={text}" if text[:1].isdigit() else text.replace("*", "") if text == "*" else text)
    except InvalidSpecifier:
        raise DataError(
            f"{shorten(text)!r} is not a version; write one such as 1.26.4, or a range such as >=1.20,<2."
        ) from None


def _newest(available: Sequence[str], allowed: SpecifierSet) -> str | None:
    for prereleases in (False, True):  # a pre-release only if there is nothing else
        fitting = [
            version
            for version in available
            if (parsed := _parsed(version)) and allowed.contains(parsed, prereleases=prereleases)
        ]
        if fitting:
            return max(fitting, key=sort_key)
    return None


def _parsed(version: str) -> Version | None:
    try:
        return Version(version)
    except InvalidVersion:
        return None
