"""What packed rows and shared mains require of a model, in training and in the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from parallelmind.errors import UnsupportedModelError

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention", "dense", "sparse", "moe"}
"""Kinds of layers in a model's config that keep nothing but keys and values, and see what a mask by time says; the last
three are of feed-forward layers."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1


def refuse_other_layers(model: nn.Module, use: str) -> None:
    """Raises UnsupportedModelError, naming the use, if a model has layers besides full and sliding attention."""
    config: Any = model.config
    kinds = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ()) - _ATTENTION_LAYERS
    if getattr(model, "_is_stateful", False):
        kinds.add("recurrent state")
    if kinds:
        raise UnsupportedModelError(
            f"{type(model).__name__} has layers of kind {', '.join(sorted(kinds))}, so it cannot {use}: the state of "
            "such layers would leak from branch to branch, or they would see other tokens than they should. Use a "
            "model whose layers are all full or sliding attention."
        )


def rounding_tolerance(model: Any) -> float:
    """By how much logits of two ways to the same result may differ, as a share of the largest one."""
    # 8-bit layers round what goes into them, too.
    if getattr(model, "is_quantized", False):
        return _HALF_TOLERANCE
    return _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)


@contextmanager
def attention_switched(configs: Sequence[Any], name: str) -> Iterator[None]:
    """Let the forwards of the model that has these configs use the attention registered under a name."""
    former = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, before in zip(configs, former, strict=True):
            config._attn_implementation_internal = before


def model_configs(model: nn.Module) -> list[Any]:
    """Every distinct config that the model's modules read their attention implementation from."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return list({id(config): config for config in configs}.values())


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, without dropout, and put the model back into the mode it was in."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
