"""Attention of the engine: each page of keys is read once for all tokens that see it.

What a token sees lies in several runs of pages: those of the texts that it continues, and its own (columnar: those of
all branches of its row). Each run is attended to apart, for all tokens that see it at once, and the parts are merged by
their logsumexp (Ye et al., 2024, FlashInfer, "cascade inference"). The query heads of one key/value head
are folded into the query length, so that keys are neither copied nor read twice. The number of calls does not grow with
the number of requests, see `step`.

Shapes: H key/value heads, G query heads per key/value head, T tokens of the forward, n runs of pages in a call, R
tokens that read a run, K keys, S parts of the output of all calls, J parts of a token, D head size, E value head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from parallelmind.engine.cuda import attention as kernels
from parallelmind.engine.cuda.inputs import KernelInputs
from parallelmind.engine.readings import Plan
from parallelmind.engine.step import Step
from parallelmind.models.architecture import attention_switched
from parallelmind.models.cpu.instructions import has_tiles
from parallelmind.models.layer_reach import reach_of

ATTENTION_NAME = "parallelmind_engine"
_MAX_SCORES = 2**25
_MAX_MASK = 2**22
_ROW_STEP, _WIDE_ROW_STEP, _WIDE_HEAD = 8, 16, 128
"""The CPU's kernel gives a query the same bits whatever it shares a call with, if its rows are a multiple of these: the
second for heads wider than the third (measured: float32 from 192 on)."""
_KERNEL_ROWS = 32
"""Queries of a head that the CPU's kernel gives to one thread. A call with nothing for a second thread lets the threads
share each product instead, which sums otherwise; such a call is computed twice, once by each of two threads."""
_TILE = 32
"""With AMX the kernel multiplies in tiles where that pays, which sums otherwise unless a head is a multiple of it."""
_TRIED_HEADS = (64, 80, 256)
"""How wide the heads are with which the kernel is tried: a usual one, one that fills no tile, and a wide one."""
_SUMMED_KEYS = 256
_NOTHING = -1e30
"""Logsumexp of no keys at all; not -inf, whose differences are no numbers."""

_forward: ContextVar[tuple[Step, KernelInputs | None]] = ContextVar("parallelmind_forward")


@contextmanager
def engine_attention(configs: Sequence[Any], step: Step, inputs: KernelInputs | None = None) -> Iterator[None]:
    """Let the forwards of a model with these configs use the engine's attention and cache inside the block.

    Outside it the model is as it was, so that `generate`, training and other engines are not disturbed.

    Args:
        inputs: for the layers that the kernels of `parallelmind.engine.cuda` can take; None: they take none.
    """
    token = _forward.set((step, inputs))
    try:
        with attention_switched(configs, ATTENTION_NAME):
            yield
    finally:
        _forward.reset(token)


def engine_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query [1, H·G, T, D], key [1, H, T, D], value [1, H, T, E].

    Returns:
        [1, T, H·G, E], and None for the weights.
    """
    step, inputs = _forward.get()
    reach = reach_of(module)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    heads = key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    sinks_HG = None if s_aux is None else s_aux.view(heads, -1).float()
    if inputs is not None and kernels.takes(query, key, value):
        return kernels.attend(inputs, step.store, layer, reach, query, key, value, scale, softcap, sinks_HG), None
    q_HGTD = query[0].unflatten(0, (heads, -1))
    k_HTD, v_HTE = key[0], value[0]
    count = step.num_tokens  # rows behind these are idle, and attend to nothing
    step.store.write(layer, step.places(key.device), k_HTD[:, :count], v_HTE[:, :count])
    options = ScoreOptions(scale, softcap, sinks_HG)
    keys_HNPD, values_HNPE = step.store.layer(layer)

    plan = step.plan(reach, q_HGTD)
    q_THGD = q_HGTD.permute(2, 0, 1, 3).contiguous()
    shape = (plan.num_slots + 1, *q_HGTD.shape[:2])
    out_SHGE, lse_SHG = query.new_empty(*shape, v_HTE.shape[-1]), query.new_empty(shape, dtype=torch.float32)
    if plan.has_gaps:
        out_SHGE[-1], lse_SHG[-1] = 0, _NOTHING
    for call in plan.calls:
        slots = slice(call.first_slot, call.first_slot + call.tokens.numel())
        if call.wide is not None:
            q_HGRD = q_HGTD[:, :, slice(*call.wide)]
            k_HGKD, v_HGKE = (
                call.read(array)[0][:, None].expand(-1, q_HGRD.shape[1], -1, -1) for array in (keys_HNPD, values_HNPE)
            )
            mask = None if call.mask is None else call.mask[0]
            out, lse = attend(q_HGRD, k_HGKD, v_HGKE, mask, options.scale, options.softcap)
            out_SHGE[slots].copy_(out.permute(2, 0, 1, 3))
            lse_SHG[slots].copy_(lse.permute(2, 0, 1))
            continue
        q_nRHGD = q_THGD.index_select(0, call.tokens.flatten()).unflatten(0, call.tokens.shape)
        q_nHGRD = q_nRHGD.permute(0, 2, 3, 1, 4)
        out, lse = attend_grouped(q_nHGRD, call.read(keys_HNPD), call.read(values_HNPE), call.mask, options)
        out_SHGE[slots].unflatten(0, call.tokens.shape).copy_(out.permute(0, 3, 1, 2, 4))
        lse_SHG[slots].unflatten(0, call.tokens.shape).copy_(lse.permute(0, 3, 1, 2))
    out_THGE = _merged(plan, out_SHGE, lse_SHG, options).to(query.dtype)
    if query.shape[2] > count:
        out_THGE = F.pad(out_THGE, (0, 0) * 3 + (0, query.shape[2] - count))
    return out_THGE.flatten(1, 2)[None], None


