"""Texts that begin alike are computed and held once, memory is what is in use, and what is put back goes on as before.

Figures are counts of tokens and pages, which no other load on the machine changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.columnar import auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.engine import tree
from parallelmind.engine.pages import PageStore
from parallelmind.engine.texts import Place
from parallelmind.engine.tree import PageTree
from tests.broken_models import failing
from tests.cases import few, spread
from tests.engine.asking import GREEDY
from tests.families import char_tokenizer, tiny_model

TOKEN_BYTES = 512
"""Of keys and values of one token of the tiny model in float32."""
PAGE = 4


def text(length: int, start: int = 0) -> list[int]:
    """Token ids that differ from one start to the other."""
    return [3 + (start + i * (1 + start % 7)) % 90 for i in range(length)]


def engine_of(model: Any, **settings: Any) -> Engine:
    return Engine(model, char_tokenizer(), **({"page_tokens": PAGE, "max_running_branches": None} | settings))


def answers(engine: Engine, requests: Sequence[Request], params: SamplingParams = GREEDY) -> list[list[list[int]]]:
    return [[branch.token_ids for branch in result.branches] for result in engine.generate(requests, params)]


def patched_model() -> Any:
    model = tiny_model("qwen2")
    return patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))


@pytest.mark.parametrize(("shared", "together"), spread([1, 3, 4, 5, 30, 32], [True, False], one_in=2))
def test_documents_behind_one_beginning_share_it(model: Any, shared: int, together: bool) -> None:
    mains = [text(shared) + text(20, start) for start in (11, 29, 53)]
    requests = [Request(main=main, branches=["ab"]) for main in mains]
    engine = engine_of(model)
    found = answers(engine, requests) if together else [answers(engine, [request])[0] for request in requests]
    assert engine.stats.prompt_tokens == shared + 3 * (20 + 2), "nothing is computed twice, at any length"
    # Each text has its own copy of the tokens in the page in which it parts from the others, and of no others.
    assert engine.kv_cache_tokens <= shared + 3 * (20 + 2 + GREEDY.max_new_tokens + PAGE - 1)
    assert found == [answers(engine_of(model), [request])[0] for request in requests]


def test_a_long_chat_is_held_once(model: Any) -> None:
    """Each turn extends the one before: what the answers wrote is not computed again either."""
    engine = engine_of(model)
    main: list[int] = []
    for turn in range(20):
        main += text(7, turn)
        [answer] = engine.generate([Request(main=main)], GREEDY)[0].branches
        main += answer.token_ids
    assert engine.stats.prompt_tokens <= 20 * (7 + 1), "of an answer at most the last token was not computed yet"
    assert engine.kv_cache_tokens <= len(main) + PAGE
    fresh = engine_of(model).generate([Request(main=main)], GREEDY)[0].branches[0]
    assert engine.generate([Request(main=main)], GREEDY)[0].branches[0].token_ids == fresh.token_ids


def test_a_text_is_not_compared_with_all_that_begin_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind one system prompt, or one beginning-of-text token, there may be thousands."""
    held = PageTree(PageStore(64, 1000), 500)
    for number in range(300):
        other = held.open(None, Place(), [1] * 32 + [2 + number] * 32)
        assert held.reserve(other, 64)
        held.note_computed(other, other.num_pending)
        held.close(other)
    compared, equal = list[Sequence[int]](), tree._equal
    monkeypatch.setattr(tree, "_equal", lambda one, two: compared.append(one) or equal(one, two))
    assert held.open(None, Place(), [1] * 32 + [1000] * 40).num_reused == 32
    assert held.open(None, Place(), [1] * 32 + [150] * 32 + [5]).num_reused == 64
    assert len(compared) <= 4


def test_equal_beginnings_of_branches_are_computed_once() -> None:
    """Where branches have no position of their own, and for the same position of two requests."""
    prompts = [text(9) + text(2, start) for start in (5, 17, 31)]
    plain = engine_of(tiny_model("qwen2"))
    plain.generate([Request(main=text(10, 3), branches=prompts)], GREEDY)
    assert plain.stats.prompt_tokens == 10 + 9 + 3 * 2
    engine = engine_of(patched_model(), branch_stride=16)
    for prompt in prompts:
        engine.generate([Request(main=text(10, 3), branches=[text(4, 8), prompt])], GREEDY)
    # The last token of a text is computed in any case: the next token follows from it.
    assert engine.stats.prompt_tokens == 10 + (4 + 9 + 2) + 2 * (1 + 2)


