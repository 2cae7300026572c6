"""Inference on a CPU: weights packed once for its matrix kernels, in the number format it computes fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from parallelmind.models.cpu.elementwise import EvenActivation, is_activation
from parallelmind.models.cpu.instructions import has_native, has_packed
from parallelmind.models.cpu.packed_linear import PackedLinear
from parallelmind.models.quantization import is_quantized, to_float32


def optimize_for_cpu(model: Any, *, deterministic: bool = True) -> list[str]:
    """Make a model on the CPU faster, in place, for inference only; returns notes on what was done.

    Half-precision weights are computed with in float32 where the processor has no instructions for them (their values
    stay those of the checkpoint; memory doubles). In float32 adapters are merged. Linear layers are packed. A model
    that is trained or saved later must not be passed here. A model on another device is left alone.

    Args:
        deterministic: a row of a product has the same bits with any rows beside it. That costs nothing but with AMX
            tiles, see docs/INFERENCE_GUIDE.md.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return []
    notes = []
    dtype = model.dtype
    if dtype in (torch.float16, torch.bfloat16) and not has_native(dtype):
        to_float32(model)
        name = str(dtype).removeprefix("torch.")
        notes.append(f"this processor has no {name} instructions: computing in float32, which is faster here")
    exact = model.dtype == torch.float32 and not is_quantized(model)
    if exact and any(hasattr(module, "lora_A") for module in model.modules()):
        # Imported here, as PEFT takes seconds to import. Not in fewer bits, where the sum would be rounded.
        from parallelmind.models.lora import merge_lora

        merge_lora(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            better = _better(child, deterministic=deterministic)
            if better is not None:
                setattr(parent, name, better)
    return notes


def _better(module: nn.Module, *, deterministic: bool) -> nn.Module | None:
    """What takes a module's place; None: it stays."""
    layer = _weights_of(module)
    if layer is not None and has_packed(layer[0].dtype):
        return PackedLinear(*layer, deterministic=deterministic)
    return EvenActivation(module) if deterministic and is_activation(module) else None


def _weights_of(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight [out, in] and the bias of a linear layer; None: it is something else, or has a forward of its own."""
    if type(module) not in (nn.Linear, Conv1D):
        return None
    weight, bias = module.get_parameter("weight"), module._parameters["bias"]
    return weight if isinstance(module, nn.Linear) else weight.t().contiguous(), bias
