"""Joins: by recomputing they are a fresh request, by turning keys they are what the branches alone had computed.

Without a main in front, a branch alone is the same at any place, so that a text with turned keys is one full forward in
which the tokens of each joined branch see that branch, and what comes after it everything.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from parallelmind import Branch, Engine, Request, RequestResult, SamplingParams
from parallelmind.columnar import (
    additive_mask,
    auto_pair_indices,
    find_rope_patch,
    patch_model_with_interleaved_2d_rope,
)
from parallelmind.engine.joining import JOIN_WAYS, JoinWay
from parallelmind.engine.request import JoinedBranch
from parallelmind.engine.texts import Place
from parallelmind.errors import RequestError, UnsupportedModelError
from tests.broken_models import failing
from tests.cases import few, spread
from tests.families import DEVICE, FAMILIES, MORE_FAMILIES, char_tokenizer, tiny_model

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True, logprobs=0)
STRIDE = 16
TOKEN_BYTES = 512
WINDOWS_IN_KINDS = ("qwen2", "qwen3", "qwen3_moe", "smollm3")
"""Families whose window holds for the layers that the config lists alone."""


def text(length: int, start: int = 0) -> list[int]:
    """Token ids that differ from one start to the other."""
    return [3 + (start + i * (1 + start % 7)) % 90 for i in range(length)]


MAIN, BRANCHES, NEXT = text(10, 3), [text(3, 5), text(4, 6), text(5, 9)], text(3, 30)


def model_of(family: str = "qwen2", patch: str | None = "split") -> Any:
    model = tiny_model(family)
    if patch is not None:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5), patch)  # type: ignore[arg-type]
    return model


def engine_of(model: Any, **settings: Any) -> Engine:
    return Engine(model, char_tokenizer(), **({"branch_stride": STRIDE, "page_tokens": 4} | settings))


def answered(engine: Engine, main: Sequence[int] = MAIN, branches: Sequence[Any] = BRANCHES) -> Any:
    """A request, and its result."""
    request = Request(main=main, branches=branches)
    return request, engine.generate([request], GREEDY)[0]


def assert_same(results: Sequence[RequestResult], others: Sequence[RequestResult]) -> None:
    for result, other in zip(results, others, strict=True):
        for one, two in zip(result.branches, other.branches, strict=True):
            assert one.error is None
            assert one.token_ids == two.token_ids
            assert [p.logprob for p in one.logprobs] == pytest.approx([p.logprob for p in two.logprobs], abs=1e-4)


def keys_of(engine: Engine, request: Request) -> list[Tensor]:
    """The keys [H, T, D] of each layer for the main of a request that was just answered."""
    place = Place(weights=engine._scheduler._weights, joined=request.joined)
    run = engine._tree.open(None, place, list(request.main))  # type: ignore[arg-type]
    size = engine._tree.store.page_tokens
    with torch.inference_mode():
        engine._tree.store.settle()
    assert run.complete
    places = [run.pages[i // size].number * size + i % size for i in range(len(run))]
    store = engine._tree.store
    found = [store.layer(layer)[0].flatten(1, 2)[:, places] for layer in range(store.num_layers)]
    engine._tree.close(run)
    return found


@pytest.mark.parametrize(("family", "patch"), spread([*FAMILIES, *MORE_FAMILIES], [None, "split", "additive"]))
def test_turned_keys_are_those_of_the_branches_alone(family: str, patch: str | None) -> None:
    """Log-probabilities of an answer to a joined text, and of a join of that, are those of one full forward."""
    model = model_of(family, patch)
    engine = engine_of(model)
    request, result = answered(engine, main=[])
    joined = engine.join(request, result, branches=[NEXT], join="turned")
    again = replace(joined, branches=[Branch(prompt=NEXT, branch_id=0)])
    assert_equals_full_forward(model, again, engine.generate([again], GREEDY)[0])
    assert engine.stats.turned_tokens == sum(one.end - one.start for one in joined.joined)


@torch.no_grad()
def assert_equals_full_forward(model: Any, request: Request, result: RequestResult) -> None:
    answer = result.branches[0]
    ids = [*request.main, *NEXT, *answer.token_ids]
    time = torch.arange(len(ids), device=DEVICE)
    seen = time[None] <= time[:, None]
    for one in request.joined:
        seen[one.start : one.end, : one.start] = False
    config = model.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    mask: Any = additive_mask(seen, torch.float32)[None, None]
    if window is not None:
        sliding = additive_mask(seen & (time[None] > time[:, None] - window), torch.float32)[None, None]
        if "sliding_attention" in kinds:
            mask = {"full_attention": mask, "sliding_attention": sliding}
        elif config.model_type not in WINDOWS_IN_KINDS:
            mask = sliding
    positions = time[None]
    if find_rope_patch(model) is not None:
        positions = torch.stack((torch.zeros_like(positions), positions), -1)
    output = model(
        torch.tensor([ids], device=DEVICE), position_ids=positions, attention_mask=mask, use_cache=False
    ).logits[0]
    count = len(answer.token_ids)
    expected = (
        output[-count - 1 : -1]
        .float()
        .log_softmax(-1)
        .gather(1, torch.tensor(answer.token_ids, device=DEVICE)[:, None])
    )
    assert [p.logprob for p in answer.logprobs] == pytest.approx(expected[:, 0].tolist(), abs=1e-3)


@pytest.mark.parametrize(("family", "patch"), spread([*FAMILIES, *MORE_FAMILIES], [None, "split", "additive"]))
def test_keys_of_the_first_layer_are_the_recomputed_ones(family: str, patch: str | None) -> None:
    """They depend on a token and its place alone, whatever the token saw."""
    model = model_of(family, patch)
    engine = engine_of(model)
    request, result = answered(engine)
    turned = engine.join(request, result, branches=[NEXT], join="turned")
    recomputed = engine.join(request, result, branches=[NEXT])
    engine.generate([turned, recomputed], GREEDY)
    found, expected = keys_of(engine, turned), keys_of(engine, recomputed)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    places = slice(turned.joined[-1].start, turned.joined[-1].end)
    assert (found[1] - expected[1])[:, places].abs().max() > 1e-2, "the branches did not see one another"


@pytest.mark.parametrize("patch", [None, "split"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "falcon", "deepseek_v3"])
def test_a_join_with_recompute_is_a_fresh_request(family: str, patch: str | None) -> None:
    model = model_of(family, patch)
    engine = engine_of(model)
    request, result = answered(engine)
    joined = engine.join(request, result, branches=[NEXT, NEXT[:1]], join="recompute")
    tokens = [*MAIN]
    for prompt, answer in zip(BRANCHES, result.branches, strict=True):
        tokens += [*prompt, *answer.token_ids]
    assert joined == Request(main=tokens, branches=[NEXT, NEXT[:1]])
    fresh = engine_of(model).generate([joined], GREEDY)
    assert_same(engine.generate([joined], GREEDY), fresh)
    engine.generate([engine.join(request, result, branches=[NEXT], join="turned")], GREEDY)
    assert_same(engine.generate([joined], GREEDY), fresh)
    assert joined == engine.join(request, result, branches=[NEXT, NEXT[:1]]), "it is the default"


@pytest.mark.parametrize("patch", [None, "split"])
def test_a_branch_that_stood_where_it_stands_now_keeps_its_bits(patch: str | None) -> None:
    """One branch directly behind main, at branch position 0."""
    engine = engine_of(model_of(patch=patch))
    request, result = answered(engine, branches=[Branch(prompt=BRANCHES[0], branch_id=0)])
    before = keys_of(engine, Request(main=[*MAIN, *BRANCHES[0], *result.branches[0].token_ids[:-1]]))
    read = engine.stats.prompt_tokens
    joined = engine.join(request, result, branches=[NEXT], join="turned")
    engine.generate([joined], GREEDY)
    assert engine.stats.prompt_tokens == read + 1 + len(NEXT)
    for keys, former in zip(keys_of(engine, joined), before, strict=True):
        assert torch.equal(keys[:, : former.shape[1]], former)


@pytest.mark.parametrize("patch", [None, "split"])
@pytest.mark.parametrize("page_tokens", [1, 4, 64])
def test_a_turned_join_runs_nothing_again(patch: str | None, page_tokens: int) -> None:
    """But for the last token of each answer, which had not been run at all; and a later turn finds what there is."""
    engine = engine_of(model_of(patch=patch), page_tokens=page_tokens)
    request, result = answered(engine)
    joined = engine.join(request, result, branches=[NEXT], join="turned")
    read = engine.stats.prompt_tokens
    again = engine.generate([joined], GREEDY)[0]
    assert engine.stats.prompt_tokens == read + len(BRANCHES) + len(NEXT)
    read, turned = engine.stats.prompt_tokens, engine.stats.turned_tokens
    assert_same(engine.generate([joined], GREEDY), [again])
    longer = replace(joined, main=[*joined.main, *text(7, 8)])
    engine.generate([longer], GREEDY)
    assert engine.stats.prompt_tokens - read <= 1 + (7 + len(NEXT)), "the last token of a prompt is always run"
    further = engine.join(joined, again, branches=[text(2, 40), text(4, 50)], join="turned")
    assert further.joined[: len(joined.joined)] == joined.joined
    read = engine.stats.prompt_tokens
    engine.generate([further], GREEDY)
    assert engine.stats.prompt_tokens == read + 1 + (2 + 4)
    assert engine.stats.turned_tokens - turned == (0 if patch is None else len(NEXT) + GREEDY.max_new_tokens - 1)


@pytest.mark.parametrize("patch", [None, "split"])
def test_turned_keys_are_not_found_by_others(patch: str | None) -> None:
    model = model_of(patch=patch)
    engine = engine_of(model)
    request, result = answered(engine)
    turned = engine.join(request, result, branches=[NEXT], join="turned")
    first = engine.generate([turned], GREEDY)
    plain = engine.join(request, result, branches=[NEXT])
    # Another number or order of the branches, and other ends of them, are other keys.
    others = [
        plain,
        Request(main=[*plain.main, *NEXT], branches=["a"]),
        replace(turned, joined=tuple(replace(one, branch_id=one.branch_id + 1) for one in turned.joined)),
        replace(turned, joined=turned.joined[1:]),
        replace(turned, joined=turned.joined[:-1]),
        replace(turned, joined=(*turned.joined[:-1], replace(turned.joined[-1], end=turned.joined[-1].end - 3))),
    ]
    for other in [*others, turned]:
        assert_same(engine.generate([other], GREEDY), engine_of(model).generate([other], GREEDY))
    assert_same(engine.generate([turned], GREEDY), first)
    assert first[0].branches[0].logprobs != engine.generate([plain], GREEDY)[0].branches[0].logprobs


@pytest.mark.parametrize("patch", [None, "split"])
@pytest.mark.parametrize("page_tokens", [1, 4, 64])
def test_what_was_dropped_is_computed_again_to_the_same(patch: str | None, page_tokens: int) -> None:
    """Every token once, also for joins of joins, and in tight memory."""
    model = model_of(patch=patch)
    engine = engine_of(model, page_tokens=page_tokens)
    request, result = answered(engine)
    joined = engine.join(request, result, branches=[NEXT, text(2, 77)], join="turned")
    further = engine.join(joined, engine.generate([joined], GREEDY)[0], branches=[text(2, 40), "b"], join="turned")
    expected = engine.generate([further], GREEDY)
    engine.reset_prefix_cache()
    read = engine.stats.prompt_tokens
    assert_same(engine.generate([further], GREEDY), expected)
    assert engine.stats.prompt_tokens - read == len(further.main) + 2 + 1
    size = TOKEN_BYTES * page_tokens
    needed = -(-len(further.main) // page_tokens) + 2 + -(-20 // page_tokens)
    tight = engine_of(model, page_tokens=page_tokens, kv_cache_bytes=needed * size, prefix_cache_bytes=0)
    assert_same(tight.generate([further] * 3, GREEDY), expected * 3)
    assert tight._tree.num_used == 0
    assert tight.kv_cache_bytes == 0


def test_joins_take_forks_with_what_they_continue() -> None:
    engine = engine_of(model_of())
    request = Request(main=MAIN, branches=BRANCHES[:2])
    result = RequestResult()
    answers = {}
    fork = None
    for event in engine.stream([request], GREEDY):
        if event.branch_index == 1 and len(event.token_ids) and fork is None:
            [fork] = engine.fork(event.request_id, 1, prompts=[text(2, 70)])
        if event.result is not None:
            answers[event.branch_index] = event.result
    result.branches = [answers[index] for index in sorted(answers)]
    tokens = [*MAIN, *BRANCHES[1], *answers[2].prefix_token_ids, *answers[2].token_ids]
    assert answers[2].prefix_token_ids == [*answers[1].token_ids[:1], *text(2, 70)]
    joined = engine.join(request, result, branches=[NEXT], take=[2], join="turned")
    assert list(joined.main) == tokens
    assert joined.joined == (JoinedBranch(len(MAIN), len(tokens) - 1, len(MAIN), 2),)
    read = engine.stats.prompt_tokens
    turned = engine.generate([joined], GREEDY)
    assert engine.stats.prompt_tokens == read + 1 + len(NEXT)
    assert_same(turned, engine_of(engine._runner.model).generate([joined], GREEDY))
    everything = engine.join(request, result)
    assert len(everything.main) == len(tokens) + sum(len(BRANCHES[i]) + len(answers[i].token_ids) for i in range(2))


@pytest.mark.parametrize("seed", few(range(4), 2))
def test_random_joins(seed: int) -> None:
    """Joins of joins, tight limits, cancellations and failures: answers are those of an engine of their own."""
    rng = random.Random(seed)
    model = model_of(patch=rng.choice([None, "split", "additive"]))
    engine = engine_of(
        model,
        page_tokens=rng.choice([1, 3, 64]),
        kv_cache_bytes=rng.choice([400 * TOKEN_BYTES, None]),
        prefix_cache_bytes=rng.choice([0, 100 * TOKEN_BYTES, None]),
        max_batched_tokens=rng.choice([5, 40, 2048]),
        max_running_branches=rng.choice([2, None]),
        isolate_failures=True,
    )
    requests = [Request(main=text(rng.randrange(0, 12), i % 2), branches=BRANCHES[: 1 + i % 3]) for i in range(4)]
    for _ in range(3):
        results = engine.generate(requests, GREEDY)
        assert_same(results, [engine_of(model).generate([request], GREEDY)[0] for request in requests])
        cancelled = engine.add_request(rng.choice(requests), GREEDY)
        for _ in range(rng.randrange(4)):
            engine.step()
        engine.cancel(cancelled)
        while engine.has_unfinished():
            engine.step()
        requests = [
            engine.join(
                request,
                result,
                branches=[text(rng.randrange(1, 4), rng.randrange(9)) for _ in range(rng.randrange(1, 3))],
                take=rng.choice([None, [0]]),
                join=rng.choice(["turned", "turned", "recompute"]),
            )
            for request, result in zip(requests, results, strict=True)
        ]
    with failing(model, RuntimeError("illegal memory access"), token=requests[0].main[-1]):
        engine.generate(requests, GREEDY)
    assert_same(engine.generate(requests, GREEDY), [engine_of(model).generate([r], GREEDY)[0] for r in requests])
    assert engine._tree.num_used == 0
    engine.reset_prefix_cache()
    assert engine.kv_cache_bytes == 0


def test_a_branch_that_fails_takes_down_the_join_alone() -> None:
    model = model_of()
    engine = engine_of(model, isolate_failures=True)
    request, result = answered(engine, branches=[text(3, 5), [7, 77, 8]])
    joined = engine.join(request, result, branches=[NEXT], join="turned")
    expected = engine.generate([joined], GREEDY)
    engine.reset_prefix_cache()
    other = Request(main=MAIN, branches=["no"])
    with failing(model, RuntimeError("illegal memory access"), token=77):
        found = engine.generate([joined, other, joined], GREEDY)
    assert [one.branches[0].error_kind for one in found] == ["engine", None, "engine"]
    assert engine._tree.num_used == 0
    assert_same(engine.generate([joined], GREEDY), expected)


@pytest.mark.parametrize("join", JOIN_WAYS)
@pytest.mark.parametrize("fails", [False, True])
def test_branches_never_compute_the_main_that_they_share(join: JoinWay, fails: bool) -> None:
    """One text with main, they would run what is turned as plain tokens: for want of a page, or of a sibling's."""
    model = model_of(patch=None)
    engine = engine_of(
        model, page_tokens=64, kv_cache_bytes=4 * 64 * TOKEN_BYTES, max_running_branches=3, isolate_failures=True
    )
    request, result = answered(engine, main=text(5, 3), branches=BRANCHES[:2])
    brief = replace(GREEDY, max_new_tokens=1)
    prompts = [text(4, 30) if not fails else [*text(3, 30), 77], text(2, 1), text(3, 6), [*text(2, 30), 5]]
    if fails:  # the last one waits for what the first one has in common with it, which never comes
        prompts = [prompts[0], prompts[3]]
    branches = [Branch(prompt=prompts[0], sampling=brief), *prompts[1:]]
    joined = engine.join(request, result, branches=branches, join=join)
    expected = engine_of(model).generate([joined], GREEDY)[0]
    engine.reset_prefix_cache()
    read = engine.stats.prompt_tokens
    with failing(model, RuntimeError("illegal memory access"), token=77 if fails else -1):
        found = engine.generate([joined], GREEDY)[0]
    assert [branch.error_kind for branch in found.branches] == ["engine" if fails else None, *[None] * len(prompts[1:])]
    start = int(fails)
    assert_same([RequestResult(branches=found.branches[start:])], [RequestResult(branches=expected.branches[start:])])
    # The last branch takes over the tokens that it has in common with the first one, if that has come to them.
    run = len(joined.main) + sum(map(len, prompts)) - (len(prompts[0]) if fails else 2)
    assert engine.stats.prompt_tokens - read == run


