"""The public names of a package, and which of them a text means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from parallelmind.retrieval.corpus.objects import PackageObject, is_public

_ROLE = re.compile(r":(?:py:)?(?:func|meth|class|attr|exc|data|obj|const|any|method|function):`([^`<]*?<)?([^`>]+)>?`")
_LITERAL = re.compile(r"(?<![:\w`])(`{1,2})([A-Za-z_][\w.]*)(\(\))?\1(?!`|_\b|\])")
_REFERENCE = re.compile(r"\[`?[^\]`]*`?\]\[([A-Za-z_][\w.]+)\]")
_MARKUP = (
    (re.compile(r"!?\[`?([^\]`]*)`?\](?:\[[^\]]*\]|\([^)]*\))"), r"\1"),
    (re.compile(r":[\w:+-]+:`~(?:[\w.]*\.)?(\w+)(\(\))?`"), r"\1\2"),
    (re.compile(r":[\w:+-]+:`!?([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
)


class PublicNames:
    """The objects of one package by public name, and by what names end in."""

    def __init__(self, package: str, objects: Mapping[str, PackageObject]) -> None:
        self.package = package
        self._by_name: dict[str, PackageObject] = {}
        self._by_last: dict[str, dict[str, PackageObject]] = {}
        for item in objects.values():
            for name in filter(is_public, {item.path, *item.names}):
                self._by_name.setdefault(name, item)
                self._by_last.setdefault(name.rpartition(".")[2], {})[name] = item

    def get(self, name: str) -> PackageObject | None:
        """The object of a full dotted name."""
        return self._by_name.get(name)

    def mentioned(self, text: str, module: str) -> Iterator[PackageObject]:
        """The objects that a paragraph names, `module` being the one that its names belong to."""
        found = [self._of_role(target, module) for _, target in _ROLE.findall(text)]
        found += [self.get(target) for target in _REFERENCE.findall(text)]
        for _, name, brackets in _LITERAL.findall(text):
            if brackets or "." in name or _is_class_name(name):
                item = self._meant(name, module)
                is_fitting = item is not None and (brackets or "." in name or item.type == "class")
                found.append(item if is_fitting else None)
        unique = {item.path: item for item in found if item is not None and item.type != "module"}
        yield from unique.values()

    def _of_role(self, target: str, module: str) -> PackageObject | None:
        return self._meant(target.strip().lstrip("~!.").removesuffix("()"), module)

    def _meant(self, name: str, module: str) -> PackageObject | None:
        """The one object that a name can mean; None if there are several, or none."""
        for full in (name, f"{module}.{name}" if module else name, f"{self.package}.{name}"):
            if (item := self.get(full)) is not None:
                return item
        ending = self._by_last.get(name.rpartition(".")[2], {})
        meant = {item.path: item for full, item in ending.items() if full.endswith(f".{name}")}
        return next(iter(meant.values())) if len(meant) == 1 else None


def _is_class_name(name: str) -> bool:
    return name[0].isupper() and any(map(str.islower, name)) and sum(map(str.isupper, name)) > 1


def plain(text: str) -> str:
    """A paragraph without its markup."""
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    return " ".join(text.split())


def excerpt(text: str, names: Iterable[str], most: int) -> str:
    """Of a plain paragraph at most `most` characters, whole sentences from the first that has one of the names on."""
    if len(text) <= most:
        return text
    sentences = re.split(r"(?<=[.!?])\s+", text)
    last = {name.rpartition(".")[2] for name in names}
    first = next((place for place, one in enumerate(sentences) if any(name in one for name in last)), 0)
    kept = ""
    for one in sentences[first:]:
        if len(kept) + len(one) + 1 > most:
            break
        kept = f"{kept} {one}".strip()
    return kept or sentences[first][: most - 1].rsplit(" ", 1)[0] + "…"
