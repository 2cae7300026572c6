"""The arithmetic of docs/QUICK_START_LORA.md, counted on the code it speaks of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from parallelmind.columnar import auto_pair_indices, pack_row, patch_model_with_interleaved_2d_rope
from parallelmind.data.collator import ParallelPretrainCollator, TrainingRow
from parallelmind.models.lora import apply_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.training.forward import PackedForward

TOKENS, RANK = 256, 8


def trainee(width: int, kv_heads: int, feed_forward: int, layers: int) -> Any:
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=kv_heads,
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    apply_lora(model, rank=RANK)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def kept_bytes(model: Any) -> int:
    """What one forward keeps for the backward pass, weights not counted."""
    forward = PackedForward(model, visibility="isolated", stride=128)
    row = pack_row(list(range(TOKENS // 2)), [list(range(TOKENS // 8))] * 4)
    batch = ParallelPretrainCollator(0)([TrainingRow(row, row.branch_ids > 0)])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16), forward.installed(model), saved:
        forward.loss(model, batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("width", "kv_heads", "feed_forward"), [(512, 2, 2048), (512, 8, 4096)])
def test_activations_of_a_token_and_layer(width: int, kv_heads: int, feed_forward: int) -> None:
    few, more = (kept_bytes(trainee(width, kv_heads, feed_forward, layers)) for layers in (1, 3))
    found = (more - few) / 2 / TOKENS
    assert found == pytest.approx(2 * (12 * width + 2 * 64 * kv_heads + 4 * feed_forward), rel=0.05)


def test_weights_of_an_adapter() -> None:
    width, keys, feed_forward, layers = 512, 128, 2048, 2
    model = trainee(width, 2, feed_forward, layers)
    found = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert len(lora_layers(model)) == 7 * layers
    assert found == RANK * layers * (7 * width + 2 * (width + keys) + 3 * feed_forward)