def test_a_join_while_another_thread_runs_the_engine() -> None:
    """What it finds out of the model, when it turns keys for the first time, is no forward in the middle of others."""
    model = model_of()
    request, result = answered(engine_of(model))
    own = model(torch.tensor([MAIN], device=DEVICE)).logits
    engine = engine_of(model)
    joining, answering = threading.Event(), threading.Event()
    joined: list[Request] = []
    other = threading.Thread(target=lambda: joined.append(engine.join(request, result, join="turned")))

    def meet(*_: Any) -> None:
        if threading.current_thread() is other:
            joining.set()
            answering.wait(timeout=1)
        elif other.ident is None:
            other.start()
            joining.wait(timeout=0.5)

    handle = model.model.layers[1].register_forward_pre_hook(meet)
    try:
        found = engine.generate([request], GREEDY)
        answering.set()
        other.join()
    finally:
        handle.remove()
    assert_same(found, [result])
    assert joined == [engine_of(model).join(request, result, join="turned")]
    assert torch.equal(model(torch.tensor([MAIN], device=DEVICE)).logits, own), "the model is as it was"


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_models_without_rotary_embedding_join_by_recomputing(family: str) -> None:
    engine = Engine(tiny_model(family), char_tokenizer())
    request, result = answered(engine)
    with pytest.raises(UnsupportedModelError, match=r'no rotary embedding.*join="recompute"'):
        engine.join(request, result, join="turned")
    joined = engine.join(request, result, branches=[NEXT])
    assert engine.generate([joined], GREEDY)[0].branches[0].error is None