def test_memory_is_what_is_in_use(model: Any) -> None:
    """63 short prompts beside one of 400 tokens take what they have, not 64 times the longest."""
    engine = engine_of(model)
    prompts = [text(400), *(text(5, start) for start in range(1, 64))]
    for prompt in prompts:
        engine.add_request(Request(branches=[prompt]), GREEDY)
    engine.step()
    in_use = sum(map(len, prompts))
    assert in_use * TOKEN_BYTES <= engine.kv_cache_bytes_allotted <= (in_use + 64 * PAGE) * TOKEN_BYTES
    assert engine.kv_cache_bytes <= engine.kv_cache_bytes_allotted * 5 / 4


def test_a_branch_that_may_become_long_does_not_keep_the_others_out(model: Any) -> None:
    engine = engine_of(model, kv_cache_bytes=1000 * TOKEN_BYTES)
    long = Branch(prompt="a", sampling=SamplingParams(max_new_tokens=900, temperature=0, ignore_eos=True))
    engine.add_request(Request(branches=[long, *["bc"] * 63]), GREEDY)
    engine.step()
    assert engine.num_running_branches == 64


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("page_tokens", few([4, 1]))
def test_branches_that_are_put_back_go_on_as_if_nothing_had_been(patched: bool, page_tokens: int) -> None:
    model = patched_model() if patched else tiny_model("qwen2")
    sampling = SamplingParams(max_new_tokens=30, temperature=1.0, seed=3, ignore_eos=True, logprobs=2)
    branches = [Branch(prompt=text(3, start), sampling=sampling) for start in range(8)]
    requests = [Request(main=text(9, start), branches=branches) for start in (1, 2)]
    expected = engine_of(model, branch_stride=16).generate(requests)
    tight = engine_of(model, branch_stride=16, page_tokens=page_tokens, kv_cache_bytes=120 * TOKEN_BYTES)
    found = tight.generate(requests)
    assert tight.stats.preemptions > 0
    for one, other in zip(expected, found, strict=True):
        for before, after in zip(one.branches, other.branches, strict=True):
            assert before.token_ids == after.token_ids
            assert [p.logprob for p in before.logprobs] == pytest.approx([p.logprob for p in after.logprobs], abs=1e-4)
    assert tight._tree.num_used == 0


def test_the_least_recently_used_text_goes_first(model: Any) -> None:
    engine = engine_of(model, prefix_cache_bytes=72 * TOKEN_BYTES)
    mains = {start: text(24, start) for start in (1, 2, 3, 4)}

    def cached(start: int) -> int:
        request = Request(main=mains[start], branches=["x"])
        return engine.generate([request], SamplingParams(max_new_tokens=1))[0].branches[0].cached_main_tokens

    assert [cached(start) for start in (1, 2)] == [0, 0]
    assert cached(1) == 24
    assert cached(3) == 0
    assert cached(1) == 24
    assert cached(2) < 24, "three texts and their branches do not fit"


def test_what_fails_leaves_nothing_that_is_no_number(model: Any) -> None:
    """A text whose keys overflowed is not found by later requests, and does not spread into the pages that it had."""
    engine = engine_of(model, isolate_failures=True)
    embeddings = model.get_input_embeddings()
    good = Request(main=text(10, 2), branches=["abc"])
    expected = answers(engine, [good])
    weight = embeddings.weight.data[50].clone()
    embeddings.weight.data[50] = float("nan")
    bad = engine.generate([Request(main=[7, 50, 7, 7, 7], branches=["d", "e"])], GREEDY)[0].branches
    assert [branch.error_kind for branch in bad] == ["engine", "engine"]
    assert answers(engine, [good, good]) == expected * 2
    embeddings.weight.data[50] = weight
    again = Request(main=[7, 50, 7, 7, 7], branches=["d"])
    assert answers(engine, [again]) == answers(engine_of(model), [again])


