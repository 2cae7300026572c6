"""`python scripts/convert_sft_to_pretrain.py`: each form of fine-tuning data, and the line as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallelmind.cli.main import main
from parallelmind.data.samples import parse_sample
from tests.compatibility.command_lines import link_checkout, refusal, run_line
from tests.compatibility.contract import proves
from tests.compatibility.train_runs import write_jsonl

MESSAGES = [
    {"role": "user", "content": "发烧怎么办？"},
    {"role": "assistant", "content": "多喝水。"},
    {"role": "user", "content": "still 39°"},
    {"role": "assistant", "content": "See a doctor 😀"},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]} for turn in MESSAGES
]
LINE = (
    "python scripts/convert_sft_to_pretrain.py --input dataset/sft_data.jsonl --output dataset/sft_data_parallel.jsonl"
)


def converted(folder: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    source, output = write_jsonl(folder / "in.jsonl", [row]), folder / "out.jsonl"
    assert main(["convert", "--input", str(source), "--output", str(output), "--overwrite"]) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for number, fields in enumerate(rows, 1):
        parse_sample(fields, f"line {number}")  # what training reads
    return rows


@pytest.mark.parametrize("row", [{"conversations": MESSAGES}, {"conversations": SHAREGPT}, {"messages": MESSAGES}])
@proves("convert", '{"conversations": [{"role", "content"}]}', '{"conversations": [{"from", "value"}]}')
@proves("convert", '{"messages": [{"role", "content"}]}')
def test_conversations(row: dict[str, Any], tmp_path: Path) -> None:
    """All three forms of one conversation become the same branch, all of its turns in place."""
    assert converted(tmp_path, row) == [{"main": "", "branches": [{"messages": MESSAGES}]}]


@proves("convert", '{"instruction", "input", "output"}')
def test_alpaca(tmp_path: Path) -> None:
    """The input is main, as a system turn, the instruction the question, the output the answer; no input, no main."""
    row = {"instruction": "Translate.", "input": "水", "output": "water"}
    branch = {"messages": [{"role": "user", "content": "Translate."}, {"role": "assistant", "content": "water"}]}
    assert converted(tmp_path, row) == [{"main": [{"role": "system", "content": "水"}], "branches": [branch]}]
    assert converted(tmp_path, row | {"input": ""}) == [{"main": "", "branches": [branch]}]


@proves("convert", "--branches_per_sample")
def test_rows_share_records(tmp_path: Path) -> None:
    """Twelve conversations become two records of 8 and 4 branches, and with 1 a record each."""
    source, output = write_jsonl(tmp_path / "in.jsonl", [{"messages": MESSAGES}] * 12), tmp_path / "out.jsonl"
    line = ["convert", "--input", str(source), "--output", str(output), "--overwrite"]
    for flags, sizes in (
        ([], [8, 4]),
        (["--branches_per_sample", "5"], [5, 5, 2]),
        (["--branches-per-sample=1"], [1] * 12),
    ):
        assert main([*line, *flags]) == 0
        records = [json.loads(text) for text in output.read_text(encoding="utf-8").splitlines()]
        assert [len(record["branches"]) for record in records] == sizes
        assert all(branch == {"messages": MESSAGES} for record in records for branch in record["branches"])


@proves("convert", "--input", "--output")
def test_both_files_are_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line without one of the two files is wrong usage, and a missing input an error that names it."""
    for lacking in ("--input", "--output"):
        assert lacking in refusal("convert", {"--input": "in.jsonl", "--output": "out.jsonl"}, lacking, capsys)
    assert main(["convert", "--input", str(tmp_path / "none.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().err


@proves("convert", LINE, "--input", "--output")
def test_the_line(tmp_path: Path) -> None:
    """A file of all four forms becomes one record beside it, and the log counts its rows."""
    link_checkout(tmp_path)
    rows: list[dict[str, Any]] = [{"conversations": MESSAGES}, {"conversations": SHAREGPT}, {"messages": MESSAGES}]
    rows.append({"instruction": "Translate.", "input": "水", "output": "water"})
    write_jsonl(tmp_path / "dataset" / "sft_data.jsonl", rows)
    done = run_line(LINE, cwd=tmp_path)
    assert "4 rows read = 4 converted + 0 skipped; 1 records with 4 branches, 4.0 on average" in done.stderr
    assert "the file is unchanged" in run_line(LINE, cwd=tmp_path).stderr  # the same line again is no error
    written = (tmp_path / "dataset" / "sft_data_parallel.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in written]
    assert [(record.keys(), len(record["branches"])) for record in records] == [({"main", "branches"}, 4)]
    assert "发烧怎么办？" in "".join(written)
