"""The summary of a docstring: its first sentence."""

from __future__ import annotations

import re

_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r".+?[.!?。！？](?=\s|$)", re.DOTALL)
_CALL = re.compile(r"[\w.]+\(.*\)\s*(->.*)?$", re.DOTALL)


def summary(doc: str) -> str:
    """The first sentence of the first paragraph, after the signature that docstrings of C functions begin with."""
    for paragraph in _PARAGRAPH_END.split(doc.strip(), maxsplit=8):
        text = " ".join(paragraph.split())
        if not text or _CALL.fullmatch(text):
            continue
        sentence = _SENTENCE.match(text)
        return sentence.group() if sentence else text
    return ""
