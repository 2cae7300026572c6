"""Attention of one layer by the kernels: four launches, however many texts a step reads.

Shapes: H key/value heads, G query heads per key/value head, R rows of the forward, D head size, E value head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import Reach
from parallelmind.engine.cuda.inputs import KernelInputs
from parallelmind.engine.cuda.items import Shape
from parallelmind.engine.pages import PageStore

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_LEAST_ROWS = 16
"""Rows of the GPU's matrix instructions."""
_MOST_ROWS = 128
_MOST_DIM = 256
_LONG_STEP = 512
"""From so many rows on a step is bound by arithmetic, and wants larger blocks."""
_PROGRAMS_PER_PROCESSOR = 2
_INTERPRETED_PROCESSORS = 2


def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on a device: NVIDIA's Ampere or newer, with Triton installed."""
    return device.type == "cuda" and torch.version.hip is None and _is_new(device) and find_spec("triton") is not None


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels are made for tensors [1, H·G, R, D], [1, H, R, D] and [1, H, R, E]."""
    return (
        query.dtype in _TYPES
        and query.dtype == key.dtype == value.dtype
        and max(query.shape[-1], value.shape[-1]) <= _MOST_DIM
        and query.shape[1] // key.shape[1] <= _MOST_ROWS
    )


@dataclass(frozen=True, slots=True)
class Blocks:
    """How many rows and keys a program holds."""

    narrow: int
    wide: int
    keys: int

    def shape(self, group: int, num_heads: int, device: torch.device) -> Shape:
        return Shape(
            narrow_tokens=self.narrow // group,
            wide_tokens=self.wide // group,
            num_heads=num_heads,
            num_programs=_PROGRAMS_PER_PROCESSOR * _num_processors(device),
        )


def blocks(query: Tensor, group: int) -> Blocks:
    """Those for queries [1, H·G, R, D]."""
    is_small = query.shape[-1] <= 128 and query.dtype != torch.float32
    wide = 128 if is_small and query.shape[2] >= _LONG_STEP else 64 if is_small else 32
    least = _power_of_two(group, _LEAST_ROWS)
    return Blocks(narrow=least, wide=max(least, wide), keys=64 if is_small else 32)


def attend(
    inputs: KernelInputs,
    store: PageStore,
    layer: int,
    reach: Reach,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    softcap: float | None,
    sinks_HG: Tensor | None,
) -> Tensor:
    """Store keys [1, H, R, D] and values [1, H, R, E], and attend: queries [1, H·G, R, D] → [1, R, H·G, E]."""
    from parallelmind.engine.cuda import kernels

    heads, rows, dim, value_dim = key.shape[1], key.shape[2], key.shape[3], value.shape[3]
    group = query.shape[1] // heads
    sizes = blocks(query, group)
    items = inputs.items(reach, sizes.shape(group, heads, query.device), query.device)
    query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    key_pages, value_pages = store.arrays_like(layer, key[0], value[0])
    dims = {"DIM": dim, "VALUE_DIM": value_dim, "BLOCK_E": _power_of_two(value_dim, _LEAST_ROWS)}
    of_keys = {"BLOCK_D": _power_of_two(dim, _LEAST_ROWS)}
    kernels.write_pages[(rows, heads)](
        key, value, key_pages, value_pages, items.places,
        key.stride(1), key.stride(2), value.stride(1), value.stride(2), key_pages.stride(0), value_pages.stride(0),
        **dims, **of_keys, num_warps=1,
    )  # fmt: skip
    store.copy_within(layer)
    num_slots = len(items.slots)
    parts = query.new_empty(num_slots, heads, group, value_dim, dtype=torch.float32)
    logsumexps = query.new_empty(num_slots, heads, group, dtype=torch.float32)
    for kind, block in ((items.narrow, sizes.narrow), (items.wide, sizes.wide)):
        if len(kind):
            kernels.read_items[(len(kind), heads)](
                query, key_pages, value_pages, parts, logsumexps, kind, items.pages, items.times, items.branches,
                query.stride(1), query.stride(2), key_pages.stride(0), value_pages.stride(0), scale, softcap or 0.0,
                HEADS=heads, GROUP=group, PAGE=store.page_tokens, WINDOW=reach.window or 0, CHUNK=reach.chunk or 0,
                HAS_SOFTCAP=softcap is not None, BLOCK_M=block, BLOCK_N=sizes.keys,
                PRECISION="ieee", **dims, **of_keys, num_warps=8 if block >= 128 else 4,
            )  # fmt: skip
    out = query.new_empty(1, rows, heads * group, value_dim)
    kernels.merge_parts[(rows, heads)](
        parts, logsumexps, items.ends, items.slots, parts if sinks_HG is None else sinks_HG, out,
        HEADS=heads, GROUP=group, VALUE_DIM=value_dim, HAS_SINKS=sinks_HG is not None,
        BLOCK_G=_power_of_two(group, 1), BLOCK_E=dims["BLOCK_E"], num_warps=4,
    )  # fmt: skip
    return out


def _power_of_two(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())


@lru_cache
def _is_new(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


@lru_cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count)
