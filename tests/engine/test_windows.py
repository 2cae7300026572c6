"""Where all layers have a window or chunks, a text holds the pages that its tokens to come see, and no others.

Figures are counts of pages and bytes, which no other load on the machine changes. What is given back is filled with
what is no number, so that whoever read it would fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.columnar import (
    VISIBILITIES,
    Reach,
    Visibility,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
)
from parallelmind.engine.pages import PageStore
from parallelmind.engine.texts import Place
from parallelmind.engine.tree import PageTree
from parallelmind.models.layer_reach import read_reaches
from tests.cases import few
from tests.engine.test_tree import text
from tests.families import DEVICE, char_tokenizer, tiny_model

WINDOW = 6
PAGE = 4
CHUNKS = {
    "attention_chunk_size": WINDOW,
    "layer_types": ["chunked_attention", "chunked_attention"],
    "num_local_experts": 4,
    "head_dim": 16,
    "intermediate_size_mlp": 32,
}
MODELS: dict[str, Callable[[], Any]] = {
    "mistral": lambda: tiny_model("mistral"),
    "mistral with 2D RoPE": lambda: patched(tiny_model("mistral")),
    "llama4": lambda: tiny_model("llama4_text", **CHUNKS),
}
REACHES = {"mistral": Reach(window=WINDOW), "mistral with 2D RoPE": Reach(window=WINDOW), "llama4": Reach(chunk=WINDOW)}
OF_A_WINDOW = 3
"""Pages that a text of these models holds at most when it decodes: 6 tokens and the next one."""


def patched(model: Any) -> Any:
    return patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def what_is_given_back_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = PageStore.settle

    def settled(self: PageStore) -> None:
        settle(self)
        for layer in range(self.num_layers):
            for array in self.layer(layer):
                array[:, [page for page in self._used_before if page < array.shape[1]]] = float("nan")

    monkeypatch.setattr(PageStore, "settle", settled)


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, temperature=0, ignore_eos=True)


def engine_of(model: Any, **settings: Any) -> Engine:
    return Engine(model, char_tokenizer(), **({"page_tokens": PAGE, "branch_stride": 16} | settings))


def generated(model: Any, tokens: Sequence[int], count: int) -> list[int]:
    """What transformers' own generate says."""
    sequence = torch.tensor([list(tokens)], device=DEVICE)
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(sequence, attention_mask=torch.ones_like(sequence), max_new_tokens=count, **settings)
    return list(found[0, sequence.shape[1] :].tolist())


def run(engine: Engine, requests: Sequence[Request], params: SamplingParams) -> tuple[dict[int, list[int]], int, int]:
    """The tokens of each branch of one request after the other, and the most pages that were used, and taken."""
    ids = [engine.add_request(request, params) for request in requests]
    answers: dict[tuple[int, int], list[int]] = {}
    used = taken = 0
    while engine.has_unfinished():
        for event in engine.step():
            if event.result is not None:
                assert event.result.error is None
                answers[ids.index(event.request_index), event.branch_index] = event.result.token_ids
        used = max(used, engine._tree.num_used)
        taken = max(taken, engine._tree.store.num_taken)
    assert engine._tree.num_used == 0
    return dict(enumerate(answers[key] for key in sorted(answers))), used, taken


def bytes_of(engine: Engine, pages: int) -> int:
    return pages * PAGE * engine._runner.bytes_per_token


def test_the_models_of_these_tests_see_nothing_farther(name: str) -> None:
    assert read_reaches(MODELS[name]()) == {REACHES[name]}


