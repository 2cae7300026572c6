"""Which tokens of a conversation are learned: the assistant's turns, for templates without generation markers too."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from parallelmind.errors import DataError
from parallelmind.prompts.chat import encode_chat

TURNS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "say yes again"},
    {"role": "assistant", "content": "yes"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3 does: the last turn gets an empty block of thoughts, earlier ones lose it.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{{ raise_exception('roles must alternate') }}"


def byte_tokenizer(template: str | None) -> Any:
    specials = ["<|im_start|>", "<|im_end|>", "<bos>", "<eos>"]
    vocabulary = {s: n for n, s in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        bos_token="<bos>",
        additional_special_tokens=specials[:2],
        chat_template=template,
    )


def learned_text(template: str | None, turns: list[dict[str, str]] = TURNS, **options: Any) -> tuple[str, list[str]]:
    """The whole text, and each run of learned tokens."""
    tokenizer = byte_tokenizer(template)
    ids, learned = encode_chat(tokenizer, turns, has_main=options.get("has_main", False), where="f line 1")
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
    expected = encode_chat(tokenizer, TURNS, has_main=False, where="f")

    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return tokenizer(*arguments, **options)

    assert encode_chat(Slow(), TURNS, has_main=False, where="f") == expected


def test_a_template_that_refuses_is_named() -> None:
    with pytest.raises(DataError, match=r"f line 1: the tokenizer's chat template refuses.*roles must alternate"):
        learned_text(STRICT)


def test_a_template_that_drops_the_answers_is_an_error() -> None:
    with pytest.raises(DataError, match="f line 1: the assistant's turns are not found"):
        learned_text("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
