"""What documentation says, without the marks that say how it looks."""

from __future__ import annotations

import re

_MARKUP = (
    (re.compile(r"!?\[`?([^\]`]*)`?\](?:\[[^\]]*\]|\([^)]*\))"), r"\1"),
    (re.compile(r":[\w:+-]+:`~(?:[\w.]*\.)?(\w+)(\(\))?`"), r"\1\2"),
    (re.compile(r":[\w:+-]+:`!?([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
)


def plain(text: str) -> str:
    """A paragraph without its markup."""
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    return " ".join(text.split())
