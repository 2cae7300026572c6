"""Text as it grows: whole characters only, and never a part of a stop text."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from parallelmind.engine.detokenizer import Detokenizer


def byte_tokenizer() -> Any:
    """One token per byte, so that most characters of most languages span several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {symbol: index for index, symbol in enumerate(alphabet, start=1)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


class SlowTokenizer:
    """A tokenizer without a Rust backend."""

    def __init__(self) -> None:
        self._fast = byte_tokenizer()

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text: str = self._fast.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


TOKENIZERS: list[Any] = [byte_tokenizer(), SlowTokenizer()]


def run(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], str, bool]:
    detokenizer = Detokenizer(tokenizer, stop)
    pieces = []
    for token in byte_tokenizer()(text, add_special_tokens=False)["input_ids"]:
        pieces.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    whole, rest = detokenizer.finish()
    return [*pieces, rest], whole, detokenizer.stopped


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30))
def test_pieces_add_up_to_the_text(tokenizer: Any, text: str) -> None:
    pieces, whole, stopped = run(tokenizer, text)
    assert "".join(pieces) == whole == text
    assert not stopped


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_characters_appear_whole(tokenizer: Any) -> None:
    pieces, _, _ = run(tokenizer, "你好 🙂")
    assert [piece for piece in pieces if piece] == ["你", "好", " ", "🙂"]


@given(text=st.text("abc", max_size=20), stop=st.text("abc", min_size=1, max_size=3))
def test_stop_texts_are_cut_wherever_they_begin(text: str, stop: str) -> None:
    pieces, whole, stopped = run(TOKENIZERS[0], text, (stop, "zz"))
    assert stopped == (stop in text)
    assert "".join(pieces) == whole == text.partition(stop)[0]


def test_the_earliest_stop_text_counts() -> None:
    assert run(TOKENIZERS[0], "one two three", ("three", "two"))[1] == "one "
    assert run(TOKENIZERS[0], "中文。答案", ("。",))[1] == "中文"
    assert run(TOKENIZERS[0], "almost sto", ("stop",))[1] == "almost sto"


@given(text=st.text("ab", max_size=40), stops=st.lists(st.text("ab", min_size=1, max_size=12), max_size=3))
def test_what_may_be_a_stop_text_is_held_back_and_nothing_else(text: str, stops: list[str]) -> None:
    detokenizer, shown, read = Detokenizer(TOKENIZERS[0], stops), "", ""
    for token in byte_tokenizer()(text, add_special_tokens=False)["input_ids"]:
        shown += detokenizer.push(token)
        read = text[: len(read) + 1]
        found = [at for stop in stops if (at := read.find(stop)) >= 0]
        if found:
            assert detokenizer.stopped
            assert shown == read[: min(found)]
            return
        begun = [k for k in range(len(read) + 1) if any(stop.startswith(read[len(read) - k :]) for stop in stops)]
        assert shown == read[: len(read) - max(begun, default=0)]


@pytest.mark.parametrize("stops", [["x" * 4_000_000], ["x" * 2000 + f"y{number}" for number in range(64)]])
def test_a_stop_text_costs_no_more_the_longer_it_is(stops: list[str]) -> None:
    detokenizer, [token] = (
        Detokenizer(TOKENIZERS[0], stops),
        byte_tokenizer()("x", add_special_tokens=False)["input_ids"],
    )
    begun = time.perf_counter()
    assert "".join(detokenizer.push(token) for _ in range(2500)) == "x" * (500 if len(stops) > 1 else 0)
    assert time.perf_counter() - begun < 10  # minutes when every length was tried


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    detokenizer = Detokenizer(TOKENIZERS[0])
    assert detokenizer.push(byte_tokenizer()("你", add_special_tokens=False)["input_ids"][0]) == ""
    whole, rest = detokenizer.finish()
    assert whole == rest == "\ufffd"


def test_bytes_that_change_how_those_before_are_read() -> None:
    """SentencePiece: a line end is a byte token; with a stray byte behind it the two no longer are text."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"x": 256, "y": 257}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    detokenizer = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), ("y!",))
    pieces = [detokenizer.push(token) for token in (0x0A, 0xE4, 256, 257, 257)]
    whole, rest = detokenizer.finish()
    assert pieces == ["\n", "", "\ufffdx", "", "y"]
    assert "".join(pieces) + rest == whole == "\n\ufffdxyy"
