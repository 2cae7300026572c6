"""What the prompts of one request share becomes its main."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind import Engine
from parallelmind.server.prompts import PromptIds, chat_ids, completion_ids
from parallelmind.server.schemas import ChatMessage

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_main_is_the_longest_common_beginning(prompts: list[list[int]]) -> None:
    found = completion_ids(None, prompts)
    assert [found.main + branch for branch in found.branches] == prompts
    firsts = {tuple(branch[:1]) for branch in found.branches}
    assert len(prompts) == 1 or () in firsts or len(firsts) > 1


def test_one_prompt_is_main_as_a_whole() -> None:
    assert completion_ids(None, [3, 1, 2]) == ([3, 1, 2], [[]])


@pytest.fixture
def tokenizer(offline: Engine) -> Any:
    return copy.deepcopy(offline.tokenizer)


def texts(tokenizer: Any, template: str, messages: list[dict[str, str]], prompts: list[str]) -> tuple[str, list[str]]:
    tokenizer.chat_template = template
    said = [ChatMessage.model_validate(message) for message in messages]
    ids: PromptIds = chat_ids(tokenizer, said, prompts, "isolated")
    return tokenizer.decode(ids.main), [tokenizer.decode(branch) for branch in ids.branches]


def test_messages_are_main_and_prompts_the_users_next_message(tokenizer: Any) -> None:
    system = {"role": "system", "content": "Be kind."}
    assert texts(tokenizer, TEMPLATE, [system], ["Who?", "Why?"]) == (
        "[system]Be kind.\n",
        ["[user]Who?\n[assistant]", "[user]Why?\n[assistant]"],
    )


def test_a_template_without_system_messages_gets_their_text_with_the_first_message(tokenizer: Any) -> None:
    system = {"role": "system", "content": "Be kind."}
    assert texts(tokenizer, NO_SYSTEM, [system], ["Who?", "Why?"]) == (
        "[user]Be kind.\n",
        ["\nWho?\n[assistant]", "\nWhy?\n[assistant]"],
    )
    user = {"role": "user", "content": "Who?"}
    assert texts(tokenizer, NO_SYSTEM, [system, user], [""]) == ("[user]Be kind.\n\nWho?\n[assistant]", [""])
