"""Requests that come, are cancelled and share mains at random: the answers stay right and the memory comes back."""

from __future__ import annotations

import random

import pytest

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.columnar import (
    VISIBILITIES,
    Visibility,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
)
from tests.cases import few
from tests.families import char_tokenizer, tiny_model

MAINS = ["shared", "shared-and-longer", "another-main-text", "", "m" * 37]


def random_request(rng: random.Random) -> Request:
    main = rng.choice(MAINS)
    prompts = [
        "".join(rng.choices("abcdef", k=rng.randrange(0 if main else 1, 12))) for _ in range(rng.randrange(1, 5))
    ]
    branches = [
        Branch(
            prompt=prompt,
            sampling=SamplingParams(
                max_new_tokens=rng.randrange(1, 9), temperature=rng.choice([0.0, 0.9]), seed=rng.randrange(99)
            ),
        )
        for prompt in prompts
    ]
    return Request(main=main, branches=branches)


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("seed", few(range(4)))
def test_random_use(visibility: Visibility, seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model("qwen2")
    patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    engine = Engine(
        model,
        char_tokenizer(),
        visibility=visibility,
        branch_stride=16,
        max_running_branches=rng.choice([3, 6, None]),
        max_running_requests=rng.choice([2, None]),
        max_batched_tokens=rng.choice([6, 40, 2048]),
        kv_cache_bytes=rng.choice([200 * 512, None]),
        prefix_cache_bytes=rng.choice([0, 40 * 512, None]),
        page_tokens=rng.choice([1, 3, 64]),
    )
    requests: dict[int, Request] = {}
    answers: dict[tuple[int, int], list[int]] = {}
    cancelled: set[int] = set()
    while len(requests) < 25 or engine.has_unfinished():
        if len(requests) < 25 and rng.random() < 0.5:
            request = random_request(rng)
            requests[engine.add_request(request)] = request
        if requests and rng.random() < 0.1:
            request_id = rng.choice(list(requests))
            cancelled.add(request_id)
            engine.cancel(request_id, rng.choice([None, 0]))
        for event in engine.step():
            if event.result is not None:
                key = (event.request_index, event.branch_index)
                assert key not in answers
                answers[key] = event.result.token_ids
    assert sorted(answers) == [(i, k) for i, request in requests.items() for k in range(len(request.branches))]
    assert engine._tree.num_used == 0
    engine.reset_prefix_cache()
    assert engine.kv_cache_bytes == 0
    alone = Engine(model, char_tokenizer(), visibility=visibility, branch_stride=16)
    for request_id, request in requests.items():
        if request_id not in cancelled:
            expected = [branch.token_ids for branch in alone.generate([request])[0].branches]
            assert [answers[request_id, k] for k in range(len(request.branches))] == expected
