"""A document that is too long, without what is worth least: notes and references go before parameters and examples."""

from __future__ import annotations

from collections.abc import Callable

from parallelmind.retrieval.sections import EXAMPLE_FROM, Section, Unit, Worth, sections_of
from parallelmind.retrieval.signatures import MORE, names_alone

_LEAST_CUT = 12
"""Tokens: less of a paragraph is not worth its place."""
_MOST_OF_EXAMPLES = 0.5
"""Of the room, for examples; what they leave goes to the rest, and at the end what the rest leaves to them."""
_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")
_MOST_OF_SIGNATURE = 0.4
_JOINT = "\n\n"


def shortened(text: str, limit: int, count: Callable[[str], int], cut: Callable[[str, int], str]) -> str:
    """What is worth most of a document that has more than `limit` tokens, in its order; no code is cut.

    Args:
        count: gives the tokens of a text.
        cut: gives the beginning of a text with at most some tokens.
    """
    return _Shortener(text, limit, count, cut).text()


def _code_of(words: list[tuple[int, Unit]]) -> list[tuple[int, Unit]]:
    """Code with as few words as can be: where it is from another place, what place that is."""
    number, first = words[0]
    if not first.text.startswith(EXAMPLE_FROM):
        return words[-1:]
    return [(number, Unit(first.text.partition(". ")[0].removesuffix(".") + ".")), words[-1]]


class _Shortener:
    def __init__(self, text: str, limit: int, count: Callable[[str], int], cut: Callable[[str, int], str]) -> None:
        self._limit, self._count, self._cut = limit, count, cut
        self._whole = text
        self._sections = sections_of(self._with_shorter_signature(text))
        self._kept: dict[tuple[int, int], str] = {}
        """By section and unit."""
        self._order: list[tuple[int, int]] = []
        self._left = limit
        self._joint = count(_JOINT)

    def text(self) -> str:
        by_worth = sorted(range(len(self._sections)), key=lambda place: self._sections[place].worth)
        examples = [place for place in by_worth if self._sections[place].worth == Worth.EXAMPLE]
        for place in by_worth:
            section = self._sections[place]
            if section.worth == Worth.EXAMPLE:
                self._take_example(place, section, self._limit * _MOST_OF_EXAMPLES)
            elif not self._take(place, section) and section.worth <= Worth.SUMMARY:
                break
        for place in examples:
            self._take_example(place, self._sections[place], self._left)
        while self._order:
            text = _JOINT.join(self._kept[key] for key in sorted(self._kept))
            if self._count(text) <= self._limit:
                return text
            del self._kept[self._order.pop()]  # a text may have more tokens than its parts
        return self._cut(self._whole, self._limit)

    def _with_shorter_signature(self, text: str) -> str:
        """A signature that would leave no room for what follows loses its annotations, then its last parameters."""
        line, newline, rest = text.partition("\n")
        name, bracket, signature = line.partition("(")
        most = int(self._limit * _MOST_OF_SIGNATURE)
        if not bracket or not newline or " " in name or self._count(line) <= most:
            return text
        line = name + names_alone(bracket + signature)
        if self._count(line) > most:
            line = self._cut(line, most).rpartition(",")[0] + MORE
        return line + newline + rest

    def _take(self, place: int, section: Section) -> bool:
        """Keep the units from the first one on, as far as they fit; whether all did."""
        for number, unit in enumerate(section.units):
            if self._keep(place, number, unit.text, self._left):
                continue
            if not unit.is_whole and self._left - self._joint >= _LEAST_CUT:
                text = self._cut(unit.text, self._left - self._joint)
                if text.endswith(_SENTENCE_ENDS) or (section.worth <= Worth.SUMMARY and not number):
                    self._keep(place, number, text, self._left)
            return False
        return True

    def _take_example(self, place: int, section: Section, most: float) -> None:
        """Keep code, each with the words right before it; code that is too long is passed over."""
        used = 0
        words: list[tuple[int, Unit]] = []
        for number, unit in enumerate(section.units):
            if (place, number) in self._kept:
                continue
            words.append((number, unit))
            if not unit.is_code:
                continue
            for given in (words, _code_of(words)):
                tokens = sum(self._count(one.text) + self._joint for _, one in given)
                if used + tokens <= min(most, self._left):
                    for at, one in given:
                        self._keep(place, at, one.text, self._left)
                    used += tokens
                    break
            words = []

    def _keep(self, place: int, number: int, text: str, room: int) -> bool:
        tokens = self._count(text) + (self._joint if self._kept else 0)
        if not text or tokens > room:
            return False
        self._kept[place, number] = text
        self._order.append((place, number))
        self._left -= tokens
        return True
