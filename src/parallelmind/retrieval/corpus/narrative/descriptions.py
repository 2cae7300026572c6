"""What the reference pages of a package say of its objects: below a directive, or below a heading that names one."""

from __future__ import annotations

import re

from parallelmind.retrieval.corpus.narrative.names import PublicNames
from parallelmind.retrieval.corpus.narrative.pages import Block
from parallelmind.retrieval.corpus.objects import PackageObject
from parallelmind.retrieval.markup import plain

_MOST = 1500
_SHORTEST = 20
_NAME_IN_HEADING = re.compile(r"[A-Za-z_][\w.]*[\w]")
_PARAGRAPHS_BELOW_A_HEADING = 3


class Descriptions:
    """Collects the best description of each object."""

    def __init__(self, names: PublicNames) -> None:
        self._names = names
        self._found: dict[str, tuple[bool, str, str]] = {}
        self._subject: PackageObject | None = None
        self._below: list[str] = []

    def add(self, block: Block, module: str, source: str) -> list[PackageObject]:
        """The next block of a page; returns the objects that it describes."""
        if block.is_heading:
            self.end_page()
            self._subject = self._of_heading(block.text, module)
            return [self._subject] if self._subject is not None else []
        if not block.described:
            is_text = not block.is_code and not block.module
            if self._subject is not None and is_text and len(self._below) < _PARAGRAPHS_BELOW_A_HEADING:
                self._below.append(block.text)
                self._keep(self._subject, " ".join(self._below), source, is_directive=False)
            return []
        found = [item for name in block.described if (item := self._names.meant(name, module)) is not None]
        for item in found:
            self._keep(item, block.text, source, is_directive=True)
        return found

    def end_page(self) -> None:
        """What follows belongs to no heading so far."""
        self._subject, self._below = None, []

    def of(self, item: PackageObject) -> tuple[str, str]:
        """(text, source); "" if no page describes the object."""
        _, text, source = self._found.get(item.path, (False, "", ""))
        return text, source

    def _of_heading(self, text: str, module: str) -> PackageObject | None:
        """The one object that a heading names: as a single word, or as a word that can only be a name."""
        words = _NAME_IN_HEADING.findall(plain(text))
        telling = [word for word in words if len(words) == 1 or _can_only_be_a_name(word)]
        items = {item.path: item for word in telling if (item := self._names.meant(word, module)) is not None}
        (only,) = items.values() if len(items) == 1 else (None,)
        return only if only is not None and only.type != "module" else None

    def _keep(self, item: PackageObject, text: str, source: str, *, is_directive: bool) -> None:
        said = plain(text)
        said = said if len(said) <= _MOST else said[:_MOST].rpartition(". ")[0] + "."
        if len(said) < _SHORTEST:
            return
        former = self._found.get(item.path)
        if former is None or (is_directive, len(said)) > (former[0], len(former[1])):
            self._found[item.path] = (is_directive, said, source)


def _can_only_be_a_name(word: str) -> bool:
    return "_" in word or "." in word or re.search("[a-z][A-Z]", word) is not None
