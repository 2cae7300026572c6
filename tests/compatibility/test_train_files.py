"""What training writes and reads, and its documented command lines as they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from parallelmind.models.loader import load_model_with_lora
from tests.cases import few
from tests.compatibility.command_lines import link_checkout, run_line, run_script
from tests.compatibility.contract import proves
from tests.compatibility.train_runs import Ran, Trainer, adapter, trainer_of, write_jsonl
from tests.training.runs import assert_equal, save_model, write_records

IDS = torch.arange(3, 60)[None]
_WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def trained(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    train = trainer_of(tmp_path_factory.mktemp("runs"), None, model, data)
    return train("--no_patch_rope", "--learning_rate", 0.05, "--lora_rank", 4)


def plain(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@proves("train", "LoRA on the linear layers, the rest frozen")
def test_the_adapter_moves_and_nothing_else(trained: Ran, model: Path) -> None:
    """All linear layers but the head have an adapter, which is all that was trained; the base weights are untouched."""
    base = plain(model)
    expected = set(linear_layers(base)) - {"lm_head"}
    assert {name.split(".lora.")[0] for name in trained.final()} == expected
    parameters = dict(trained.model.named_parameters())
    moving = {name for name, value in parameters.items() if value.requires_grad}
    assert moving == {name for name in parameters if "lora_" in name}
    before = base.state_dict()
    frozen = {name.replace(".base_layer", ""): value for name, value in parameters.items() if name not in moving}
    assert frozen.keys() <= before.keys()
    assert all(torch.equal(value, before[name]) for name, value in frozen.items())
    assert all(value.abs().max() > 0 for value in trained.final().values())


@proves("train", "<module path>.lora.A.weight", "<module path>.lora.B.weight", "the same adapter in PEFT format")
def test_the_two_forms_of_an_adapter(trained: Ran, model: Path) -> None:
    """The `.pth` has A [rank, in] and B [out, rank] of each layer; the PEFT folder has them too, and PEFT loads it."""
    state, folder = trained.final(), trained.out / "lora" / "hf_parallel_lora_final"
    layers = linear_layers(plain(model))
    for name, value in state.items():
        layer = layers[name.split(".lora.")[0]]
        assert list(value.shape) == ([4, layer.in_features] if ".A." in name else [layer.out_features, 4])
    stored = {name.removeprefix("base_model.model."): value for name, value in load_file(folder / _WEIGHTS).items()}
    assert stored.keys() == {name.replace(".lora.", ".lora_") for name in state}
    assert all(torch.equal(stored[name.replace(".lora.", ".lora_")], value) for name, value in state.items())
    loaded = load_model_with_lora(str(model), str(folder) + ".pth", 4, device="cpu", dtype="float32").model
    with torch.no_grad():
        of_peft = PeftModel.from_pretrained(plain(model), folder)(IDS).logits
        torch.testing.assert_close(loaded(IDS).logits, of_peft)
        assert (of_peft - plain(model)(IDS).logits).abs().max() > 0.1


@proves("train", "W + B·A", "--load_lora")
def test_a_file_that_was_written_elsewhere(model: Path, data: Path, tmp_path: Path) -> None:
    """Two layers, a plain `torch.save`, no other file: the model is the base with W + B·A there, and trains on."""
    names = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
    merged, state = plain(model), {}
    for seed, name in enumerate(names):
        layer, chance = linear_layers(merged)[name], torch.Generator().manual_seed(seed)
        A = torch.randn(5, layer.in_features, generator=chance) / 8
        B = torch.randn(layer.out_features, 5, generator=chance) / 8
        layer.weight.data += B @ A
        state |= {f"{name}.lora.A.weight": A, f"{name}.lora.B.weight": B}
    path = tmp_path / "elsewhere.pth"
    torch.save(state, path)
    loaded = load_model_with_lora(str(model), str(path), 5, patch_rope=False, device="cpu", dtype="float32").model
    with torch.no_grad():
        expected = merged(IDS).logits
        torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        assert (expected - plain(model)(IDS).logits).abs().max() > 0.1
    again = trainer_of(tmp_path, None, model, data)("--load_lora", path, "--max_steps", 1, "--learning_rate", 1e-12)
    assert again.final().keys() == state.keys()
    assert all(torch.allclose(value, state[name], atol=1e-6) for name, value in again.final().items())


def flags_of(model: Path, data: Path) -> list[object]:
    flags = ["--base_model", model, "--data_path", data, "--device", "cpu", "--batch_size", 6]
    return [*flags, "--branches_per_sample", 3, "--log_interval", 1]


def last_entry(folder: Path, name: str) -> dict[str, Any]:
    lines = (folder / "out" / "logs" / name / "metrics.jsonl").read_text().splitlines()
    entry: dict[str, Any] = json.loads(lines[-1])
    return entry


@proves("train", "python trainer/train_hf_parallel_lora.py")
@proves("train", "torchrun --nproc_per_node N trainer/train_hf_parallel_lora.py …", "--ddp")
@pytest.mark.parametrize("ddp", few([["--ddp"], []]))
def test_one_process_and_two(model: Path, data: Path, tmp_path: Path, ddp: list[str]) -> None:
    """The line, and with torchrun two processes, whose batches of half the size make the same adapter.

    With `--ddp` and without it is the same run. Rows of 3 branches are cut in two. The folder has a run of other
    settings, so that both processes take the same next name.
    """
    one, two = (link_checkout(tmp_path / name) for name in ("one", "two"))
    # Plain SGD without clipping, as Adam does not care for the scale of a gradient.
    flags = ["--base_model", model, "--data_path", data, "--device", "cpu", "--dtype", "float32"]
    flags += ["--branches_per_sample", 3, "--log_interval", 2, "--max_samples", 21, "--eval_ratio", 0.2]
    flags += ["--learning_rate", 0.05, "--optim", "sgd", "--grad_clip", 0]
    run_script("python trainer/train_hf_parallel_lora.py", *flags, "--batch_size", 12, cwd=one)
    run_script("python trainer/train_hf_parallel_lora.py", *flags, "--batch_size", 6, "--max_steps", 1, cwd=two)
    line = "torchrun --nproc_per_node 2 trainer/train_hf_parallel_lora.py --batch_size 2 --accumulation_steps 3"
    said = run_line(line, *flags, *ddp, cwd=two).stderr
    assert said.count("this one is called hf_parallel_lora_2") == 1
    assert "rank=1" not in "".join(line for line in said.splitlines() if "step " in line)
    logs = [last_entry(one, "hf_parallel_lora"), last_entry(two, "hf_parallel_lora_2")]
    assert logs[0]["step"] == logs[1]["step"] > 1
    assert logs[1]["eval_loss"] == pytest.approx(logs[0]["eval_loss"], rel=1e-4)
    of_one, of_two = (folder / "out" / "lora" for folder in (one, two))
    final = "hf_parallel_lora_2_final.pth"
    assert {path.name for path in of_one.glob("*.pth")} == {"hf_parallel_lora_final.pth"}
    assert {path.name for path in of_two.glob("*.pth")} == {"hf_parallel_lora_final.pth", final}
    assert_equal(adapter(of_two / final), adapter(of_one / "hf_parallel_lora_final.pth"), tolerance=1e-4)


@proves(
    "train_hf_lora",
    "python trainer/train_hf_lora.py",
    "--lora_name",
    "{lora_name}_{model_tag}.pth",
    "{lora_name}_{model_tag}_…",
)
def test_training_on_conversations(model: Path, tmp_path: Path) -> None:
    """The line with `--lora_name medical_lora` on conversations writes medical_lora_hf.pth, and the same as final."""
    link_checkout(tmp_path)
    said = [{"role": "user", "content": "fever?"}, {"role": "assistant", "content": "rest"}]
    data = write_jsonl(tmp_path / "data.jsonl", [{"conversations": said}] * 6)
    line = "python trainer/train_hf_lora.py --lora_name medical_lora --save_interval 1"
    run_script(line, *flags_of(model, data), cwd=tmp_path)
    names = {path.name for path in (tmp_path / "out" / "lora").glob("*.pth")}
    assert names == {"medical_lora_hf.pth", "medical_lora_hf_step1.pth", "medical_lora_hf_final.pth"}
    newest, final = (adapter(tmp_path / "out" / "lora" / f"medical_lora_hf{end}.pth") for end in ("", "_final"))
    assert len(final) == 2 * 7 * 2
    assert newest.keys() == final.keys()
    assert all(torch.equal(value, final[name]) for name, value in newest.items())


@proves("train_pretrain", "python trainer/train_pretrain.py")
@proves("train_pretrain", "a small model from scratch, on parallel data, without LoRA")
def test_pretraining(model: Path, data: Path, tmp_path: Path) -> None:
    """The line makes a model of the tokenizer's vocabulary, trains all of its weights on records, and it loads."""
    link_checkout(tmp_path)
    small = ("--hidden_size", 32, "--num_hidden_layers", 1, "--num_attention_heads", 2, "--num_key_value_heads", 1)
    flags = flags_of(model, data)[2:]
    run_script("python trainer/train_pretrain.py", "--tokenizer_path", model, *small, *flags, cwd=tmp_path)
    folder = tmp_path / "out" / "pretrain" / "pretrain_final"
    loaded = load_model_with_lora(str(folder), device="cpu", dtype="float32")
    assert (loaded.model.config.hidden_size, loaded.model.config.vocab_size) == (32, len(loaded.tokenizer))
    assert not (tmp_path / "out" / "lora").exists()
    assert not any("lora" in name for name in loaded.model.state_dict())


@proves("train_pretrain", "a small model from scratch, on parallel data, without LoRA")
def test_pretraining_trains_all_weights(model: Path, data: Path, tmp_path: Path) -> None:
    """Every weight is trained and none is an adapter's; the tokens of main are supervised as well."""
    train = Trainer(tmp_path, None, "--data_path", data, "--device", "cpu", "--dtype", "float32", "--max_steps", 2)
    small = ("--hidden_size", 32, "--num_hidden_layers", 1, "--num_attention_heads", 2, "--num_key_value_heads", 1)
    ran = train("--task", "pretrain", "--tokenizer_path", model, *small)
    assert all(value.requires_grad for value in ran.model.parameters())
    assert all(row.loss_mask[row.row.branch_ids == 0].all() for rows in ran.rows for row in rows)
