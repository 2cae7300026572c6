"""Fine-tuning data of OpenAI, ShareGPT and TRL, and questions and answers as texts."""

from __future__ import annotations

from tests.data.test_convert import ASKED, SHAREGPT, converted, turns


def test_texts_are_never_glued(tmp_path):
    """The line end is in main and in the answer: where the model is asked, only main and question are given."""
    rows = [
        {"instruction": "Translate", "input": "chat", "output": "CAT"},
        {"instruction": "Translate", "input": "chien\n", "output": " DOG"},
        {"instruction": "Translate:\n", "input": "vache", "output": "COW"},
    ]
    records, report = converted(tmp_path, rows, branch_form="prompt", branches_per_sample=1)
    assert records == [
        {"main": "chat\n", "branches": [{"prompt": "Translate", "completion": "\nCAT"}]},
        {"main": "chien\n", "branches": [{"prompt": "Translate", "completion": " DOG"}]},
        {"main": "vache\n", "branches": [{"prompt": "Translate:\n", "completion": "COW"}]},
    ]
    assert report.separated == 2
    assert converted(tmp_path, rows)[1].separated == 0


def test_a_tool_that_gives_nothing(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    given = [ASKED[0], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": ""}, ASKED[1]]
    records, _ = converted(tmp_path, [{"messages": given}])
    assert [turn["content"] for turn in records[0]["branches"][0]["messages"]] == [
        ASKED[0]["content"], "", "", ASKED[1]["content"]
    ]  # fmt: skip


def test_openai_fine_tuning_files(tmp_path):
    """Tools stay, calls become what chat templates take, turns of weight 0 are not learned, the rest is counted."""
    tool = {"type": "function", "function": {"name": "f"}}
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    called = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    given = [
        ASKED[0],
        {"role": "assistant", "tool_calls": [call], "weight": 0, "refusal": None, "audio": {"id": 1}},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
        {**ASKED[1], "weight": 1},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "!", "weight": 0},
    ]
    records, report = converted(tmp_path, [{"messages": given, "tools": [tool], "parallel_tool_calls": False}])
    [branch] = records[0]["branches"]
    assert branch["tools"] == [tool]
    assert branch["messages"] == [
        ASKED[0],
        {"role": "assistant", "content": "", "tool_calls": [called], "weight": 0},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
        {**ASKED[1], "weight": 1},
    ]
    assert (report.unlearned_turns, report.cut_turns, dict(report.dropped_fields)) == (1, 2, {"audio": 1})
    former = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    records, _ = converted(tmp_path, [{"messages": [ASKED[0], former], "functions": [{"name": "f"}]}])
    [branch] = records[0]["branches"]
    assert branch["tools"] == [tool]
    assert branch["messages"][1]["tool_calls"] == [called]


def test_sharegpt_calls(tmp_path):
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}
    given = [SHAREGPT[0], call, {"from": "observation", "value": "5"}, SHAREGPT[1]]
    records, _ = converted(tmp_path, [{"conversations": given, "tools": '[{"name": "f"}]'}])
    [branch] = records[0]["branches"]
    assert branch["tools"] == [{"name": "f"}]
    assert branch["messages"][1:3] == [
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        ]},
        {"role": "tool", "content": "5"},
    ]  # fmt: skip


def test_of_two_parts_only_the_second_is_learned(tmp_path):
    row = {"prompt": [*ASKED, {"role": "user", "content": "b"}], "completion": turns("", "c")[1:]}
    records, report = converted(tmp_path, [row])
    assert records[0]["branches"][0]["messages"] == [
        ASKED[0], {**ASKED[1], "weight": 0}, *turns("b", "c")
    ]  # fmt: skip
    assert report.unlearned_turns == 1
