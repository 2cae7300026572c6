"""A tree of branches and forks equals the same texts sent whole, and joined texts fresh ones; in little memory too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from parallelmind import Branch, BranchResult, Engine, Request, RequestResult, SamplingParams
from parallelmind.columnar import pack_row
from tests.cases import few
from tests.engine.test_equalities import full_forward
from tests.engine.test_equalities import model_of as model_of_family
from tests.engine.test_join import assert_same, text
from tests.engine.test_rope_lengths import longrope
from tests.families import CHUNKED, CHUNKED_FAMILY, DEVICE, char_tokenizer, tiny_model

STRIDE = 16
PARAMS = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True, logprobs=0)
CASES = [
    ("qwen2", "split"),
    ("gpt_oss", "additive"),
    ("qwen2", None),
    ("gemma2", None),
    ("deepseek_v3", "split"),
    ("longrope", None),
    (CHUNKED_FAMILY, None),
]
MORE_CASES = [("gemma2", "split"), ("gpt_oss", None), ("deepseek_v3", None), ("longrope", "split"), ("mistral", None)]
ROOM = {("longrope", "split"): 54}
"""Tokens of key/value cache with which branches are put back, where 66 are enough for all."""
ALL_CASES = few([*CASES, *MORE_CASES], len(CASES))


def model_of(family: str, patch: str | None) -> Any:
    if family == CHUNKED_FAMILY:
        return tiny_model(family, **CHUNKED)
    return longrope(patch is not None) if family == "longrope" else model_of_family(family, patch)


def engine_of(model: Any, **settings: Any) -> Engine:
    return Engine(model, char_tokenizer(), **({"branch_stride": STRIDE} | settings))


def answers_of(engine: Engine, forked: dict[tuple[int, int], Sequence[Sequence[int]]], request: Request) -> Any:
    """All results of a request, with forks: (tokens that a branch has, its index) → the prompts of its forks."""
    request_id = engine.add_request(request, PARAMS)
    left, written = dict(forked), dict[int, int]()
    found: dict[int, BranchResult] = {}
    while True:
        for count, index in [at for at in left if written.get(at[1], 0) == at[0]]:
            prompts = left.pop((count, index))
            engine.fork(request_id, index, prompts=prompts, sampling=[PARAMS] * len(prompts))
        if not engine.has_unfinished():
            assert not left
            return RequestResult(branches=[found[index] for index in sorted(found)])
        for event in engine.step():
            written[event.branch_index] = written.get(event.branch_index, 0) + len(event.token_ids)
            if event.result is not None:
                found[event.branch_index] = event.result


def root_of(result: RequestResult, index: int) -> int:
    while (parent := result.branches[index].parent) is not None:
        index = parent
    return index


def assert_equal_alone(model: Any, request: Request, result: RequestResult) -> None:
    """Each branch and fork is the branch of a request of its own, in an engine of its own."""
    for index, found in enumerate(result.branches):
        root = root_of(result, index)
        prompt = [*request.branches[root], *found.prefix_token_ids]
        alone = replace(request, branches=[Branch(prompt=prompt, branch_id=root + 1)])
        expected = engine_of(model).generate([alone], PARAMS)[0].branches[0]
        assert_same([RequestResult(branches=[found])], [RequestResult(branches=[expected])])


@pytest.mark.parametrize(("family", "patch"), ALL_CASES)
def test_a_text_in_pieces_is_the_text_sent_whole(family: str, patch: str | None) -> None:
    """Main, prompt, fork and fork of the fork at random places, where a place is nothing but a time."""
    rng = random.Random(family)
    model = model_of(family, patch)
    whole = text(38, 5)
    [expected] = engine_of(model, branch_stride=0).generate([Request(main=whole)], PARAMS)
    for page_tokens, max_batched_tokens in ((1, 2048), (3, 5), (64, 2048)):
        engine = engine_of(model, branch_stride=0, page_tokens=page_tokens, max_batched_tokens=max_batched_tokens)
        one, two, three = sorted(rng.sample(range(1, len(whole)), 3))
        forked = {(0, 0): [whole[two:three], text(3, 9)], (0, 1): [whole[three:]]}
        result = answers_of(engine, forked, Request(main=whole[:one], branches=[whole[one:two]]))
        assert_same([RequestResult(branches=result.branches[3:])], [expected])
        assert engine._tree.num_used == 0


@torch.no_grad()
@pytest.mark.parametrize(("family", "patch"), [case for case in CASES if case[0] not in ("longrope", CHUNKED_FAMILY)])
def test_cached_decoding_with_forks_is_one_full_forward(family: str, patch: str | None) -> None:
    model = model_of(family, patch)
    request = Request(main=text(13, 3), branches=[text(3, 5), text(4, 6)])
    forked = {(2, 0): [text(2, 30), [40]], (3, 1): [text(3, 31)], (1, 2): [text(2, 32)]}
    result = answers_of(engine_of(model, page_tokens=3), forked, request)
    assert len(result.branches) == 6
    roots = [root_of(result, index) for index in range(6)]
    starts = [[*request.branches[root], *b.prefix_token_ids] for root, b in zip(roots, result.branches, strict=True)]
    row = pack_row(list(request.main), [[*s, *b.token_ids] for s, b in zip(starts, result.branches, strict=True)])
    numbers = torch.tensor([0, *(root + 1 for root in roots)])[row.branch_ids]
    rotated = torch.stack((numbers * STRIDE, row.time_ids), -1).to(DEVICE)
    full = full_forward(model, row.input_ids.to(DEVICE), row.pos2d(STRIDE).to(DEVICE), "isolated", rotated)
    likelihoods = full.float().log_softmax(-1).cpu()
    for index, (start, branch) in enumerate(zip(starts, result.branches, strict=True), start=1):
        places = (row.branch_ids == index).nonzero()[:, 0][row.time_ids[row.branch_ids == index].argsort()]
        rows = likelihoods[places[len(start) - 1 : -1]]
        assert rows.argmax(-1).tolist() == branch.token_ids
        expected = rows.gather(1, torch.tensor(branch.token_ids)[:, None])[:, 0].tolist()
        assert [one.logprob for one in branch.logprobs] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("family", "patch"), few([*CASES, *MORE_CASES], 2))
def test_what_is_put_back_and_then_joined_is_as_if_undisturbed(family: str, patch: str | None) -> None:
    """Branches and forks that are put back equal those alone, and their join a fresh request with the joined text."""
    model = model_of(family, patch)
    request = Request(main=text(20, 3), branches=[text(3, 5), text(4, 6), text(9, 9)])
    forked = {(2, 0): [text(2, 30), [40]], (3, 1): [text(3, 31)] * 3, (1, 3): [text(2, 32)]}
    size = engine_of(model)._runner.bytes_per_token
    engine = engine_of(model, page_tokens=3, kv_cache_bytes=ROOM.get((family, patch), 66) * size, prefix_cache_bytes=0)
    result = answers_of(engine, forked, request)
    assert engine.stats.preemptions > 0
    assert len(result.branches) == 9
    assert engine._tree.num_used == 0
    assert_equal_alone(model, request, result)
    engine = engine_of(model, page_tokens=3)
    assert_same([answers_of(engine, forked, request)], [result])
    take = [2, 8, 5]
    joined = engine.join(request, result, branches=[text(3, 70)], take=take)
    tokens = [*request.main]
    for index in take:
        one = result.branches[index]
        tokens += [*request.branches[root_of(result, index)], *one.prefix_token_ids]
        tokens += [token for token in one.token_ids if token != char_tokenizer().eos_token_id]
    fresh = Request(main=tokens, branches=[text(3, 70)])
    assert_same(engine.generate([joined], PARAMS), engine_of(model).generate([fresh], PARAMS))
