"""Attention of the engine: each main's keys are read once for all of its branches.

A branch token attends to two disjoint sets of keys, its main's and its own (columnar: all of its row's branches').
Each set is attended to apart and the parts are merged by their logsumexp (Ye et al., 2024, FlashInfer, "cascade
inference"). For the shared part, the branches and the query heads of one key/value head are folded into the query
length, so that main's keys are neither copied nor read twice.

Shapes: H key/value heads, G query heads per key/value head, T tokens of the forward, n branches, Q query tokens,
K keys, D head size, E value head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from parallelmind.engine.forward_context import ForwardContext
from parallelmind.models.architecture import attention_switched

ATTENTION_NAME = "parallelmind_engine"
_MAX_SCORES = 2**25
_MAX_MASK = 2**22

_context: ContextVar[ForwardContext] = ContextVar("parallelmind_forward_context")


@contextmanager
def engine_attention(configs: Sequence[Any], context: ForwardContext) -> Iterator[None]:
    """Let the forwards of a model with these configs use the engine's attention and cache inside the block.

    Outside it the model is as it was, so that `generate`, training and other engines are not disturbed.
    """
    token = _context.set(context)
    try:
        with attention_switched(configs, ATTENTION_NAME):
            yield
    finally:
        _context.reset(token)


def engine_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query [1, H·G, T, D], key [1, H, T, D], value [1, H, T, E].

    Returns:
        [1, T, H·G, E], and None for the weights.
    """
    context = _context.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    heads = key.shape[1]
    q_HGTD = query[0].unflatten(0, (heads, -1))
    k_HTD, v_HTE = key[0], value[0]
    out_THGE = query.new_empty(query.shape[2], heads, q_HGTD.shape[1], value.shape[-1])
    sinks_HG = None if s_aux is None else s_aux.view(heads, -1).float()
    options = ScoreOptions(scale, softcap, sinks_HG)

    for span, (start, end) in zip(context.main_spans, context.main_ranges, strict=True):
        span.main.write(layer, span.past, k_HTD[:, start:end], v_HTE[:, start:end])
    first = context.first_branch_token
    if first < context.num_tokens:
        slots, places = context.write_slots(key.device), context.write_places(key.device)
        context.slots.write(layer, slots, places, k_HTD[:, first:], v_HTE[:, first:])

    for index, (start, end) in enumerate(context.main_ranges):
        _attend_main(context, index, layer, q_HGTD[:, :, start:end], sliding_window, options, out_THGE[start:end])
    if first < context.num_tokens:
        out_HGTE, lse_HGT = _new_part(q_HGTD[:, :, first:], v_HTE)
        _attend_own(context, layer, q_HGTD, out_HGTE, lse_HGT, sliding_window, options)
        _attend_columns(context, layer, q_HGTD, out_HGTE, lse_HGT, sliding_window, options)
        _merge_shared(context, layer, q_HGTD, out_HGTE, lse_HGT, sliding_window, options)
        out_THGE[first:] = _with_sinks(out_HGTE, lse_HGT, options).permute(2, 0, 1, 3)
    return out_THGE.flatten(1, 2)[None], None


AttentionInterface.register(ATTENTION_NAME, engine_attention_forward)


class ScoreOptions:
    """What a layer asks of its scores: scale, soft cap, and sinks (an extra score per head that takes no value)."""

    __slots__ = ("scale", "sinks_HG", "softcap")

    def __init__(self, scale: float, softcap: float | None, sinks_HG: Tensor | None):
        self.scale = scale
        self.softcap = softcap
        self.sinks_HG = sinks_HG


def _attend_main(
    context: ForwardContext,
    index: int,
    layer: int,
    q_HGTD: Tensor,
    window: int | None,
    options: ScoreOptions,
    out_THGE: Tensor,
) -> None:
    """A chunk of a main over itself, causally, and over what of the main is cached already."""
    span = context.main_spans[index]
    heads, group, count, _ = q_HGTD.shape
    past, end = span.past, span.past + count
    keys, values = span.main.keys[layer], span.main.values[layer]
    mask = context.chunk_mask(index, window, q_HGTD)
    if past == 0 and mask is None and options.softcap is None and options.sinks_HG is None:
        whole = F.scaled_dot_product_attention(
            q_HGTD.flatten(0, 1)[None],
            keys[None, :, :end],
            values[None, :, :end],
            is_causal=True,
            scale=options.scale,
            enable_gqa=group > 1,
        )[0]
        out_THGE.copy_(whole.unflatten(0, (heads, group)).permute(2, 0, 1, 3))
        return
    if mask is None:
        mask = context.causal_mask(index, q_HGTD)
    out, lse = attend_grouped(q_HGTD, keys[:, past:end], values[:, past:end], mask, options)
    if past:
        seen = context.past_mask(index, window, q_HGTD)
        past_out, past_lse = attend_grouped(q_HGTD, keys[:, :past], values[:, :past], seen, options)
        out, lse = merge(out, lse, past_out, past_lse)
    out_THGE.copy_(_with_sinks(out, lse, options).permute(2, 0, 1, 3))


