"""Triton kernels of the engine's attention. They run on a GPU, or on a CPU with TRITON_INTERPRET=1.

An item is one program's work per key/value head: some tokens of the forward, and keys that follow one another in a
text. `read_items` attends over the keys of each item, `merge_parts` merges what the items of a token gave.

Shapes: T tokens of the forward, H key/value heads, G query heads per key/value head, D head size of keys, E of values,
N pages of P tokens, I items, S slots (one for each token of each item). Logsumexps are in base 2.
"""

import triton
import triton.language as tl

ITEM_FIELDS = 8


@triton.jit
def write_pages(
    keys,  # [H, T, D]
    values,  # [H, T, E]
    key_pages,  # [H, N, P, D]
    value_pages,  # [H, N, P, E]
    places,  # [T], page × P + index in the page; -1: nowhere
    key_head,
    key_token,
    value_head,
    value_token,
    key_page_head,
    value_page_head,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Store the keys and values of each token. Grid: (T, H)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    place = tl.load(places + token).to(tl.int64)
    if place < 0:
        return
    dim = tl.arange(0, BLOCK_D)
    key = tl.load(keys + head * key_head + token * key_token + dim, mask=dim < DIM, other=0.0)
    tl.store(key_pages + head * key_page_head + place * DIM + dim, key, mask=dim < DIM)
    dim = tl.arange(0, BLOCK_E)
    value = tl.load(values + head * value_head + token * value_token + dim, mask=dim < VALUE_DIM, other=0.0)
    tl.store(value_pages + head * value_page_head + place * VALUE_DIM + dim, value, mask=dim < VALUE_DIM)


@triton.jit
def read_items(
    queries,  # [H·G, T, D]
    key_pages,  # [H, N, P, D]
    value_pages,  # [H, N, P, E]
    parts,  # [S, H, G, E], float32
    logsumexps,  # [S, H, G], float32
    items,  # [I, 8]: index in pages, keys before the first in its page, keys, time of the first, token, tokens, slot,
    #   branch of the keys (-1: they are seen whatever the branch)
    pages,
    times,  # [T]
    branches,  # [T]
    query_head,
    query_token,
    key_page_head,
    value_page_head,
    scale,
    softcap,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of each item's tokens over its keys, and the logsumexp of the scores. Grid: (I, H)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    item = items + tl.program_id(0) * 8
    head = tl.program_id(1)
    num_tokens = tl.load(item + 5)
    if num_tokens == 0:
        return
    first_page = tl.load(item)
    skip = tl.load(item + 1)
    num_keys = tl.load(item + 2)
    first_time = tl.load(item + 3)
    first_token = tl.load(item + 4)
    first_slot = tl.load(item + 6)
    key_branch = tl.load(item + 7)

    row = tl.arange(0, BLOCK_M)
    index = row // GROUP
    is_row = index < num_tokens
    token = first_token + tl.minimum(index, num_tokens - 1)
    time = tl.load(times + token)
    # Of another branch a token sees what is strictly earlier.
    latest = time
    if key_branch >= 0:
        latest = tl.where(tl.load(branches + token) == key_branch, time, time - 1)
    earliest = time * 0
    if WINDOW > 0:
        earliest = time - WINDOW + 1
    if CHUNK > 0:
        earliest = time // CHUNK * CHUNK

    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_E)
    query_row = (head * GROUP + row % GROUP).to(tl.int64) * query_head + token.to(tl.int64) * query_token
    query = tl.load(queries + query_row[:, None] + dim[None, :], mask=is_row[:, None] & (dim < DIM)[None, :], other=0.0)
    key_pages += head.to(tl.int64) * key_page_head
    value_pages += head.to(tl.int64) * value_page_head

    most = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for start in range(0, num_keys, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        is_key = key < num_keys
        place = skip + key
        page = tl.load(pages + first_page + place // PAGE, mask=is_key, other=0).to(tl.int64)
        line = page * PAGE + place % PAGE
        k = tl.load(
            key_pages + line[None, :] * DIM + dim[:, None], mask=is_key[None, :] & (dim < DIM)[:, None], other=0.0
        )
        score = tl.dot(query, k, input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            score = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)
        score *= LOG2_E
        key_time = first_time + key
        seen = is_key[None, :] & (key_time[None, :] <= latest[:, None])
        if (WINDOW > 0) or (CHUNK > 0):
            seen = seen & (key_time[None, :] >= earliest[:, None])
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        level = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp2(score - level[:, None])
        shrink = tl.exp2(most - level)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(
            value_pages + line[:, None] * VALUE_DIM + value_dim[None, :],
            mask=is_key[:, None] & (value_dim < VALUE_DIM)[None, :],
            other=0.0,
        )
        out = out * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
        most = higher

    is_seeing = total > 0
    slot = (first_slot + index).to(tl.int64)
    part = (slot * HEADS + head) * GROUP + row % GROUP
    tl.store(logsumexps + part, tl.where(is_seeing, most + tl.log2(total), -float("inf")), mask=is_row)
    out = out / tl.where(is_seeing, total, 1.0)[:, None]
    tl.store(
        parts + part[:, None] * VALUE_DIM + value_dim[None, :],
        out,
        mask=is_row[:, None] & (value_dim < VALUE_DIM)[None, :],
    )


@triton.jit
def merge_parts(
    parts,  # [S, H, G, E], float32
    logsumexps,  # [S, H, G], float32
    ends,  # [T]: where the slots of a token end in `slots`; they begin where those of the token before end
    slots,  # [S]
    sinks,  # [H, G]: scores of nothing
    out,  # [T, H, G, E]
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The attention of each token, from that over the keys of each of its items. Grid: (T, H)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    token = tl.program_id(0)
    head = tl.program_id(1)
    group = tl.arange(0, BLOCK_G)
    dim = tl.arange(0, BLOCK_E)
    is_there = (group < GROUP)[:, None] & (dim < VALUE_DIM)[None, :]
    most = tl.full([BLOCK_G], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    merged = tl.zeros([BLOCK_G, BLOCK_E], tl.float32)
    begin = tl.load(ends + token - 1, mask=token > 0, other=0)
    end = tl.load(ends + token)
    for index in range(begin, end):
        row = (tl.load(slots + index).to(tl.int64) * HEADS + head) * GROUP + group
        logsumexp = tl.load(logsumexps + row, mask=group < GROUP, other=-float("inf"))
        part = tl.load(parts + row[:, None] * VALUE_DIM + dim[None, :], mask=is_there, other=0.0)
        higher = tl.maximum(most, logsumexp)
        level = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp2(logsumexp - level)
        shrink = tl.exp2(most - level)
        total = total * shrink + weight
        merged = merged * shrink[:, None] + part * weight[:, None]
        most = higher
    if HAS_SINKS:
        sink = tl.load(sinks + head * GROUP + group, mask=group < GROUP, other=-float("inf")) * LOG2_E
        higher = tl.maximum(most, sink)
        level = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(most - level)
        total = total * shrink + tl.exp2(sink - level)
        merged = merged * shrink[:, None]
    merged = merged / tl.where(total > 0, total, 1.0)[:, None]
    row = (token.to(tl.int64) * HEADS + head) * GROUP + group
    tl.store(out + row[:, None] * VALUE_DIM + dim[None, :], merged, mask=is_there)
