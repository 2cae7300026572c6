"""Rows of several records in one sequence: the loss and the gradient are the sums over the rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from parallelmind.columnar import FULL, VISIBILITIES, Reach, Visibility, pack_row
from parallelmind.data.collator import MicroBatch, ParallelPretrainCollator, TrainingRow
from parallelmind.models.packed_attention import _block_mask, dense_mask
from parallelmind.training.forward import PackedForward
from tests.families import FAMILIES, MORE_FAMILIES
from tests.training.runs import assert_equal, options, train, weights
from tests.training.test_forward import BRANCHES, MAIN, PROMPTS, STRIDE, assert_same, gradients, lora_model, row

SECOND = TrainingRow(pack_row([40], [[41, 42, 43], [44]], branch_numbers=[3, 7]), torch.tensor([False] + [True] * 4))
LOOSE = TrainingRow(
    pack_row([], [[30, 31, 32], [33, 34]], branch_numbers=[7, 9]), torch.tensor([False, True, True, False, True])
)
"""Its first branch has the number of the last one of the row before it."""
ROWS = [row(MAIN, BRANCHES, PROMPTS), SECOND, LOOSE, row([50, 51, 52], [[53, 54]], [0])]
_FAST = ("qwen2", "gemma2", "gemma3_text", "gpt_oss", "olmo3", "falcon", "gpt_neox", "qwen3_moe", "deepseek_v3")
_OTHERS = [family for family in (*FAMILIES, *MORE_FAMILIES) if family not in _FAST]


def found(model: Any, batch: MicroBatch, visibility: Visibility = "isolated") -> tuple[float, dict[str, Tensor]]:
    forward = PackedForward(model, visibility=visibility, stride=STRIDE)
    inputs = ParallelPretrainCollator(0, stride=STRIDE, visibility=visibility, two_axes=forward.patched)(batch)
    with forward.installed(model):
        loss = forward.loss(model, inputs)
        loss.backward()
    return float(loss.detach()), gradients(model)


def assert_composed_is_the_sum(family: str, visibility: Visibility = "isolated", mode: Any = "split") -> None:
    model = lora_model(family, mode)
    loss, gradient = found(model, MicroBatch(ROWS, sequences=[3, 1]), visibility)
    parts = [found(model, MicroBatch([one]), visibility) for one in ROWS]
    assert loss == pytest.approx(sum(part for part, _ in parts), rel=1e-4)
    assert_same(gradient, {name: sum(part[name] for _, part in parts) for name in gradient})  # type: ignore[misc]


@pytest.mark.parametrize("family", [*_FAST, *(pytest.param(one, marks=pytest.mark.slow) for one in _OTHERS)])
def test_a_sequence_of_several_records_is_the_sum_over_its_rows_alone(family: str) -> None:
    assert_composed_is_the_sum(family)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "falcon"])
@pytest.mark.parametrize("visibility", ["columnar", "strict"])
def test_under_every_visibility(family: str, visibility: Visibility) -> None:
    assert_composed_is_the_sum(family, visibility)


def test_without_2d_positions() -> None:
    assert_composed_is_the_sum("qwen2", mode=None)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_balanced_over_the_same_tokens(family: str) -> None:
    """The loss that balances experts is one of a whole batch: behind or beside one another makes no difference."""
    model = lora_model(family, None, output_router_logits=True, router_aux_loss_coef=0.5).train()
    loss, gradient = found(model, MicroBatch(ROWS, sequences=[3, 1]))
    beside, expected = found(model, MicroBatch(ROWS))
    assert loss == pytest.approx(beside, rel=1e-4)
    assert_same(gradient, expected)


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("reach", [FULL, Reach(window=3)], ids=str)
def test_block_masks_for_gpus_equal_the_dense_masks(visibility: Visibility, reach: Reach) -> None:
    batch = ParallelPretrainCollator(0, pad_to_multiple_of=128)(MicroBatch(ROWS, sequences=[3, 1]))
    ids = batch["attention_mask"]
    blocks = _block_mask(ids, visibility, reach)
    seen = create_mask(blocks.mask_mod, len(ids), 1, ids.shape[2], ids.shape[2], device="cpu")
    assert torch.equal(seen, dense_mask(ids, visibility, reach, torch.float32) == 0)


def test_a_run_on_batches_of_tokens_is_the_run_on_branches(model: Path, data: Path, tmp_path: Path) -> None:
    """All of the data in one step, divided by tokens, in several accumulated batches, and in one of branches."""
    common: dict[str, Any] = {"max_steps": 3, "seed": 5}
    expected = weights(train(options(model, data, tmp_path / "a", batch_size=100, **common)).written)
    for number, flags in enumerate(
        ({"max_tokens_per_batch": 4000}, {"max_tokens_per_batch": 300, "accumulation_steps": 9})
    ):
        report = train(options(model, data, tmp_path / str(number), batch_size=16, **flags, **common))
        assert_equal(weights(report.written), expected, tolerance=2e-3)
        counts = report.data_counts
        assert counts["padding_tokens"] < 0.05 * counts["batch_tokens"]
    again = train(options(model, data, tmp_path / "1", batch_size=16, max_tokens_per_batch=200, **common))
    assert again.name == "hf_parallel_lora_2"  # another size of a step
