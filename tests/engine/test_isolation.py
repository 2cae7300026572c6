"""A request that breaks the model ends with an error; the others never notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallelmind import Branch, Engine, Request, SamplingParams
from tests.broken_models import SpeechlessTokenizer, changed_logits, failing
from tests.families import char_tokenizer

GREEDY = SamplingParams(max_new_tokens=10, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=10, temperature=1.0, seed=3, ignore_eos=True)
POISON = 7
ILLEGAL = RuntimeError("illegal memory access")
REQUESTS = [
    Request(main="first-main", branches=["abc", "de"]),
    Request(main="other", branches=[[9, POISON, 9], "xyz"]),
    Request(main="first-main", branches=[Branch(prompt="ghi", sampling=SAMPLED)]),
    Request(main="columns", branches=["uvw", "rs"], visibility="columnar"),
    Request(main="only-main"),
]


@pytest.fixture
def engine(model: Any) -> Engine:
    return Engine(model, char_tokenizer(), isolate_failures=True)


def tokens(results: list[Any]) -> list[list[list[int]]]:
    return [[branch.token_ids for branch in result.branches] for result in results]


def test_only_the_culprit_fails(engine: Engine, model: Any) -> None:
    expected = tokens(engine.generate(REQUESTS, GREEDY))
    assert not any(POISON in branch for result in expected for branch in result)
    engine.reset_prefix_cache()
    with failing(model, ILLEGAL, token=POISON):
        results = engine.generate(REQUESTS, GREEDY)
    for branch in results[1].branches:
        assert (branch.finish_reason, branch.error_kind) == ("error", "engine")
        assert "RuntimeError" in str(branch.error)
        assert "illegal memory" not in str(branch.error), "what the model says is for the log"
    for place in (0, 2, 3, 4):
        assert tokens(results)[place] == expected[place]
    engine.reset_prefix_cache()
    assert engine.kv_cache_bytes == 0


def test_a_main_that_fails_takes_its_requests_with_it(engine: Engine, model: Any) -> None:
    bad = Request(main=[5, POISON, 5], branches=["a", "b"])
    expected = tokens(engine.generate(REQUESTS[:1], GREEDY))[0]
    with failing(model, ILLEGAL, token=POISON):
        results = engine.generate([bad, REQUESTS[0], bad], GREEDY)
    assert [[b.finish_reason for b in r.branches] for r in results] == [["error"] * 2, ["length"] * 2, ["error"] * 2]
    assert tokens(results)[1] == expected
    assert engine.generate([bad], GREEDY)[0].branches[0].cached_main_tokens == 0, "nothing of it was kept"


def test_a_failure_in_the_middle_of_decoding(engine: Engine, model: Any) -> None:
    whole = tokens(engine.generate(REQUESTS, GREEDY))
    poison = whole[0][0][4]
    with failing(model, ILLEGAL, token=poison):
        results = tokens(engine.generate(REQUESTS, GREEDY))
    for before, after in zip(whole, results, strict=True):
        if not any(poison in branch for branch in before):
            assert before == after
    assert results[0][0] == whole[0][0][:5]


def test_a_device_that_is_lost_ends_everything_in_order(engine: Engine, model: Any) -> None:
    expected = tokens(engine.generate(REQUESTS, GREEDY))
    with failing(model, torch.OutOfMemoryError("no memory")):
        results = engine.generate(REQUESTS, GREEDY)
    assert {branch.finish_reason for result in results for branch in result.branches} == {"error"}
    assert not engine.has_unfinished()
    assert tokens(engine.generate(REQUESTS, GREEDY)) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error_and_no_answer(engine: Engine, model: Any, value: float) -> None:
    expected = tokens(engine.generate(REQUESTS, GREEDY))

    def overflowing(behind: list[int], logits: Tensor) -> Tensor:
        for row, token in zip(logits, behind, strict=True):
            if token == expected[0][0][4]:
                row[11] = value
        return logits

    with changed_logits(model, overflowing):
        results = engine.generate(REQUESTS, GREEDY)
    assert results[0].branches[0].error_kind == "engine"
    assert "float16" in str(results[0].branches[0].error)
    assert results[0].branches[0].token_ids == expected[0][0][:5]
    for before, after in zip(expected, results, strict=True):
        for ids, branch in zip(before, after.branches, strict=True):
            assert branch.error_kind == ("engine" if expected[0][0][4] in ids[:-1] else None)
            if branch.error_kind is None:
                assert branch.token_ids == ids


def test_a_token_without_a_text_ends_its_branch_only(engine: Engine, model: Any) -> None:
    expected = tokens(engine.generate(REQUESTS, GREEDY))
    unspeakable = expected[0][0][3]
    speechless = Engine(model, SpeechlessTokenizer(char_tokenizer(), unspeakable), isolate_failures=True)
    for before, after in zip(expected, speechless.generate(REQUESTS, GREEDY), strict=True):
        for token_ids, branch in zip(before, after.branches, strict=True):
            assert branch.error_kind == ("engine" if unspeakable in token_ids else None)
            if unspeakable not in token_ids:
                assert branch.token_ids == token_ids
