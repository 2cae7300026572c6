"""The packed forward: its gradient is the sum of the gradients of the branches alone, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallelmind.columnar import (
    VISIBILITIES,
    PackedRow,
    Visibility,
    auto_pair_indices,
    pack_row,
    patch_model_with_interleaved_2d_rope,
    pos2d_ids,
)
from parallelmind.data.collator import ParallelPretrainCollator, TrainingRow, packed_ids
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.lora import apply_lora
from parallelmind.models.packed_attention import _block_mask, dense_mask
from parallelmind.training.forward import PackedForward
from tests.families import FAMILIES, MORE_FAMILIES, tiny_model

STRIDE = 16
MAIN = [5, 6, 7, 8, 9, 10, 11]
BRANCHES = [[12, 13, 14, 15, 16, 17, 18, 19], [20, 21], [22, 23, 24, 25, 26]]
PROMPTS = [3, 1, 2]
"""Tokens of each branch that are not learned."""


def lora_model(family: str, mode: Any = "split", **overrides: Any) -> Any:
    model = tiny_model(family, **overrides)
    if mode is not None:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5), mode)
    apply_lora(model, rank=4, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # with B = 0 the gradient of A is 0, and everything agrees
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def row(main: list[int], branches: list[list[int]], prompts: list[int]) -> TrainingRow:
    learned = [False] * len(main)
    for tokens, prompt in zip(branches, prompts, strict=True):
        learned += [index >= prompt for index in range(len(tokens))]
    return TrainingRow(pack_row(main, branches), torch.tensor(learned))


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def packed_gradients(
    model: Any, rows: list[TrainingRow], visibility: Visibility = "isolated", stride: int = STRIDE
) -> tuple[float, dict[str, Tensor]]:
    forward = PackedForward(model, visibility=visibility, stride=stride)
    batch = ParallelPretrainCollator(0, stride=stride, two_axes=forward.patched)(rows)
    with forward.installed(model):
        loss = forward.loss(model, batch)
        loss.backward()
    return float(loss), gradients(model)


def alone_gradients(
    model: Any, main: list[int], branches: list[list[int]], patched: bool, stride: int = STRIDE
) -> tuple[float, dict[str, Tensor]]:
    """Each branch as an ordinary sequence through the model's own forward, with an ordinary mask."""
    total = 0.0
    for number, (tokens, prompt) in enumerate(zip(branches, PROMPTS, strict=True), 1):
        ids = torch.tensor([main + tokens])
        time = torch.arange(ids.shape[1])[None]
        positions = pos2d_ids((time >= len(main)) * number, time, stride) if patched else time
        logits = model(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits[0]
        first = len(main) + prompt
        loss = F.cross_entropy(logits[first - 1 : -1].float(), ids[0, first:], reduction="sum")
        loss.backward()
        total += float(loss)
    return total, gradients(model)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 2e-4) -> None:
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    assert scale > 1e-3
    for name, value in one.items():
        assert float((value - other[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_packed_gradient_is_the_sum_over_the_branches_alone(family: str) -> None:
    model = lora_model(family)
    loss, packed = packed_gradients(model, [row(MAIN, BRANCHES, PROMPTS)])
    expected, alone = alone_gradients(model, MAIN, BRANCHES, patched=True)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert_same(packed, alone)
