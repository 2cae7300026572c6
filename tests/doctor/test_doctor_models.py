"""Each check of training, inference and pos2d fails when what it looks at is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from parallelmind.columnar import Interleaved2DRoPE
from parallelmind.doctor import (
    CheckResult,
    DoctorOptions,
    inference,
    pos2d,
    training,
)
from parallelmind.doctor.check import CheckFailedError, perform
from parallelmind.engine.engine import Engine
from parallelmind.errors import TrainingError
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.sidecar import RopeSettings, Sidecar
from tests.doctor.checking import DEFAULT, assert_fails, result, results
from tests.families import char_tokenizer, tiny_model


def training_outcomes() -> dict[str, CheckResult]:
    return {check.name: perform(check) for check in training.checks(DEFAULT)[:2]}


def test_training_that_moves_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    load = training.load_trainee

    def thawed(*args: Any, **options: Any) -> Any:
        trainee = load(*args, **options)
        trainee.model.model.norm.weight.requires_grad_(True)
        return trainee

    monkeypatch.setattr(training, "load_trainee", thawed)
    found = training_outcomes()
    assert_fails(found["one step of LoRA"], "1 frozen weights", "model.norm.weight")
    assert_fails(found["save and load the adapter"], "step failed")


def test_training_that_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    assert_fails(training_outcomes()["one step of LoRA"], "21 layers of the adapter did not move")


def test_an_adapter_that_is_saved_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    save = training.save_adapter

    def damaged(trainee: Any, *rest: Any) -> Path:
        for layer in lora_layers(trainee.model).values():
            layer.lora.B.weight.data.mul_(-1)
        return save(trainee, *rest)

    monkeypatch.setattr(training, "save_adapter", damaged)
    found = training_outcomes()
    assert found["one step of LoRA"].status == "pass"
    assert_fails(found["save and load the adapter"], "has a loss of")


def test_a_run_that_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise TrainingError("no space; make room")

    monkeypatch.setattr(training, "run_training", fail)
    assert_fails(result("training", "a run of the trainer"), "no space")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the bundled model with 2D RoPE that changes its answers."""
    model, _, _ = load_model_with_lora("tiny", device="cpu", dtype="float32")
    apply_lora(model, 4, seed=0)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model).values():
        layer.lora.B.weight.data.normal_(std=0.05, generator=generator)
    path = tmp_path_factory.mktemp("adapter") / "adapter.pth"
    return save_lora(model, path, sidecar=Sidecar(rope=RopeSettings(), rank=4, base_model="tiny"))


def with_adapter(path: Path, **more: Any) -> DoctorOptions:
    return DoctorOptions(lora_path=str(path), device="cpu", **more)


def test_an_adapter_with_2d_rope_passes(adapter: Path) -> None:
    found = results("inference", with_adapter(adapter, lora_rank=4))
    assert "adapter on 21 layers, 2D RoPE on (split)" in found["load the model"].found
    assert found["parallel answers = one by one"].status == "pass"
    assert found["right answers of the bundled model"].status == "skip"


def test_an_adapter_of_another_rank_fails(adapter: Path) -> None:
    found = results("inference", with_adapter(adapter, lora_rank=8))
    assert_fails(found["load the model"], "--lora_rank 4")
    assert found["parallel answers = one by one"].status == "skip"


def test_branches_at_wrong_positions_are_noticed(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Engine.__init__

    def shifted(self: Engine, *args: Any, branch_stride: int = 0, **options: Any) -> None:
        make(self, *args, branch_stride=branch_stride + 64, **options)

    monkeypatch.setattr(Engine, "__init__", shifted)
    found = results("inference", with_adapter(adapter))
    assert_fails(found["parallel answers = one by one"], "differs from its answer alone")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    found = results("inference", DoctorOptions(base_model=str(tmp_path)))
    assert_fails(found["load the model"], str(tmp_path))
    assert "not reached" in found["parallel answers = one by one"].found


def test_wrong_answers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    records = inference.read_demo_records()
    for record in records:
        record.answers[:] = record.answers[::-1]
    monkeypatch.setattr(inference, "read_demo_records", lambda: records)
    assert_fails(result("inference", "right answers of the bundled model"), "of 16 right")


def test_only_a_choice_between_equals_is_rounding() -> None:
    logits = torch.tensor([1.0, 1.0 - 1e-4, 0.5])
    steps = [(logits, 1e-3)] * 3
    assert inference._compare(1, [0, 0, 0], [0, 0, 0], steps) == 0
    assert inference._compare(1, [0, 1, 2], [0, 0, 0], steps) == 1
    with pytest.raises(CheckFailedError, match="at token 2: 2 instead of 0"):
        inference._compare(1, [0, 2, 0], [0, 0, 0], steps)
    with pytest.raises(CheckFailedError, match="2 tokens, alone 3"):
        inference._compare(1, [0, 0], [0, 0, 0], steps)


def test_pos2d_without_the_branch_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pos2d, "auto_pair_indices", lambda model: [])
    assert result("pos2d", "load the model").found.startswith("0 frequency pairs")
    assert_fails(result("pos2d", "the branch position changes the logits"), "must be above")


