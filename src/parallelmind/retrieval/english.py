"""What ranked search knows of English: words that carry little meaning, and one form for the forms of a word."""

from __future__ import annotations

_WORDS = """
a about all am an and any are as at be been being but by can could did do does doing done each every
for from get give given gives go had has have having he her him his how i if in into is it its just
let like made make makes making may me might must my need needs no not of on one only onto or other
our out own per please she should so some something that the their them then there these they thing
this those to up us use used uses using via want was way we were what when where whether which who
whom whose why will with without would you your
"""
FUNCTION_WORDS = frozenset(_WORDS.split())
_VOWELS = frozenset("aeiouy")
_SHORTEST_STEMMED = 4
_SHORTEST_STEM = 3


def stem(word: str) -> str:
    """`rows`, `sorted`, `sorting` and `sorts` without their endings; any other word, and one with digits, as it is."""
    if len(word) < _SHORTEST_STEMMED or not (word.isascii() and word.isalpha()):
        return word
    if word.endswith("ies") and len(word) > _SHORTEST_STEMMED:
        word = word[:-3] + "y"
    elif word.endswith("sses"):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        start = word.removesuffix(ending)
        if start != word and len(start) >= _SHORTEST_STEM and not _VOWELS.isdisjoint(start):
            is_doubled = len(start) > _SHORTEST_STEM and start[-1] == start[-2] and start[-1] not in "lsz"
            word = start[:-1] if is_doubled else start
            break
    if len(word) <= _SHORTEST_STEM:
        return word
    word = word.removesuffix("e")
    return word[:-1] + "i" if word.endswith("y") and len(word) > _SHORTEST_STEM else word
