"""Random stories of facts, with one question for every fact: the same seed gives the same stories."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import TypedDict

from examples.tiny_model.kinds import KINDS, Kind
from examples.tiny_model.words import WORDS

LANGUAGES = ("en", "zh", "mixed")
HEADINGS = {"en": ("Story:", "Notes:", "News:"), "zh": ("故事:", "笔记:", "消息:")}


class Record(TypedDict):
    """One story and its questions; answers[i] belongs to branches[i]."""

    main: str
    branches: list[str]
    answers: list[str]


def answer_text(branch: str, answer: str) -> str:
    """The answer as the model writes it: after an English question its first token carries a space."""
    return " " + answer if branch.isascii() else answer


def _pick_kinds(rng: Random, language: str, facts: int) -> list[Kind]:
    """Few kinds for many facts, so that every kind occurs several times."""
    kinds = rng.sample(KINDS[language], k=max(1, min(rng.randint(2, 4), facts // 2)))
    return [kinds[index % len(kinds)] for index in range(facts)]


class _Cast:
    """Hands out the subjects and the values of one story."""

    def __init__(self, rng: Random, again: float) -> None:
        self.rng = rng
        self.again = again
        self.used: dict[tuple[str, str], list[str]] = {}
        self.kinds_of: dict[str, set[str]] = {}

    def _fresh(self, language: str, pool: str) -> str:
        used = self.used.setdefault((language, pool), [])
        left = [word for word in WORDS[language][pool] if word not in used]
        word = self.rng.choice(left or WORDS[language][pool])
        used.append(word)
        return word

    def subject(self, language: str, kind: Kind) -> str:
        """Somebody new, or (with probability `again`) somebody who has a fact of another kind already."""
        known = [
            name
            for name in self.used.get((language, kind.subject), [])
            if kind.name not in self.kinds_of.get(name, {kind.name})
        ]
        name = self.rng.choice(known) if known and self.rng.random() < self.again else None
        name = name or self._fresh(language, kind.subject)
        self.kinds_of.setdefault(name, set()).add(kind.name)
        return name

    def value(self, language: str, kind: Kind) -> str:
        """A value that no other fact of the story has, as long as there is one."""
        return self._fresh(language, kind.value)


def story(rng: Random, facts: int, language: str, again: float = 0.3, wordings: int = 9) -> Record:
    """One story of `facts` facts; `language` is "en", "zh" or "mixed".

    `wordings` keeps to the first wordings of a fact; with 0 of them a fact is a bare name and value.
    """
    if language == "mixed":
        english = rng.randint(1, facts - 1) if facts > 1 else 1
        counts = [("en", english), ("zh", facts - english)]
    else:
        counts = [(language, facts)]
    cast = _Cast(rng, again)
    told: list[tuple[str, str, str, str]] = []
    for lang, count in counts:
        for kind in _pick_kinds(rng, lang, count):
            name, value = cast.subject(lang, kind), cast.value(lang, kind)
            space = " " if lang == "en" else ""
            sentence = rng.choice(kind.told[:wordings] or ["{n}" + space + "{v}"]).format(n=name, v=value)
            question = rng.choice(kind.asked[:wordings] or [space + "{n}"]).format(n=name)
            told.append((lang, sentence, question, value))
    rng.shuffle(told)
    main = rng.choice(HEADINGS[rng.choice(told)[0]])
    main += "".join((" " if lang == "en" else "") + sentence for lang, sentence, _, _ in told) + "\n"
    rng.shuffle(told)
    return {"main": main, "branches": [row[2] for row in told], "answers": [row[3] for row in told]}


def stories(
    seed: int,
    n: int,
    facts: int | Sequence[int] = 8,
    language: str | None = None,
    again: float = 0.3,
    wordings: int = 9,
) -> Iterator[Record]:
    """`n` stories; `facts` is a number or a range to draw from, no language means all in turn."""
    rng = Random(f"parallelmind-tiny-{seed}")
    for index in range(n):
        count = facts if isinstance(facts, int) else rng.randint(facts[0], facts[-1])
        yield story(rng, count, language or LANGUAGES[index % len(LANGUAGES)], again, wordings)


def main() -> None:
    """Print some stories as JSON lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--facts", type=int, default=8)
    parser.add_argument("--language", choices=LANGUAGES)
    args = parser.parse_args()
    for record in stories(args.seed, args.n, args.facts, args.language):
        print(json.dumps(record, ensure_ascii=False))


if __name__ == "__main__":
    main()