def test_what_cannot_be_turned_says_why() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 32,
    }
    longrope = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    engine = Engine(longrope, char_tokenizer())
    request, result = answered(engine)
    with pytest.raises(UnsupportedModelError, match=r'longrope.*join="recompute"'):
        engine.join(request, result, join="turned")
    with pytest.raises(RequestError, match="longrope"):
        engine.add_request(Request(main=MAIN, joined=(JoinedBranch(3, 5, 2, 1),)))
    engine = engine_of(model_of())
    for visibility in ("columnar", "strict"):
        request, result = answered(engine_of(model_of(), visibility=visibility))
        with pytest.raises(RequestError, match=f'{visibility}.*join="recompute"'):
            engine.join(replace(request, visibility=visibility), result, join="turned")
    request, result = answered(engine)
    with pytest.raises(RequestError, match="'turn'"):
        engine.join(request, result, join="turn")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="take has 3"):
        engine.join(request, result, take=[0, 3])
    with pytest.raises(RequestError, match="3 branches, and the result 1"):
        engine.join(request, RequestResult(branches=result.branches[:1]))
    joined = engine.join(request, result, branches=[NEXT], join="turned")
    for wrong in (replace(joined, main="text"), replace(joined, main=joined.main[:-1])):
        [refused] = engine.generate([wrong])[0].branches
        assert refused.error_kind == "invalid"
        assert "joined does not fit main" in str(refused.error)
    assert not engine.has_unfinished()


