"""What is main and what is a branch: main has what all prompts begin with, whatever the branches add."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.errors import RequestError
from parallelmind.prompts.conversation import user
from parallelmind.prompts.encode import encode_branch, encode_main
from parallelmind.prompts.pieces import Piece, PieceEncoder
from parallelmind.prompts.prompt_encoder import PromptEncoder
from tests.prompts.templates import CHATML, GEMMA, MISTRAL, TEMPLATES, TOKENIZERS, byte_tokenizer

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


@settings(max_examples=200, deadline=None)
@given(
    make=st.sampled_from(sorted(TOKENIZERS)),
    name=st.sampled_from([*sorted(TEMPLATES), None]),
    parts=st.lists(
        st.sampled_from(["a", " ", "the", "\n", "3 ", "<", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>", "▁", "how"])
    ),
)
def test_text_that_is_no_data_is_encoded_as_a_whole(make: str, name: str | None, parts: list[str]) -> None:
    """Also where it is cut before special tokens, so that equal beginnings are encoded once."""
    tokenizer = TOKENIZERS[make](TEMPLATES[name] if name else None)
    encode, text = PieceEncoder(tokenizer), "".join(parts)
    pieces = [Piece(text, is_data=False)]
    assert encode([pieces, pieces], with_start=False) == [tokenizer(text, add_special_tokens=False)["input_ids"]] * 2
    assert encode([pieces], with_start=True) == [encode_main(tokenizer, text)]


def test_equal_beginnings_are_encoded_once() -> None:
    tokenizer = byte_tokenizer(CHATML)
    given: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: list[str], **options: Any) -> Any:
            given.extend(texts)
            return tokenizer(texts, **options)

    said = [user("x" * 1000), {"role": "assistant", "content": "yes"}]
    PromptEncoder(Counting()).conversation(said, [[user(f"{number}?")] for number in range(50)])
    assert sum(map(len, given)) < 5000
