"""What the engine must equal: each branch alone, one full forward, itself under any other batching."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.columnar import (
    VISIBILITIES,
    Visibility,
    auto_pair_indices,
    build_columnar_causal_mask,
    find_rope_patch,
    pack_row,
    patch_model_with_interleaved_2d_rope,
)
from tests.cases import few, spread
from tests.families import DEVICE, FAMILIES, MORE_FAMILIES, char_tokenizer, tiny_model

STRIDE = 16
GREEDY = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True)
TOKENIZER = char_tokenizer()
MAIN = "the-shared-text"
BRANCHES = ["abc", "d", "efghijkl", ""]


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def model_of(family: str, patch: str | None) -> Any:
    model = tiny_model(family)
    if patch is not None:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5), patch)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(("family", "patch"), spread([*FAMILIES, *MORE_FAMILIES], [None, "additive"], one_in=2))
def test_each_branch_equals_generate_alone(family: str, patch: str | None) -> None:
    """Isolated, branch position 0: the tokens are those of transformers' own generate on main + prompt."""
    model = model_of(family, patch)
    engine = Engine(model, TOKENIZER, branch_stride=0)
    requests = [
        Request(main=MAIN, branches=BRANCHES),
        Request(main="another", branches=["xyz"]),
        Request(main=MAIN, branches=["again"]),
        Request(main="", branches=["no", "main"]),
        Request(main="only-main"),
    ]
    results = engine.generate(requests, GREEDY)
    for request, result in zip(requests, results, strict=True):
        for prompt, branch in zip(request.branches or [""], result.branches, strict=True):
            sequence = torch.tensor([ids(str(request.main)) + ids(str(prompt))], device=DEVICE)
            alone = model.generate(
                sequence,
                attention_mask=torch.ones_like(sequence),
                max_new_tokens=GREEDY.max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, sequence.shape[1] :].tolist()
            assert branch.token_ids == alone, (family, prompt)
            assert branch.finish_reason == "length"


@pytest.mark.parametrize(
    ("family", "visibility", "patch"),
    spread(FAMILIES, VISIBILITIES, [None, "split", "additive"], one_in=5),
)
def test_cached_decode_equals_one_full_forward(family: str, visibility: Visibility, patch: str | None) -> None:
    """Every logit the engine sampled from is the logit of one forward over the whole packed row."""
    if patch is None and visibility == "columnar" and family not in ("qwen2", "gemma3_text"):
        pytest.skip("two families suffice for columns without branch positions")
    model = model_of(family, patch)
    prompts = [prompt for prompt in BRANCHES if prompt or visibility != "strict"]
    for main in (MAIN, ""):
        branches = [prompt for prompt in prompts if prompt or main]
        engine = Engine(model, TOKENIZER, visibility=visibility, branch_stride=STRIDE)
        assert_equals_full_forward(engine, main, branches)


@pytest.mark.parametrize(
    ("family", "visibility"),
    spread(["qwen2", "mistral", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "falcon"], VISIBILITIES),
)
def test_chunked_prefill_equals_one_full_forward(family: str, visibility: Visibility) -> None:
    """The same with mains and prompts cut into chunks of a few tokens."""
    model = model_of(family, "split")
    engine = Engine(model, TOKENIZER, visibility=visibility, branch_stride=STRIDE, max_batched_tokens=5, page_tokens=3)
    assert_equals_full_forward(engine, MAIN, ["abc", "d", "efghijklmnopq"])
    engine.reset_prefix_cache()
    engine.generate([Request(main=MAIN[:7], branches=["x"])], GREEDY)
    assert_equals_full_forward(engine, MAIN, ["abc", "d", "efghijklmnopq"])


def assert_equals_full_forward(engine: Engine, main: str, branches: Sequence[str]) -> None:
    """Every logit the engine computes for a request is that of one forward over the row it ends up with."""
    with recorded_logits(engine, len(main)) as recorded:
        result = engine.generate([Request(main=main, branches=branches)], GREEDY)[0]
    tokens = [ids(p) + b.token_ids for p, b in zip(branches, result.branches, strict=True)]
    row = pack_row(ids(main), tokens)
    full = full_forward(engine._runner.model, row.input_ids.to(DEVICE), row.pos2d(STRIDE).to(DEVICE), engine.visibility)
    place = {
        (number, int(row.time_ids[i]) - len(main) * (number > 0)): i for i, number in enumerate(row.branch_ids.tolist())
    }
    assert len(recorded) >= sum(len(b.token_ids) for b in result.branches) - list(branches).count("")
    for key, logits in recorded.items():
        torch.testing.assert_close(logits, full[place[key]], atol=1e-4, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("visibility", few(["columnar", "isolated", "strict"]))
def test_results_do_not_depend_on_batching(visibility: Visibility) -> None:
    """Slots, chunks, order and company change nothing, sampled or greedy."""
    model = model_of("qwen2", "split")
    rng = random.Random(0)

    def text(longest: int) -> str:
        return "".join(chr(rng.randrange(33, 127)) for _ in range(rng.randrange(1, longest)))

    requests = [
        Request(
            main=text(40),
            branches=[
                Branch(
                    prompt=text(9),
                    sampling=SamplingParams(
                        max_new_tokens=rng.randrange(1, 12),
                        temperature=rng.choice([0.0, 1.0]),
                        top_p=rng.choice([1.0, 0.8]),
                        top_k=rng.choice([0, 5]),
                        repetition_penalty=rng.choice([1.0, 1.3]),
                        seed=seed,
                    ),
                )
                for seed in range(rng.randrange(1, 5))
            ],
        )
        for _ in range(12)
    ]

    def answers(order: Sequence[int], **limits: int) -> dict[int, list[list[int]]]:
        engine = Engine(model, TOKENIZER, visibility=visibility, branch_stride=STRIDE, **limits)  # type: ignore[arg-type]
        results = engine.generate([requests[i] for i in order])
        assert not engine.has_unfinished()
        return {i: [b.token_ids for b in r.branches] for i, r in zip(order, results, strict=True)}

    order = list(range(len(requests)))
    expected = {i: answers([i])[i] for i in order}
    assert answers(order) == expected
    assert answers(order, max_running_branches=4, max_batched_tokens=7) == expected
    assert answers(order, max_running_requests=2, prefix_cache_bytes=0) == expected
    assert answers(order, page_tokens=2) == expected
    assert answers(order, page_tokens=5, kv_cache_bytes=150 * 512) == expected
    rng.shuffle(order)
    assert answers(order, max_running_branches=5) == expected


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "falcon"])
def test_isolated_branches_do_not_influence_each_other(family: str) -> None:
    model = model_of(family, "split")

    def logits(second: str) -> dict[tuple[int, int], Tensor]:
        engine = Engine(model, TOKENIZER, branch_stride=STRIDE)
        with recorded_logits(engine) as recorded:
            engine.generate([Request(main=MAIN, branches=["first", second, "third"])], GREEDY)
        return recorded

    before, after = logits("secret"), logits("secreT")
    for key in before:
        if key[0] in (0, 1, 3):
            torch.testing.assert_close(before[key], after[key], atol=1e-5, rtol=0)
    assert any((before[key] - after[key]).abs().max() > 1e-3 for key in before if key[0] == 2)


