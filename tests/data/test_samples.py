"""Forms of training rows, and what is said of those that have none."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from parallelmind.data.samples import SampleBranch, parse_sample
from parallelmind.errors import DataError

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
        ({"text": "t"}, "", [SampleBranch(completion="t")], True),
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
