"""Special tokens in front of a text, never behind it."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from parallelmind.prompts.encode import encode_branch, encode_main
from tests.families import char_tokenizer


def tokenizer_with(template: str) -> Any:
    tokenizer = char_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


PLAIN = char_tokenizer()("abc")["input_ids"]


@pytest.mark.parametrize(
    ("template", "main"),
    [("$A", PLAIN), ("<bos> $A", [1, *PLAIN]), ("$A <eos>", PLAIN), ("<bos> $A <eos>", [1, *PLAIN])],
)
def test_special_tokens_stand_in_front_only(template: str, main: list[int]) -> None:
    tokenizer = tokenizer_with(template)
    assert encode_main(tokenizer, "abc") == main
    assert encode_branch(tokenizer, "abc", has_main=True) == PLAIN
    assert encode_branch(tokenizer, "abc", has_main=False) == main


def test_a_special_token_the_user_wrote_stays() -> None:
    tokenizer = char_tokenizer()
    assert encode_main(tokenizer, "a<eos>") == [*tokenizer("a")["input_ids"], 2]


def test_nothing_is_nothing() -> None:
    tokenizer = tokenizer_with("<bos> $A")
    assert encode_main(tokenizer, "") == []
    assert encode_branch(tokenizer, "", has_main=True) == encode_branch(tokenizer, "", has_main=False) == []
