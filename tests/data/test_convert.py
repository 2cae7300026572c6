"""Fine-tuning data into records: forms, containers, grouping, and what is skipped."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from parallelmind.data.convert import ConvertOptions, ConvertReport, convert
from parallelmind.data.sft_files import read_rows
from parallelmind.errors import DataError, SettingsError

Q, A = "苹果多少钱一斤？", "五块。\n不讲价 🍎"
ASKED = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
PAIR = {"prompt": Q, "completion": A}
PARTED = {"prompt": Q, "completion": f"\n{A}"}
CHAT = {"messages": ASKED}
SYSTEM = {"role": "system", "content": "简短。"}
STALL = [{"role": "system", "content": "水果摊"}]
BOTH = {"role": "system", "content": "简短。\n\ni"}
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def said(main: Any) -> str:
    """What a main, or a conversation, begins with."""
    return main if isinstance(main, str) else main[0]["content"]


def converted(tmp_path: Path, rows: Any, name: str = "in.jsonl", **options: Any) -> tuple[list[Any], ConvertReport]:
    """Convert rows (objects, or the text of the file) and read the records back."""
    lines = rows if isinstance(rows, str) else [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    text = "".join(lines)
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    output = tmp_path / "out" / "records.jsonl"
    report = convert(ConvertOptions(input=tmp_path / name, output=output, **({"overwrite": True} | options)))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], report


@pytest.mark.parametrize(
    ("row", "main", "branch"),
    [
        ({"conversations": ASKED}, "", CHAT),
        ({"conversations": [SYSTEM, *ASKED]}, [SYSTEM], CHAT),
        ({"conversations": SHAREGPT}, "", CHAT),
        ({"system": "简短。", "conversations": SHAREGPT}, [SYSTEM], CHAT),
        ({"messages": ASKED}, "", CHAT),
        ({"system": "简短。", "messages": SHAREGPT}, [SYSTEM], CHAT),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, ASKED[1]]}, "", CHAT),
        ({"instruction": Q, "input": "", "output": A}, "", CHAT),
        ({"instruction": Q, "input": "水果摊\n", "output": A}, STALL, CHAT),
        ({"instruction": Q, "input": "水果摊", "output": A, "system": "s"},
         [{"role": "system", "content": "s\n\n水果摊"}], CHAT),
        ({"instruction": Q, "output": A, "system": "简短。"}, [SYSTEM], CHAT),
        ({"instruction": "b", "output": "c", "history": [[Q, A]]}, "",
         {"messages": [*ASKED, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}),
        ({"instruction": "b", "input": "水果摊", "output": "c", "history": [[Q, A]], "system": "简短。"},
         [{"role": "system", "content": "简短。\n\n水果摊"}],
         {"messages": [*ASKED, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}),
        ({"question": Q, "answer": A, "context": "水果摊"}, STALL, CHAT),
        ({"prompt": Q, "completion": A}, "", CHAT),
        ({"prompt": ASKED[:1], "completion": ASKED[1:]}, "", CHAT),
        ({"text": "一行字"}, "", "一行字"),
        ({"main": "m", "branches": [PAIR]}, "m", PAIR),
        ({"main": "m", "branches": [Q], "answers": [A]}, "m", PAIR),
        ({"main": "", "branches": [{"main": "m", **PAIR}]}, "m", PAIR),
        ({"main": STALL, "branches": [Q], "answers": [A]}, STALL, CHAT),
        ({"main": "", "branches": [{"main": STALL, **CHAT}]}, STALL, CHAT),
    ],
)  # fmt: skip
def test_forms_of_rows(tmp_path, row, main, branch):
    records, report = converted(tmp_path, [row])
    assert records == [{"main": main, "branches": [branch]}]
    assert (report.rows, report.converted, report.skipped_rows) == (1, 1, 0)


@pytest.mark.parametrize(
    ("options", "chat", "pair"),
    [
        ({}, ([SYSTEM], ASKED), ([BOTH], {"messages": ASKED})),
        ({"main_from": "none"}, ("", [SYSTEM, *ASKED]),
         ("", {"messages": [SYSTEM, {"role": "user", "content": f"{Q}\ni"}, ASKED[1]]})),
        ({"main_from": "system"}, ([SYSTEM], ASKED),
         ([SYSTEM], {"messages": [{"role": "user", "content": f"{Q}\ni"}, ASKED[1]]})),
        ({"main_from": "context"}, ("", [SYSTEM, *ASKED]), ([BOTH], {"messages": ASKED})),
        ({"branch_form": "messages"}, ([SYSTEM], ASKED), ([BOTH], {"messages": ASKED})),
    ],
)  # fmt: skip
def test_what_becomes_main(tmp_path, options, chat, pair):
    rows = [{"messages": [SYSTEM, *ASKED]}, {"instruction": Q, "input": "i", "output": A, "system": "简短。"}]
    assert converted(tmp_path, rows, branches_per_sample=1, **options)[0] == [
        {"main": chat[0], "branches": [{"messages": chat[1]}]},
        {"main": pair[0], "branches": [pair[1]]},
    ]


def test_branch_forms(tmp_path):
    rows = [{"messages": ASKED}, {"messages": [*ASKED, {"role": "user", "content": "b"}, ASKED[1]]}]
    written = {"prompt": f"User: {Q}\nAssistant: {A}\nUser: b\nAssistant:", "completion": f" {A}"}
    assert converted(tmp_path, rows, branch_form="prompt")[0] == [{"main": "", "branches": [PARTED, written]}]
    rows = [{"messages": [SYSTEM, *ASKED]}, {"instruction": "b", "output": A, "history": [[Q, A]], "system": "简短。"}]
    assert converted(tmp_path, rows, branch_form="prompt")[0] == [{"main": "简短。\n", "branches": [PARTED, written]}]
    alpaca = [{"instruction": Q, "output": A}]
    assert converted(tmp_path, alpaca, branch_form="messages")[0] == [{"main": "", "branches": [CHAT]}]


def test_system_turns_that_a_field_replaces_are_counted(tmp_path):
    rows = [
        {"system": "简短。", "messages": [{"role": "system", "content": "long"}, *ASKED]},
        {"system": "简短。", "messages": [SYSTEM, *ASKED]},
    ]
    records, report = converted(tmp_path, rows)
    assert records == [{"main": [SYSTEM], "branches": [CHAT] * 2}]
    assert report.replaced_turns == 1


def test_turns_of_tools_are_kept_and_turns_without_an_answer_are_counted(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    turns = [ASKED[0], call, {"role": "tool", "content": "5"}, ASKED[1], {"role": "user", "content": "?"}]
    row = {"messages": turns}
    records, report = converted(tmp_path, [row])
    kept = records[0]["branches"][0]["messages"]
    assert [turn["role"] for turn in kept] == ["user", "assistant", "tool", "assistant"]
    assert kept[1] == {**call, "content": ""}
    assert report.cut_turns == 1
    with pytest.raises(DataError, match="tool calls"):
        converted(tmp_path, [row], branch_form="prompt")


def test_rows_with_one_main_share_records_and_the_others_fill_records_together(tmp_path):
    rows = [{"instruction": str(i), "input": "ab"[i % 2], "output": "x"} for i in range(8)]
    rows[3:3] = [{"instruction": "alone", "output": "x"}, {"instruction": "own", "input": "c", "output": "x"}]
    records, report = converted(tmp_path, rows, branches_per_sample=3)
    asked = [
        (
            said(record["main"]),
            [said(branch.get("main", "")) + said(branch["messages"]) for branch in record["branches"]],
        )
        for record in records
    ]
    assert asked == [("a", ["0", "2", "4"]), ("b", ["1", "3", "5"]), ("", ["alone", "cown", "a6"]), ("b", ["7"])]
    assert records[2]["branches"][1] == {"main": [{"role": "system", "content": "c"}], "messages": turns("own", "x")}
    assert (report.rows, report.branches, report.records, report.largest_record) == (10, 10, 4, 3)
    assert (report.shared_records, report.shared_branches) == (2, 6)
    assert (report.mixed_records, report.mixed_branches) == (1, 3)


def test_grouping_by_main_only_and_not_at_all(tmp_path):
    rows = [{"instruction": str(i), "input": ["a", "", "b", "a"][i], "output": "x"} for i in range(4)]
    mains = [[{"role": "system", "content": row["input"]}] if row["input"] else "" for row in rows]
    one_each = [
        {"main": main, "branches": [{"messages": turns(row["instruction"], "x")}]}
        for main, row in zip(mains, rows, strict=True)
    ]
    shared = {"main": mains[0], "branches": [*one_each[0]["branches"], *one_each[3]["branches"]]}
    assert converted(tmp_path, rows, group_by="main")[0] == [one_each[1], shared, one_each[2]]
    assert converted(tmp_path, rows, group_by="none")[0] == one_each
    assert converted(tmp_path, rows, branches_per_sample=1)[0] == one_each


def test_a_converted_file_can_be_grouped_anew(tmp_path):
    rows = [{"instruction": str(i), "input": f"{i // 2}", "output": "x"} for i in range(11)]
    rows += [{"text": "t"}, {"messages": ASKED}, {"main": "m", "branches": ["text"]}]
    packed = converted(tmp_path, rows, branches_per_sample=4)[0]
    apart = converted(tmp_path, packed, branches_per_sample=1)[0]
    expected = converted(tmp_path, rows, branches_per_sample=1)[0]
    key = json.dumps
    assert {"main": "m", "prompt": "", "completion": "text"} in [b for r in packed for b in r["branches"]]
    expected[-1]["branches"] = [{"prompt": "", "completion": "text"}]  # trained as the text is
    assert sorted(apart, key=key) == sorted(expected, key=key)


def test_csv_with_quotes_line_breaks_and_own_column_names(tmp_path):
    with (tmp_path / "in.csv").open("w", encoding="utf-8-sig", newline="") as file:
        lines = [["q", "a", "topic"], [Q, A, "水果"], ['say "hi", twice', "x", "水果"], ["short"]]
        csv.writer(file).writerows(lines)
    output = tmp_path / "out.jsonl"
    report = convert(
        ConvertOptions(
            input=tmp_path / "in.csv",
            output=output,
            prompt_field="q",
            completion_field="a",
            main_field="topic",
        )
    )
    assert [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] == [
        {
            "main": [{"role": "system", "content": "水果"}],
            "branches": [CHAT, {"messages": turns('say "hi", twice', "x")}],
        }
    ]
    assert [(row.line, row.reason) for row in report.skipped] == [(5, "has 1 cells, the header has 3")]


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_in_silence(tmp_path):
    records, report = converted(tmp_path, 'prompt,answer\na,b\nc,"d\ne,f\ng,h\n', name="in.csv")
    assert [record["branches"] for record in records] == [[{"messages": turns("a", "b")}]]
    assert [(row.line, row.reason) for row in report.skipped] == [(3, "is not valid CSV (unexpected end of data)")]


def test_csv_rows_that_are_not_utf8_are_skipped(tmp_path):
    (tmp_path / "in.csv").write_bytes(b"prompt,answer\nA\xff,b\nc,d\n")
    report = convert(ConvertOptions(input=tmp_path / "in.csv", output=tmp_path / "out.jsonl"))
    assert (report.converted, report.skipped_rows) == (1, 1)
    assert "not UTF-8" in report.skipped[0].reason


def test_plain_text_lines(tmp_path):
    records, _ = converted(tmp_path, "第一行\n\n{second}\r\n", name="in.txt")
    assert records == [{"main": "", "branches": ["第一行", "{second}"]}]
    assert converted(tmp_path, "第一行\n", name="corpus")[0][0]["branches"] == ["第一行"]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_lists(tmp_path, indent):
    rows = [{"conversations": ASKED}, {"instruction": 'a "}],{" b', "output": A}, 12, {"text": "é"}]
    records, report = converted(tmp_path, json.dumps(rows, ensure_ascii=False, indent=indent), name="in.json")
    assert [record["branches"] for record in records] == [[CHAT, {"messages": turns('a "}],{" b', A)}, "é"]]
    assert [row.reason for row in report.skipped] == ["is a number (12); expected an object"]
    if indent:
        lines = json.dumps(rows, ensure_ascii=False, indent=indent).splitlines()
        assert lines[report.skipped[0].line - 1].strip() == "12,"


def test_json_lists_are_streamed_wherever_a_piece_of_the_file_ends(tmp_path):
    """Files are read in pieces of some power of two: the end of one falls on every place of the last rows."""
    last = ['{"text": "é\\n"}', "123", '{"instruction": "a", "output": "\\""}']
    tail = ", ".join(last).encode() + b"]"
    for place in range(len(tail)):
        head = b'[{"text": "' + b"x" * (2**20 - place - 15) + b'"}, '
        (tmp_path / "in.json").write_bytes(head + tail)
        found = list(read_rows(tmp_path / "in.json", "json_list"))
        assert [row.value for row in found[1:]] == [json.loads(text) for text in last], place


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"text": "a"}', "line 1: the list does not end"),
        ('[{"text": "a"},\n', "line 2: the file ends within its list"),
        ('[{"text": "a"},\n{"text" "b"}, {"text": "c"}]', "line 2: not valid JSON"),
        ('[{"text": "a"} {"text": "b"}]', "line 1: expected a comma"),
        ('[{"text": "a"}]\n[]', "line 2: more text after the list"),
    ],
)
def test_broken_json_lists_name_the_line_and_leave_nothing(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        converted(tmp_path, text, name="in.json")
    assert not list((tmp_path / "out").iterdir())


def test_memory_does_not_grow_with_a_json_list(tmp_path):
    row = json.dumps({"text": "字" * 20_000}, ensure_ascii=False)
    with (tmp_path / "in.json").open("w", encoding="utf-8") as file:
        file.write("[" + ",\n".join([row] * 400) + "]")  # 24 MB
    tracemalloc.start()
    report = convert(ConvertOptions(input=tmp_path / "in.json", output=tmp_path / "out.jsonl"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.branches == 400
    assert peak < 12 * 2**20


BAD = [
    ({"conversations": [ASKED[0]]}, "no turn of the assistant"),
    ({"conversations": []}, "expected a list of turns"),
    (
        {"conversations": [{"role": "wizard", "content": "x"}]},
        r'"conversations"\[0\]."role" is a text \("wizard"\)',
    ),
    ({"conversations": [{"role": "user", "content": ""}, ASKED[1]]}, r"\[0\].\"content\" is empty"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASKED[1]]},
        "pictures and sounds are not supported",
    ),
    ({"instruction": "q"}, "has no output or completion or response or answer"),
    ({"instruction": "q", "output": " "}, '"output" is empty'),
    ({"instruction": "q", "output": 5}, '"output" is a number'),
    ({"text": ""}, "no text"),
    ({"main": "m", "branches": [{"prompt": "p"}]}, r'"branches"\[0\] is neither'),
    ({"main": "", "branches": [{"main": 1, **PAIR}]}, 'the "main" of a branch is a number'),
    ({"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": ASKED[1:]}, 'has "chosen" and "rejected": a preference'),
    ({"messages": [*ASKED, ASKED[0]], "chosen": ASKED[1], "rejected": ASKED[1]}, 'has "chosen" and "rejected"'),
    ({"messages": [ASKED[0], {**ASKED[1], "content": "", "tool_calls": []}]}, '"content" is empty'),
    ({"chosen": ASKED, "rejected": ASKED}, 'has "chosen" and "rejected": a preference'),
    ({"prompt": ASKED[:1], "completion": A}, '"completion" is a text'),
    ({"messages": [ASKED[0], {**ASKED[1], "weight": 0.5}]}, r'"messages"\[1\]."weight" is a number \(0.5\); expected'),
    ({"messages": [ASKED[0], {**ASKED[1], "weight": 0}]}, "no turn of the assistant to learn"),
    ({"messages": [ASKED[0], {"role": "assistant", "tool_calls": [{}]}]}, '"tool_calls" is a list'),
    ({"id": 1}, "none of the fields"),
    ([1], "expected an object"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_are_skipped_with_their_reason(tmp_path, row, reason):
    records, report = converted(tmp_path, [{"text": "good"}, row])
    assert len(records) == 1
    assert (report.rows, report.converted, report.skipped_rows) == (2, 1, 1)
    assert report.skipped[0].line == 2
    assert re.search(reason, report.skipped[0].reason)


def test_lines_that_are_no_json_and_lone_surrogates(tmp_path):
    text = '{"text": "a"}\n{"text": \n{"text": "\\ud83d"}\n'
    _, report = converted(tmp_path, text, skipped_path=tmp_path / "skipped.jsonl")
    assert [row.line for row in report.skipped] == [2, 3]
    lines = (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    assert [row["line"] for row in listed] == [2, 3]
    assert "surrogate" in listed[1]["reason"]
    with pytest.raises(DataError, match="line 2: is not valid JSON"):
        converted(tmp_path, text, strict=True)


def test_a_forced_format_is_required_of_every_row(tmp_path):
    rows = [{"instruction": "q", "output": "a"}, {"text": "t"}]
    records, report = converted(tmp_path, rows, format="alpaca")
    assert len(records) == 1
    assert "has no instruction" in report.skipped[0].reason
    assert converted(tmp_path, rows, format="text", name="x.jsonl")[0][0]["branches"][1] == '{"text": "t"}'


def test_nothing_converted_is_an_error_and_leaves_a_former_output_alone(tmp_path):
    converted(tmp_path, [{"text": "former"}])
    with pytest.raises(DataError, match="none of its 1 rows could be converted, the first at line 1"):
        converted(tmp_path, [{"id": 1}])
    assert "former" in (tmp_path / "out" / "records.jsonl").read_text()
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("former", ["mine\n", "shorter", "longer", "edited"])
def test_a_former_output_is_kept_unless_it_may_be_replaced(tmp_path, former):
    """It stays byte for byte, with the list of skipped rows, whatever is different in it."""
    rows = [{"text": f"t{number}"} for number in range(20)] + [{"id": 1}]
    skipped = tmp_path / "skipped.jsonl"
    options = {"group_by": "none", "skipped_path": skipped, "overwrite": False}
    records, _ = converted(tmp_path, rows, **options)
    output = tmp_path / "out" / "records.jsonl"
    made = output.read_bytes()
    other = {
        "shorter": made[: made.index(b"\n") + 1],
        "longer": made + b"{}\n",
        "edited": made.replace(b"t7", b"t8"),
    }.get(former, former.encode())
    output.write_bytes(other)
    times = output.stat().st_mtime_ns, skipped.stat().st_mtime_ns
    with pytest.raises(SettingsError, match=r"--output .*records.jsonl: .* exists already.*--overwrite"):
        converted(tmp_path, rows, **options)
    assert (output.read_bytes(), output.stat().st_mtime_ns, skipped.stat().st_mtime_ns) == (other, *times)
    assert len(list(output.parent.iterdir())) == 1
    assert converted(tmp_path, rows, **(options | {"overwrite": True}))[0] == records
    assert output.read_bytes() == made


def test_the_same_conversion_twice_leaves_the_file_as_it_is(tmp_path):
    rows = [{"text": "t"}, {"id": 1}]
    skipped = tmp_path / "skipped.jsonl"
    _, first = converted(tmp_path, rows, skipped_path=skipped, overwrite=False)
    output = tmp_path / "out" / "records.jsonl"
    before = output.stat()
    for overwrite in (False, True):
        _, again = converted(tmp_path, rows, skipped_path=skipped, overwrite=overwrite)
        assert (first.unchanged, again.unchanged) == (False, not overwrite)
        assert (output.stat().st_mtime_ns, output.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    output.write_bytes(b"")  # holds nothing that could be lost
    assert not converted(tmp_path, rows, overwrite=False)[1].unchanged
    skipped.write_text("mine")
    with pytest.raises(SettingsError, match=r"--skipped_path .*skipped.jsonl: .*another --skipped_path"):
        converted(tmp_path, rows, skipped_path=skipped, overwrite=False)
    assert skipped.read_text() == "mine"


def test_wrong_files(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        convert(ConvertOptions(input=tmp_path / "absent.jsonl", output=tmp_path / "o"))
    with pytest.raises(DataError, match="is empty"):
        converted(tmp_path, "")
    with pytest.raises(DataError, match="must name every column once"):
        converted(tmp_path, "prompt,prompt\na,b\n", name="in.csv")
    with pytest.raises(SettingsError, match="is the input itself"):
        ConvertOptions(input=tmp_path / "in.csv", output=tmp_path / "in.csv")
    with pytest.raises(SettingsError, match="--skipped_path is the input itself"):
        ConvertOptions(input=tmp_path / "in.csv", output=tmp_path / "o", skipped_path=tmp_path / "in.csv")
    with pytest.raises(SettingsError, match="--skipped_path is --output"):
        ConvertOptions(input=tmp_path / "in.csv", output=tmp_path / "o", skipped_path=tmp_path / "x" / ".." / "o")
    with pytest.raises(DataError, match="its first line is not valid CSV"):
        converted(tmp_path, 'prompt,"answer\na,b\n', name="in.csv")
    with pytest.raises(SettingsError, match="branches_per_sample"):
        ConvertOptions(input=tmp_path / "in.csv", output=tmp_path / "o", branches_per_sample=0)
