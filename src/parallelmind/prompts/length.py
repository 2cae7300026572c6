"""What is known of a text's number of tokens before it is tokenized: a number that it cannot be below.

A tokenizer that spells every byte of a text has no token for more bytes than its longest one. Others may drop or merge
any number of characters: normalizers that strip or replace, pre-tokenizers that remove blanks, words or runs of unknown
characters that become one token. Of those nothing is known, so a tokenizer counts only if everything it does is known
to keep all bytes. NFC puts at most four characters of a text together into one, and changes no ASCII.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parallelmind.errors import RequestError

_NFC_MERGES = 4
_KEEPING_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Metaspace")
_BLANK = "▁"


class TextTooLongError(RequestError):
    """A text cannot have as few tokens as fit."""


@dataclass(frozen=True)
class LengthBound:
    """The most characters of a text that one token can stand for."""

    of_ascii: int
    of_others: int

    def least_tokens(self, text: str) -> int:
        """The fewest tokens that a text can have."""
        return -(-len(text) // (self.of_ascii if text.isascii() else self.of_others))


def length_bound(tokenizer: Any) -> LengthBound | None:
    """The bound of a tokenizer; None where it is not known to have any."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    spec = json.loads(backend.to_str())
    vocabulary = backend.get_vocab(with_added_tokens=True)
    normalizers = list(_parts(spec["normalizer"], "normalizers"))
    pre_tokenizers = list(_parts(spec["pre_tokenizer"], "pretokenizers"))
    if not (
        _spells_every_byte(spec["model"], pre_tokenizers, vocabulary)
        and all(_keeps_all(part) for part in pre_tokenizers)
        and all(part["type"] in ("NFC", "Prepend") or _marks_blanks(part) for part in normalizers)
        and not any(added["lstrip"] or added["rstrip"] for added in spec["added_tokens"])
        and spec["truncation"] is None
    ):
        return None
    # A byte-level vocabulary spells each byte as one character, and a text has at most as many characters as bytes.
    longest = max(map(len, vocabulary))
    merges = _NFC_MERGES if any(part["type"] == "NFC" for part in normalizers) else 1
    return LengthBound(of_ascii=longest, of_others=longest * merges)


def _spells_every_byte(
    model: Mapping[str, Any], pre_tokenizers: list[dict[str, Any]], vocabulary: Mapping[str, int]
) -> bool:
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if any(part["type"] == "ByteLevel" for part in pre_tokenizers):
        from tokenizers.pre_tokenizers import ByteLevel

        return all(symbol in vocabulary for symbol in ByteLevel.alphabet())
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))


def _keeps_all(part: Mapping[str, Any]) -> bool:
    return part["type"] in _KEEPING_PRE_TOKENIZERS or (
        part["type"] in ("Split", "Punctuation") and part["behavior"] != "Removed"
    )


def _marks_blanks(part: Mapping[str, Any]) -> bool:
    return bool(part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"] == _BLANK)


def _parts(part: Mapping[str, Any] | None, several: str) -> Iterator[dict[str, Any]]:
    if part is not None:
        if part["type"] == "Sequence":
            for one in part[several]:
                yield from _parts(one, several)
        else:
            yield dict(part)
