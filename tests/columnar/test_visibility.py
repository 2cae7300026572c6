"""Masks, against a second derivation: the sentences of the definition, one pair of tokens at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallelmind.columnar import (
    FULL,
    VISIBILITIES,
    PackedRow,
    Reach,
    Visibility,
    additive_mask,
    build_columnar_causal_mask,
    pack_row,
    visible,
)


def sees(query: tuple[int, int], key: tuple[int, int], visibility: str, reach: Reach) -> bool:
    (query_branch, query_time), (key_branch, key_time) = query, key
    if reach.window is not None and query_time - key_time >= reach.window:
        return False
    if reach.chunk is not None and query_time // reach.chunk != key_time // reach.chunk:
        return False
    if query_branch == key_branch:
        return key_time <= query_time
    if visibility == "strict":
        return False
    if key_branch == 0:
        return key_time <= query_time
    return visibility == "columnar" and key_time < query_time


rows = st.builds(
    lambda main, branches: pack_row([1] * main, [[1] * length for length in branches]),
    st.integers(0, 5),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)


@given(
    row=rows,
    visibility=st.sampled_from(VISIBILITIES),
    reach=st.sampled_from([FULL, Reach(window=1), Reach(window=3), Reach(chunk=3)]),
)
def test_visible_says_what_the_definition_says(row: PackedRow, visibility: Visibility, reach: Reach) -> None:
    tokens = list(zip(row.branch_ids.tolist(), row.time_ids.tolist(), strict=True))
    expected = [[sees(query, key, visibility, reach) for key in tokens] for query in tokens]
    seen = visible(row.branch_ids, row.time_ids, row.branch_ids, row.time_ids, visibility, reach)
    assert seen.tolist() == expected


@given(row=rows, visibility=st.sampled_from(VISIBILITIES), padding=st.integers(0, 3))
def test_the_mask_of_a_padded_batch(row: PackedRow, visibility: Visibility, padding: int) -> None:
    size = len(row)
    pos2d = torch.cat((row.pos2d(128), torch.zeros(padding, 2, dtype=torch.long)))[None]
    attention_mask = torch.tensor([[1] * size + [0] * padding])
    mask = build_columnar_causal_mask(pos2d, attention_mask, visibility=visibility)
    assert mask.shape == (1, 1, size + padding, size + padding)
    seen = visible(row.branch_ids, row.time_ids, row.branch_ids, row.time_ids, visibility)
    assert torch.equal(mask[0, 0, :size, :size] == 0, seen)
    assert bool((mask[0, 0, :size, size:] < 0).all()), "nothing sees padding"
    assert bool((mask[0, 0] == 0).any(-1).all()), "every softmax has a key"


def test_masks_are_finite_and_additive_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        mask = additive_mask(torch.tensor([True, False]), dtype)
        assert mask.dtype == dtype
        assert mask[0] == 0
        assert mask[1] == torch.finfo(dtype).min


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="isolated, columnar, strict"):
        build_columnar_causal_mask(torch.zeros(1, 2, 2, dtype=torch.long), visibility="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch, seq, 2"):
        build_columnar_causal_mask(torch.zeros(1, 2, dtype=torch.long))
