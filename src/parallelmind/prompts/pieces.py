"""Prompts as pieces of two kinds: text of ours and text that came from outside.

Text from outside (contexts, questions) may hold whatever ends a turn for the model, `<|im_end|>` say. A tokenizer that
sees one string cannot tell it from the chat template's own; so the pieces are kept apart until they are token ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from parallelmind.prompts.encode import encode_main, encode_parts


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt."""

    text: str
    is_data: bool
    """From outside: special tokens in it are plain text."""


@dataclass(frozen=True, slots=True)
class SplitPrompt:
    """A prompt for the engine. Rows with the same instructions and context have equal mains."""

    main: tuple[Piece, ...]
    """Instructions and context."""
    branch: tuple[Piece, ...]
    """The question, up to where the answer begins."""
    form: Literal["template", "dialogue", "text"]
    """A conversation as the chat template writes it, special tokens included; one of a tokenizer without a template;
    or a main and a branch of their own, as those of a record."""

    @property
    def main_text(self) -> str:
        return join(self.main)

    @property
    def branch_text(self) -> str:
        return join(self.branch)


def join(pieces: Iterable[Piece]) -> str:
    """The text of the pieces."""
    return "".join(piece.text for piece in pieces)


def strip(pieces: Sequence[Piece], *, left: bool = True, right: bool = True) -> tuple[Piece, ...]:
    """Without white space around the whole text."""
    kept = list(pieces)
    while left and kept:
        first = kept.pop(0)
        if text := first.text.lstrip():
            kept.insert(0, Piece(text, first.is_data))
            break
    while right and kept:
        last = kept.pop()
        if text := last.text.rstrip():
            kept.append(Piece(text, last.is_data))
            break
    return tuple(kept)


class PieceEncoder:
    """Token ids of texts in pieces, in which data has no control tokens.

    Control tokens are the tokenizer's special tokens and those added tokens that its chat template writes. Where one
    stands in data, or arises where data meets other text, the text is encoded in two parts with the cut inside of it.
    Works for any tokenizer; some put a space where the cut is. A text without data has the ids that the tokenizer gives
    it as a whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control = _control_pattern(tokenizer)
        self._sections = _section_pattern(tokenizer)

    def __call__(self, texts: Sequence[Sequence[Piece]], *, with_start: bool) -> list[list[int]]:
        """The ids of each text; `with_start` puts what the tokenizer begins a text with (BOS) in front."""
        divided = [self._divide(pieces) for pieces in texts]
        starts, rest = [parts[:with_start] for parts in divided], [parts[with_start:] for parts in divided]
        known = encode_parts(self._tokenizer, [part for parts in rest for part in parts])
        begun = {part: encode_main(self._tokenizer, part) for part in {part for parts in starts for part in parts}}
        return [
            [token for part in start for token in begun[part]] + [token for part in parts for token in known[part]]
            for start, parts in zip(starts, rest, strict=True)
        ]

    def _divide(self, pieces: Sequence[Piece]) -> list[str]:
        """The text in parts that are encoded alone."""
        text = join(pieces)
        own: list[tuple[int, int]] = []
        position = 0
        for piece in pieces:
            if not piece.is_data:
                own.append((position, position + len(piece.text)))
            position += len(piece.text)

        def is_own(start: int, end: int) -> bool:
            return any(first <= start and end <= last for first, last in own)

        bounds = {0, len(text)}
        for match in self._control.finditer(text) if self._control else ():
            if not is_own(match.start(), match.end(1)):
                bounds.add(match.start() + 1)  # inside of it
        for match in self._sections.finditer(text) if self._sections else ():
            if is_own(*match.span()):
                bounds.add(match.start())
        return [text[start:end] for start, end in pairwise(sorted(bounds))]


def _control_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    template = str(getattr(tokenizer, "chat_template", None) or "")
    tokens = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or token.content in template:
            tokens.add(token.content)
    # A token of one character cannot be cut, nor does it need to be: it is what that character is.
    texts = sorted((text for text in tokens if len(text) > 1 and text.strip()), key=len, reverse=True)
    # A lookahead, so that tokens that overlap are all found.
    return re.compile(f"(?=({'|'.join(map(re.escape, texts))}))") if texts else None


def _section_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Tokens before which a text can be cut without a change of its ids.

    The tokenizers library finds added tokens first and encodes what lies between them apart, so that the turns that
    many prompts begin with in common are encoded once. Left out are tokens that reach beyond their own text or may be a
    part of another one.
    """
    if not tokenizer.is_fast or getattr(tokenizer, "split_special_tokens", False):
        return None
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = list(tokenizer.added_tokens_decoder.values())
    found = [
        token.content
        for token in added
        if (token.special or token.content in template)
        and not (token.normalized or token.lstrip or token.single_word)
        and not any(_may_cover(other.content, token.content) for other in added)
    ]
    return re.compile("|".join(map(re.escape, found))) if found else None


def _may_cover(other: str, text: str) -> bool:
    if other == text:
        return False
    return text in other or any(other.endswith(text[:size]) and len(other) > size for size in range(1, len(text)))