@pytest.mark.parametrize("page_tokens", [4, 64])
@pytest.mark.parametrize(
    ("branches", "n", "main"),
    [(["abcdef"], 3, []), (["abcdef", "ghi"], 2, [5, 6, 7]), (["abcdef"] * 2 + ["ghi"], 1, [])],
)
def test_equal_answers_are_joined(branches: list[str], n: int, main: list[int], page_tokens: int) -> None:
    """One of them begins as the joined text does, and each would wait for the other."""
    engine = Engine(tiny_model("qwen2"), char_tokenizer(), page_tokens=page_tokens)
    request = Request(main=main, branches=branches)
    params = SamplingParams(max_new_tokens=5, temperature=0, n=n, ignore_eos=True)
    joined = engine.join(request, engine.generate([request], params)[0], branches=["xyz"], join="turned")
    first = engine.generate([joined], GREEDY)[0].branches[0].token_ids
    engine.reset_prefix_cache()
    assert engine.generate([joined], GREEDY)[0].branches[0].token_ids == first
    assert engine._tree.num_used == 0


def test_arguments_of_join_that_make_no_sense() -> None:
    engine = engine_of(model_of())
    request, result = answered(engine)
    for wrong in (lambda: engine.join("ab", result), lambda: engine.join(request, [result])):  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="takes the Request and its RequestResult"):
            wrong()
    for take in ("a", 0, [True], ["0"]):
        with pytest.raises(RequestError, match="take is"):
            engine.join(request, result, take=take)  # type: ignore[arg-type]
    failed = engine.generate([Request(main=[3, 99999], branches=["a"])])[0]
    with pytest.raises(RequestError, match=r"branch 0 of the result has ended with an error.*take"):
        engine.join(Request(main=[3], branches=["a"]), failed)


