"""Token ids to texts that a person can read in a picture."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

_SHOWN = {" ": "·", "\n": "⏎", "\r": "↵", "\t": "⇥", "\u3000": "□"}
_BROKEN = "\ufffd"


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of each token, spaces and line ends made visible.

    A token that is only a part of a character is shown by its bytes, such as ‹e5 b0›.
    """
    return [_token_text(tokenizer, int(token)) for token in ids]


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """What a token adds to a text, in UTF-8: for a part of a character the bytes that it is."""
    text: str = tokenizer.decode([token])
    piece = _piece(tokenizer, token)
    if _BROKEN in text:
        table = _byte_of_symbol()
        if piece and all(symbol in table for symbol in piece):
            return bytes(table[symbol] for symbol in piece)
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):  # SentencePiece's spelling of a byte
            return bytes.fromhex(piece[3:5])
    if piece.startswith("▁") and not text.startswith(" "):  # SentencePiece drops a leading space
        text = " " + text
    return text.encode("utf-8", "replace")


def readable(text: str) -> str:
    """Spaces as ·, line ends as ⏎, other characters that do not print as their number."""
    return "".join(_SHOWN.get(c) or (c if c.isprintable() else f"‹{ord(c):x}›") for c in text)


def _token_text(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token])
    piece = _piece(tokenizer, token)
    if _BROKEN in text:
        return _bytes_shown(piece) or piece or text
    if piece.startswith("▁") and not text.startswith(" "):  # SentencePiece drops a leading space
        text = " " + text
    return readable(text) or piece or "‹empty›"


def _piece(tokenizer: Any, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))


def _bytes_shown(piece: str) -> str:
    """The bytes of a piece of a byte-level vocabulary."""
    table = _byte_of_symbol()
    if not piece or any(symbol not in table for symbol in piece):
        return ""
    return f"‹{' '.join(f'{table[symbol]:02x}' for symbol in piece)}›"


@functools.cache
def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones by themselves, the others from U+0100 up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
