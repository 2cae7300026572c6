"""Each check of training, inference and pos2d fails when what it looks at is broken."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from parallelmind.columnar import (
    Interleaved2DRoPE,
    RopeMode,
    auto_pair_indices,
    build_columnar_causal_mask,
    pack_row,
)
from parallelmind.doctor import CheckResult, DoctorOptions, inference, pos2d, training
from parallelmind.doctor.check import CheckFailedError
from parallelmind.doctor.inference import Alone, Ready
from parallelmind.doctor.pos2d import STRIDE, Pos2dFlow
from parallelmind.doctor.training import Trial
from parallelmind.engine.engine import Engine
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.sidecar import RopeSettings, Sidecar
from tests.doctor.checking import assert_fails, outcomes, result, results, with_model
from tests.families import char_tokenizer, tiny_model

CPU = DoctorOptions(device="cpu")

# Training


@pytest.fixture
def trial() -> Trial:
    return training.load_trial(CPU)


def test_training_that_moves_the_base(trial: Trial) -> None:
    trial.trainee.model.model.norm.weight.requires_grad_(True)
    found = outcomes(training.trial_checks(lambda: trial))
    assert_fails(found["one step of LoRA"], "1 frozen weights", "model.norm.weight")
    assert_fails(found["save and load the adapter"], "step failed")


def test_training_that_moves_nothing(trial: Trial) -> None:
    for layer in lora_layers(trial.trainee.model).values():
        layer.lora.B.weight.requires_grad_(False)
    found = outcomes(training.trial_checks(lambda: trial))
    assert_fails(found["one step of LoRA"], "21 layers of the adapter did not move")


def test_an_adapter_that_is_saved_wrong(trial: Trial) -> None:
    step, save = training.trial_checks(lambda: trial)
    assert outcomes([step])["one step of LoRA"].status == "pass"
    for layer in lora_layers(trial.trainee.model).values():
        layer.lora.B.weight.data.mul_(-1)
    assert_fails(outcomes([save])["save and load the adapter"], "has a loss of")


def test_a_run_that_cannot_begin() -> None:
    assert_fails(result("training", "a run of the trainer", with_model(device="abacus")), "--device is 'abacus'")


# Inference


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter of the bundled model with 2D RoPE that changes its answers."""
    model, _, _ = load_model_with_lora("tiny", device="cpu", dtype="float32")
    apply_lora(model, 4, seed=0)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model).values():
        layer.lora.B.weight.data.normal_(std=0.05, generator=generator)
    path = tmp_path_factory.mktemp("adapter") / "adapter.pth"
    return str(save_lora(model, path, sidecar=Sidecar(rope=RopeSettings(branch_range=2), rank=4, base_model="tiny")))


@pytest.fixture(scope="module")
def with_adapter(adapter: str) -> Ready:
    return inference.load_ready(dataclasses.replace(CPU, lora_path=adapter, lora_rank=4))


def test_an_adapter_with_2d_rope_passes(with_adapter: Ready) -> None:
    found = outcomes(inference.ready_checks(lambda: with_adapter))
    assert "adapter on 21 layers, 2D RoPE on (split)" in found["load the model"].found
    assert found["parallel answers = one by one"].status == "pass"
    assert found["right answers of the bundled model"].status == "skip"


def test_an_adapter_of_another_rank_fails(adapter: str) -> None:
    found = results("inference", with_model(lora_path=adapter, lora_rank=8, device="cpu"))
    assert_fails(found["load the model"], "--lora_rank 4")
    assert found["parallel answers = one by one"].status == "skip"


def test_branches_at_wrong_positions_are_noticed(adapter: str, with_adapter: Ready) -> None:
    loaded = load_model_with_lora("tiny", adapter, device="cpu", dtype="float32")
    shifted = Engine(loaded.model, loaded.tokenizer, branch_stride=loaded.settings.branch_stride + 64)
    ready = dataclasses.replace(with_adapter, engine=shifted)
    found = outcomes(inference.ready_checks(lambda: ready))
    assert_fails(found["parallel answers = one by one"], "differs from its answer alone")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    found = results("inference", with_model(base_model=str(tmp_path)))
    assert_fails(found["load the model"], str(tmp_path))
    assert "not reached" in found["parallel answers = one by one"].found


def test_wrong_answers_are_noticed() -> None:
    model, tokenizer, _ = load_model_with_lora("tiny", device="cpu", dtype="float32")
    model.model.norm.weight.data.neg_()
    ready = Ready(options=CPU, engine=Engine(model, tokenizer), summary="", alone=[])
    name = "right answers of the bundled model"
    assert_fails(outcomes(inference.ready_checks(lambda: ready), name)[name], "of 16 right")


def test_only_a_choice_between_equals_is_rounding() -> None:
    logits = torch.tensor([1.0, 1.0 - 1e-4, 0.5])
    alone = Alone(tokens=[0, 0, 0], steps=[(logits, 1e-3)] * 3)
    assert not alone.differs(1, [0, 0, 0])
    assert alone.differs(1, [0, 1, 2])
    with pytest.raises(CheckFailedError, match="at token 2: 2 instead of 0"):
        alone.differs(1, [0, 2, 0])
    with pytest.raises(CheckFailedError, match="2 tokens, alone 3"):
        alone.differs(1, [0, 0])


# pos2d


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """The bundled model and its tokenizer, which each flow leaves as they were."""
    flow = pos2d.load_flow(CPU)
    return flow.model, flow.tokenizer


def measured(flow: Pos2dFlow, *names: str) -> dict[str, CheckResult]:
    """The checks of these names, or all."""
    found = outcomes(pos2d.flow_checks(lambda: flow), *names)
    assert not set(names) - set(found)
    return found


