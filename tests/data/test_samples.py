"""Forms of training rows, and what is said of those that have none."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from parallelmind.data.samples import SampleBranch, parse_sample
from parallelmind.data.sft_forms import SampleSettings, samples_of
from parallelmind.errors import DataError
from parallelmind.prompts.conversation import assistant, is_learned, user

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("row", "main", "branches", "loose"),
    [
        (
            {"main": "m", "branches": ["a", "b"]},
            "m",
            [SampleBranch(completion="a"), SampleBranch(completion="b")],
            False,
        ),
        (
            {"main": "", "branches": ["a?"], "answers": ["b"], "id": 3},
            "",
            [SampleBranch(prompt="a?", completion="b")],
            False,
        ),
        (
            {"main": "m", "branches": [{"prompt": "p", "completion": ""}, {"messages": TURNS}, "t"]},
            "m",
            [SampleBranch(prompt="p"), SampleBranch(messages=tuple(TURNS)), SampleBranch(completion="t")],
            False,
        ),
        (
            {
                "main": "",
                "branches": [{"main": "o", "prompt": "p", "completion": "c"}, {"main": "o", "messages": TURNS}],
            },
            "",
            [SampleBranch(main="o", prompt="p", completion="c"), SampleBranch(main="o", messages=tuple(TURNS))],
            False,
        ),
        (
            {"main": "", "branches": [{"main": TURNS, "messages": TURNS}]},
            "",
            [SampleBranch(turns=(TURNS[0], {**TURNS[1], "weight": 0}), messages=tuple(TURNS))],
            False,
        ),
        ({"text": "t"}, "", [SampleBranch(completion="t")], True),
        (
            {"prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:], "tools": None},
            "",
            [SampleBranch(messages=(TURNS[0], {**TURNS[1], "weight": 0}, *TURNS))],
            True,
        ),
        ({"messages": TURNS, "chosen": TURNS}, "", [SampleBranch(messages=tuple(TURNS))], True),
        ({"prompt": "p", "completion": "c"}, "", [SampleBranch(prompt="p", completion="c")], True),
        ({"messages": TURNS, "source": "x"}, "", [SampleBranch(messages=tuple(TURNS))], True),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
            "",
            [SampleBranch(messages=tuple(TURNS))],
            True,
        ),
    ],
)
def test_forms(row: dict[str, Any], main: str, branches: list[SampleBranch], loose: bool) -> None:
    sample = parse_sample(row, "f line 1")
    assert (sample.main, list(sample.branches), sample.loose, sample.where) == (main, branches, loose, "f line 1")


def test_branches_that_continue_turns() -> None:
    """A text with its answer is the user's message and the assistant's; turns of the assistant in main are context."""
    branches = ["hi", {"prompt": "hi", "completion": "hello"}, {"messages": TURNS}]
    row = {"main": TURNS, "branches": branches, "answers": ["hello", None, None], "functions": [{"name": "f"}]}
    sample = parse_sample(row, "f line 1")
    assert sample.turns == (TURNS[0], {**TURNS[1], "weight": 0})
    assert sample.branches == (SampleBranch(messages=tuple(TURNS)),) * 3
    assert sample.tools == ({"type": "function", "function": {"name": "f"}},)
    assert (sample.main, sample.loose) == ("", False)


def test_calls_are_what_chat_templates_take() -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    turns = [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}]
    taken = {"name": "f", "arguments": {"a": 1}}
    [branch] = parse_sample({"messages": turns}, "row").branches
    assert branch.messages[1]["tool_calls"] == [{"id": "1", "function": taken}]
    turns[1] = {"role": "assistant", "content": None, "function_call": function, "tool_calls": None}
    [branch] = parse_sample({"messages": turns}, "row").branches
    assert branch.messages[1]["tool_calls"] == [{"type": "function", "function": taken}]
    assert branch.messages[1]["content"] == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"foo": 1}, 'f line 7 has none of the fields of a sample (found: "foo")'),
        ({"main": "m"}, 'has no "branches"'),
        ({"text": "t", "main": "m"}, 'has "main" and "text"'),
        ({"main": "m", "branches": []}, '"branches" is a list ([]); expected a list of at least one'),
        ({"main": "m", "branches": [3]}, '"branches"[0] is a number (3)'),
        ({"main": "", "branches": [{"main": 3, "messages": TURNS}]}, '"branches"[0]."main" is a number (3)'),
        ({"main": "m", "branches": ["a"], "answers": []}, '"answers" is a list of 0; expected a list of 1'),
        ({"main": "m", "branches": ["a"], "answers": [1]}, '"answers"[0] is a number (1)'),
        ({"main": "m", "branches": [{"prompt": "p"}]}, '"branches"[0]."completion" is missing'),
        ({"main": "m", "branches": [{"prompt": "p", "completion": None}]}, '"branches"[0]."completion" is null'),
        ({"main": "m", "branches": [{"messages": TURNS[:1]}]}, '"branches"[0]."messages" has no turn of the assistant'),
        ({"messages": "hi"}, '"messages" is a text ("hi"); expected a list of turns'),
        ({"messages": [{"role": "user"}]}, '"messages"[0] has no "content"'),
        ({"conversations": [{"from": "gpt", "value": 3}]}, '"conversations"[0]."value" is a number (3)'),
        ({"text": ""}, '"text" is empty'),
        (
            {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]},
            'has "chosen" and "rejected": a preference',
        ),
        (
            {"conversations": [*TURNS, TURNS[0]], "chosen": TURNS[1], "rejected": TURNS[1]},
            'has "chosen" and "rejected": a preference',
        ),
        ({"prompt": TURNS[:1], "completion": "c"}, '"completion" is a text ("c"); expected a list of turns'),
        ({"prompt": TURNS, "completion": TURNS[:1]}, '"completion" has no turn of the assistant'),
        ({"messages": [{**TURNS[1], "weight": 2}]}, '"messages"[0]."weight" is a number (2); expected 1, or 0'),
        ({"messages": [{**TURNS[1], "weight": True}]}, '"messages"[0]."weight" is a boolean (true); expected'),
        (
            {"messages": [{**TURNS[1], "tool_calls": "f"}]},
            '"messages"[0]."tool_calls" is a text ("f"); expected a list',
        ),
        ({"messages": [{**TURNS[1], "function_call": "f"}]}, '"messages"[0]."function_call" is a text ("f")'),
        ({"main": TURNS, "branches": ["text"]}, '"branches"[0] is a text under a conversation'),
        ({"main": TURNS, "branches": [{"main": "m", "messages": TURNS}]}, '"branches"[0] has "main", under a "main"'),
        ({"main": [], "branches": ["a"], "answers": ["b"]}, '"main" is a list ([]); expected a list of turns'),
    ],
)
def test_a_bad_row_names_place_and_field(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_sample(row, "f line 7")
    assert str(caught.value).startswith("f line 7")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (datetime.date(2026, 1, 2), 'is a date ("2026-01-02"); expected a text'),
        (b"text", "is a bytes ("),
        ([datetime.date(2026, 1, 2)], 'is a list (["2026-01-02"]); expected a text'),
    ],
)
def test_columns_that_json_does_not_know(value: Any, shown: str) -> None:
    """As Hugging Face datasets may have them."""
    with pytest.raises(DataError) as caught:
        parse_sample({"text": value}, "set row 3")
    assert f'set row 3: "text" {shown}' in str(caught.value)


@pytest.mark.parametrize("field", ["label", "kto_tag"])
@pytest.mark.parametrize("row", [{"prompt": "q", "completion": "a"}, {"messages": [user("q"), assistant("a")]}])
def test_an_answer_that_is_called_a_bad_one_is_not_learned(row: dict[str, Any], field: str) -> None:
    assert parse_sample({**row, field: True}, "x line 1") == parse_sample(row, "x line 1")
    with pytest.raises(DataError, match=rf'x line 1 has "{field}": false, an answer that is not to be given'):
        parse_sample({**row, field: False}, "x line 1")
    with pytest.raises(DataError, match=f'^has "{field}": false'):
        samples_of({**row, field: False}, SampleSettings())


def test_empty_answers_are_not_learned_and_a_system_turn_of_null_is_none() -> None:
    turns = [{"role": "system", "content": None}, user("q"), assistant("")]
    [branch] = parse_sample({"messages": turns}, "x").branches
    assert [turn["role"] for turn in branch.messages] == ["user", "assistant"]
    assert [is_learned(turn) for turn in branch.messages] == [False, False]
    assert is_learned({"role": "assistant", "content": "", "reasoning_content": "so"})
    assert is_learned({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]})
    with pytest.raises(DataError, match="no turn but an empty one of the system"):
        parse_sample({"messages": turns[:1]}, "x")


def test_a_refusal_is_a_text() -> None:
    parts = [{"type": "refusal", "refusal": "No."}]
    [branch] = parse_sample({"messages": [user("q"), {"role": "assistant", "content": parts}]}, "x").branches
    assert branch.messages[-1]["content"] == "No."
