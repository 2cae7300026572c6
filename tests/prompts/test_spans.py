"""Which tokens of a conversation are supervised: the turns of the assistant, with or without generation markers."""

from __future__ import annotations

from typing import Any

import pytest

from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.samples import parse_sample
from parallelmind.errors import DataError, RequestError
from parallelmind.prompts.prompt_encoder import PromptEncoder
from tests.prompts.templates import CHATML, GEMMA, MISTRAL, THINKING, byte_tokenizer, spaced_tokenizer

TURNS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "say yes again"},
    {"role": "assistant", "content": "yes"},
]
LINES = "{% for m in messages %}{{ m.content }}{{ '\n' if m.role == 'user' }}{% endfor %}"
STRICT = "{{ raise_exception('roles must alternate') }}"


def supervised_text(template: str | None, turns: list[dict[str, str]] = TURNS, **options: Any) -> tuple[str, list[str]]:
    """The whole text, and each run of supervised tokens."""
    tokenizer = byte_tokenizer(template)
    ids, loss_mask, _ = PromptEncoder(tokenizer).supervised(turns, has_main=options.get("has_main", False))
    runs: list[list[int]] = []
    for index, (token, is_supervised) in enumerate(zip(ids, loss_mask, strict=True)):
        if is_supervised:
            if index == 0 or not loss_mask[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return tokenizer.decode(ids), [tokenizer.decode(run) for run in runs]


def test_a_template_without_generation_markers() -> None:
    assert supervised_text(CHATML)[1] == ["yes<|im_end|>", "yes<|im_end|>"]


def test_a_template_that_renders_the_last_turn_otherwise() -> None:
    assert supervised_text(THINKING)[1] == ["yes<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"]


def test_without_a_template_the_dialogue_is_written_out() -> None:
    text, supervised = supervised_text(None)
    assert text == "User: one?\nAssistant: yes\nUser: say yes again\nAssistant: yes<eos>"
    assert supervised == [" yes", " yes<eos>"]


def test_what_a_template_writes_before_a_first_turn_is_not_supervised() -> None:
    opening = [{"role": "assistant", "content": "be kind"}, *TURNS[:2]]
    template = "<|im_start|>system\nYou are to be kind.<|im_end|>\n" + CHATML
    assert supervised_text(template, opening)[1] == ["be kind<|im_end|>", "yes<|im_end|>"]
    assert supervised_text(None, opening)[1] == [" be kind", " yes<eos>"]


def test_under_a_main_there_is_no_second_beginning() -> None:
    template = "{{ bos_token }}" + CHATML
    assert supervised_text(template)[0].startswith("<bos><|im_start|>user")
    text, supervised = supervised_text(template, has_main=True)
    assert text.startswith("<|im_start|>user")
    assert supervised == ["yes<|im_end|>", "yes<|im_end|>"]


def test_a_slow_tokenizer_has_no_offsets() -> None:
    tokenizer = byte_tokenizer(CHATML)
    expected = PromptEncoder(tokenizer).supervised(TURNS, has_main=False)

    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return tokenizer(*arguments, **options)

    assert PromptEncoder(Slow()).supervised(TURNS, has_main=False) == expected


def test_a_template_that_moves_the_system_turn_when_it_is_answered() -> None:
    """What is supervised follows from the prompt that asks for it, system turn included."""
    text, supervised = supervised_text(MISTRAL, [{"role": "system", "content": "be kind"}, *TURNS])
    assert text == "<bos>[INST] one?[/INST] yes<eos>[INST] be kind\n\nsay yes again[/INST] yes<eos>"
    assert supervised == [" yes<eos>", " yes<eos>"]


def test_a_system_turn_that_the_template_refuses_begins_the_first_message() -> None:
    text, supervised = supervised_text(GEMMA, [{"role": "system", "content": "be kind"}, *TURNS[:2]])
    assert text.startswith("<bos><start_of_turn>user\nbe kind\n\none?<end_of_turn>")
    assert supervised == ["yes<end_of_turn>"]


@pytest.mark.parametrize("template", [LINES, None])
def test_a_token_never_holds_the_end_of_a_prompt_and_the_beginning_of_its_answer(template: str | None) -> None:
    """The model is asked with the ids of the prompt alone."""
    tokenizer = spaced_tokenizer(template)
    asked, answer = {"role": "user", "content": "one?"}, {"role": "assistant", "content": "\nyes"}
    assert "\n\n" in tokenizer.tokenize("one?\n\nyes")
    prompts = PromptEncoder(tokenizer)
    ids, loss_mask, _ = prompts.supervised([asked, answer, asked, answer], has_main=False)
    asking = prompts.conversation([asked, answer, asked]).main
    assert ids[: len(asking)] == asking
    assert loss_mask[len(asking) - 1 : len(asking) + 1] == [False, True]
    assert ids[0] == tokenizer.bos_token_id or template


def test_tools_of_a_row_stand_in_its_prompt() -> None:
    template = "{% for tool in tools or [] %}<tool>{{ tool.name }}</tool>{% endfor %}" + CHATML
    tokenizer = byte_tokenizer(template)
    row = {"messages": TURNS, "tools": [{"name": "search"}]}
    for tools in (row["tools"], '[{"name": "search"}]'):
        sample = parse_sample({**row, "tools": tools}, "f line 1")
        encoded = SampleEncoder(tokenizer, max_seq_len=999).encode(sample, DataCounts())
        assert encoded is not None
        assert tokenizer.decode(list(encoded.branches[0].ids)).startswith("<tool>search</tool><|im_start|>user\none?")
    with pytest.raises(DataError, match=r'f line 1: "tools" is a list \(\["search"\]\); expected a list of objects'):
        parse_sample({**row, "tools": ["search"]}, "f line 1")


def test_a_template_that_refuses_is_named() -> None:
    with pytest.raises(RequestError, match=r"the model's chat template refuses the conversation: roles must alternate"):
        supervised_text(STRICT)
    encoder = SampleEncoder(byte_tokenizer(STRICT), max_seq_len=99)
    with pytest.raises(DataError, match=r"^f line 1: the model's chat template refuses the conversation: roles must"):
        encoder.encode(parse_sample({"messages": TURNS}, "f line 1"), DataCounts())


def test_a_template_that_drops_the_answers_is_an_error() -> None:
    dropping = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    encoder = SampleEncoder(byte_tokenizer(dropping), max_seq_len=99)
    with pytest.raises(DataError, match="f line 1: the assistant's turns are not found"):
        encoder.encode(parse_sample({"messages": TURNS}, "f line 1"), DataCounts())