def test_a_long_answer_holds_its_window(name: str) -> None:
    model = MODELS[name]()
    prompt = text(5)
    expected = generated(model, prompt, 120)
    found, used, _ = run(engine_of(model), [Request(branches=[Branch(prompt=prompt, branch_id=0)])], greedy(120))
    assert found == {0: expected}
    assert used <= OF_A_WINDOW
    engine = engine_of(model, prefix_cache_bytes=0)
    engine.add_request(Request(branches=[Branch(prompt=prompt, branch_id=0)]), greedy(120))
    tokens: list[int] = []
    while engine.has_unfinished():
        for event in engine.step():
            tokens += event.token_ids
        assert engine._tree.store.num_taken <= OF_A_WINDOW
        assert engine.kv_cache_bytes_allotted <= bytes_of(engine, OF_A_WINDOW)
        assert engine.kv_cache_bytes <= bytes_of(engine, OF_A_WINDOW)
    assert tokens == expected


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_a_long_main_holds_its_window_and_a_chunk(name: str, chunk: int) -> None:
    model = MODELS[name]()
    main = text(150)
    engine = engine_of(model, max_batched_tokens=chunk, prefix_cache_bytes=0)
    found, _, taken = run(engine, [Request(main=main, branches=[Branch(prompt=[7, 8], branch_id=0)])], greedy(9))
    assert found == {0: generated(model, [*main, 7, 8], 9)}
    assert taken <= OF_A_WINDOW + -(-chunk // PAGE) + 1


def test_a_main_that_does_not_fit_runs_if_its_window_does(name: str) -> None:
    model = MODELS[name]()
    main = text(500)
    plenty = engine_of(model)
    [expected] = plenty.generate([Request(main=main, branches=["ab", "cd"])], greedy(60))
    for pages in (60, 24, 12):
        engine = engine_of(model, kv_cache_bytes=bytes_of(plenty, pages))
        found, used, taken = run(engine, [Request(main=main, branches=["ab", "cd"])], greedy(60))
        assert list(found.values()) == [branch.token_ids for branch in expected.branches]
        assert used <= taken <= pages
    too_small = engine_of(model, kv_cache_bytes=bytes_of(plenty, 2))
    [refused] = too_small.generate([Request(main=main, branches=["ab"])], greedy(60))
    assert refused.branches[0].error_kind == "memory"


def test_many_branches_keep_the_tail_of_main(name: str) -> None:
    model = MODELS[name]()
    main, count = text(200), 20
    engine = engine_of(model, prefix_cache_bytes=0)
    prompts = [text(3, start) for start in range(count)]
    engine.add_request(Request(main=main, branches=prompts), greedy(40))
    engine.step()
    assert engine._tree.store.num_taken <= OF_A_WINDOW + 2 * count
    found: dict[int, list[int]] = {}
    while engine.has_unfinished():
        found |= {event.branch_index: event.result.token_ids for event in engine.step() if event.result is not None}
        assert engine._tree.store.num_taken <= OF_A_WINDOW * (1 + count)
    alone = engine_of(model)
    for index, prompt in enumerate(prompts[:3]):
        branch = Branch(prompt=prompt, branch_id=index + 1)
        assert (
            found[index] == alone.generate([Request(main=main, branches=[branch])], greedy(40))[0].branches[0].token_ids
        )


@pytest.mark.parametrize("visibility", few(reversed(VISIBILITIES), 1))
def test_branches_that_see_each_other_let_pages_go_together(name: str, visibility: Visibility) -> None:
    model = MODELS[name]()
    request = Request(main=text(30), branches=[text(9, 1), text(2, 2), text(5, 3)])
    whole = engine_of(model, visibility=visibility, page_tokens=256)
    expected = [branch.token_ids for branch in whole.generate([request], greedy(70))[0].branches]
    pages = OF_A_WINDOW * 4 + 3
    engine = engine_of(model, visibility=visibility, prefix_cache_bytes=0, kv_cache_bytes=bytes_of(whole, pages))
    found, _, taken = run(engine, [request], greedy(70))
    assert list(found.values()) == expected
    assert taken <= pages


def test_a_text_is_found_again_by_its_end(name: str) -> None:
    """What its head's pages were taken for meanwhile does not matter, if the window behind which it goes on is held."""
    model = MODELS[name]()
    main = text(100)
    plenty = engine_of(model)
    engine = engine_of(model, kv_cache_bytes=bytes_of(plenty, 40), prefix_cache_bytes=bytes_of(plenty, 6))
    request = Request(main=main, branches=[Branch(prompt=[9, 8, 7], branch_id=0)])
    first, _, _ = run(engine, [request], greedy(1))
    assert engine._tree.num_unused == 6
    computed = engine.stats.prompt_tokens
    assert run(engine, [request], greedy(1))[0] == first == {0: generated(model, [*main, 9, 8, 7], 1)}
    assert engine.stats.prompt_tokens - computed <= 3 + PAGE
    engine.reset_prefix_cache()
    assert engine._tree.num_tokens() == 0
    assert not engine._tree._roots, "nothing is left of a text that is not held"
    assert engine.kv_cache_bytes == 0


def test_forks_share_the_window_of_what_they_continue(name: str) -> None:
    model = MODELS[name]()
    main = text(40)
    engine = engine_of(model, prefix_cache_bytes=0)
    request_id = engine.add_request(Request(main=main, branches=[Branch(prompt=[5, 6], branch_id=0)]), greedy(60))
    written: list[int] = []
    while len(written) < 40:
        written += [token for event in engine.step() for token in event.token_ids]
    computed = engine.stats.prompt_tokens
    [fork] = engine.fork(request_id, 0, prompts=[[11, 12, 13]], sampling=greedy(10))
    answers: dict[int, Any] = {}
    while engine.has_unfinished():
        answers |= {event.branch_index: event.result for event in engine.step() if event.result is not None}
    assert answers[0].token_ids == generated(model, [*main, 5, 6], 60)
    continued = [*main, 5, 6, *answers[fork].prefix_token_ids]
    assert answers[fork].token_ids == generated(model, continued, 10)
    assert engine.stats.prompt_tokens - computed <= 3, "nothing of its parent is computed again"


@pytest.mark.parametrize("family", ["mistral", "mistral with 2D RoPE"])
@pytest.mark.parametrize("prefix_pages", few([7, 0, 500]))
def test_joined_mains_are_what_they_are_with_all_pages(family: str, prefix_pages: int) -> None:
    model = MODELS[family]()
    request = Request(main=text(45), branches=[text(9, 1), text(14, 2), text(3, 5)])
    whole = engine_of(model, page_tokens=256)
    engine = engine_of(model, prefix_cache_bytes=bytes_of(whole, prefix_pages), max_batched_tokens=11)
    found: list[list[list[int]]] = []
    for one in (whole, engine):
        [result] = one.generate([request], greedy(20))
        joined = one.join(request, result, [[4, 5], [6]], join="turned")
        one.generate([Request(main=text(50, 4), branches=["x"])], greedy(30))
        [behind] = one.generate([joined], greedy(25))
        found.append([branch.token_ids for branch in (*result.branches, *behind.branches)])
        assert one._tree.num_used == 0
    assert found[0] == found[1]


def test_pages_are_shared_among_texts_that_have_let_different_ones_go() -> None:
    """A text that comes later finds the head, which the first one has left, and both hold what they see."""
    tree = PageTree(PageStore(PAGE, 100), 100, [Reach(window=WINDOW)])
    tokens = text(40)
    first = tree.open(None, Place(), list(tokens))
    tree.reserve(first, 40)
    tree.note_computed(first, 40)
    assert (first.first_page, tree.num_used, tree.num_unused) == (8, 2, 8)
    second = tree.open(None, Place(), [*tokens[:18], 90, 91])
    assert (second.first_page, second.num_cached, second.num_reused) == (3, 18, 18)
    assert tree.reserve(second, 20)
    assert second.pages[:4] == first.pages[:4]
    assert second.pages[4] is not first.pages[4]
    third = tree.open(None, Place(), list(tokens), at_most=39)
    assert (third.first_page, third.num_cached, third.pages[8]) == (8, 39, first.pages[8])
    tree.trim(0)
    assert {page.number for page in first.pages[:3]} == {-1}
    assert all(page.number >= 0 for page in (*first.pages[8:], *second.pages[3:]))
    for one in (first, second, third):
        tree.close(one)
    tree.trim(0)
    assert tree.store.num_taken == 0


@pytest.mark.parametrize("seed", few(range(20)))
def test_random_use(name: str, seed: int) -> None:
    rng = random.Random(seed)
    model = MODELS[name]()
    visibility: Visibility = rng.choice(["isolated", "isolated", "columnar", "strict"])
    reference = engine_of(model, visibility=visibility, page_tokens=256)
    engine = engine_of(
        model,
        visibility=visibility,
        max_running_branches=rng.choice([3, None]),
        max_batched_tokens=rng.choice([5, 16, 2048]),
        kv_cache_bytes=rng.choice([None, bytes_of(reference, 45), bytes_of(reference, 60)]),
        prefix_cache_bytes=rng.choice([0, bytes_of(reference, 12), None]),
        page_tokens=rng.choice([1, 3, 4]),
    )
    beginnings = [text(rng.randrange(1, 60), start) for start in range(3)]
    requests: dict[int, Request] = {}
    answers: dict[int, dict[int, Any]] = {}
    while len(requests) < 12 or engine.has_unfinished():
        if len(requests) < 12 and rng.random() < 0.4:
            main = rng.choice(beginnings)[: rng.randrange(1, 60)] + text(rng.randrange(8), rng.randrange(4))
            branches = [
                Branch(
                    prompt=text(rng.randrange(0 if main and visibility != "strict" else 1, 20), rng.randrange(3)),
                    sampling=SamplingParams(
                        max_new_tokens=rng.randrange(1, 30),
                        temperature=rng.choice([0.0, 0.9]),
                        seed=rng.randrange(99),
                        ignore_eos=True,
                    ),
                )
                for _ in range(rng.randrange(1, 4))
            ]
            request = Request(main=main, branches=branches)
            requests[engine.add_request(request)] = request
        for event in engine.step():
            if event.result is not None:
                assert event.result.error is None
                answers.setdefault(event.request_index, {})[event.branch_index] = event.result.token_ids
    assert engine._tree.num_used == 0
    engine.reset_prefix_cache()
    assert engine.kv_cache_bytes == 0
    assert not engine._tree._roots
    for request_id, request in requests.items():
        reference.reset_prefix_cache()
        [expected] = reference.generate([request])
        assert [answers[request_id][k] for k in range(len(request.branches))] == [
            branch.token_ids for branch in expected.branches
        ]


@pytest.mark.parametrize("pages", range(10, 24))
def test_a_main_that_is_still_held_does_not_take_what_others_were_promised(pages: int) -> None:
    """Columns that hold the pages of their whole answers by promise only, and a short main among the answered texts."""
    engine = Engine(
        tiny_model("mistral"), char_tokenizer(), page_tokens=4, kv_cache_bytes=pages * 4 * 512, visibility="columnar"
    )
    sampling = SamplingParams(max_new_tokens=9, temperature=0, ignore_eos=True)
    short = Request(main=[5, 6, 7, 8, 9, 10], branches=[[11]])
    engine.generate([short], sampling)
    for request in (Request(main=list(range(3, 40)), branches=[[50], [51], [52], [53]]), short):
        engine.add_request(request, sampling)
    for _ in range(200):
        if not engine.has_unfinished():
            break
        engine.step()
    assert not engine.has_unfinished()