AttentionInterface.register(ATTENTION_NAME, engine_attention_forward)


class ScoreOptions:
    """What a layer asks of its scores: scale, soft cap, and sinks (an extra score per head that takes no value)."""

    __slots__ = ("scale", "sinks_HG", "softcap")

    def __init__(self, scale: float, softcap: float | None, sinks_HG: Tensor | None):
        self.scale = scale
        self.softcap = softcap
        self.sinks_HG = sinks_HG


def _merged(plan: Plan, out_SHGE: Tensor, lse_SHG: Tensor, options: ScoreOptions) -> Tensor:
    """The attention of each token over all it reads, [T, H, G, E], from that over each run of pages.

    Part after part, product and sum apart: so a token's result has the same bits with any others beside it.
    """
    if len(plan.readers) == 1 and options.sinks_HG is None:
        return out_SHGE.index_select(0, plan.sources[0])
    lse_JTHG = lse_SHG.index_select(0, plan.sources.flatten()).unflatten(0, plan.sources.shape)
    most = lse_JTHG.amax(0)
    if options.sinks_HG is not None:  # a sink takes its share of the softmax and gives nothing
        most = torch.maximum(most, options.sinks_HG)
    weights = torch.exp(lse_JTHG - most)[..., None]
    total, out = weights[0].clone(), out_SHGE.index_select(0, plan.sources[0]).float() * weights[0]
    for part, readers in enumerate(plan.readers[1:], start=1):
        if readers is None:
            total += weights[part]
            out += out_SHGE.index_select(0, plan.sources[part]).float() * weights[part]
        else:
            mine = weights[part].index_select(0, readers)
            total.index_add_(0, readers, mine)
            out.index_add_(0, readers, out_SHGE.index_select(0, plan.sources[part, readers]).float() * mine)
    if options.sinks_HG is not None:
        total += torch.exp(options.sinks_HG - most)[..., None]
    return out / total


