"""What packed rows and shared mains require of a model, in training and in the engine."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from parallelmind.errors import UnsupportedModelError
from parallelmind.models.quantization import is_quantized

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"} | {
    "dense",
    "mlp",
    "moe",
    "sparse",
}
"""Kinds of layers in a model's config that keep nothing but keys and values, and see what a mask by time says; the last
four are of feed-forward layers."""
_OTHER_LAYERS = {
    "keep a state that the tokens of one branch would change for the others": {
        "conv",
        "hybrid",
        "hybrid_sliding",
        "linear_attention",
        "mamba",
        "recurrent",
    },
    "choose by themselves which tokens they see, or see a summary of several, in which branches would be mixed": {
        "compressed_sparse_attention",
        "heavily_compressed_attention",
        "indexed_attention",
        "minimax_m3_sparse",
    },
}
"""Why layers of other kinds cannot be used, by what they do."""
_UNKNOWN_LAYERS = "are not known, so that tokens of different branches might see each other in them"
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1


def refuse_other_layers(model: nn.Module, use: str) -> None:
    """Raises UnsupportedModelError if a model has layers besides full and sliding attention, saying what for."""
    config: Any = model.config
    named = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())
    kinds = named - _ATTENTION_LAYERS
    # Of a class whose models may have a state, the config says whether this one has, where it names kinds of layers.
    if getattr(model, "_is_stateful", False) and not named:
        kinds.add("recurrent")
    if not kinds:
        return
    reasons = [
        f"its layers of kind {', '.join(sorted(kinds & these))} {what}"
        for what, these in _OTHER_LAYERS.items()
        if kinds & these
    ]
    if unknown := kinds - set().union(*_OTHER_LAYERS.values()):
        reasons.append(f"its layers of kind {', '.join(sorted(unknown))} {_UNKNOWN_LAYERS}")
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot {use}: {'; '.join(reasons)}. Use a model whose layers are all full or sliding "
        "attention."
    )


def num_layers(config: Any) -> int:
    """The layers of a text model; of the decoder, where the config describes an encoder beside it."""
    return int(getattr(config, "decoder_layers", None) or config.num_hidden_layers)


def takes_positions(model: nn.Module) -> bool:
    """Whether the model can be told the position of each token, rather than counting them by their place in a row."""
    own: Any = model
    if hasattr(own, "get_base_model"):  # a PeftModel
        own = own.get_base_model()
    return "position_ids" in inspect.signature(own.forward).parameters


def rounding_tolerance(model: Any) -> float:
    """By how much logits of two ways to the same result may differ, as a share of the largest one."""
    # 8-bit layers round what goes into them, too.
    if is_quantized(model):
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
