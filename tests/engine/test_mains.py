"""What an engine keeps of mains and branches: memory, reuse of mains, branches that become part of main."""

from __future__ import annotations

from typing import Any

from parallelmind import Branch, Engine, Request, SamplingParams
from tests.engine.asking import GREEDY, MAIN, answer
from tests.families import char_tokenizer


def test_memory_of_main_does_not_grow_with_the_branches(model: Any) -> None:
    def held(branches: int) -> int:
        engine = Engine(model, char_tokenizer(), max_running_branches=None, page_tokens=8)
        engine.add_request(Request(main=MAIN * 20, branches=["abc"] * branches), GREEDY)
        for _ in range(4):
            engine.step()
        assert engine.num_running_branches == branches
        return engine.kv_cache_bytes_allotted

    per_token = Engine(model, char_tokenizer())._runner.bytes_per_token
    one, many = held(1), held(64)
    assert one >= len(MAIN) * 20 * per_token
    assert many - one <= 63 * 8 * per_token, "a branch takes a page for its own tokens"


def test_memory_is_given_back_when_less_is_in_use(model: Any) -> None:
    engine = Engine(model, char_tokenizer(), max_running_branches=None, page_tokens=4, prefix_cache_bytes=0)
    short, long = (SamplingParams(max_new_tokens=n, temperature=0, ignore_eos=True) for n in (2, 200))
    first = Branch(prompt="a", sampling=long)
    engine.add_request(Request(main=MAIN, branches=[first, *["b" * 40] * 63]), short)
    while engine.num_running_branches != 1:
        engine.step()
    for _ in range(150):
        engine.step()
    per_token = engine._runner.bytes_per_token
    assert engine.kv_cache_bytes <= 4 * 256 * per_token
    (last,) = [event.result for _ in range(50) for event in engine.step() if event.result is not None]
    assert last.token_ids == answer(engine, "a", max_new_tokens=200).token_ids


def test_equal_mains_are_computed_once(engine: Engine) -> None:
    requests = [Request(main=MAIN, branches=["a"]), Request(main=MAIN, branches=["b", "c"])]
    engine.generate(requests, GREEDY)
    assert engine.stats.prompt_tokens == len(MAIN) + 3
    later = engine.generate(requests[:1], GREEDY)[0].branches[0]
    assert later.cached_main_tokens == len(MAIN)
    assert engine.stats.prompt_tokens == len(MAIN) + 4
    assert engine.stats.cached_main_tokens == 2 * len(MAIN)


def test_a_longer_main_starts_from_its_cached_beginning(model: Any, engine: Engine) -> None:
    engine.generate([Request(main=MAIN, branches=["a"])], GREEDY)
    before = engine.stats.prompt_tokens
    longer = Request(main=MAIN + "-and-more", branches=["b"])
    result = engine.generate([longer], GREEDY)[0].branches[0]
    assert result.cached_main_tokens == len(MAIN)
    assert engine.stats.prompt_tokens == before + len("-and-more") + 1
    assert result.token_ids == Engine(model, char_tokenizer()).generate([longer], GREEDY)[0].branches[0].token_ids


def test_the_prefix_cache_keeps_to_its_limit(model: Any) -> None:
    per_token = Engine(model, char_tokenizer())._runner.bytes_per_token
    engine = Engine(model, char_tokenizer(), prefix_cache_bytes=100 * per_token, page_tokens=10)
    for start in "abcdefgh":
        engine.generate([Request(main=start * 30, branches=["x"])], GREEDY)
    assert 70 < engine.kv_cache_tokens <= 100
    assert engine.generate([Request(main="h" * 30, branches=["x"])], GREEDY)[0].branches[0].cached_main_tokens == 30
    assert engine.generate([Request(main="a" * 30, branches=["x"])], GREEDY)[0].branches[0].cached_main_tokens == 0


def test_branches_wait_for_memory_and_run_all_the_same(model: Any) -> None:
    per_token = Engine(model, char_tokenizer())._runner.bytes_per_token
    requests = [Request(main=c * 20, branches=["ab", "cde", "f"]) for c in "qrstuv"]
    expected = [[b.token_ids for b in r.branches] for r in Engine(model, char_tokenizer()).generate(requests, GREEDY)]
    tight = Engine(model, char_tokenizer(), kv_cache_bytes=60 * per_token, page_tokens=4)
    assert [[b.token_ids for b in r.branches] for r in tight.generate(requests, GREEDY)] == expected
    never = Engine(model, char_tokenizer(), kv_cache_bytes=25 * per_token, page_tokens=4)
    result = never.generate(requests[:1], GREEDY)[0].branches[0]
    assert result.finish_reason == "error"
    assert "--kv_cache_gb" in str(result.error)


def test_join_goes_on_with_the_branches_as_part_of_main(engine: Engine) -> None:
    request = Request(main=MAIN, branches=["first", "second"])
    result = engine.generate([request], GREEDY)[0]
    joined = engine.join(request, result, branches=["third"])
    texts = MAIN + "first" + result.branches[0].text + "second" + result.branches[1].text
    assert list(joined.main) == char_tokenizer()(texts)["input_ids"]
    answers = engine.generate([joined], GREEDY)[0].branches
    # The first branch followed main as it does now; of what it wrote, the last token was never run.
    assert answers[0].cached_main_tokens == len(MAIN) + len("first") + GREEDY.max_new_tokens - 1
    fresh = Engine(engine._runner.model, char_tokenizer())
    assert (
        answers[0].token_ids
        == fresh.generate([Request(main=texts, branches=["third"])], GREEDY)[0].branches[0].token_ids
    )


def test_join_leaves_stop_texts_out(engine: Engine) -> None:
    stop = answer(engine).text[4:6]
    request = Request(main=MAIN, branches=["abc"])
    result = engine.generate([request], SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True, stop=stop))[0]
    shown = MAIN + "abc" + result.branches[0].text
    assert list(engine.join(request, result).main) == char_tokenizer()(shown)["input_ids"]
