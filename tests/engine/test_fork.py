"""Forks of a branch while it decodes: each equals a branch with the same prefix, and nothing is computed twice.

Figures are counts of tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from parallelmind import Branch, BranchResult, Engine, Request, SamplingParams
from parallelmind.columnar import auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.errors import RequestError
from parallelmind.settings.sampling import seed_of_branch, seed_of_fork
from tests.broken_models import failing
from tests.cases import few, spread
from tests.engine.asking import GREEDY, MAIN
from tests.families import FAMILIES, char_tokenizer, tiny_model

TOKEN_BYTES = 512
DRAWN = SamplingParams(max_new_tokens=20, temperature=1.0, seed=4, ignore_eos=True, logprobs=1)
PROMPTS = ["abc", "defgh"]


def model_of(family: str = "qwen2", patched: bool = True) -> Any:
    model = tiny_model(family)
    return patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5)) if patched else model


def engine_of(model: Any, **settings: Any) -> Engine:
    return Engine(model, char_tokenizer(), **({"branch_stride": 16, "page_tokens": 4} | settings))


def ids(text: str) -> list[int]:
    return list(char_tokenizer()(text, add_special_tokens=False)["input_ids"])


def run(
    engine: Engine,
    actions: dict[int, Callable[[int], Any]],
    params: SamplingParams = DRAWN,
    request: Request | None = None,
) -> dict[int, BranchResult]:
    """The results of a request, doing something after so many steps."""
    request_id = engine.add_request(request or Request(main=MAIN, branches=PROMPTS), params)
    results: dict[int, BranchResult] = {}
    steps = 0
    while engine.has_unfinished():
        for event in engine.step():
            assert event.request_id == request_id
            if event.result is not None:
                assert event.branch_index not in results
                results[event.branch_index] = event.result
        steps += 1
        if steps in actions:
            actions[steps](request_id)
    return results


def alone(model: Any, results: dict[int, BranchResult], index: int, params: SamplingParams) -> BranchResult:
    """A branch of its own with the prefix of a fork, of branch id `root + 1`."""
    root = index
    while (parent := results[root].parent) is not None:
        root = parent
    prompt = ids(PROMPTS[root]) + results[index].prefix_token_ids
    branch = Branch(prompt=prompt, branch_id=root + 1, sampling=params)
    return engine_of(model).generate([Request(main=MAIN, branches=[branch])])[0].branches[0]


def assert_same(one: BranchResult, other: BranchResult) -> None:
    assert one.token_ids == other.token_ids
    assert one.finish_reason == other.finish_reason
    assert [p.logprob for p in one.logprobs] == pytest.approx([p.logprob for p in other.logprobs], abs=1e-4)


@pytest.mark.parametrize(("family", "patched"), spread(FAMILIES, [True, False]))
def test_a_fork_is_a_branch_with_the_same_prefix(family: str, patched: bool) -> None:
    """Also a fork of a fork, with and without a continuation of its own; the parents go on as if nothing had been."""
    model = model_of(family, patched)
    engine = engine_of(model)
    own = [SamplingParams(max_new_tokens=6, temperature=1.0, seed=seed, ignore_eos=True, logprobs=1) for seed in (5, 6)]

    def fork(request_id: int) -> None:
        assert engine.fork(request_id, 0, sampling=own) == [2, 3]
        assert engine.fork(request_id, 1, prompts=["xyz", ids("uvw")], sampling=own) == [4, 5]

    results = run(engine, {5: fork, 8: lambda request_id: engine.fork(request_id, 2, sampling=own)})
    assert sorted(results) == list(range(8))
    assert [results[index].parent for index in range(8)] == [None, None, 0, 0, 1, 1, 2, 2]
    for index in range(2, 8):
        assert_same(results[index], alone(model, results, index, own[index % 2]))
    assert results[6].prefix_token_ids == results[2].prefix_token_ids + results[2].token_ids[:3]
    assert results[4].prefix_token_ids == results[1].token_ids[:5] + ids("xyz")
    undisturbed = engine_of(model).generate([Request(main=MAIN, branches=PROMPTS)], DRAWN)[0].branches
    for index in range(2):
        assert_same(results[index], undisturbed[index])


@pytest.mark.parametrize(("steps", "page_tokens", "patched"), spread(range(1, 9), [1, 4, 64], [False, True]))
def test_a_fork_computes_nothing_again(
    patched: bool, page_tokens: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the last token, and not where the parent ends at once and no unused page is kept."""
    engine = engine_of(model_of(patched=patched), page_tokens=page_tokens, prefix_cache_bytes=0)
    params = SamplingParams(max_new_tokens=steps + 1, temperature=0, ignore_eos=True)
    longer = SamplingParams(max_new_tokens=5, temperature=1.0, seed=1, ignore_eos=True)
    fed: list[int] = []
    forward = engine._runner.forward

    def counted(step: Any, logits_at: Any) -> Any:
        fed.append(step.num_tokens)
        return forward(step, logits_at)

    monkeypatch.setattr(engine._runner, "forward", counted)
    run(engine, {steps: lambda request_id: engine.fork(request_id, 0, 3, sampling=longer)}, params)
    assert engine.stats.prompt_tokens == len(MAIN) + sum(map(len, PROMPTS))
    # Each answer's last token is never run, all others once.
    assert sum(fed) == engine.stats.prompt_tokens + 2 * steps + 3 * 4
    assert engine.kv_cache_bytes_allotted == 0