def _attend_own(
    context: ForwardContext,
    layer: int,
    q_HGTD: Tensor,
    out_HGTE: Tensor,
    lse_HGT: Tensor,
    window: int | None,
    options: ScoreOptions,
) -> None:
    """Each branch that sees no other over its own tokens, into the places of its tokens."""
    first = context.first_branch_token
    keys, values = context.slots.keys[layer], context.slots.values[layer]
    for index, batch in enumerate(context.own_batches):
        tokens_nQ = context.own_tokens(index, q_HGTD.device)
        q_nHGQD = q_HGTD[:, :, tokens_nQ].permute(2, 0, 1, 3, 4)
        if batch.covers_all_slots_in_order:
            k_nHKD, v_nHKE = keys[: len(batch.spans)], values[: len(batch.spans)]
        else:
            slots = context.cached(("slots", index), keys.device, lambda b=batch: torch.tensor(b.slots))  # type: ignore[misc]
            k_nHKD, v_nHKE = keys[slots], values[slots]
        k_nHKD, v_nHKE = k_nHKD[:, :, : batch.num_keys], v_nHKE[:, :, : batch.num_keys]
        mask = context.own_mask(index, window, q_HGTD)
        out, lse = attend_grouped(q_nHGQD, k_nHKD, v_nHKE, mask, options)
        # Padding repeats a branch's last token, so writing it twice writes the same value.
        targets = tokens_nQ - first
        out_HGTE[:, :, targets] = out.permute(1, 2, 0, 3, 4)
        lse_HGT[:, :, targets] = lse.permute(1, 2, 0, 3)


def _attend_columns(
    context: ForwardContext,
    layer: int,
    q_HGTD: Tensor,
    out_HGTE: Tensor,
    lse_HGT: Tensor,
    window: int | None,
    options: ScoreOptions,
) -> None:
    """Each branch of the columnar groups over all branches of its row, into the places of its tokens."""
    first = context.first_branch_token
    keys, values = context.slots.keys[layer], context.slots.values[layer]
    for index, (start, end) in enumerate(context.group_ranges):
        if not context.groups[index].sees_branches:
            continue
        slots, longest = context.column_slots(index, keys.device), context.column_keys(index)
        k_HKD = keys[slots, :, :longest].transpose(0, 1).flatten(1, 2)
        v_HKE = values[slots, :, :longest].transpose(0, 1).flatten(1, 2)
        mask_TK = context.column_mask(index, window, q_HGTD)
        out, lse = attend_grouped(q_HGTD[:, :, start:end], k_HKD, v_HKE, mask_TK, options)
        out_HGTE[:, :, start - first : end - first] = out
        lse_HGT[:, :, start - first : end - first] = lse


def _new_part(q_HGTD: Tensor, v_HTE: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the attention of some tokens over a set of keys, and its logsumexp."""
    return q_HGTD.new_empty(*q_HGTD.shape[:3], v_HTE.shape[-1]), q_HGTD.new_empty(q_HGTD.shape[:3], dtype=torch.float32)


def _merge_shared(
    context: ForwardContext,
    layer: int,
    q_HGTD: Tensor,
    out_HGTE: Tensor,
    lse_HGT: Tensor,
    window: int | None,
    options: ScoreOptions,
) -> None:
    """Attend to each group's main and merge that into the branch tokens' own part, in place."""
    first = context.first_branch_token
    for index, (start, end) in enumerate(context.group_ranges):
        main = context.groups[index].main
        if main is None:
            continue
        mask = context.shared_mask(index, window, q_HGTD)
        keys, values = main.keys[layer], main.values[layer]
        shared_out, shared_lse = attend_grouped(q_HGTD[:, :, start:end], keys, values, mask, options)
        place = slice(start - first, end - first)
        out, lse = merge(out_HGTE[:, :, place], lse_HGT[:, :, place], shared_out, shared_lse)
        out_HGTE[:, :, place], lse_HGT[:, :, place] = out, lse


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the attention over each: [..., E] and [...]."""
    share = torch.sigmoid(other_lse - lse)[..., None]
    return torch.lerp(out.float(), other_out.float(), share), torch.logaddexp(lse, other_lse)


def _with_sinks(out_HGTE: Tensor, lse_HGT: Tensor, options: ScoreOptions) -> Tensor:
    """A sink takes its share of the softmax and gives nothing."""
    if options.sinks_HG is None:
        return out_HGTE
    return out_HGTE * torch.sigmoid(lse_HGT - options.sinks_HG[:, :, None])[..., None].to(out_HGTE.dtype)


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
        if mask is not None:
            mask = mask.expand(q.shape[0], 1, q.shape[2], k.shape[2])
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=scale
        )
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
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).to(value.dtype)
    return torch.matmul(weights, value), lse


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
