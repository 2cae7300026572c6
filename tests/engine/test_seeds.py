"""Which answers a seed gives: equal prompts differ, in a way that depends on the branch alone."""

from __future__ import annotations

from typing import Any

import pytest

from parallelmind import Branch, Engine, Request, RequestResult, SamplingParams
from parallelmind.settings.sampling import seed_of_branch
from tests.engine.asking import GREEDY, MAIN
from tests.families import char_tokenizer, tiny_model


def drawing(**settings: Any) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": 8, "temperature": 3.0, "top_p": 1, "ignore_eos": True} | settings))


def tokens(result: RequestResult) -> list[list[int]]:
    return [branch.token_ids for branch in result.branches]


def test_equal_prompts_draw_apart_and_repeat(engine: Engine) -> None:
    [result] = engine.generate(Request(main=MAIN, branches=["abc"] * 4), drawing(seed=1))
    assert len({tuple(ids) for ids in tokens(result)}) == 4
    [again] = engine.generate(Request(main=MAIN, branches=["abc"] * 4), drawing(seed=1))
    assert tokens(again) == tokens(result)


def test_the_rule(engine: Engine) -> None:
    """Branch number b draws with seed + (b - 1): as if it alone had been asked, with that seed of its own."""
    [result] = engine.generate(Request(main=MAIN, branches=["abc"] * 4), drawing(seed=1))
    for number, ids in enumerate(tokens(result), 1):
        assert seed_of_branch(1, number) == number
        own = Branch(prompt="abc", branch_id=number, sampling=drawing(seed=number))
        assert tokens(engine.generate(Request(main=MAIN, branches=[own]))[0]) == [ids]
        alone = Request(main=MAIN, branches=[Branch(prompt="abc", branch_id=number)])
        assert tokens(engine.generate(alone, drawing(seed=1))[0]) == [ids], "alone = in company"


def test_neither_the_order_of_requests_nor_that_of_branches_matters(engine: Engine) -> None:
    requests = [Request(main=MAIN, branches=["a", "b", "a"]), Request(main="other", branches=["a", "a"]), MAIN]
    one, two, three = engine.generate(requests, drawing(seed=5))
    assert list(map(tokens, engine.generate(requests[::-1], drawing(seed=5)))) == list(map(tokens, (three, two, one)))
    turned = [Branch(prompt="a", branch_id=3), Branch(prompt="a", branch_id=1), Branch(prompt="b", branch_id=2)]
    [result] = engine.generate(Request(main=MAIN, branches=turned), drawing(seed=5))
    assert tokens(result) == [tokens(one)[place] for place in (2, 0, 1)]


def test_a_seed_of_its_own_is_used_as_it_is(engine: Engine) -> None:
    own = [Branch(prompt="abc", sampling=drawing(seed=9)) for _ in range(3)]
    first, second, third, last = tokens(engine.generate(Request(main=MAIN, branches=[*own, "abc"]), drawing(seed=9))[0])
    assert first == second == third != last


def test_a_branch_without_a_seed_has_its_requests(engine: Engine) -> None:
    branches = [Branch(prompt="abc", sampling=drawing()), "abc"]
    expected = tokens(engine.generate(Request(main=MAIN, branches=["abc"] * 2), drawing(seed=4))[0])
    assert tokens(engine.generate(Request(main=MAIN, branches=branches), drawing(seed=4))[0]) == expected
    given = Request(main=MAIN, branches=branches, sampling=drawing(seed=4))
    assert tokens(engine.generate(given, GREEDY)[0]) == expected


def test_continuations_of_main_are_counted(engine: Engine) -> None:
    branches = [Branch(branch_id=0) for _ in range(3)]
    found = tokens(engine.generate(Request(main=MAIN, branches=branches), drawing(seed=2))[0])
    assert len({tuple(ids) for ids in found}) == 3
    assert [found[0]] == tokens(engine.generate(MAIN, drawing(seed=2))[0])
    assert [found[2]] == tokens(engine.generate(MAIN, drawing(seed=4))[0])