@pytest.mark.parametrize("family", ["qwen2", "falcon"])
def test_columnar_branches_influence_later_columns_only(family: str) -> None:
    model = model_of(family, "split")
    prompts = ["firs", "seco", "thir"]

    def logits(second: str) -> dict[tuple[int, int], Tensor]:
        engine = Engine(model, TOKENIZER, visibility="columnar", branch_stride=STRIDE)
        with recorded_logits(engine) as recorded:
            engine.generate([Request(main=MAIN, branches=[prompts[0], second, prompts[2]])], GREEDY)
        return recorded

    # The change is in the last prompt column; the logits there belong to the other branches' same column.
    before, after = logits("seco"), logits("secO")
    column = len("seco") - 1
    for number in (1, 3):
        torch.testing.assert_close(before[number, column], after[number, column], atol=1e-5, rtol=0)
        assert (before[number, column + 1] - after[number, column + 1]).abs().max() > 1e-3


def test_additive_branch_0_is_the_unpatched_model() -> None:
    for family in FAMILIES:
        model = tiny_model(family)
        sequence = torch.tensor([ids(MAIN)], device=DEVICE)
        before = model(sequence).logits
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5), "additive")
        assert torch.equal(model(sequence).logits, before), family
        positions = torch.stack((torch.zeros_like(sequence), torch.arange(len(MAIN), device=DEVICE)[None]), dim=-1)
        two_axes = model(sequence, position_ids=positions, attention_mask=torch.ones_like(sequence)).logits
        torch.testing.assert_close(two_axes, before, atol=1e-6, rtol=0)
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.0), "split")
        positions[..., 0] = 77
        no_pairs = model(sequence, position_ids=positions, attention_mask=torch.ones_like(sequence)).logits
        torch.testing.assert_close(no_pairs, before, atol=1e-6, rtol=0)


@contextmanager
def recorded_logits(engine: Engine, main_length: int = len(MAIN)) -> Iterator[dict[tuple[int, int], Tensor]]:
    """The logits of each forward by (branch id, index of the token within its branch); branch id 0 is main."""
    recorded: dict[tuple[int, int], Tensor] = {}
    runner = engine._runner
    original = runner.forward

    def forward(step: Any, logits_at: Tensor) -> Tensor:
        logits = original(step, logits_at)
        place = []
        for span in step.spans:
            past = span.past
            if span.branch_id and span.run.base is None and span.run.place.first_time == 0:
                past -= main_length  # main and branch are one text
            place += [(span.branch_id, past + i) for i in range(len(span.token_ids))]
        recorded.update({place[int(at)]: row for at, row in zip(logits_at, logits, strict=True)})
        return logits

    runner.forward = forward  # type: ignore[method-assign]
    try:
        yield recorded
    finally:
        runner.forward = original  # type: ignore[method-assign]


@torch.no_grad()
def full_forward(
    model: Any, input_ids: Tensor, pos2d: Tensor, visibility: Visibility, rotated: Tensor | None = None
) -> Tensor:
    """Logits [S, V] of one plain forward over a packed row, with a dense mask per kind of layer.

    Args:
        rotated: positions [S, 2] of the rotary embedding where they are others than those of the mask.
    """
    config = model.config
    positions = pos2d[None]
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    full = build_columnar_causal_mask(positions, visibility=visibility)
    mask: Any = full
    if window is not None:
        sliding = build_columnar_causal_mask(positions, visibility=visibility, sliding_window=window)
        mixed = "sliding_attention" in kinds
        mask = {"full_attention": full, "sliding_attention": sliding} if mixed else sliding
        if config.model_type in ("qwen2", "qwen3", "qwen3_moe", "smollm3") and not mixed:
            mask = full
    patched = find_rope_patch(model) is not None
    output = model(
        input_ids[None],
        position_ids=(positions if rotated is None else rotated[None]) if patched else positions[..., 1],
        attention_mask=mask,
        use_cache=False,
    )
    return output.logits[0]
