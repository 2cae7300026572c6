"""The kernels that attention takes on each device, against the formula in float64."""

from __future__ import annotations

import pytest
import torch

from parallelmind.columnar import additive_mask
from parallelmind.engine.attention import ScoreOptions, attend, attend_grouped
from tests.families import DEVICE


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [1, 64, 77])
@pytest.mark.parametrize("size", [8, 20, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_and_its_logsumexp(dtype: torch.dtype, size: int, keys: int, masked: bool) -> None:
    """Any head size and number of keys, batched and not, with the mask that a padded batch has."""
    torch.manual_seed(keys)
    query, key, value = (torch.randn(3, 4, rows, size, device=DEVICE, dtype=dtype) for rows in (21, keys, keys))
    seen = torch.rand(3, 1, 21, keys, device=DEVICE) < 0.7
    seen[..., 0] = True
    mask = additive_mask(seen, dtype) if masked else None
    scores = query.double() @ key.double().transpose(-1, -2) * 0.2
    if masked:
        scores = scores.masked_fill(~seen, -torch.inf)
    expected, expected_lse = scores.softmax(-1) @ value.double(), scores.logsumexp(-1)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2

    out, lse = attend(query, key, value, mask, 0.2)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=tolerance)

    single, single_lse = attend(query[0], key[0], value[0], None if mask is None else mask[0, 0], 0.2)
    torch.testing.assert_close(single.double(), expected[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(single_lse.double(), expected_lse[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_few_scores_at_a_time_and_a_mask_for_each_head_change_nothing(
    batch: tuple[int, ...], masked: bool, softcap: float | None
) -> None:
    """As where a main is long; values have another size than keys, which no fused kernel takes on a CPU."""
    torch.manual_seed(0)
    heads, group, rows, keys = 2, 3, 21, 17
    query = torch.randn(*batch, heads, group, rows, 8, device=DEVICE)
    key, value = (torch.randn(*batch, heads, keys, size, device=DEVICE) for size in (8, 6))
    seen = torch.rand(*batch, *(1 for _ in batch), rows, keys, device=DEVICE) < 0.7
    seen[..., 0] = True
    mask = additive_mask(seen, query.dtype) if masked else None

    first = query[..., 0, :, :]
    whole = attend(first, key, value, mask, 0.2, softcap)
    for max_scores in (0, 200, 400):
        torch.testing.assert_close(attend(first, key, value, mask, 0.2, softcap, max_scores=max_scores), whole)
    options = ScoreOptions(0.2, softcap, None)
    torch.testing.assert_close(
        attend_grouped(query, key, value, mask, options, max_mask=0), attend_grouped(query, key, value, mask, options)
    )
