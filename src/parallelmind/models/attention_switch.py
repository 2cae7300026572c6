"""Another attention implementation for the forwards of a block; outside of it the model is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


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
