"""Which matrix instructions this processor has."""

from __future__ import annotations

import torch


def has_native(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices of a half-precision format in hardware."""
    probes = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported"),
        torch.float16: ("_is_amx_fp16_supported", "_is_arm_fp16_supported"),
    }
    return any(getattr(torch.cpu, probe, bool)() for probe in probes.get(dtype, ()))


def has_packed(dtype: torch.dtype) -> bool:
    """Whether the library of matrix kernels packs weights of this format for this processor."""
    if not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def has_tiles() -> bool:
    """Whether this processor multiplies matrices tile by tile (AMX)."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
