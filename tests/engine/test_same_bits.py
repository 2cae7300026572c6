"""A branch has the same log-probabilities, to the last bit, alone and in any company (on a CPU)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind import (
    Branch,
    Engine,
    Request,
    SamplingParams,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
)
from parallelmind.engine.attention import attend, rounds_alike
from parallelmind.engine.request import BASE_MODEL, BranchResult
from parallelmind.errors import SettingsError
from parallelmind.models.adapters import AdapterSet, attach_adapters
from parallelmind.models.cpu.instructions import has_native
from parallelmind.models.cpu.optimize import optimize_for_cpu
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from tests.families import CHUNKED, DEVICE, FAMILIES, MORE_FAMILIES, char_tokenizer, tiny_model

PARAMS = SamplingParams(max_new_tokens=16, temperature=0, ignore_eos=True, logprobs=1)
FEW = replace(PARAMS, max_new_tokens=4)
Answer = tuple[list[int], list[float]]


pytestmark = pytest.mark.skipif(
    DEVICE != "cpu" or not rounds_alike(torch.float32, torch.get_num_threads()),
    reason="this device's kernels round by their number of rows, and the engine says so",
)
HALF = pytest.mark.skipif(not has_native(torch.bfloat16), reason="computed in float32 here")
WIDE = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "initializer_range": 0.05}
"""Wide enough for products that are summed in parts."""
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": WIDE | {"hidden_size": 896, "intermediate_size": 2816, "num_attention_heads": 14},
    "gemma2": WIDE | {"head_dim": 64},
    "mixtral": WIDE,
    "gpt_oss": WIDE | {"head_dim": 64},
    "phi": WIDE | {"hidden_size": 640, "num_key_value_heads": 8},
    "gpt2": {"n_embd": 512, "n_head": 8, "n_inner": None},
    "deepseek_v3": WIDE
    | {"moe_intermediate_size": 256, "q_lora_rank": 96, "kv_lora_rank": 96, "num_key_value_heads": 8}
    | {"qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 64},
    "llama4_text": CHUNKED | WIDE | {"head_dim": 64, "intermediate_size_mlp": 256},
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def text(count: int, start: int) -> list[int]:
    return [3 + (start * 31 + i * (1 + start % 7) + i * i % 11) % 90 for i in range(count)]


def requests() -> list[Request]:
    """Mains that begin alike and others, of no, one and many pages, with branches of many lengths."""
    chance = random.Random(1)
    return [
        Request(
            main=text(length, chance.randrange(3)),
            branches=[text(chance.choice([1, 3, 20, 70]), chance.randrange(20)) for _ in range(count)],
        )
        for length, count in ((0, 3), (5, 9), (40, 2), (100, 5), (130, 1), (300, 7), (600, 4), (100, 2))
    ]


def answers(engine: Engine, asked: Sequence[Request], sampling: SamplingParams = PARAMS) -> list[list[Answer]]:
    found = engine.generate(asked, sampling)
    return [[(one.token_ids, [each.logprob for each in one.logprobs]) for one in result.branches] for result in found]


def engine_of(model: Any, **settings: Any) -> Engine:
    return Engine(model, char_tokenizer(), branch_stride=16, **settings)


@pytest.mark.parametrize(
    ("family", "patched"),
    [
        ("qwen2", True),
        ("mistral", False),
        pytest.param("qwen2", False, marks=pytest.mark.slow),
        pytest.param("mistral", True, marks=pytest.mark.slow),
    ],
)
def test_a_branch_is_the_same_alone_and_in_any_company(family: str, patched: bool) -> None:
    model = tiny_model(family, intermediate_size=64)
    if patched:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    optimize_for_cpu(model)
    asked = requests()
    engine = engine_of(model)
    assert engine.deterministic
    expected = answers(engine, asked)
    alone = engine_of(model, prefix_cache_bytes=0)
    for request, wanted in zip(asked, expected, strict=True):
        assert answers(alone, [request]) == [wanted]
        for number, (prompt, one) in enumerate(zip(request.branches, wanted, strict=True), start=1):
            branch = Branch(prompt=prompt, branch_id=number)  # type: ignore[arg-type]
            assert answers(alone, [Request(main=request.main, branches=[branch])]) == [[one]]
    assert answers(engine_of(model), asked[::-1]) == expected[::-1]
    assert answers(engine_of(model, max_batched_tokens=37), asked) == expected, "mains in other chunks"
    warm = engine_of(model)
    assert [answers(warm, asked) for _ in range(2)] == [expected, expected], "keys that are there already"
    page = 64 * 2 * 2 * 2 * 16 * 4  # tokens × layers × (keys, values) × heads × head size × bytes
    pages = 5 if family == "mistral" else 14  # its texts hold what its window sees
    tight = engine_of(model, kv_cache_bytes=pages * page)
    assert answers(tight, asked) == expected
    assert patched or tight.stats.preemptions > 0, "branches without a position of their own go on in the page of main"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_threads_do_not_share_the_products_of_a_single_head(count: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 700, 80) * 2, torch.randn(1, 512, 80), torch.randn(1, 512, 80)
    with threads(count):
        whole = attend(query, key, value, None, 0.2)
        for rows in (1, 8, 21, 32, 33, 200):
            some = attend(query[:, -rows:], key, value, None, 0.2)
            assert all(torch.equal(a, b[:, -rows:]) for a, b in zip(some, whole, strict=True)), rows


def saved_adapter(path: Path, seed: int) -> Path:
    model = apply_lora(tiny_model("qwen2", **WIDE), rank=3 + seed, seed=seed)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora.B.weight, std=0.2)
    return save_lora(model, path)


def assert_same_in_any_company(
    model: Any, asked: Sequence[Request], sampling: SamplingParams = FEW, **settings: Any
) -> None:
    engine = engine_of(model, **settings)
    assert engine.deterministic
    expected = answers(engine, asked, sampling)
    alone = engine_of(model, prefix_cache_bytes=0, **settings)
    for request, wanted in zip(asked, expected, strict=True):
        for number, (prompt, one) in enumerate(zip(request.branches, wanted, strict=True), start=1):
            branch = Branch(prompt=prompt, branch_id=number, adapter=request.adapter)  # type: ignore[arg-type]
            single = Request(main=request.main, branches=[branch], adapter=request.adapter)
            assert answers(alone, [single], sampling) == [[one]], f"branch {number} of {len(request.main)} tokens"
    assert answers(engine_of(model, max_batched_tokens=37, **settings), asked[::-1], sampling) == expected[::-1]


@pytest.mark.parametrize(
    ("family", "dtype", "count"),
    [
        ("gpt_oss", torch.float32, 2),
        pytest.param("gemma2", torch.float32, 1, marks=pytest.mark.slow),
        pytest.param("llama4_text", torch.float32, 1, marks=pytest.mark.slow),
        pytest.param("qwen2", torch.bfloat16, 2, marks=HALF),
        pytest.param("mixtral", torch.bfloat16, 1, marks=HALF),
        pytest.param("phi", torch.bfloat16, 1, marks=HALF),
        pytest.param("qwen2", torch.float32, 3, marks=pytest.mark.slow),
    ],
)
def test_models_wide_enough_for_products_in_parts(family: str, dtype: torch.dtype, count: int) -> None:
    model = tiny_model(family, dtype, **SHAPES[family])
    optimize_for_cpu(model)
    with threads(count):
        assert_same_in_any_company(model, requests()[1:5])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HALF)])
@pytest.mark.parametrize("family", sorted({*FAMILIES, *MORE_FAMILIES, *SHAPES} - {"falcon", "qwen3_moe", "qwen2_moe"}))
def test_all_families_have_the_same_bits(family: str, dtype: torch.dtype, count: int) -> None:
    model = tiny_model(family, dtype, **SHAPES.get(family, WIDE))
    optimize_for_cpu(model)
    with threads(count):
        assert_same_in_any_company(model, requests(), PARAMS)


def test_a_model_whose_layers_are_not_packed_has_the_same_bits() -> None:
    assert_same_in_any_company(tiny_model("qwen2", **WIDE), requests()[1:5])


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HALF)])
def test_branches_with_adapters_have_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    names = ("one", "two")
    paths = {name: saved_adapter(tmp_path / name, seed) for seed, name in enumerate(names)}
    model, adapters = tiny_model("qwen2", dtype, **WIDE), AdapterSet()
    for name in names:
        adapters.register(name, None)
    attach_adapters(model, adapters, paths)
    optimize_for_cpu(model)
    chosen = ("one", "two", BASE_MODEL, "one")
    asked = [replace(request, adapter=name) for request, name in zip(requests()[1:5], chosen, strict=True)]
    assert_same_in_any_company(model, asked, adapters=adapters)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HALF)])
def test_forks_and_recomputed_joins_have_the_bits_of_the_same_text_sent_whole(dtype: torch.dtype) -> None:
    model = tiny_model("qwen2", dtype, **WIDE)
    optimize_for_cpu(model)
    engine = engine_of(model)
    request = Request(main=text(150, 1), branches=[text(20, 3), text(7, 5)])
    forks: list[int] = []
    results: dict[int, BranchResult] = {}
    for event in engine.stream([request], PARAMS):
        if event.result is not None:
            results[event.branch_index] = event.result
        elif not forks:
            forks = engine.fork(event.request_id, 0, prompts=[[40, 41, 42], [50]])
    for fork in forks:
        one = results[fork]
        whole = Request(main=request.main, branches=[[*request.branches[0], *one.prefix_token_ids]])
        shorter = replace(PARAMS, max_new_tokens=len(one.token_ids))
        expected = [(one.token_ids, [each.logprob for each in one.logprobs])]
        assert answers(engine_of(model, prefix_cache_bytes=0), [whole], shorter) == [expected]
    joined = engine.join(request, engine.generate([request], FEW)[0], branches=[[9, 10, 11]])
    fresh = Request(main=list(joined.main), branches=[[9, 10, 11]])
    assert answers(engine, [joined]) == answers(engine_of(model, prefix_cache_bytes=0), [fresh])


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HALF)])
def test_soft_caps_sum_alike_with_any_number_of_threads(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for heads, size in ((1, 32), (2, 64), (1, 256)):
        arrays = torch.randn(3, heads, 512, size, generator=generator).to(dtype)
        query, key, value = arrays[0].repeat(1, 2, 1) * 2, arrays[1], arrays[2]
        with threads(count):
            whole = attend(query, key, value, None, 0.2, 50.0)
            for rows in (1, 3, 37, 200, 700):
                few = attend(query[:, -rows:], key, value, None, 0.2, 50.0)
                assert all(torch.equal(a, b[:, -rows:]) for a, b in zip(few, whole, strict=True)), (heads, size, rows)


def test_pages_that_fill_no_tile_cannot_promise_it() -> None:
    assert not engine_of(tiny_model("qwen2"), page_tokens=10).deterministic
    with pytest.raises(SettingsError, match="--deterministic cannot be kept with page_tokens 10; use a multiple of 32"):
        engine_of(tiny_model("qwen2"), page_tokens=10, deterministic=True)


def test_what_runs_by_its_own_attention_cannot_promise_it() -> None:
    model = tiny_model("falcon")
    assert not engine_of(model).deterministic
    with pytest.raises(SettingsError, match="--deterministic cannot be kept: FalconForCausalLM runs all branches by"):
        engine_of(model, deterministic=True)
    fast = tiny_model("qwen2")
    assert not engine_of(fast, deterministic=False).deterministic
    optimize_for_cpu(fast, deterministic=False)
    with pytest.raises(SettingsError, match="its layers were packed without it"):
        engine_of(fast, deterministic=True)
