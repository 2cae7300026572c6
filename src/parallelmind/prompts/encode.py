"""Text to token ids, the same way wherever a row is made.

The texts of a main and its branches are encoded apart and their ids concatenated, so that a main has the same tokens
whatever follows it. A conversation is encoded as a whole, as its model was trained on it; what several prompts then
begin with in common is their main.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class PromptIds(NamedTuple):
    """Token ids of a main, and of what each branch adds."""

    main: list[int]
    branches: list[list[int]]


def encode_main(tokenizer: Any, text: str) -> list[int]:
    """Ids of a main, with the special tokens the tokenizer puts in front of a text (BOS) but none behind it."""
    if not text:
        return []
    ids = _encode(tokenizer, text, add_special_tokens=True)
    # Some tokenizers close every text with EOS; a main goes on.
    if ids and ids[-1] in tokenizer.all_special_ids and not text.endswith(tokenizer.convert_ids_to_tokens(ids[-1])):
        ids.pop()
    return ids


def encode_branch(tokenizer: Any, text: str, *, has_main: bool) -> list[int]:
    """Ids of a branch: without special tokens under a main; like a main where it stands alone."""
    if not has_main:
        return encode_main(tokenizer, text)
    return _encode(tokenizer, text, add_special_tokens=False) if text else []


def start_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of a text (BOS)."""
    return encode_main(tokenizer, "a")[: -len(_encode(tokenizer, "a", add_special_tokens=False))]


def closed(tokenizer: Any, ids: list[int]) -> list[int]:
    """Ids of what a model is to write after a prompt, with the end-of-text token behind if the tokenizer has one."""
    end: int | None = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def encode_parts(tokenizer: Any, texts: Sequence[str]) -> dict[str, list[int]]:
    """Ids of each text without special tokens: those of `_encode` one by one, at a fraction of the time."""
    chosen = list(dict.fromkeys(text for text in texts if text))
    parts = {"": list[int]()}
    if chosen:
        parts |= zip(chosen, tokenizer(chosen, add_special_tokens=False, verbose=False)["input_ids"], strict=True)
    return parts


def shared_length(several: Sequence[list[int]] | Sequence[str]) -> int:
    """How many ids, or characters, all of them begin with in common."""
    # What the first and the last in sorted order share, all between them share; comparing all, item by item, took
    # minutes for a long main under many branches.
    first, last = min(several), max(several)
    for length, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return length
    return len(first)


def _encode(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    # Not verbose: that a text is too long for the model is said by whoever knows which record it is.
    ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return ids
