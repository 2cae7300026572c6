"""The packed forward: its gradient is the sum of the gradients of the branches alone, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from parallelmind.columnar import (
    FULL,
    VISIBILITIES,
    Reach,
    Visibility,
    auto_pair_indices,
    pack_row,
    patch_model_with_interleaved_2d_rope,
    pos2d_ids,
    shift_labels,
)
from parallelmind.data.collator import ParallelPretrainCollator, TrainingRow
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.lora import apply_lora
from parallelmind.models.packed_attention import _block_mask, _of_one_dtype, dense_mask
from parallelmind.training.forward import PackedForward
from tests.engine.test_equalities import full_forward
from tests.families import FAMILIES, MORE_FAMILIES, tiny_model

STRIDE = 16
MAIN = [5, 6, 7, 8, 9, 10, 11]
BRANCHES = [[12, 13, 14, 15, 16, 17, 18, 19], [20, 21], [22, 23, 24, 25, 26]]
PROMPTS = [3, 0, 0]
"""Tokens of each branch that are not supervised; main's last token predicts the first one of the second and third."""


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
    loss_mask = [False] * len(main)
    for tokens, prompt in zip(branches, prompts, strict=True):
        loss_mask += [index >= prompt for index in range(len(tokens))]
    return TrainingRow(pack_row(main, branches), torch.tensor(loss_mask))


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def packed_gradients(
    model: Any, rows: list[TrainingRow], visibility: Visibility = "isolated", stride: int = STRIDE
) -> tuple[float, dict[str, Tensor]]:
    forward = PackedForward(model, visibility=visibility, stride=stride)
    batch = ParallelPretrainCollator(0, stride=stride, visibility=visibility, two_axes=forward.patched)(rows)
    with forward.installed(model):
        loss = forward.loss(model, batch)
        loss.backward()
    return float(loss.detach()), gradients(model)


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
        total += float(loss.detach())
    return total, gradients(model)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 2e-4) -> None:
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    assert scale > 1e-3
    for name, value in one.items():
        assert float((value - other[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_packed_gradient_is_the_sum_over_the_branches_alone(family: str) -> None:
    """And a step with it moves the adapter, not the base, and lowers the loss."""
    model = lora_model(family)
    rows = [row(MAIN, BRANCHES, PROMPTS)]
    loss, packed = packed_gradients(model, rows)
    expected, alone = alone_gradients(model, MAIN, BRANCHES, patched=True)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert_same(packed, alone)
    assert all("lora_" in name for name in packed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for name, parameter in model.named_parameters():
        parameter.grad = packed.get(name)
    optimizer.step()
    model.zero_grad()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != ("lora_" in name), name
    assert packed_gradients(model, rows)[0] < loss


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "gpt_oss", "stablelm", "falcon"])
@pytest.mark.parametrize(("mode", "stride"), [(None, 16), ("split", 0), ("additive", 5)])
def test_other_positions(family: str, mode: str | None, stride: int) -> None:
    """Branches stay apart without 2D RoPE and with stride 0, where positions do not tell them apart."""
    model = lora_model(family, mode)
    _, packed = packed_gradients(model, [row(MAIN, BRANCHES, PROMPTS)], stride=stride)
    _, alone = alone_gradients(model, MAIN, BRANCHES, patched=mode is not None, stride=stride)
    assert_same(packed, alone)


@pytest.mark.parametrize("family", ["qwen2", "mistral", "gemma2", "falcon"])
def test_padded_rows_and_rows_without_main(family: str) -> None:
    model = lora_model(family)
    rows = [row(MAIN, BRANCHES, PROMPTS), row([], [[30, 31, 32], [33, 34]], [1, 0]), row([40], [[41, 42]], [0])]
    together, gradient = packed_gradients(model, rows)
    parts = [packed_gradients(model, [one]) for one in rows]
    assert together == pytest.approx(sum(loss for loss, _ in parts), rel=1e-4)
    assert_same(gradient, {name: sum(part[name] for _, part in parts) for name in gradient})  # type: ignore[misc]


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "olmo3", "falcon"])
@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_visibilities_equal_one_dense_forward(family: str, visibility: Visibility) -> None:
    model = lora_model(family)
    one = row(MAIN, BRANCHES, PROMPTS)
    loss, _ = packed_gradients(model, [one], visibility)
    logits = full_forward(model, one.row.input_ids, one.row.pos2d(STRIDE), visibility)
    targets = shift_labels(one.row.input_ids, one.row.branch_ids, one.loss_mask)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    if visibility != "strict":
        first_tokens = torch.tensor([branch[0] for branch in BRANCHES[1:]])
        expected += F.cross_entropy(logits[len(MAIN) - 1].expand(2, -1), first_tokens, reduction="sum")
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_first_tokens_alone_are_supervised_too() -> None:
    """Rows of which main's last position is all that has something to predict."""
    model = lora_model("qwen2")
    loss, gradient = packed_gradients(model, [row(MAIN, [[3], [4], [5]], [0, 0, 1]), row([], [[6]], [0])])
    model.zero_grad()
    ids = torch.tensor([MAIN])
    positions = pos2d_ids(torch.zeros_like(ids), torch.arange(len(MAIN))[None], STRIDE)
    logits = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits[0, -1]
    expected = -torch.log_softmax(logits.float(), -1)[[3, 4]].sum()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(gradient, gradients(model))


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt_oss", "phi"])
def test_layers_computed_again_for_their_gradient(family: str) -> None:
    model = lora_model(family)
    rows = [row(MAIN, BRANCHES, PROMPTS), row([], [[30, 31, 32]], [1])]
    _, usual = packed_gradients(model, rows)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable()
    model.train()
    _, again = packed_gradients(model, rows)
    assert_same(again, usual, tolerance=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_balanced_as_transformers_does(family: str) -> None:
    """Padding is not routed; with one branch a row, there is an ordinary batch to compare with."""
    model = lora_model(family, None, output_router_logits=True, router_aux_loss_coef=0.5).train()
    sequences = [(MAIN, [*range(12, 24)], 3), (MAIN[:3], [30, 31, 32, 33], 0)]
    loss, packed = packed_gradients(model, [row(main, [branch], [prompt]) for main, branch, prompt in sequences])
    width = max(len(main) + len(branch) for main, branch, _ in sequences)
    ids, mask, labels = (torch.full((2, width), fill) for fill in (0, 0, -100))
    for index, (main, branch, prompt) in enumerate(sequences):
        length = len(main) + len(branch)
        ids[index, :length], mask[index, :length] = torch.tensor(main + branch), 1
        labels[index, len(main) + prompt : length] = torch.tensor(branch[prompt:])
    supervised = int((labels != -100).sum())
    output = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
    (output.loss * supervised).backward()
    assert float(output.aux_loss.detach()) > 0.1
    assert loss == pytest.approx(supervised * float(output.loss.detach()), rel=1e-4)
    assert_same(packed, gradients(model))


def test_nothing_supervised_is_a_loss_of_0_with_a_gradient_of_0() -> None:
    model = lora_model("qwen2")
    blank = row(MAIN, BRANCHES, [len(tokens) for tokens in BRANCHES])
    loss, gradient = packed_gradients(model, [blank])
    assert loss == 0
    assert gradient
    assert all(bool((value == 0).all()) for value in gradient.values())


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("reach", [FULL, Reach(window=3), Reach(chunk=4)], ids=str)
def test_block_masks_for_gpus_equal_the_dense_masks(visibility: Visibility, reach: Reach) -> None:
    batch = ParallelPretrainCollator(0, pad_to_multiple_of=128)([row(MAIN, BRANCHES, PROMPTS), row([], [[3, 4]], [0])])
    ids = batch["attention_mask"]
    blocks = _block_mask(ids, visibility, reach)
    seen = create_mask(blocks.mask_mod, len(ids), 1, ids.shape[2], ids.shape[2], device="cpu")
    assert torch.equal(seen, dense_mask(ids, visibility, reach, torch.float32) == 0)


def test_flex_attention_gets_one_number_format() -> None:
    """A model with float32 weights under autocast: its rotated queries and keys are float32, its values bfloat16."""
    query, key, value = torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert [part.dtype for part in _of_one_dtype(query, key, value)] == [torch.bfloat16] * 3
    assert [part.dtype for part in _of_one_dtype(query, key, query)] == [torch.float32] * 3


def test_an_ordinary_mask_is_still_an_ordinary_mask() -> None:
    """In the block of packed attention the model computes what it computes outside."""
    for family in ("qwen2", "gemma2", "gemma3_text", "gpt_oss", "gpt_neox"):
        model = lora_model(family)
        ids = torch.tensor([MAIN + BRANCHES[0], [0] * 3 + MAIN[:4] + BRANCHES[0]])
        mask = (torch.arange(ids.shape[1])[None] >= torch.tensor([[0], [3]])).long()
        for given in (mask, None):
            expected = model(input_ids=ids, attention_mask=given).logits
            with PackedForward(model, visibility="columnar", stride=STRIDE).installed(model):
                actual = model(input_ids=ids, attention_mask=given).logits
            kept = mask.bool()
            torch.testing.assert_close(actual[kept], expected[kept], atol=2e-4, rtol=1e-4, msg=family)


def test_layers_with_a_recurrent_state_are_refused() -> None:
    model = tiny_model("qwen2")
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(UnsupportedModelError, match=r"linear_attention keep a state.*the others"):
        PackedForward(model, visibility="isolated", stride=STRIDE)
