"""The fewest tokens that a text can have, known from its length: never more than it has."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from parallelmind.prompts.length import TextTooLongError, length_bound
from parallelmind.prompts.prompt_encoder import PromptEncoder
from tests.prompts.templates import CHATML, byte_tokenizer, spaced_tokenizer, word_tokenizer


def sentence_piece(**settings: Any) -> Any:
    """As Llama 2: blanks are marked, and characters without a token spelled as bytes."""
    letters = ["▁", "a", "b", "▁▁", "▁▁▁▁", "ab"]
    vocabulary = {token: n for n, token in enumerate([*letters, *(f"<0x{byte:02X}>" for byte in range(256))])}
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("a", "b")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, **settings))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _changed(change: Any) -> Any:
    tokenizer = byte_tokenizer(None)
    change(tokenizer.backend_tokenizer)
    return tokenizer


def _set(name: str, value: Any) -> Any:
    return lambda backend: setattr(backend, name, value)


_WITHOUT_BOUND = {
    "unknown characters are one token": lambda: spaced_tokenizer(None),
    "blanks go": lambda: _changed(_set("normalizer", normalizers.Strip())),
    "text is replaced": lambda: _changed(_set("normalizer", normalizers.Replace(Regex("a+"), "a"))),
    "blanks between words go": lambda: _changed(_set("pre_tokenizer", pre_tokenizers.Whitespace())),
    "what is split off goes": lambda: _changed(
        _set(
            "pre_tokenizer",
            pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]),
        )
    ),
    "a token takes the blanks before it": lambda: _changed(
        lambda backend: backend.add_tokens([AddedToken("<mask>", lstrip=True)])
    ),
    "words are one token": lambda: PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    ),
    "long words are one token": lambda: PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    ),
    "a tokenizer in Python": lambda: object(),
}
_TOKENIZERS = {
    "bytes": lambda: byte_tokenizer(CHATML),
    "words": lambda: word_tokenizer(CHATML),
    "pieces": lambda: sentence_piece(),
}


@lru_cache
def _tokenizer(name: str) -> Any:
    return _TOKENIZERS[name]()


@pytest.mark.parametrize("name", _TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    st.text(st.sampled_from("ab \n\té한ᄒ\u0301\u0345\u0314\u1161α\U0001f469\u200d\x00"), max_size=60),
    st.integers(1, 40),
)
def test_no_text_has_fewer_tokens(name: str, text: str, times: int) -> None:
    tokenizer = _tokenizer(name)
    bound = length_bound(tokenizer)
    assert bound is not None
    assert bound.least_tokens(text * times) <= len(tokenizer(text * times, add_special_tokens=False)["input_ids"])


def test_four_characters_that_become_one_are_counted_as_one() -> None:
    tokenizer = _tokenizer("words")  # which normalizes: ᾂ is written as α and three marks here
    bound = length_bound(tokenizer)
    assert bound is not None
    assert bound.of_others == 4 * bound.of_ascii


def test_the_longest_tokens_are_as_many_as_the_bound_says() -> None:
    bound = length_bound(_tokenizer("pieces"))
    longest = "<0x00>"
    assert bound is not None
    assert bound.of_ascii == bound.of_others == len(longest)
    assert [bound.least_tokens("a" * length) for length in (0, 1, 6, 7)] == [0, 1, 1, 2]


@pytest.mark.parametrize("name", _WITHOUT_BOUND)
def test_of_a_tokenizer_that_may_drop_text_nothing_is_known(name: str) -> None:
    assert length_bound(_WITHOUT_BOUND[name]()) is None


def test_what_cannot_fit_is_not_encoded_and_what_fits_is() -> None:
    tokenizer = _tokenizer("bytes")
    encoder = PromptEncoder(tokenizer, max_tokens=100)
    longest = max(map(len, tokenizer.get_vocab()))
    encoder.check_length("x" * 100 * longest)
    with pytest.raises(TextTooLongError, match="101 tokens or more, 100 fit"):
        encoder.check_length("x" * (100 * longest + 1))
    with pytest.raises(TextTooLongError, match="10 fit"):
        encoder.check_length("x" * (10 * longest + 1), 10)
    said = [{"role": "user", "content": "x" * 2000}]
    with pytest.raises(TextTooLongError):
        encoder.conversation(said)
    with pytest.raises(TextTooLongError):
        PromptEncoder(tokenizer, max_tokens=1000).conversation(said, [[{"role": "user", "content": "y"}]])
    assert PromptEncoder(tokenizer).conversation(said).main
