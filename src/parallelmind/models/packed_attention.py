"""Attention over packed rows, for training: each layer builds its own mask from the branch ids and times.

The ids travel as `attention_mask`, int32 [B, 1, S, 3] of (branch id, time, row of the sequence). transformers hands a
4-D mask through to the layers untouched, so the ids reach every layer also under DDP and when a layer is computed again
for its gradient, and each layer applies its own reach (`layer_reach`), which a ready mask given to the whole model
would override.

Shapes: B sequences, S tokens, H key/value heads, G query heads per key/value head, D head size, E value head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from parallelmind.columnar import VISIBILITIES, Reach, Visibility, additive_mask, visible
from parallelmind.models.architecture import attention_switched, model_configs
from parallelmind.models.layer_reach import reach_of

_masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By ids: the masks built from them, so that the layers of a forward and of its backward share them."""


def attention_name(visibility: Visibility) -> str:
    """Under which name the attention is registered in transformers."""
    return f"parallelmind_packed_{visibility}"


@contextmanager
def packed_attention(model: nn.Module, visibility: Visibility) -> Iterator[None]:
    """Let the forwards of a model take packed ids as `attention_mask` inside the block.

    With an ordinary mask, or none, the model computes what it computes outside.
    """
    with attention_switched(model_configs(model), attention_name(visibility)):
        yield


def is_packed_ids(mask: Tensor | None) -> bool:
    return mask is not None and mask.dtype == torch.int32 and mask.dim() == 4 and mask.shape[-1] == 3


def dense_mask(ids: Tensor, visibility: Visibility, reach: Reach, dtype: torch.dtype) -> Tensor:
    """The additive mask [B, 1, S, S] of packed ids, built once for all layers of the same reach."""

    def build() -> Tensor:
        return additive_mask(_seen(ids, visibility, reach), dtype)

    mask: Tensor = _of_ids(ids, (visibility, reach, dtype), build)
    return mask


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    visibility: Visibility,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query [B, H·G, S, D], key [B, H, S, D], value [B, H, S, E].

    Returns:
        [B, S, H·G, E], and None for the weights.
    """
    is_causal = kwargs.get("is_causal")
    if not is_packed_ids(attention_mask):
        causal = attention_mask is None and query.shape[2] > 1 and (True if is_causal is None else is_causal)
        mask = attention_mask
        if causal and (softcap is not None or s_aux is not None):
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return _attend(query, key, value, mask, causal, dropout, scaling, softcap, s_aux), None
    assert attention_mask is not None
    if query.is_cuda and dropout == 0 and query.shape[-1] == value.shape[-1] and _has_triton():
        from transformers.integrations.flex_attention import flex_attention_forward

        blocks = _block_mask(attention_mask, visibility, reach_of(module))
        query, key, value = _of_one_dtype(query, key, value)
        out, _ = flex_attention_forward(
            module, query, key, value, blocks, scaling=scaling, softcap=softcap, s_aux=s_aux
        )
        return out, None
    mask = dense_mask(attention_mask, visibility, reach_of(module), query.dtype)
    return _attend(query, key, value, mask, False, dropout, scaling, softcap, s_aux), None


def keep_out_of_graphs() -> None:
    """Let layers that are compiled call the packed attention as it is: masks are built once for all of them."""
    for visibility in VISIBILITIES:
        attention = partial(packed_attention_forward, visibility=visibility)
        AttentionInterface.register(attention_name(visibility), torch.compiler.disable(attention))


for _visibility in VISIBILITIES:
    AttentionInterface.register(attention_name(_visibility), partial(packed_attention_forward, visibility=_visibility))
    AttentionMaskInterface.register(attention_name(_visibility), sdpa_mask)


def _of_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As autocast does for other attention: FlexAttention refuses the float32 queries that rotating made of others."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


@cache
def _has_triton() -> bool:
    """FlexAttention is compiled to Triton kernels, which do not exist on every platform."""
    return find_spec("triton") is not None


def _of_ids(ids: Tensor, kind: tuple[Any, ...], build: Callable[[], Any]) -> Any:
    if ids not in _masks:
        _masks[ids] = {}
    masks = _masks[ids]
    if kind not in masks:
        masks[kind] = build()
    return masks[kind]


def _seen(ids: Tensor, visibility: Visibility, reach: Reach) -> Tensor:
    """Bool [B, 1, S, S]."""
    branch, time, row = ids.unbind(-1)
    seen = visible(branch, time, branch, time, visibility, reach, query_row=row, key_row=row)
    # A row of the softmax without any key would be NaN and spread through the batch.
    return seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)


def _block_mask(ids: Tensor, visibility: Visibility, reach: Reach) -> Any:
    """FlexAttention's mask of the blocks that have anything to compute."""
    from torch.nn.attention.flex_attention import create_block_mask

    def build() -> Any:
        branch, time, row = (one.contiguous() for one in ids[:, 0].unbind(-1))

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            del h
            (branch_q, time_q, row_q), (branch_k, time_k, row_k) = (
                [one[b, place][None] for one in (branch, time, row)] for place in (q, k)
            )
            seen = visible(branch_q, time_q, branch_k, time_k, visibility, reach, query_row=row_q, key_row=row_k)
            return seen[0, 0] | (q == k)

        rows, length = branch.shape
        return create_block_mask(mask_mod, rows, None, length, length, device=ids.device)

    return _of_ids(ids, ("blocks", visibility, reach), build)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """[B, S, H·G, E]; `mask` is additive or boolean, [B or 1, 1, S, S]."""
    group = query.shape[1] // key.shape[1]
    if softcap is None and s_aux is None:
        out = F.scaled_dot_product_attention(
            query, key, value, mask, dropout, mask is None and causal, scale=scaling, enable_gqa=group > 1
        )
        return out.transpose(1, 2)
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        # Not -inf: a padding token may see nothing, and its NaN would spread through the values.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if s_aux is not None:  # a sink: one more score of each head, which takes no value
        sinks = s_aux.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    weights = F.dropout(weights.to(value.dtype), dropout)
    return torch.matmul(weights, value).transpose(1, 2)
