"""Attention of the engine: each page of keys is read once for all tokens that see it.

What a token sees lies in several disjoint sets of keys: the pages of the texts that it continues, and its own
(columnar: all branches of its row). Each set is attended to apart, for all tokens that see it at once, and the parts
are merged by their logsumexp (Ye et al., 2024, FlashInfer, "cascade inference"). The query heads of one key/value head
are folded into the query length, so that keys are neither copied nor read twice. The number of calls does not grow with
the number of requests, see `step`.

Shapes: H key/value heads, G query heads per key/value head, T tokens of the forward, n pages, R tokens that read a
page, K keys, D head size, E value head size.
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

from parallelmind.columnar import FULL
from parallelmind.engine.readings import PageBatch
from parallelmind.engine.step import Step
from parallelmind.models.architecture import attention_switched
from parallelmind.models.layer_reach import reach_of

ATTENTION_NAME = "parallelmind_engine"
_MAX_SCORES = 2**25
_MAX_MASK = 2**22
_NOTHING = -1e30
"""Logsumexp of no keys at all; not -inf, whose differences are no numbers."""

_step: ContextVar[Step] = ContextVar("parallelmind_step")


@contextmanager
def engine_attention(configs: Sequence[Any], step: Step) -> Iterator[None]:
    """Let the forwards of a model with these configs use the engine's attention and cache inside the block.

    Outside it the model is as it was, so that `generate`, training and other engines are not disturbed.
    """
    token = _step.set(step)
    try:
        with attention_switched(configs, ATTENTION_NAME):
            yield
    finally:
        _step.reset(token)


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
    step = _step.get()
    reach = reach_of(module)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    heads = key.shape[1]
    q_HGTD = query[0].unflatten(0, (heads, -1))
    k_HTD, v_HTE = key[0], value[0]
    step.store.write(layer, step.places(key.device), k_HTD, v_HTE)
    sinks_HG = None if s_aux is None else s_aux.view(heads, -1).float()
    options = ScoreOptions(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap, sinks_HG)
    keys_HNPD, values_HNPE = step.store.layer(layer)

    parts = _Parts(query.shape[2])
    for batch in step.page_batches(reach, q_HGTD):
        parts.add(batch.readers, *_attend_pages(batch, q_HGTD, keys_HNPD, values_HNPE, options))
    for fresh in step.fresh:
        place = slice(fresh.start, fresh.end)
        mask = step.fresh_mask(fresh, reach, q_HGTD)
        if mask is None and not options.is_fused(q_HGTD, v_HTE):
            mask = step.causal_mask(fresh, FULL, q_HGTD)
        parts.add(place, *_attend_fresh(q_HGTD[:, :, place], k_HTD[:, place], v_HTE[:, place], mask, options))
    for one in step.stretches(reach):
        k_HKD, v_HKE = (
            array.flatten(1, 2)[:, one.page * step.store.page_tokens :][:, : one.count]
            for array in (keys_HNPD, values_HNPE)
        )
        mask = step.stretch_mask(one, reach, q_HGTD)
        out, lse = attend_grouped(q_HGTD[:, :, one.start : one.end], k_HKD, v_HKE, mask, options)
        parts.add(slice(one.start, one.end), out.permute(2, 0, 1, 3), lse.permute(2, 0, 1))
    out_THGE = _with_sinks(parts.out, parts.lse, options).to(query.dtype)
    return out_THGE.flatten(1, 2)[None], None


AttentionInterface.register(ATTENTION_NAME, engine_attention_forward)


class ScoreOptions:
    """What a layer asks of its scores: scale, soft cap, and sinks (an extra score per head that takes no value)."""

    __slots__ = ("scale", "sinks_HG", "softcap")

    def __init__(self, scale: float, softcap: float | None, sinks_HG: Tensor | None):
        self.scale = scale
        self.softcap = softcap
        self.sinks_HG = sinks_HG

    def is_fused(self, query: Tensor, value: Tensor) -> bool:
        """Whether one kernel computes scores and output."""
        if self.softcap is not None:
            return False
        if query.device.type == "cpu":
            return query.shape[-1] == value.shape[-1]
        return _fused_on_cuda(query, value)


class _Parts:
    """The attention of all tokens over the sets of keys added so far: `out` [T, H, G, E] and `lse` [T, H, G]."""

    out: Tensor
    lse: Tensor

    def __init__(self, count: int):
        self._count = count
        self._is_empty = True

    def add(self, readers: Tensor | slice | None, out: Tensor, lse: Tensor) -> None:
        """Merge in the attention of some tokens (None: of all) over another set of keys."""
        if isinstance(readers, slice) and readers == slice(0, self._count):
            readers = None
        if self._is_empty:
            self._is_empty = False
            if readers is None:
                self.out, self.lse = out, lse
                return
            self.out = out.new_zeros(self._count, *out.shape[1:], dtype=torch.float32)
            self.lse = lse.new_full((self._count, *lse.shape[1:]), _NOTHING)
            self.out[readers], self.lse[readers] = out.float(), lse
            return
        if readers is None:
            self.out, self.lse = merge(self.out, self.lse, out, lse)
            return
        if self.out.dtype != torch.float32:
            self.out = self.out.float()
        self.out[readers], self.lse[readers] = merge(self.out[readers], self.lse[readers], out, lse)


def _attend_pages(
    batch: PageBatch, q_HGTD: Tensor, keys_HNPD: Tensor, values_HNPE: Tensor, options: ScoreOptions
) -> tuple[Tensor, Tensor]:
    """The tokens that read pages over all of these pages: [t, H, G, E] and [t, H, G]."""
    k_nHKD, v_nHKE = (
        (
            array[:, batch.first : batch.first + batch.num_pages, : batch.num_keys]
            if batch.pages is None
            else array[:, batch.pages, : batch.num_keys]
        ).transpose(0, 1)
        for array in (keys_HNPD, values_HNPE)
    )
    q_nHGRD = q_HGTD[:, :, batch.tokens].permute(2, 0, 1, 3, 4)
    out, lse = attend_grouped(q_nHGRD, k_nHKD, v_nHKE, batch.mask, options)
    out_sHGE = out.permute(0, 3, 1, 2, 4).flatten(0, 1)
    lse_sHG = lse.permute(0, 3, 1, 2).flatten(0, 1)
    if len(batch.sources) == 1:
        [source] = batch.sources
        return out_sHGE[source], lse_sHG[source]
    out_sHGE = torch.cat((out_sHGE, out_sHGE.new_zeros(1, *out_sHGE.shape[1:])))
    lse_sHG = torch.cat((lse_sHG, lse_sHG.new_full((1, *lse_sHG.shape[1:]), _NOTHING)))
    lse_JtHG = lse_sHG[batch.sources]
    most = lse_JtHG.amax(0)
    weights = (lse_JtHG - most).exp_()
    total = weights.sum(0)
    merged = (out_sHGE[batch.sources].float() * weights[..., None]).sum(0) / total[..., None]
    return merged, most + total.log_()


def _attend_fresh(
    q_HGTD: Tensor, k_HTD: Tensor, v_HTE: Tensor, mask: Tensor | None, options: ScoreOptions
) -> tuple[Tensor, Tensor]:
    """Tokens that follow one another over themselves, [T, H, G, E] and [T, H, G]; None: in causal order."""
    if mask is not None:
        out, lse = attend_grouped(q_HGTD, k_HTD, v_HTE, mask, options)
        return out.permute(2, 0, 1, 3), lse.permute(2, 0, 1)
    group = q_HGTD.shape[1]
    query, key, value = q_HGTD.transpose(0, 1), k_HTD.expand(group, -1, -1, -1), v_HTE.expand(group, -1, -1, -1)
    if query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=options.scale
        )
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, True, False, scale=options.scale
        )[:2]
    return out.permute(2, 1, 0, 3), lse.permute(2, 1, 0)


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the attention over each: [..., E] and [...]."""
    share = torch.sigmoid(other_lse - lse)[..., None]
    return torch.lerp(out.float(), other_out.float(), share), torch.logaddexp(lse, other_lse)


def _with_sinks(out_THGE: Tensor, lse_THG: Tensor, options: ScoreOptions) -> Tensor:
    """A sink takes its share of the softmax and gives nothing."""
    if options.sinks_HG is None:
        return out_THGE
    return out_THGE * torch.sigmoid(lse_THG - options.sinks_HG)[..., None].to(out_THGE.dtype)


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
