"""Prompts as pieces of two kinds: our own text and text from outside.

Text from outside (contexts, questions) may hold whatever ends a turn for the model, `<|im_end|>` say. A tokenizer that
sees one string cannot tell it from the chat template's own; so the pieces are kept apart until they are token ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from parallelmind.prompts.encode import encode_branch


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
    """Token ids of a text in pieces, in which data has no control tokens.

    Control tokens are the tokenizer's special tokens and those added tokens that its chat template writes. Where one
    stands in data, or arises where data meets other text, the text is encoded in two parts with the cut inside of it.
    Everything else is encoded in one go, as any other text. Works for any tokenizer; some put a space where the cut is.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control = _control_pattern(tokenizer)

    def __call__(self, pieces: Sequence[Piece], *, with_start: bool) -> list[int]:
        """The ids; `with_start` puts what the tokenizer begins a text with (BOS) in front."""
        text = join(pieces)
        bounds = [0, *self._cuts(pieces, text), len(text)]
        ids: list[int] = []
        for start, end in pairwise(bounds):
            ids += encode_branch(self._tokenizer, text[start:end], has_main=not with_start or start > 0)
        return ids

    def _cuts(self, pieces: Sequence[Piece], text: str) -> list[int]:
        """Where control tokens that are not the template's own are cut: after their first character."""
        if self._control is None:
            return []
        own: list[tuple[int, int]] = []
        position = 0
        for piece in pieces:
            if not piece.is_data:
                own.append((position, position + len(piece.text)))
            position += len(piece.text)
        return [
            match.start() + 1
            for match in self._control.finditer(text)
            if not any(start <= match.start() and match.end(1) <= end for start, end in own)
        ]


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