@pytest.mark.parametrize("patched", [False, True])
def test_n_answers_to_each_prompt(patched: bool) -> None:
    from tests.engine.test_choices import patched as patched_model

    engine = Engine(patched_model("qwen2") if patched else tiny_model("qwen2"), char_tokenizer())
    [result] = engine.generate(Request(main=MAIN, branches=["abc", "abc"]), drawing(seed=1, n=3))
    assert len(result.branches) == 6, "three side by side for each branch"
    assert len({tuple(ids) for ids in tokens(result)}) == 6
    for number in (1, 2):
        alone = Request(main=MAIN, branches=[Branch(prompt="abc", branch_id=number)])
        mine = tokens(result)[3 * number - 3 : 3 * number]
        assert tokens(engine.generate(alone, drawing(seed=1, n=3))[0]) == mine, "alone = in company"
        for choice, ids in enumerate(mine):
            own = Branch(prompt="abc", branch_id=number, sampling=drawing(seed=1 + 3 * (number - 1) + choice))
            assert tokens(engine.generate(Request(main=MAIN, branches=[own]))[0]) == [ids]


def test_n_answers_with_a_seed_of_the_branch(engine: Engine) -> None:
    own = Branch(prompt="abc", sampling=drawing(seed=7, n=2))
    answers = tokens(engine.generate(Request(main=MAIN, branches=["x", own]), drawing(seed=1))[0])
    assert len(answers) == 3
    for seed, ids in zip((7, 8), answers[1:], strict=True):
        one = Branch(prompt="abc", branch_id=2, sampling=drawing(seed=seed))
        assert tokens(engine.generate(Request(main=MAIN, branches=[one]))[0]) == [ids]


def test_n_answers_share_their_prompt(model: Any) -> None:
    engine = Engine(model, char_tokenizer(), page_tokens=4)
    long = "prompt-of-forty-tokens-for-all-its-answers"
    engine.generate(Request(main=MAIN, branches=[long]), drawing(seed=1, n=1))
    assert engine.stats.prompt_tokens == len(MAIN) + len(long)
    engine = Engine(model, char_tokenizer(), page_tokens=4)
    engine.add_request(Request(main=MAIN, branches=[long]), drawing(seed=1, n=16))
    engine.step()
    engine.step()
    assert engine.num_running_branches == 16
    assert engine.stats.prompt_tokens <= len(MAIN) + len(long) + 15, "at most the last token is computed for each"
    per_token = engine._runner.bytes_per_token
    assert engine.kv_cache_bytes_allotted <= (len(MAIN) + len(long) + 16 * 2 * 4 + 4) * per_token
    while engine.has_unfinished():
        engine.step()


def test_events_and_results_of_n_answers_have_the_same_places(engine: Engine) -> None:
    request = Request(main=MAIN, branches=["a", Branch(prompt="b", sampling=drawing(n=2)), "c"])
    texts: dict[int, str] = {}
    for event in engine.stream(request, drawing(seed=1, n=2)):
        texts[event.branch_index] = texts.get(event.branch_index, "") + event.text
        if event.result is not None:
            assert event.result.text == texts[event.branch_index]
    assert sorted(texts) == list(range(6))


def test_n_answers_that_would_read_one_another_are_refused(engine: Engine) -> None:
    branches = [Branch(prompt="a", sampling=drawing(n=2)), "b"]
    [result] = engine.generate(Request(main=MAIN, branches=branches, visibility="columnar"), drawing(seed=1))
    assert [branch.error_kind for branch in result.branches] == ["invalid", "invalid", None]
    assert "would read one another" in str(result.branches[0].error)


def test_the_largest_seed_has_successors(engine: Engine) -> None:
    found = tokens(engine.generate(Request(main=MAIN, branches=["a"] * 3), drawing(seed=2**64 - 2))[0])
    [last] = tokens(
        engine.generate(Request(main=MAIN, branches=[Branch(prompt="a", branch_id=3)]), drawing(seed=-2))[0]
    )
    assert len({tuple(ids) for ids in found}) == 3
    assert seed_of_branch(2**64 - 2, 3) == 0
    own = Branch(prompt="a", branch_id=3, sampling=drawing(seed=0))
    assert tokens(engine.generate(Request(main=MAIN, branches=[own]))[0]) == [found[2]] == [last]