def test_a_continuation_alone_is_computed() -> None:
    engine = engine_of(model_of())
    run(engine, {5: lambda request_id: engine.fork(request_id, 0, prompts=["xyz", "xyw"])})
    assert engine.stats.prompt_tokens <= len(MAIN) + sum(map(len, PROMPTS)) + 2 * 3


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("page_tokens", [1, 4])
def test_forks_that_are_put_back_go_on_as_if_nothing_had_been(patched: bool, page_tokens: int) -> None:
    model = model_of(patched=patched)

    def answers(engine: Engine) -> dict[int, BranchResult]:
        def forks(request_id: int) -> None:
            engine.fork(request_id, 0, 6)
            engine.fork(request_id, 1, prompts=["xyz"] * 3)

        return run(engine, {5: forks, 9: lambda request_id: engine.fork(request_id, 3, 2)})

    # In tight memory a branch stands still at times, so the forks are compared by what they are forks of.
    tight = engine_of(model, page_tokens=page_tokens, kv_cache_bytes=80 * TOKEN_BYTES)
    results = answers(tight)
    assert tight.stats.preemptions > 0
    assert sorted(results) == list(range(13))
    for index in range(2, 13):
        params = _params_of(results, index)
        assert_same(results[index], alone(model, results, index, params))
    assert tight._tree.num_used == 0


def _params_of(results: dict[int, BranchResult], index: int) -> SamplingParams:
    """What a fork that was given no parameters runs with: the parent's, with a seed of its own and what is left."""
    siblings = [other for other in sorted(results) if results[other].parent == results[index].parent]
    parent = results[index].parent
    if parent is None:
        return DRAWN.with_seed(seed_of_branch(DRAWN.seed or 0, index + 1))
    params = _params_of(results, parent)
    own = {0: 0, 1: 3}.get(parent, 0) if results[index].prefix_token_ids[-3:] == ids("xyz") else 0
    before = len(results[parent].prefix_token_ids)
    written = len(results[index].prefix_token_ids) - before - own
    seed = seed_of_fork(params.seed, siblings.index(index) + 1)
    return SamplingParams(
        max_new_tokens=params.max_new_tokens - written, temperature=1.0, seed=seed, ignore_eos=True, logprobs=1
    )


def test_forks_have_seeds_of_their_own_and_the_same_in_every_run() -> None:
    model = model_of()

    def answers() -> list[list[int]]:
        engine = engine_of(model)
        results = run(
            engine,
            {
                4: lambda request_id: engine.fork(request_id, 0, 4),
                8: lambda request_id: engine.fork(request_id, 2, 2, sampling=DRAWN),
            },
        )
        return [results[index].token_ids for index in sorted(results)]

    first = answers()
    assert first == answers()
    assert len(set(map(tuple, first))) == len(first) == 8
    assert [len(tokens) for tokens in first] == [20, 20, 16, 16, 16, 16, 20, 20]