def test_pos2d_with_the_axes_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = Interleaved2DRoPE._axes
    monkeypatch.setattr(Interleaved2DRoPE, "_axes", lambda self, positions: axes(self, positions)[::-1])
    found = results("pos2d")
    assert_fails(found["additive: branch 0 is the unpatched model"], "must be at most")
    # Both ways of giving positions are confused alike.
    assert found["set_rope_pos2d = position_ids"].status == "pass"


def test_pos2d_where_plain_positions_are_no_branch_0(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = Interleaved2DRoPE._axes

    def shifted(self: Interleaved2DRoPE, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        branch, time = axes(self, positions)
        # A shift of the whole row would not be seen, since RoPE is relative.
        return (branch + time if positions.dim() == 2 else branch * 2), time

    monkeypatch.setattr(Interleaved2DRoPE, "_axes", shifted)
    found = results("pos2d")
    for name in (
        "positions [B, S] are branch 0",
        "split: branch position = time is the unpatched model",
        "set_rope_pos2d = position_ids",
    ):
        assert_fails(found[name], "must be at most")


def test_pos2d_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = pos2d.Pos2dFlow._logits

    def flattened(self: Any, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        return logits(self, positions[..., 1] if positions.dim() == 3 else positions, **options)

    monkeypatch.setattr(pos2d.Pos2dFlow, "_logits", flattened)
    assert_fails(result("pos2d", "pos2d reaches the rotary embedding"), "[1, 9, 2] arrived as [[1, 9]]")


def test_pos2d_with_a_wrong_layout_or_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    pack, mask, generate = pos2d.pack_row, pos2d.build_columnar_causal_mask, Engine.generate
    monkeypatch.setattr(pos2d, "pack_row", lambda *args, **options: pack(*args, branch_numbers=[2, 1]))
    assert_fails(result("pos2d", "positions of a row"), "(256, 4)")
    monkeypatch.setattr(pos2d, "pack_row", pack)
    monkeypatch.setattr(
        pos2d,
        "build_columnar_causal_mask",
        lambda ids, visibility, dtype: mask(ids, visibility="columnar", dtype=dtype),
    )
    assert_fails(result("pos2d", "a packed row = each branch alone"), "must be at most")

    def leaking(self: Engine, requests: Any, sampling: Any) -> Any:
        self._input.visibilities[""] = "columnar"
        return generate(self, requests, sampling)

    monkeypatch.setattr(Engine, "generate", leaking)
    assert_fails(result("pos2d", "the engine: all branches together = each alone"), "must be at most")


def test_pos2d_of_a_model_without_rotary_embedding_is_skipped(tmp_path: Path) -> None:
    tokenizer = char_tokenizer()
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = results("pos2d", DoctorOptions(base_model=str(tmp_path), device="cpu"))
    assert {one.status for one in found.values()} == {"skip"}
    assert "no rotary position embedding" in found["load the model"].found
    assert found["positions of a row"].found == "not reached: loading the model was skipped"


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "falcon", "cohere"])
def test_pos2d_of_other_families(family: str) -> None:
    """Sliding windows, sinks, a model without AttentionInterface, interleaved pairs."""
    flow = pos2d.Pos2dFlow(tiny_model(family), char_tokenizer())
    assert {perform(check).status for check in pos2d.flow_checks(lambda: flow)} == {"pass"}
