"""Which tokens of a conversation are learned: the assistant's turns, for templates without generation markers too."""

from __future__ import annotations

from typing import Any

import pytest

from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.samples import parse_sample
from parallelmind.errors import DataError, RequestError
from parallelmind.prompts.prompt_encoder import PromptEncoder
from tests.prompts.templates import CHATML, THINKING, byte_tokenizer

TURNS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "say yes again"},
    {"role": "assistant", "content": "yes"},
]
STRICT = "{{ raise_exception('roles must alternate') }}"


def learned_text(template: str | None, turns: list[dict[str, str]] = TURNS, **options: Any) -> tuple[str, list[str]]:
    """The whole text, and each run of learned tokens."""
    tokenizer = byte_tokenizer(template)
    ids, learned = PromptEncoder(tokenizer).learned(turns, has_main=options.get("has_main", False))
    runs: list[list[int]] = []
    for index, (token, is_learned) in enumerate(zip(ids, learned, strict=True)):
        if is_learned:
            if index == 0 or not learned[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return tokenizer.decode(ids), [tokenizer.decode(run) for run in runs]


def test_a_template_without_generation_markers() -> None:
    assert learned_text(CHATML)[1] == ["yes<|im_end|>", "yes<|im_end|>"]


def test_a_template_that_renders_the_last_turn_otherwise() -> None:
    assert learned_text(THINKING)[1] == ["yes<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"]


def test_without_a_template_the_dialogue_is_written_out() -> None:
    text, learned = learned_text(None)
    assert text == "User: one?\nAssistant: yes\nUser: say yes again\nAssistant: yes<eos>"
    assert learned == [" yes", " yes<eos>"]


def test_what_a_template_writes_before_a_first_turn_is_not_learned() -> None:
    opening = [{"role": "assistant", "content": "be kind"}, *TURNS[:2]]
    template = "<|im_start|>system\nYou are to be kind.<|im_end|>\n" + CHATML
    assert learned_text(template, opening)[1] == ["be kind<|im_end|>", "yes<|im_end|>"]
    assert learned_text(None, opening)[1] == [" be kind", " yes<eos>"]


def test_under_a_main_there_is_no_second_beginning() -> None:
    template = "{{ bos_token }}" + CHATML
    assert learned_text(template)[0].startswith("<bos><|im_start|>user")
    text, learned = learned_text(template, has_main=True)
    assert text.startswith("<|im_start|>user")
    assert learned == ["yes<|im_end|>", "yes<|im_end|>"]


def test_a_slow_tokenizer_has_no_offsets() -> None:
    tokenizer = byte_tokenizer(CHATML)
    expected = PromptEncoder(tokenizer).learned(TURNS, has_main=False)

    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return tokenizer(*arguments, **options)

    assert PromptEncoder(Slow()).learned(TURNS, has_main=False) == expected


def test_a_template_that_refuses_is_named() -> None:
    with pytest.raises(RequestError, match=r"the model's chat template refuses the conversation: roles must alternate"):
        learned_text(STRICT)
    encoder = SampleEncoder(byte_tokenizer(STRICT), max_seq_len=99)
    with pytest.raises(DataError, match=r"^f line 1: the model's chat template refuses the conversation: roles must"):
        encoder.encode(parse_sample({"messages": TURNS}, "f line 1"), DataCounts())


def test_a_template_that_drops_the_answers_is_an_error() -> None:
    dropping = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    encoder = SampleEncoder(byte_tokenizer(dropping), max_seq_len=99)
    with pytest.raises(DataError, match="f line 1: the assistant's turns are not found"):
        encoder.encode(parse_sample({"messages": TURNS}, "f line 1"), DataCounts())
