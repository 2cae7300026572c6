"""The kinds of facts: who or what they are about, which value they give, how they are told and asked.

They are listed in wordings_en.txt and wordings_zh.txt. A kind starts with `name: subject -> value`, the
last two being pools of words.py; the indented lines below are its wordings, questions marked with "? ".
In a wording {n} is the subject and {v} the value; the first wording of each is the plainest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """One kind of fact."""

    name: str
    subject: str
    value: str
    told: tuple[str, ...]
    asked: tuple[str, ...]


def read_kinds(path: Path) -> tuple[Kind, ...]:
    """Read one of the two lists."""
    kinds: list[Kind] = []
    for block in re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip()):
        head, *lines = (line.strip() for line in block.splitlines())
        name, subject, value = re.split(r": | -> ", head)
        told = tuple(line for line in lines if not line.startswith("? "))
        asked = tuple(line[2:] for line in lines if line.startswith("? "))
        kinds.append(Kind(name, subject, value, told, asked))
    return tuple(kinds)


KINDS = {language: read_kinds(Path(__file__).parent / f"wordings_{language}.txt") for language in ("en", "zh")}
