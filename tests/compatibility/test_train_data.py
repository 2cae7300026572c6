"""The flags of the training data, what a row becomes, and the conversations of `python trainer/train_hf_lora.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind.columnar import pack_row
from parallelmind.data.collator import ParallelPretrainCollator, TrainingRow
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.training import data as data_module
from tests.compatibility.contract import proves
from tests.compatibility.train_runs import EOS, Trainer, trainer_of, write_jsonl
from tests.training.runs import save_model

ONE = ("--max_steps", 1)


def record(name: str, branches: int) -> dict[str, Any]:
    return {"main": name, "branches": [{"prompt": f"q{k}?", "completion": f"a{k}"} for k in range(branches)]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", [record(f"main{n}", 9) for n in range(4)])


@pytest.fixture
def train(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Trainer:
    return trainer_of(tmp_path, capsys, model, data)


@proves("train", "--data_path", "--branches_per_sample", "--batch_size", "--batch_by_samples")
def test_rows_and_batches(train: Trainer, data: Path, tmp_path: Path) -> None:
    """Nine branches are rows of 4, 4 and 1; a batch holds so many branches, or so many rows."""
    default = train()
    assert default.texts()[0] == ["main0", *(f"q{k}?a{k}{EOS}" for k in range(8))]
    assert default.row_sizes() == [8, 1] * 4
    assert [len(rows) for rows in default.rows] == [2, 2, 2, 2]
    fours = train("--branches_per_sample", 4)
    assert fours.row_sizes() == [4, 4, 1] * 4
    assert all(sum(len(row) - 1 for row in rows) <= 16 for rows in _by_batch(fours))
    small = train("--branches_per_sample", 4, "--batch_size", 4)
    assert [sum(len(row) - 1 for row in rows) for rows in _by_batch(small)] == [4, 4, 1] * 4
    rows = train("--branches_per_sample", 4, "--batch_size", 6, "--batch_by_samples")
    assert [len(batch) for batch in rows.rows] == [6, 6]
    other = write_jsonl(tmp_path / "other.jsonl", [record("else", 1)])
    assert train("--data_path", other).texts() == [["else", f"q0?a0{EOS}"]]


def _by_batch(ran: Any) -> list[list[list[str]]]:
    texts, found = iter(ran.texts()), []
    for rows in ran.rows:
        found.append([next(texts) for _ in rows])
    return found


@proves("train", "--max_branches_per_sample", "--min_branches_per_sample")
def test_dynamic_mode(train: Trainer, tmp_path: Path) -> None:
    """At most 4 branches a row makes 9 of them 3, 3 and 3; rows of texts vary between the least and the most."""
    assert train("--max_branches_per_sample", 4).row_sizes() == [3, 3, 3] * 4
    assert train("--max_branches_per_sample", 0).row_sizes() == [8, 1] * 4
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": f"text{n}"} for n in range(40)])
    loose = ("--data_path", texts, "--max_branches_per_sample", 4)
    assert set(train(*loose).row_sizes()[:-1]) == {1, 2, 3, 4}
    assert set(train(*loose, "--min_branches_per_sample", 3).row_sizes()[:-1]) == {3, 4}


@proves("train", "--max_seq_len")
def test_the_longest_branch(train: Trainer, tmp_path: Path) -> None:
    """A branch of 600 tokens is cut at 512, or where the flag says, and the log counts what was cut."""
    data = write_jsonl(tmp_path / "long.jsonl", [{"main": "m", "branches": ["x" * 600, "y" * 20]}])
    assert train("--data_path", data).texts() == [["m", "x" * 512, "y" * 20 + EOS]]
    cut = train("--data_path", data, "--max_seq_len", 7)
    assert cut.texts() == [["m", "x" * 7, "y" * 7]]
    assert "cut: 2 branches" in cut.shown


@proves("train", "--use_streaming")
def test_streaming(train: Trainer, data: Path) -> None:
    """A broken line stops a run before its first step; streaming, the records before it were trained on by then."""
    data.write_text(data.read_text() + "{broken\n")
    whole = train(expect=1)
    assert "line 5 is not valid JSON" in whole.shown
    assert whole.batches == []
    streamed = train("--use_streaming", "--shuffle_buffer", 2, expect=1)
    assert "line 5 is not valid JSON" in streamed.shown
    assert [row[0] for row in streamed.texts()][:2] == ["main0", "main0"]


@proves("train", "--hf_dataset", "--hf_subset")
def test_hugging_face_datasets(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset of two subsets, here a folder, read whole and streaming; and not together with `--data_path`."""
    folder = tmp_path / "dataset"
    for name in ("one", "two"):
        write_jsonl(folder / name / "train.jsonl", [record(name, 1)] * 3)
    configs = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("one", "two")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    train = Trainer(tmp_path, capsys, "--base_model", model, "--device", "cpu", "--hf_dataset", folder, *ONE)
    assert {row[0] for row in train("--hf_subset", "two").texts()} == {"two"}
    assert {row[0] for row in train("--hf_subset", "one", "--use_streaming").texts()} == {"one"}
    refused = train("--data_path", folder / "one" / "train.jsonl", expect=1)
    assert "--data_path (files) or as --hf_dataset; both were given" in refused.shown


@proves("train", "ParallelPretrainDataset, ParallelPretrainCollator")
def test_what_the_model_is_given(train: Trainer) -> None:
    """Ids, pos2d, the mask and the labels of a run's rows, and all of them literally for a row of three texts."""
    assert data_module.ParallelPretrainDataset is ParallelPretrainDataset
    batch = train(*ONE).batches[0]
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape[:2]
    row = TrainingRow(pack_row([10, 11], [[20, 21], [30, 31]]), torch.tensor([False, False, True, True, True, True]))
    made = ParallelPretrainCollator(0, stride=128, visibility="columnar", dense_mask=True)([row])
    assert made["input_ids"].tolist() == [[10, 11, 20, 21, 30, 31]]
    assert made["position_ids"].tolist() == [[[0, 0], [0, 1], [128, 2], [128, 3], [256, 2], [256, 3]]]
    assert (made["attention_mask"][0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],  # sees the other branch's token of earlier time
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]
    assert made["shift_labels"].tolist() == [[-100, -100, 21, -100, 31, -100]]
    assert made["branch_starts"].tolist() == [[0, 1, 20], [0, 1, 30]]  # main's last token predicts both


@proves("train_hf_lora", "conversations", "several conversations in a row", "records", "--lora_name")
def test_conversations(train: Trainer, tmp_path: Path) -> None:
    """Conversations are the branches of a row, only the assistant's turns are supervised; records are taken as well."""

    def turns(*texts: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        return {"conversations": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]}

    rows = [turns("hi", "yo"), turns("one", "two", "three", "four"), turns("a", "b")]
    data = write_jsonl(tmp_path / "chats.jsonl", rows)
    ran = train("--task", "lora", "--data_path", data)
    assert ran.row_sizes() == [3]
    assert ran.supervised() == {f"yo{EOS}", f"twofour{EOS}", f"b{EOS}"}
    for said in ("hi", "one", "three"):
        assert any(said in branch for branch in ran.texts()[0])
    assert ran.files() == {"qwen2_parallel_lora_hf.pth", "qwen2_parallel_lora_hf_final.pth"}
    assert train("--task", "lora", *ONE).texts()[0][0] == "main0"