@pytest.mark.parametrize("shared", [1, 3, 5])
def test_a_text_that_fails_leaves_what_others_took_from_it(model: Any, shared: int) -> None:
    """Also those that have not computed anything of their own yet."""
    good = Request(main=[*text(shared, 2), 40, 41, 42])
    bad = Request(main=[*text(shared, 2), 60, 61, 62], branches=[[9, 77, 9], "de"])
    behind = Request(main=[*text(shared, 2), 60, 61, 62, 63, 64, 65], branches=["de"])
    expected = answers(engine_of(model), [good, behind])
    engine = engine_of(model, isolate_failures=True)
    with failing(model, RuntimeError("illegal memory access"), token=77):
        found = engine.generate([bad, good, behind], GREEDY)
    assert [branch.error_kind for branch in found[0].branches] == ["engine", "engine"]
    assert [[branch.token_ids for branch in result.branches] for result in found[1:]] == expected


@pytest.mark.parametrize("page_tokens", [1, 3, 16])
def test_many_requests_need_no_more_calls_than_one(model: Any, page_tokens: int) -> None:
    """The number of attention calls of a step does not grow with the number of mains."""

    def calls(mains: int) -> int:
        engine = engine_of(model, page_tokens=page_tokens, max_batched_tokens=10**6)
        for start in range(mains):
            engine.add_request(Request(main=text(20, start), branches=["ab"]), GREEDY)
        while engine.num_running_branches < mains or engine.stats.generated_tokens < mains:
            engine.step()
        with counted_calls() as found:
            engine.step()
        return len(found)

    # In each of the two layers: runs of 8, 4, 2 and 1 pages and the own page, where small lots are read together.
    assert all(calls(mains) <= 2 * 5 for mains in (10, 64, 200))


class _Counter(TorchDispatchMode):
    """Notes the calls of the operator that computes attention."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if "flash_attention" in str(func) or "efficient_attention" in str(func):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_calls() -> Iterator[list[Any]]:
    """The calls of attention kernels inside the block."""
    with _Counter() as counter:
        yield counter.found


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("numbers", [(0, 0), (1, 2), (0, 1)])
def test_what_is_no_number_does_not_spread(patched: bool, numbers: tuple[int, int]) -> None:
    """Not to the main that it continues, to branches of it, or to requests behind the same main."""
    model = patched_model() if patched else tiny_model("qwen2")
    main = text(6, 2)
    bad, good = Branch(prompt=[11, 90, 12], branch_id=numbers[0]), Branch(prompt=[13, 14], branch_id=numbers[1])
    [expected] = answers(engine_of(model, branch_stride=16, page_tokens=64), [Request(main=main, branches=[good])])
    engine = engine_of(model, branch_stride=16, page_tokens=64, isolate_failures=True)
    model.get_input_embeddings().weight.data[90] = float("nan")
    requests = [Request(main=main, branches=[bad]), Request(main=main, branches=[good])]
    if numbers != (0, 1):
        requests.append(Request(main=main, branches=[good, bad] if numbers == (1, 2) else [bad, good]))
    found = engine.generate(requests, GREEDY)
    kinds = [branch.error_kind for result in found for branch in result.branches]
    assert kinds.count("engine") == len(requests) - 1 if len(requests) == 3 else kinds == ["engine", None]
    for result in found:
        for branch in result.branches:
            assert branch.error_kind == "engine" or branch.token_ids == expected[0]
    assert answers(engine, requests[1:2]) == [expected]


def test_copies_of_copies_in_one_step() -> None:
    """Also into pages that were freed a moment ago, which are cleared for their next text."""
    store = PageStore(2, 10)
    first, second, third = store.take(3)
    store.settle()
    ones = torch.arange(1.0, 3.0).view(1, 2, 1)
    store.write(0, torch.tensor([2 * first, 2 * first + 1]), ones, ones)
    store.copy_before(first, second, 2)
    store.give_back([first])
    assert store.take(1) == [first]
    store.copy_before(second, first, 1)
    store.copy_before(first, third, 1)
    store.settle()
    for array in store.layer(0):
        assert array[0, [first, second, third], :, 0].tolist() == [[1, 0], [1, 2], [1, 0]]