class Misplaced(Pos2dFlow):
    """A flow whose 2D RoPE takes the positions it is called with for others."""

    def __init__(self, loaded: tuple[Any, Any], misread: Callable[[Interleaved2DRoPE, Tensor], Sequence[Tensor]]):
        super().__init__(*loaded)
        self._misread = misread

    @contextmanager
    def patched(self, mode: RopeMode) -> Iterator[list[Interleaved2DRoPE]]:
        def misread(rope: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            given = inspect.signature(rope.forward).bind(*args, **kwargs)
            read = self._misread(rope, given.arguments["position_ids"])
            given.arguments["position_ids"] = torch.stack(tuple(read), dim=-1)
            return given.args, given.kwargs

        with super().patched(mode) as ropes:
            for rope in ropes:
                rope.register_forward_pre_hook(misread, with_kwargs=True)
            yield ropes


def axes(rope: Interleaved2DRoPE, positions: Tensor) -> Sequence[Tensor]:
    """Branch position and time [B, S], as they are meant."""
    if positions.dim() == 3:
        return positions.unbind(-1)
    return (torch.zeros_like(positions), positions) if rope.pos2d is None else rope.pos2d.unbind(-1)


def test_pos2d_without_the_branch_axis(loaded: tuple[Any, Any]) -> None:
    flow = Pos2dFlow(*loaded)
    flow.pairs = []
    name = "the branch position changes the logits"
    assert_fails(measured(flow, name)[name], "must be above")


def test_pos2d_says_how_many_pairs_turn(loaded: tuple[Any, Any]) -> None:
    count = len(auto_pair_indices(loaded[0]))
    found = result("pos2d", "load the model", with_model(device="cpu")).found
    assert found == f"{count} frequency pairs turn by the branch position"


def test_pos2d_with_the_axes_confused(loaded: tuple[Any, Any]) -> None:
    flow = Misplaced(loaded, lambda rope, positions: axes(rope, positions)[::-1])
    found = measured(flow, "additive: branch 0 is the unpatched model", "set_rope_pos2d = position_ids")
    assert_fails(found["additive: branch 0 is the unpatched model"], "must be at most")
    # Both ways of giving positions are confused alike.
    assert found["set_rope_pos2d = position_ids"].status == "pass"


def test_pos2d_where_plain_positions_are_no_branch_0(loaded: tuple[Any, Any]) -> None:
    def shifted(rope: Interleaved2DRoPE, positions: Tensor) -> Sequence[Tensor]:
        branch, time = axes(rope, positions)
        # A shift of the whole row would not be seen, since RoPE is relative.
        return (branch + time if positions.dim() == 2 else branch * 2), time

    found = measured(
        Misplaced(loaded, shifted),
        "positions [B, S] are branch 0",
        "split: branch position = time is the unpatched model",
        "set_rope_pos2d = position_ids",
    )
    for one in found.values():
        assert_fails(one, "must be at most")


def test_pos2d_where_set_positions_are_ignored(loaded: tuple[Any, Any]) -> None:
    def unset(rope: Interleaved2DRoPE, positions: Tensor) -> Sequence[Tensor]:
        return positions.unbind(-1) if positions.dim() == 3 else (torch.zeros_like(positions), positions)

    found = measured(Misplaced(loaded, unset), "set_rope_pos2d = position_ids", "positions [B, S] are branch 0")
    assert_fails(found["set_rope_pos2d = position_ids"], "must be at most")
    assert found["positions [B, S] are branch 0"].status == "pass"


def test_pos2d_that_does_not_arrive(loaded: tuple[Any, Any]) -> None:
    class Flattened(Pos2dFlow):
        def logits(self, positions: Tensor, **options: Any) -> Tensor:
            return super().logits(positions[..., 1] if positions.dim() == 3 else positions, **options)

    flow = Flattened(*loaded)
    name = "pos2d reaches the rotary embedding"
    assert_fails(measured(flow, name)[name], "[1, 9, 2] arrived as [[1, 9]]")


def test_pos2d_with_a_wrong_layout_or_mask(loaded: tuple[Any, Any]) -> None:
    class Leaking(Pos2dFlow):
        """Branches see one another."""

        def logits(self, positions: Tensor, *, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            if mask is not None:
                mask = build_columnar_causal_mask(positions, visibility="columnar", dtype=mask.dtype)
            return super().logits(positions, ids=ids, mask=mask)

        def engine(self) -> Engine:
            return Engine(self.model, self.tokenizer, branch_stride=STRIDE, visibility="columnar")

    flow = Leaking(*loaded)
    together = ("a packed row = each branch alone", "the engine: all branches together = each alone")
    for one in measured(flow, *together).values():
        assert_fails(one, "must be at most")
    flow.row = pack_row(flow.main, flow.branches, branch_numbers=[2, 1])
    assert_fails(measured(flow, "positions of a row")["positions of a row"], "(256, 4)")


def test_pos2d_of_a_model_without_rotary_embedding_is_skipped(tmp_path: Path) -> None:
    tokenizer = char_tokenizer()
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = results("pos2d", with_model(base_model=str(tmp_path), device="cpu"))
    assert {one.status for one in found.values()} == {"skip"}
    assert "no rotary position embedding" in found["load the model"].found
    assert found["positions of a row"].found == "not reached: loading the model was skipped"


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "falcon", "cohere"])
def test_pos2d_of_other_families(family: str) -> None:
    """Sliding windows, sinks, a model without AttentionInterface, interleaved pairs."""
    flow = Pos2dFlow(tiny_model(family), char_tokenizer())
    assert {found.status for found in measured(flow).values()} == {"pass"}
