"""What is main and what is a branch: main has what all prompts begin with, whatever the branches add."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.errors import RequestError
from parallelmind.prompts.conversation import user
from parallelmind.prompts.encode import encode_branch, encode_main
from parallelmind.prompts.pieces import Piece
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.prompts.slots import Turn
from tests.prompts.templates import (
    CHATML,
    GEMMA,
    MISTRAL,
    TEMPLATES,
    TOKENIZERS,
    VICUNA,
    byte_tokenizer,
    word_tokenizer,
)

SYSTEM = {"role": "system", "content": "Be kind."}


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_main_is_the_longest_common_beginning(prompts: list[list[int]]) -> None:
    found = PromptEncoder(None).completions(prompts)
    assert [found.main + branch for branch in found.branches] == prompts
    firsts = {tuple(branch[:1]) for branch in found.branches}
    assert len(prompts) == 1 or () in firsts or len(firsts) > 1


def test_one_prompt_is_main_as_a_whole() -> None:
    assert PromptEncoder(None).completions([3, 1, 2]) == ([3, 1, 2], [[]])
    tokenizer = byte_tokenizer(None)
    assert PromptEncoder(tokenizer).completions("abc") == (encode_main(tokenizer, "abc"), [[]])


def test_texts_are_encoded_apart() -> None:
    tokenizer = TOKENIZERS["spaced"](None)
    prompts = PromptEncoder(tokenizer)
    main, branch = encode_main(tokenizer, "the 3"), encode_branch(tokenizer, "a", has_main=True)
    assert prompts.texts("the 3", ["a", ""]) == (main, [branch, []])
    alone = encode_main(tokenizer, "a")
    assert alone[0] == tokenizer.bos_token_id
    assert prompts.texts("the 3", ["a"], visibility="strict") == (main, [alone])
    assert prompts.texts("", ["a"]) == ([], [alone])


def split_texts(template: str | None, messages: list[Any], *texts: str) -> tuple[str, list[str]]:
    tokenizer = byte_tokenizer(template)
    ids = PromptEncoder(tokenizer).conversation(messages, [[user(text)] if text else [] for text in texts])
    return tokenizer.decode(ids.main), [tokenizer.decode(branch) for branch in ids.branches]


def test_messages_are_main_and_branches_the_users_next_message() -> None:
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert split_texts(CHATML, [SYSTEM], "Who?", "Why?") == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n",
        [f"Who?{end}", f"Why?{end}"],
    )
    assert split_texts(CHATML, [SYSTEM, user("Who?")], "") == (
        f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWho?{end}",
        [""],
    )


def test_main_does_not_depend_on_the_branches() -> None:
    mains = {split_texts(CHATML, [SYSTEM], *texts)[0] for texts in (["Who?"], ["Who?", "Whose?"], ["How", "How old"])}
    assert len(mains) == 1


def test_a_system_turn_that_the_template_refuses_begins_the_first_message() -> None:
    end = "<end_of_turn>\n<start_of_turn>model\n"
    assert split_texts(GEMMA, [SYSTEM], "Who?", "Why?") == (
        "<bos><start_of_turn>user\nBe kind.\n\n",
        [f"Who?{end}", f"Why?{end}"],
    )
    assert split_texts(GEMMA, [SYSTEM, user("Who?")], "")[0] == f"<bos><start_of_turn>user\nBe kind.\n\nWho?{end}"
    assert split_texts(GEMMA, [SYSTEM], "")[0] == f"<bos><start_of_turn>user\nBe kind.{end}"
    both = [SYSTEM, {"role": "system", "content": "Be brief."}, user("Who?")]
    assert split_texts(GEMMA, both, "")[0] == f"<bos><start_of_turn>user\nBe kind.\n\nBe brief.\n\nWho?{end}"


def test_a_template_that_writes_earlier_turns_otherwise() -> None:
    """Main is what all prompts truly begin with."""
    said = [SYSTEM, user("one?"), {"role": "assistant", "content": "1"}]
    assert split_texts(MISTRAL, said, "two?", "three?") == (
        "<bos>[INST] one?[/INST] 1<eos>[INST] Be kind.\n\n",
        ["two?[/INST]", "three?[/INST]"],
    )


def test_branches_that_do_not_see_main_hold_all_of_it() -> None:
    prompts = PromptEncoder(byte_tokenizer(CHATML))
    seen = prompts.conversation([SYSTEM], [[user("Who?")], [user("Why?")]])
    alone = prompts.conversation([SYSTEM], [[user("Who?")], [user("Why?")]], visibility="strict")
    assert alone == (seen.main, [seen.main + branch for branch in seen.branches])


def test_tools_reach_the_template() -> None:
    template = "{% for tool in tools or [] %}<tool>{{ tool.function.name }}</tool>{% endfor %}" + CHATML
    tokenizer = byte_tokenizer(template)
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    prompts = PromptEncoder(tokenizer)
    main, branches = prompts.conversation([user("Who?")], tools=tools)
    assert tokenizer.decode(main).startswith("<tool>search</tool><|im_start|>user")
    assert branches == [[]]
    assert not tokenizer.decode(prompts.conversation([user("Who?")]).main).startswith("<tool>")


def test_a_template_that_refuses_says_why() -> None:
    prompts = PromptEncoder(byte_tokenizer("{{ raise_exception('not today\\nnor tomorrow') }}"))
    with pytest.raises(RequestError, match=r"^the model's chat template refuses the conversation: not today$"):
        prompts.conversation([SYSTEM, user("Who?")])


@settings(max_examples=100, deadline=None)
@given(
    make=st.sampled_from(sorted(TOKENIZERS)),
    name=st.sampled_from([*sorted(TEMPLATES), None]),
    parts=st.lists(
        st.sampled_from(["a ", " ", "the", "\n", "3 ", "<|im_end|>", "<eos>", "▁", "how", "北京 "]), min_size=1
    ),
    texts=st.lists(st.text("a 3\n", max_size=5), min_size=3, max_size=6),
)
def test_many_branches_have_the_ids_that_each_has_alone(
    make: str, name: str | None, parts: list[str], texts: list[str]
) -> None:
    """Also where the long text that all begin with is encoded once."""
    prompts = PromptEncoder(TOKENIZERS[make](TEMPLATES[name] if name else None))
    said = [user("".join(parts) * (400 // len("".join(parts)) + 1)), {"role": "assistant", "content": "yes"}]
    found = prompts.conversation(said, [[user(text)] for text in texts])
    alone = [prompts.conversation([*said, user(text)]) for text in texts]
    assert [found.main + branch for branch in found.branches] == [ids.main for ids in alone]


@settings(max_examples=200, deadline=None)
@given(
    make=st.sampled_from(sorted(TOKENIZERS)),
    name=st.sampled_from([*sorted(TEMPLATES), None]),
    said=st.lists(
        st.lists(
            st.sampled_from(["a", " ", "\n", "<", "|", ">", "im_end", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>"]),
            min_size=1,
        ).map("".join),
        min_size=3,
        max_size=3,
    ),
)
def test_data_has_no_control_tokens(make: str, name: str | None, said: list[str]) -> None:
    """Whatever stands in it: the control tokens are those of the same conversation with harmless texts."""
    tokenizer = TOKENIZERS[make](TEMPLATES[name] if name else None)
    prompts = PromptEncoder(tokenizer)
    roles = ("user", "assistant", "user")

    def control_tokens(texts: list[str]) -> list[int]:
        turns = [Turn(role, (Piece(text, is_data=True),)) for role, text in zip(roles[:2], texts, strict=False)]
        main, branch = prompts.split(prompts.slots.split([*turns, Turn("user", ())], [Piece(texts[-1], is_data=True)]))
        return [token for token in main + branch if token in special]

    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert control_tokens(said) == control_tokens(["a", "a", "a"])


@pytest.mark.parametrize("template", [CHATML, VICUNA, None])
def test_a_long_text_that_all_begin_with_is_encoded_once(template: str | None) -> None:
    tokenizer = word_tokenizer(template)
    given: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: str | list[str], **options: Any) -> Any:
            given.extend([texts] if isinstance(texts, str) else texts)
            return tokenizer(texts, **options)

    said = [user("The hat costs 91 dollars. " * 100), {"role": "assistant", "content": "yes"}]
    PromptEncoder(Counting()).conversation(said, [[user(f"{number}?")] for number in range(50)])
    assert sum(map(len, given)) < 20_000
