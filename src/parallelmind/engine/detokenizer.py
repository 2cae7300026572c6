"""Tokens to text, a piece at a time, and the stop texts found on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_INCOMPLETE = "�"


class _StopSearch:
    """Looks for a stop text in a text as that grows (Knuth, Morris and Pratt).

    What it costs depends on the text that is read, not on the length of the stop text, which a client chooses.
    """

    def __init__(self, stop: str):
        self.stop = stop
        self._borders = [0, 0]
        """Of each beginning of the stop text that was met, by its length: how much of it comes again at its end."""
        self.met = 0
        """So many characters of the stop text are the end of what was read."""

    def read(self, text: str) -> int | None:
        """Read on; returns behind how many characters of `text` the whole stop text was met, if it was."""
        stop, borders = self.stop, self._borders
        start = 0 if self.met else text.find(stop[0])
        if start < 0:
            return None
        for count, character in enumerate(text[start:], start + 1):
            while self.met and stop[self.met] != character:
                self.met = borders[self.met]
            if stop[self.met] == character:
                self.met += 1
                if self.met == len(stop):
                    return count
                if self.met == len(borders):
                    self._add_border()
        return None

    def _add_border(self) -> None:
        stop, borders = self.stop, self._borders
        last, border = stop[len(borders) - 1], borders[-1]
        while border and stop[border] != last:
            border = borders[border]
        borders.append(border + (stop[border] == last))


class Detokenizer:
    """Text of one branch as it grows.

    `push` returns the text that is certain by now: whole characters only, and nothing that may still turn out to be
    the beginning of a stop text. After `stopped`, `text` ends before the stop text.

    Args:
        before: tokens that stand before those to come; their text is not returned, nor is a stop text looked for in it.
    """

    def __init__(self, tokenizer: Any, stop_texts: Sequence[str] = (), *, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._searches = [_StopSearch(text) for text in stop_texts]
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._stream = DecodeStream(skip_special_tokens=True) if self._backend is not None else None
        self._token_ids: list[int] = []
        self._decoded = ""
        self._start = self._emitted = 0
        self.stopped = False
        for token_id in before:
            self._token_ids.append(token_id)
            self._decoded += self._decode_next()
        self._start = self._emitted = len(self._decoded)

    def push(self, token_id: int) -> str:
        """Add a token; returns the new certain text, possibly empty.

        A token that the tokenizer has no text for raises its error and is not added.
        """
        before = len(self._decoded)
        self._token_ids.append(token_id)
        try:
            self._decoded += self._decode_next()
        except Exception:
            self._token_ids.pop()  # `finish` would fail on it again
            raise
        new = self._decoded[before:]
        found = [before + end - len(one.stop) for one in self._searches if (end := one.read(new)) is not None]
        if found:
            self.stopped = True
            self._decoded = self._decoded[: min(found)]
            return self._emit(len(self._decoded))
        return self._emit(len(self._decoded) - max((one.met for one in self._searches), default=0))

    def finish(self) -> tuple[str, str]:
        """(the whole text, the part of it not returned by `push` yet)."""
        if not self.stopped:
            whole: str = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
            # A tokenizer that tidies up spaces decodes the whole otherwise than its pieces; what was shown stays.
            if whole.startswith(self._decoded[: self._emitted]):
                self._decoded = whole
        rest = self._decoded[self._emitted :]
        self._emitted = len(self._decoded)
        return self._decoded[self._start :], rest

    def _decode_next(self) -> str:
        if self._stream is not None:
            try:
                return self._stream.step(self._backend, self._token_ids[-1]) or ""
            except Exception:  # tokenizers raises no other type
                # A stray byte can change how the bytes before it are read (SentencePiece's <0x0A>, <0xE4>, then a
                # letter), which a stream does not take: from here on all tokens are decoded each time.
                self._stream = None
        whole: str = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
        return "" if whole.endswith(_INCOMPLETE) else whole[len(self._decoded) :]

    def _emit(self, end: int) -> str:
        new = self._decoded[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return new
