"""Several continuations of main itself, log-probabilities, and visibility by request."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.columnar import (
    VISIBILITIES,
    Visibility,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
)
from parallelmind.errors import RequestError
from tests.families import DEVICE, char_tokenizer, tiny_model

MAIN = "the-shared-text"


def patched(family: str) -> Any:
    model = tiny_model(family)
    patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    return model


@pytest.mark.parametrize("family", ["qwen2", "falcon"])
def test_choices_of_main_are_each_as_alone(family: str) -> None:
    engine = Engine(patched(family), char_tokenizer())
    params = [SamplingParams(max_new_tokens=8, temperature=1.0, seed=seed, ignore_eos=True) for seed in range(3)]
    choices = [Branch(prompt=prompt, branch_id=0, sampling=p) for prompt in ("", "abc") for p in params]
    together = engine.generate([Request(main=MAIN, branches=choices)])[0].branches
    for choice, answer in zip(choices, together, strict=True):
        whole = MAIN + str(choice.prompt)
        alone = engine.generate([Request(main=whole)], choice.sampling)[0].branches[0]
        assert answer.token_ids == alone.token_ids
    assert len({tuple(answer.token_ids) for answer in together}) > 3


def test_choices_cannot_see_one_another() -> None:
    engine = Engine(tiny_model("qwen2"), char_tokenizer())
    with pytest.raises(RequestError, match="branch_id"):
        engine.add_request(
            Request(main=MAIN, branches=[Branch(branch_id=0), Branch(branch_id=0)], visibility="columnar")
        )


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "falcon"])
def test_requests_of_all_visibilities_share_forwards(family: str) -> None:
    params = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)
    prompts = ["abc", "d", "efgh"]
    model = patched(family)

    def answers(engine: Engine, visibility: Visibility | None) -> list[list[int]]:
        request = Request(main=MAIN, branches=prompts, visibility=visibility)
        return [branch.token_ids for branch in engine.generate([request], params)[0].branches]

    expected = {seen: answers(Engine(model, char_tokenizer(), visibility=seen), None) for seen in VISIBILITIES}
    assert len({str(found) for found in expected.values()}) == 3
    mixed = Engine(model, char_tokenizer(), max_batched_tokens=11)
    requests = [Request(main=MAIN, branches=prompts, visibility=seen) for seen in VISIBILITIES * 2]
    for request, result in zip(requests, mixed.generate(requests, params), strict=True):
        assert request.visibility is not None
        assert [branch.token_ids for branch in result.branches] == expected[request.visibility]


def test_logprobs_are_those_of_a_full_forward() -> None:
    model = tiny_model("qwen2")
    engine = Engine(model, char_tokenizer())
    params = SamplingParams(max_new_tokens=6, temperature=1.5, top_p=0.7, seed=1, ignore_eos=True, logprobs=3)
    silent = SamplingParams(max_new_tokens=6, temperature=1.5, top_p=0.7, seed=1, ignore_eos=True)
    request = Request(
        main=MAIN, branches=[Branch(prompt="abc", sampling=params), Branch(prompt="abc", sampling=silent)]
    )
    answer, other = engine.generate([request])[0].branches
    assert answer.token_ids == other.token_ids
    assert other.logprobs == []
    ids = char_tokenizer()(MAIN + "abc")["input_ids"] + answer.token_ids
    with torch.no_grad():
        expected = model(torch.tensor([ids], device=DEVICE)).logits[0].log_softmax(-1)
    start = len(ids) - len(answer.token_ids) - 1
    assert [found.token_id for found in answer.logprobs] == answer.token_ids
    for place, found in enumerate(answer.logprobs):
        row = expected[start + place]
        assert found.logprob == pytest.approx(float(row[found.token_id]), abs=1e-4)
        top, best = row.topk(3)
        assert [token for token, _ in found.top] == best.tolist()
        assert [logprob for _, logprob in found.top] == pytest.approx(top.tolist(), abs=1e-4)
        assert math.exp(found.top[0][1]) <= 1


def test_logprobs_come_with_the_events() -> None:
    engine = Engine(tiny_model("qwen2"), char_tokenizer())
    params = SamplingParams(max_new_tokens=5, temperature=0, ignore_eos=True, logprobs=0, stop="never")
    events = list(engine.stream([Request(main=MAIN, branches=["a", "b"])], params))
    for index in (0, 1):
        mine = [event for event in events if event.branch_index == index]
        assert all(len(event.logprobs) == len(event.token_ids) for event in mine)
        result = mine[-1].result
        assert result is not None
        assert [one for event in mine for one in event.logprobs] == result.logprobs