@pytest.mark.parametrize("steps", few([13, 14, 5, 12, 15], 2))
@pytest.mark.parametrize("patched", [False, True])
def test_forks_around_the_length_at_which_the_frequencies_change(steps: int, patched: bool) -> None:
    """A branch and its forks go over to those of long texts, each when it is one, while another branch has ended."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        "original_max_position_embeddings": len(MAIN) + 16,
    }
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=len(MAIN) + 16)
    if patched:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    engine = engine_of(model)
    own = [SamplingParams(max_new_tokens=6, temperature=1.0, seed=seed, ignore_eos=True, logprobs=1) for seed in (5, 6)]

    def forks(request_id: int) -> None:
        engine.fork(request_id, 0, sampling=own)
        engine.fork(request_id, 0, prompts=["xyz", "x" * 20], sampling=own)

    brief = SamplingParams(max_new_tokens=steps + 1, temperature=0, ignore_eos=True)
    request = Request(main=MAIN, branches=[PROMPTS[0], Branch(prompt=PROMPTS[1], sampling=brief)])
    results = run(engine, {steps: forks}, request=request)
    assert sorted(results) == list(range(6))
    for index in range(2, 6):
        assert_same(results[index], alone(model, results, index, own[index % 2]))
    assert engine._tree.num_used == 0


def test_forks_in_a_stream() -> None:
    """By the ids of the events; the stream ends with the last result, and other uses are not disturbed."""
    engine = engine_of(model_of())
    results: dict[tuple[int, int], BranchResult] = {}
    forked: list[int] = []
    for event in engine.stream([Request(main=MAIN, branches=PROMPTS)] * 2, GREEDY):
        if event.request_index == 1 and event.branch_index == 0 and not forked:
            forked = engine.fork(event.request_id, event.branch_index, 2)
            assert engine.generate([Request(main=MAIN, branches=["q"])], GREEDY)[0].branches[0].finish_reason
        if event.result is not None:
            results[event.request_index, event.branch_index] = event.result
    assert forked == [2, 3]
    assert sorted(results) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    for index in forked:
        fork = results[1, index]
        assert fork.prefix_token_ids + fork.token_ids == results[1, 0].token_ids
        assert fork.text == results[1, 0].text[1:]
    assert not engine.has_unfinished()


def test_a_fork_before_the_first_token_and_of_main_itself() -> None:
    model = model_of()
    engine = engine_of(model, max_batched_tokens=6)
    request = Request(main=MAIN)
    request_id = engine.add_request(request, GREEDY)
    engine.step()
    engine.fork(request_id, 0)
    results = {event.branch_index: event.result for event in _events(engine) if event.result is not None}
    assert results[1].token_ids == results[0].token_ids
    assert results[1].prefix_token_ids == []


def test_forks_of_a_branch_that_is_cancelled_or_fails() -> None:
    model = model_of()
    engine = engine_of(model)

    def forks(request_id: int) -> None:
        engine.fork(request_id, 0, 2)
        engine.cancel(request_id, 0)

    results = run(engine, {5: forks}, GREEDY)
    assert results[0].finish_reason == "cancelled"
    full = engine_of(model).generate([Request(main=MAIN, branches=PROMPTS)], GREEDY)[0].branches[0]
    for index in (2, 3):
        assert results[index].prefix_token_ids + results[index].token_ids == full.token_ids
    engine = engine_of(model)
    results = run(engine, {5: lambda r: (engine.fork(r, 0, 2), engine.cancel(r, 3), engine.cancel(r))}, GREEDY)
    assert [results[index].finish_reason for index in range(4)] == ["cancelled"] * 4
    with failing(model, RuntimeError("illegal memory access"), token=77):
        engine = engine_of(model, isolate_failures=True)
        other = Request(main=MAIN, branches=["abc"])
        other_id = engine.add_request(other, GREEDY)
        mine = engine.add_request(Request(main=MAIN + "!", branches=["abc"]), GREEDY)
        for _ in range(4):
            engine.step()
        engine.fork(mine, 0, prompts=[[40, 77]])
        found = {(e.request_id, e.branch_index): e.result for e in _events(engine) if e.result is not None}
    assert found[mine, 1].error_kind == "engine"
    assert found[other_id, 0].token_ids == engine_of(model).generate([other], GREEDY)[0].branches[0].token_ids
    assert engine._tree.num_used == 0


def test_a_fork_that_cannot_run_is_an_error_of_its_own() -> None:
    engine = engine_of(model_of())
    results = run(engine, {5: lambda r: engine.fork(r, 0, prompts=["ok", [9999], [5] * 5000])}, GREEDY)
    assert [results[index].error_kind for index in range(5)] == [None, None, None, "vocabulary", "too_long"]


def test_what_cannot_be_forked_says_why() -> None:
    engine = engine_of(model_of())
    request_id = engine.add_request(Request(main=MAIN, branches=PROMPTS), GREEDY)
    engine.step()
    for arguments, settings, words in (
        ((request_id + 1, 0), {}, "not running"),
        ((request_id, 7), {}, "not running"),
        ((request_id, 0, 0), {}, "1 or more"),
        ((request_id, 0, 3), {"prompts": ["a", "b"]}, "the same number"),
        ((request_id, 0), {"prompts": "abc"}, "a list"),
        ((request_id, 0, 2), {"sampling": [GREEDY]}, "the same number"),
    ):
        with pytest.raises(RequestError, match=words):
            engine.fork(*arguments, **settings)
    engine.cancel(request_id, 1)
    with pytest.raises(RequestError, match="has ended"):
        engine.fork(request_id, 1)
    columns = engine.add_request(Request(main=MAIN, branches=PROMPTS, visibility="columnar"), GREEDY)
    engine.step()
    with pytest.raises(RequestError, match="isolated"):
        engine.fork(columns, 0)
    assert all(event.result is None or event.result.error is None for event in _events(engine))


@pytest.mark.parametrize("seed", few(range(6), 2))
def test_random_forks(seed: int) -> None:
    """Forks, cancellations and tight limits at random: each equals the branch alone, and the memory comes back."""
    rng = random.Random(seed)
    model = model_of(patched=seed % 2 == 0)
    engine = engine_of(
        model,
        max_running_branches=rng.choice([2, 5, None]),
        max_batched_tokens=rng.choice([6, 40, 2048]),
        kv_cache_bytes=rng.choice([150 * TOKEN_BYTES, None]),
        prefix_cache_bytes=rng.choice([0, 40 * TOKEN_BYTES, None]),
        page_tokens=rng.choice([1, 3, 64]),
    )
    live: set[tuple[int, int]] = set()
    results: dict[int, dict[int, BranchResult]] = {}
    params: dict[tuple[int, int], SamplingParams] = {}
    cancelled: set[tuple[int, int]] = set()
    for _ in range(3):
        request_id = engine.add_request(Request(main=MAIN, branches=PROMPTS), DRAWN)
        results[request_id] = {}
        live |= {(request_id, index) for index in range(2)}
    while engine.has_unfinished():
        for event in engine.step():
            if event.result is not None:
                results[event.request_id][event.branch_index] = event.result
                live.discard((event.request_id, event.branch_index))
        if live and len(params) < 20 and rng.random() < 0.4:
            request_id, index = rng.choice(sorted(live))
            own = SamplingParams(max_new_tokens=rng.randrange(1, 9), temperature=1.0, seed=rng.randrange(99))
            prompts = rng.choice([None, ["xyz"]])
            [fork] = engine.fork(request_id, index, prompts=prompts, sampling=[own])
            params[request_id, fork] = own
            live.add((request_id, fork))
        if live and rng.random() < 0.05:
            chosen = rng.choice(sorted(live))
            engine.cancel(*chosen)
            cancelled.add(chosen)
    assert engine._tree.num_used == 0
    assert len(params) > 5
    for (request_id, index), own in params.items():
        if (request_id, index) not in cancelled:
            found = results[request_id]
            assert found[index].token_ids == alone(model, found, index, own).token_ids


def _events(engine: Engine) -> Sequence[Any]:
    found = []
    while engine.has_unfinished():
        found += engine.step()
    return found


@pytest.mark.parametrize("with_prompt", [False, True])
def test_penalties_of_a_fork_know_what_its_parent_generated(with_prompt: bool) -> None:
    """Without a prompt of its own a fork is its parent going on: with the same seed of drawing, token for token."""
    params = replace(DRAWN, temperature=0, presence_penalty=1.5, frequency_penalty=0.8, repetition_penalty=1.3)
    forked: list[int] = []

    def fork(request_id: int) -> None:
        own = replace(params, max_new_tokens=15)
        forked.extend(engine_used.fork(request_id, 0, prompts=["x"] if with_prompt else None, sampling=own))

    engine_used = engine_of(model_of())
    results = run(engine_used, {5: fork}, params)
    whole = results[0].token_ids
    assert len(set(whole)) > 10, "penalties at work"
    going_on = results[forked[0]].token_ids
    assert (going_on == whole[5:]) is not with_prompt


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 1.5}, "n is 1.5"),
        ({"n": "2"}, "n is '2'"),
        ({"sampling": "abc"}, "sampling is 'abc'"),
        ({"sampling": [None]}, "sampling is"),
        ({"sampling": replace(DRAWN, n=3)}, "give n to fork"),
        ({"prompts": 3}, "prompts is 3"),
        ({"prompts": (text for text in "ab")}, "prompts is"),
    ],
)
def test_arguments_that_make_no_sense_change_nothing(arguments: dict[str, Any], words: str) -> None:
    def fork(request_id: int) -> None:
        with pytest.raises(RequestError, match=re.escape(words)):
            engine.fork(request_id, 0, **arguments)
        with pytest.raises(RequestError):
            engine.fork(request_id, 0, prompts=["fine", [1.5]])  # type: ignore[list-item]
        engine.fork(request_id, 0)

    engine = engine_of(model_of())
    wrong = run(engine, {5: fork})
    other = engine_of(model_of())
    undisturbed = run(other, {5: lambda request_id: other.fork(request_id, 0)})
    assert {index: one.token_ids for index, one in wrong.items()} == {
        index: one.token_ids for index, one in undisturbed.items()
    }
