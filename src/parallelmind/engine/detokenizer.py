"""Tokens to text, a piece at a time, and the stop texts found on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_INCOMPLETE = "�"


class Detokenizer:
    """Text of one branch as it grows.

    `push` returns the text that is certain by now: whole characters only, and nothing that may still turn out to be
    the beginning of a stop text. After `stopped`, `text` ends before the stop text.

    Args:
        before: tokens that stand before those to come; their text is not returned, nor is a stop text looked for in it.
    """

    def __init__(self, tokenizer: Any, stop_texts: Sequence[str] = (), *, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._stop_texts = tuple(stop_texts)
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
        longest = max(map(len, self._stop_texts), default=0)
        start = max(self._start, before - longest + 1)
        found = [at for text in self._stop_texts if (at := self._decoded.find(text, start)) >= 0]
        if found:
            self.stopped = True
            self._decoded = self._decoded[: min(found)]
            return self._emit(len(self._decoded))
        return self._emit(len(self._decoded) - self._possible_stop())

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

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop text."""
        for length in range(max(map(len, self._stop_texts), default=1) - 1, 0, -1):
            end = self._decoded[self._start :][-length:]
            if len(end) == length and any(text.startswith(end) for text in self._stop_texts):
                return length
        return 0

    def _emit(self, end: int) -> str:
        new = self._decoded[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return new
