"""`parallelmind merge`, and the batch command on what it wrote."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from parallelmind.cli.main import main
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.sidecar import RopeSettings, Sidecar
from tests.models.adapters import train
from tests.random_model import save_random_model

ROPE = RopeSettings(branch_stride=16, visibility="columnar")


@pytest.fixture
def folders(tmp_path):
    base = save_random_model(tmp_path / "base")
    model = train(apply_lora(AutoModelForCausalLM.from_pretrained(base), 4, seed=0))
    save_lora(model, tmp_path / "adapter", sidecar=Sidecar(rope=ROPE, rank=4, base_model="base"))
    return str(base), str(tmp_path / "adapter")


def answers(tmp_path, name, *flags):
    data = tmp_path / "records.jsonl"
    data.write_text(json.dumps({"main": "Some text. ", "branches": ["one", "two!", "three"]}) + "\n")
    out = tmp_path / name
    common = [
        "--temperature",
        "0",
        "--max_new_tokens",
        "6",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--ignore_eos",
        "--workers",
        "0",
    ]
    assert main(["batch", "--data_path", str(data), "--out_path", str(out), *common, *flags]) == 0
    return [json.loads(line)["output"] for line in out.read_text(encoding="utf-8").splitlines()]


def test_a_merged_model_answers_as_base_and_adapter_do(folders, tmp_path, capsys):
    base, adapter = folders
    merged = str(tmp_path / "merged")
    assert main(["merge", "--base-model", base, "--lora_path", adapter, "--output_dir", merged]) == 0
    said = capsys.readouterr().err
    assert "parameters in float32 are in" in said
    assert "visibility columnar" in said
    expected = answers(tmp_path, "a.jsonl", "--base_model", base, "--lora_path", adapter)
    assert answers(tmp_path, "b.jsonl", "--base_model", merged) == expected
    assert expected != answers(tmp_path, "c.jsonl", "--base_model", base)


def test_errors(folders, tmp_path, capsys):
    base, adapter = folders
    with pytest.raises(SystemExit, match="2"):
        main(["merge", "--base_model", base, "--output_dir", str(tmp_path / "m")])
    assert "--lora_path" in capsys.readouterr().err
    assert main(["merge", "--base_model", base, "--lora_path", adapter, "--output_dir", base]) == 1
    assert "exists already" in capsys.readouterr().err
