"""Text to token ids, the same way wherever a row is made.

Main and branches are encoded apart and their ids concatenated, so that a main has the same tokens whatever follows it.
"""

from __future__ import annotations

from typing import Any


def encode_main(tokenizer: Any, text: str) -> list[int]:
    """Ids of a main, with the special tokens the tokenizer puts in front of a text (BOS) but none behind it."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    bare: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Some tokenizers close every text with EOS; a main goes on.
    while len(ids) > len(bare) and ids[-1] != bare[-1] and ids[-1] in tokenizer.all_special_ids:
        ids.pop()
    return ids


def encode_branch(tokenizer: Any, text: str, *, has_main: bool) -> list[int]:
    """Ids of a branch: without special tokens under a main; like a main where it stands alone."""
    if not has_main:
        return encode_main(tokenizer, text)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Ids of what a model is to write after a prompt, closed with the end-of-text token if the tokenizer has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    end: int | None = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]
