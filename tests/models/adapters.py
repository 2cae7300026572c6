"""Tiny models with trained LoRA, for the tests of its files and layers."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch

from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from tests.families import tiny_model

_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
_MOE = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}
MOE_FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "phimoe")
_INPUT_IDS = torch.arange(1, 13).reshape(2, 6)


@functools.cache
def _template(family: str, **changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        return tiny_model(family, **{**_SIZES, **(_MOE if family in MOE_FAMILIES else {}), **changes})


def make(family: str = "qwen2", **changes: Any) -> Any:
    """A random model, the same each time."""
    return copy.deepcopy(_template(family, **changes))


def train(model: Any, scale: float = 0.1) -> Any:
    """Give every adapter weight a value that matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for weight in (layer.lora.A.weight, layer.lora.B.weight):
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(_INPUT_IDS).logits.float()


def plain_state(model: Any) -> dict[str, torch.Tensor]:
    """The `.pth` state dict as a script without this package would build it."""
    return {
        f"{name}.lora.{part}.weight": getattr(layer.lora, part).weight.detach().clone()
        for name, layer in lora_layers(model).items()
        for part in "AB"
    }


def saved(tmp_path: Path, name: str, family: str = "qwen2", **settings: Any) -> tuple[Path, torch.Tensor]:
    """A trained adapter on disk, and the logits of the model it was saved from."""
    model = train(apply_lora(make(family), rank=4, seed=0, **settings))
    return save_lora(model, tmp_path / name), logits(model)