@pytest.mark.parametrize("take", [None, [1], [2, 0]])
def test_a_conversation_goes_on_by_the_turns_of_its_branches(take: list[int] | None) -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    engine = Engine(model_of("qwen2", None), tokenizer)
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    asked: list[Any] = ["why", [{"role": "user", "content": "how"}], "who"]
    request = Request(main=chat, branches=asked)
    result = engine.generate([request], GREEDY)[0]
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": answer.text}]
        for text, answer in zip(("why", "how", "who"), result.branches, strict=True)
    ]
    joined = engine.join(request, result, ["next"], take=take)
    expected = [*chat, *(turn for index in take or range(3) for turn in turns[index])]
    assert [dict(one) for one in joined.main] == expected  # type: ignore[union-attr, call-overload]
    fresh = engine.generate([Request(main=expected, branches=["next"])], GREEDY)
    assert engine.generate([joined], GREEDY)[0].branches[0].token_ids == fresh[0].branches[0].token_ids
    with pytest.raises(RequestError, match="under a conversation"):
        engine.join(request, result, ["next"], take=take, join="turned")


def test_a_fork_under_a_conversation_is_joined_with_what_it_continues() -> None:
    tokenizer = char_tokenizer()
    engine = Engine(model_of("qwen2", None), tokenizer)
    request = Request(main=[{"role": "user", "content": "hello"}], branches=[""])
    request_id = engine.add_request(request, GREEDY)
    results: dict[int, Any] = {}
    forks: list[int] = []
    for number in range(20):
        for event in engine.step():
            if event.result is not None:
                results[event.branch_index] = event.result
        if number == 3:
            forks = engine.fork(request_id, 0, prompts=["xy"])
    result = RequestResult(branches=[results[index] for index in sorted(results)])
    joined = engine.join(request, result, ["next"], take=forks)
    fork = result.branches[forks[0]]
    whole = tokenizer.decode([*fork.prefix_token_ids, *fork.token_ids])
    assert joined.main[1] == {"role": "assistant", "content": whole}  # type: ignore[index]
