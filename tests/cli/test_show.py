"""`parallelmind show`: any form of record, in the terminal and as PNG."""

from __future__ import annotations

import json
import sys

import pytest

from parallelmind.cli.main import main
from tests.random_model import save_random_model

RECORDS = [
    {"main": "ab", "branches": ["c?", {"prompt": "de", "completion": "F"}]},
    {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
    {"text": "plain"},
]


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path):
    return str(save_random_model(tmp_path / "model"))


def test_a_record_in_the_terminal_and_as_png(records, model, tmp_path, capsys):
    png = tmp_path / "row.png"
    flags = ["--base-model", model, "--stride", "10", "--visibility", "columnar", "--png", str(png)]
    assert main(["show", str(records), *flags]) == 0
    output = capsys.readouterr()
    for part in ("a│b", "position 10", "position 20", "F *", "visibility columnar", "2 of main + 7 in 2"):
        assert part in output.out
    assert "de *" not in output.out
    assert "branch 2: de«F" in output.out
    assert png.read_bytes().startswith(b"\x89PNG")
    assert f"the picture is in {png}" in output.err


@pytest.mark.parametrize(("index", "part"), [(1, "y *"), (2, "l *")])
def test_conversations_and_texts(records, model, capsys, index, part):
    assert main(["show", str(records), "--index", str(index), "--base_model", model]) == 0
    shown = capsys.readouterr().out
    assert part in shown
    assert "p *" not in shown  # a first token with nothing before it is not supervised


def test_all_three_masks(records, model, tmp_path, capsys):
    png = tmp_path / "masks.png"
    assert main(["show", str(records), "--base_model", model, "--visibility", "all", "--png", str(png)]) == 0
    shown = capsys.readouterr().out
    assert [shown.count(f"visibility {name}") for name in ("isolated", "columnar", "strict")] == [1, 1, 1]
    assert png.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--index", "3"], "--index is 3, but"),
        (["--index", "-1"], "--index is -1"),
        (["--branch_stride", "-1"], "--branch_stride is -1"),
        (["--base_model", "/nowhere/model"], "--base_model /nowhere/model: not a local folder"),
        (["--png", "x.png", "--font", "/nowhere/a.ttf"], "--font /nowhere/a.ttf"),
    ],
)
def test_wrong_flags(records, model, capsys, flags, message):
    given = flags if "--base_model" in flags else [*flags, "--base_model", model]
    assert main(["show", str(records), *given]) == 1
    assert message in capsys.readouterr().err


def test_pillow_is_named_where_it_is_missing(records, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    assert main(["show", str(records), "--png", "x.png"]) == 1
    assert "pip install 'parallelmind[show]'" in capsys.readouterr().err
