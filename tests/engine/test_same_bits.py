"""A branch has the same log-probabilities, to the last bit, alone and in any company (float32, packed for the CPU)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from parallelmind import (
    Branch,
    Engine,
    Request,
    SamplingParams,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
)
from parallelmind.engine.attention import attend
from parallelmind.models.cpu import PackedLinear, optimize_for_cpu
from tests.families import DEVICE, char_tokenizer, tiny_model

PARAMS = SamplingParams(max_new_tokens=16, temperature=0, ignore_eos=True, logprobs=1)
Answer = tuple[list[int], list[float]]


def kernels_keep_bits() -> bool:
    """Whether this processor's kernels give a row the same bits beside few rows and beside many."""
    if DEVICE != "cpu" or not torch._C._has_mkldnn:
        return False
    torch.manual_seed(0)
    rows, weight = torch.randn(64, 64), PackedLinear(nn.Linear(64, 64))
    query, keys = torch.randn(2, 64, 16), torch.randn(2, 2, 512, 16)
    whole = attend(query, keys[0], keys[1], None, 0.2)[0]
    return all(
        torch.equal(weight(rows[:count]), weight(rows)[:count])
        and torch.equal(attend(query[:, :count], keys[0], keys[1], None, 0.2)[0], whole[:, :count])
        for count in (2, 3, 8, 20, 33, 62)
    )


pytestmark = pytest.mark.skipif(
    not kernels_keep_bits(), reason="this processor's kernels round by their number of rows"
)


def text(count: int, start: int) -> list[int]:
    return [3 + (start * 31 + i * (1 + start % 7) + i * i % 11) % 90 for i in range(count)]


def requests() -> list[Request]:
    """Mains that begin alike and others, of no, one and many pages, with branches of many lengths."""
    chance = random.Random(1)
    return [
        Request(
            main=text(length, chance.randrange(3)),
            branches=[text(chance.choice([1, 3, 20, 70]), chance.randrange(20)) for _ in range(count)],
        )
        for length, count in ((0, 3), (5, 9), (40, 2), (100, 5), (130, 1), (300, 7), (600, 4), (100, 2))
    ]


def answers(engine: Engine, asked: Sequence[Request]) -> list[list[Answer]]:
    found = engine.generate(asked, PARAMS)
    return [[(one.token_ids, [each.logprob for each in one.logprobs]) for one in result.branches] for result in found]


def engine_of(model: Any, **settings: Any) -> Engine:
    return Engine(model, char_tokenizer(), branch_stride=16, **settings)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "mistral", "olmo2"])
def test_a_branch_is_the_same_alone_and_in_any_company(family: str, patched: bool) -> None:
    model = tiny_model(family, intermediate_size=64)
    if patched:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    optimize_for_cpu(model)
    asked = requests()
    expected = answers(engine_of(model), asked)
    alone = engine_of(model, prefix_cache_bytes=0)
    for request, wanted in zip(asked, expected, strict=True):
        assert answers(alone, [request]) == [wanted]
        for number, (prompt, one) in enumerate(zip(request.branches, wanted, strict=True), start=1):
            branch = Branch(prompt=prompt, branch_id=number)  # type: ignore[arg-type]
            assert answers(alone, [Request(main=request.main, branches=[branch])]) == [[one]]
    assert answers(engine_of(model), asked[::-1]) == expected[::-1]
    assert answers(engine_of(model, max_batched_tokens=37), asked) == expected, "mains in other chunks"
    warm = engine_of(model)
    assert [answers(warm, asked) for _ in range(2)] == [expected, expected], "keys that are there already"
    page = 64 * 2 * 2 * 2 * 16 * 4  # tokens × layers × (keys, values) × heads × head size × bytes
    pages = 5 if family == "mistral" else 14  # its texts hold what its window sees
    tight = engine_of(model, kv_cache_bytes=pages * page)
    assert answers(tight, asked) == expected
    assert patched or tight.stats.preemptions > 0, "branches without a position of their own go on in the page of main"
