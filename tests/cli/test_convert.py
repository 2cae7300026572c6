"""`parallelmind convert` and its script: counts, exit codes, and records that the batch command takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from parallelmind.cli.main import main
from parallelmind.io.jsonl import read_lines
from parallelmind.io.records import parse_record

ROOT = Path(__file__).parents[2]
ROWS = [
    {
        "conversations": [
            {"role": "system", "content": "你是厨师。"},
            {"role": "user", "content": f"第{i}道菜？"},
            {"role": "assistant", "content": "红烧肉"},
        ]
    }
    for i in range(3)
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "sft.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (*ROWS, {})]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_the_documented_script(source, tmp_path):
    """As in the documentation, in a process of its own; torch is not needed for it."""
    output = tmp_path / "sft_parallel.jsonl"
    script = ROOT / "scripts" / "convert_sft_to_pretrain.py"
    done = subprocess.run(
        [sys.executable, str(script), "--input", str(source), "--output", str(output)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = "4 rows read = 3 converted + 1 skipped; 1 records with 3 branches, 3.0 on average (at most 3 in one)"
    assert counts in done.stderr
    assert "1 records of one main (3 branches) + 0 of unrelated rows (0 branches) + 0 of one branch" in done.stderr
    assert "skipped: line 4 has none of the fields" in done.stderr
    text = output.read_text(encoding="utf-8")
    assert "你是厨师。" in text
    asked = [branch["messages"][0]["content"] for branch in json.loads(text)["branches"]]
    assert asked == ["第0道菜？", "第1道菜？", "第2道菜？"]


def test_flags_reach_the_converter(source, tmp_path, capsys):
    output = tmp_path / "o.jsonl"
    flags = ["--group-by", "none", "--branch_form", "prompt", "--main_from", "system", "--max_samples", "2"]
    assert main(["convert", "--input", str(source), "--output", str(output), *flags]) == 0
    records = [parse_record(line) for line in read_lines(output)]  # what the batch command reads
    assert [(record.main, record.branches) for record in records] == [
        ("你是厨师。\n", ("第0道菜？",)), ("你是厨师。\n", ("第1道菜？",))
    ]  # fmt: skip
    assert "2 rows read = 2 converted + 0 skipped" in capsys.readouterr().err


def test_nothing_converted_exits_with_1(tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n' * 30)
    output = tmp_path / "o.jsonl"
    assert main(["convert", "--input", str(tmp_path / "bad.jsonl"), "--output", str(output)]) == 1
    assert "none of its 30 rows could be converted" in capsys.readouterr().err
    assert not output.exists()
