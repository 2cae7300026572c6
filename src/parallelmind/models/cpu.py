"""Inference on a CPU: weights packed once for its matrix kernels, in the number format it computes fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PACK_ROWS = 16
"""Rows the layout is chosen for: a decode step of several branches. Measured in float32 against the plain layer, on a
busy machine: 1.3 to 2.4 times as fast from 4 to 64 rows, no clear difference above, at a single row down to half."""


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's blocked layout, so that no call has to rearrange it.

    For inference only: it has no gradient, and a state dict of the model no longer holds the weight.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _PACK_ROWS)

    @property
    def weight(self) -> Tensor:
        """The packed weight: code that asks for its dtype or device gets the right answer."""
        return self._packed

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        rows = x.numel() // self.in_features
        padded = padded_rows(rows)
        flat = x.reshape(rows, self.in_features)
        if padded != rows:
            flat = nn.functional.pad(flat, (0, 0, 0, padded - rows))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self._packed, self.bias, "none", [], "")
        return out[:rows].view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self._packed.dtype}"


def padded_rows(rows: int) -> int:
    """The number of rows a product is computed with.

    oneDNN compiles and keeps a kernel for each number of rows it meets, and a scheduler makes all numbers: with these
    few dozens, memory stays flat and compiling ends early.
    """
    for limit, step in ((16, 1), (64, 8), (256, 16)):
        if rows <= limit:
            return -(-rows // step) * step
    return -(-rows // 64) * 64


def optimize_for_cpu(model: Any) -> list[str]:
    """Make a model on the CPU faster, in place, for inference only; returns notes on what was done.

    Half-precision weights are computed with in float32 where the processor has no instructions for them (their values
    stay those of the checkpoint; memory doubles). In float32 adapters are merged. Linear layers are packed. A model
    that is trained or saved later must not be passed here. A model on another device is left alone.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return []
    notes = []
    dtype = model.dtype
    if dtype in (torch.float16, torch.bfloat16) and not has_native(dtype):
        model.float()
        name = str(dtype).removeprefix("torch.")
        notes.append(f"this processor has no {name} instructions: computing in float32, which is faster here")
    if model.dtype == torch.float32 and any(hasattr(module, "lora_A") for module in model.modules()):
        # Imported here, as PEFT takes seconds to import. Not in half precision, where the sum would be rounded.
        from parallelmind.models.lora import merge_lora

        merge_lora(model)
    if torch._C._has_mkldnn:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                # Subclasses (falcon's, quantized ones) have a forward of their own.
                if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16):
                    setattr(parent, name, PackedLinear(child))
    return notes


def has_native(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices of a half-precision format in hardware."""
    probes = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported"),
        torch.float16: ("_is_amx_fp16_supported", "_is_arm_fp16_supported"),
    }
    return any(getattr(torch.cpu, probe, bool)() for probe in probes.get(dtype, ()))