def attend_grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: ScoreOptions,
    *,
    max_mask: int = _MAX_MASK,
) -> tuple[Tensor, Tensor]:
    """`attend` for G query heads per key/value head, folded into the query length so that keys are read once.

    Shapes: query [..., H, G, Q, D], key [..., H, K, D], mask [Q, K] or [n, 1, Q, K]
    → [..., H, G, Q, E], [..., H, G, Q].

    Args:
        max_mask: the largest mask, in entries, that is repeated for each query head of a group.
    """
    group, count = query.shape[-3:-1]
    if mask is not None and count > 1 and mask.numel() * group > max_mask:
        # A mask repeated for each head would outgrow the keys; each head on its own then costs little.
        outs, lses = zip(
            *(attend(query[..., g, :, :], key, value, mask, options.scale, options.softcap) for g in range(group)),
            strict=True,
        )
        return torch.stack(outs, dim=-3), torch.stack(lses, dim=-2)
    if mask is not None:
        mask = mask.unsqueeze(-3).expand(*mask.shape[:-2], group, *mask.shape[-2:]).flatten(-3, -2)
    out, lse = attend(query.flatten(-3, -2), key, value, mask, options.scale, options.softcap)
    return out.unflatten(-2, (group, count)), lse.unflatten(-1, (group, count))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    *,
    max_scores: int = _MAX_SCORES,
) -> tuple[Tensor, Tensor]:
    """Softmax attention and the logsumexp of its scores.

    Shapes: query [..., Q, D], key [..., K, D], value [..., K, E], additive mask broadcastable to [..., Q, K]
    → [..., Q, E] in query's dtype, [..., Q] in float32. Leading axes: heads, or branches and heads.

    Args:
        max_scores: computed at once by the unfused path, so that a long main does not need length² memory.
    """
    if query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1]:
        batched = query.dim() == 4
        q, k, v = (query, key, value) if batched else (query[None], key[None], value[None])
        calls, _, rows, _ = q.shape
        if mask is not None:
            mask = mask.expand(q.shape[0], 1, rows, k.shape[2])
        width = q.shape[-1]
        if width % _TILE and q.dtype == torch.bfloat16 and has_tiles():
            q, k, v = (F.pad(array, (0, -width % _TILE)) for array in (q, k, v))
        idle = -rows % (_WIDE_ROW_STEP if width > _WIDE_HEAD else _ROW_STEP)
        if idle:
            q = F.pad(q, (0, 0, 0, idle))
            mask = None if mask is None else F.pad(mask, (0, 0, 0, idle))
        if q.shape[0] * q.shape[1] == 1 and q.shape[2] <= _KERNEL_ROWS and torch.get_num_threads() > 1:
            q, k, v = (array.expand(2, -1, -1, -1) for array in (q, k, v))
            mask = None if mask is None else mask.expand(2, -1, -1, -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=scale
        )
        out, lse = out[:calls, :, :rows, :width], lse[:calls, :, :rows]
        return (out, lse) if batched else (out[0], lse[0])
    if softcap is None and _fused_on_cuda(query, value):
        return _attend_on_cuda(query, key, value, mask, scale)
    rows = max(1, max_scores // max(1, query[..., 0, 0].numel() * key.shape[-2]))
    if query.shape[-2] > rows:
        chunks = [
            attend(
                query[..., i : i + rows, :],
                key,
                value,
                None if mask is None else mask[..., i : i + rows, :],
                scale,
                softcap,
                max_scores=max_scores,
            )
            for i in range(0, query.shape[-2], rows)
        ]
        return torch.cat([out for out, _ in chunks], dim=-2), torch.cat([lse for _, lse in chunks], dim=-1)
    count = query.shape[-2]
    if query.device.type == "cpu":
        query = F.pad(query, (0, 0, 0, -count % _WIDE_ROW_STEP))
    scores = torch.matmul(query, key.transpose(-1, -2))[..., :count, :].float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).to(value.dtype)
    if query.device.type == "cpu":
        weights = F.pad(weights, (0, 0, 0, -count % _WIDE_ROW_STEP))
        # Threads share a sum over more keys than this.
        parts = zip(weights.split(_SUMMED_KEYS, -1), value.split(_SUMMED_KEYS, -2), strict=True)
        first, *others = (torch.matmul(some, values) for some, values in parts)
        out = first if not others else torch.stack((first, *others)).float().sum(0).to(value.dtype)
        return out[..., :count, :], lse
    return torch.matmul(weights, value), lse


@cache
def rounds_alike(dtype: torch.dtype, threads: int) -> bool:
    """Whether the CPU's kernel gives a query the same bits whatever it shares a call with: asked, not inferred.

    Args:
        threads: those of the process.
    """
    return all(_rounds_alike(head, dtype) for head in _TRIED_HEADS)


def _rounds_alike(head: int, dtype: torch.dtype) -> bool:
    chance = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 2, 512, head, generator=chance).to(dtype)
    query, key, value = numbers[0].repeat(1, 2, 1), numbers[1], numbers[2]
    mask = torch.zeros(8, 512, dtype=dtype)
    mask[:, 40:] = torch.finfo(dtype).min

    def attended(rows: int, keys: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return attend(query[:, :rows], key[:, :keys], value[:, :keys], mask, 0.2)

    def same(rows: int, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
        return all(torch.equal(a[:, :rows], b[:, :rows]) for a, b in zip(one, other, strict=True))

    most = attended(1024, 512, None)
    return all(same(rows, attended(rows, 512, None), most) for rows in (1, 2, 3, 8, 20, 33, 96, 200, 800)) and same(
        8, attended(8, 64, mask[:, :64]), attended(8, 256, mask[:, :256])
    )


_FUSED_TYPES = (torch.float16, torch.bfloat16)
_CUDA_HEAD_LIMIT = 256
_CUDA_ALIGNMENT = 8
"""Elements: rows of half precision that begin at multiples of 16 bytes, which the kernels ask for."""


def _fused_on_cuda(query: Tensor, value: Tensor) -> bool:
    """Whether CUDA's kernels take these shapes: half precision, one head size for keys and values, Ampere or newer."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in _FUSED_TYPES
        and size == value.shape[-1]
        and size <= _CUDA_HEAD_LIMIT
        and size % _CUDA_ALIGNMENT == 0
        and _compute_capability(query.device) >= (8, 0)
    )


@lru_cache
def _compute_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _attend_on_cuda(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`attend` by FlashAttention where nothing is masked, else by the kernel that takes an additive mask."""
    batched = query.dim() == 4
    q, k, v = (query, key, value) if batched else (query[None], key[None], value[None])
    if mask is None:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)[:2]
    else:
        keys = k.shape[2]
        padded = F.pad(mask, (0, -keys % _CUDA_ALIGNMENT))
        bias = padded.expand(*q.shape[:3], padded.shape[-1])[..., :keys]
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=scale)[:2]
        lse = lse[..., : q.shape[2]]
    return (out, lse) if batched else (out[0], lse[0])
