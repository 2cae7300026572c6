"""Rotary embeddings that depend on the length of the text: each text follows its own, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from parallelmind import (
    Engine,
    Request,
    SamplingParams,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
)
from parallelmind.columnar import find_rope_patch
from tests.cases import few
from tests.families import DEVICE, char_tokenizer, tiny_model

LIMIT = 32
STRIDE = 16
NEW = 10
GREEDY = SamplingParams(max_new_tokens=NEW, temperature=0, ignore_eos=True)


def text(count: int, start: int = 0) -> list[int]:
    return [3 + (start + i * 7) % 90 for i in range(count)]


def longrope(patched: bool = False) -> Any:
    """A model whose frequencies are others from its 33rd token on."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        "original_max_position_embeddings": LIMIT,
    }
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=LIMIT)
    return patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5)) if patched else model


@torch.no_grad()
def alone(model: Any, main: Sequence[int], prompt: Sequence[int], number: int) -> list[int]:
    """What a branch answers by whole forwards of its own text."""
    ids = [*main, *prompt]
    for _ in range(NEW):
        time = torch.arange(len(ids))
        branch = (time >= len(main)) * number * STRIDE
        positions = torch.stack((branch, time), -1) if find_rope_patch(model) is not None else time
        one = torch.tensor([ids], device=DEVICE)
        logits = model(one, position_ids=positions[None].to(DEVICE), attention_mask=torch.ones_like(one)).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[-NEW:]


REQUESTS = [
    Request(main=text(10, 1), branches=[text(3), text(5, 9)]),
    Request(main=text(40, 2), branches=[text(2, 4)]),
    Request(main=text(24, 3), branches=[text(1, 5), text(3, 6), text(9, 7)]),
    Request(main=text(24, 3), branches=[text(4, 8)]),
    Request(main=text(32, 5)),
    Request(main=text(33, 5)),
    Request(main=text(20, 3), branches=[text(13, 8), text(12, 9), text(2)]),
]


@pytest.mark.parametrize("settings", [{}, {"max_batched_tokens": 7}, {"kv_cache_bytes": 130 * 256}], ids=str)
@pytest.mark.parametrize("patched", few([True, False]))
def test_long_and_short_texts_do_not_change_each_other(patched: bool, settings: dict[str, Any]) -> None:
    """Also those that become long while they answer, with prompts in chunks and with little memory."""
    model = longrope(patched)
    expected = [
        [alone(model, request.main, prompt, number) for number, prompt in enumerate(request.branches, start=1)]
        or [alone(model, request.main, [], 0)]
        for request in REQUESTS
    ]
    engine = Engine(model, char_tokenizer(), branch_stride=STRIDE, page_tokens=4, **settings)
    for requests, wanted in ((REQUESTS, expected), (REQUESTS[::-1], expected[::-1])):
        found = engine.generate(requests, GREEDY)
        assert [[branch.token_ids for branch in result.branches] for result in found] == wanted


def test_the_label_is_what_transformers_generates() -> None:
    model = longrope()
    ids = torch.tensor([text(28, 3)], device=DEVICE)
    generated = model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generated[0, 28:].tolist() == alone(model, text(24, 3), text(28, 3)[24:], 1)


def test_a_row_in_step_is_long_all_the_time_or_never() -> None:
    engine = Engine(longrope(), char_tokenizer(), visibility="columnar", page_tokens=4)
    short, crossing, long = (Request(main=text(count), branches=["ab", "c"]) for count in (10, 26, 40))
    found = engine.generate([short, crossing, long], GREEDY)
    kinds = [[branch.error_kind for branch in result.branches] for result in found]
    assert kinds == [[None, None], ["too_long", "too_long"], [None, None]]
    assert "longrope" in str(found[1].branches[0].error)


def test_a_branch_that_does_not_see_main_stands_behind_it_all_the_same() -> None:
    model = longrope()
    requests = [
        Request(main=text(20), branches=[text(8, 3)], visibility="strict"),
        Request(main=text(30, 5), branches=[text(6, 1)], visibility="strict"),
        Request(main=text(10, 5), branches=[text(6, 1)]),
    ]

    def answers(asked: list[Request]) -> list[list[int]]:
        engine = Engine(model, char_tokenizer(), page_tokens=4)
        return [result.branches[0].token_ids for result in engine.generate(asked, GREEDY)]

    assert answers(requests) == [answers([request])[0] for request in requests]


def test_dynamic_scaling_begins_behind_what_the_engine_takes() -> None:
    """Frequencies that change with every token fit no key that is kept; below that length there is no scaling."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_model("llama", max_position_embeddings=LIMIT, rope_parameters=rope)
    engine = Engine(model, char_tokenizer(), page_tokens=4)
    assert engine.max_model_len == LIMIT
    fitting, too_long = Request(main=text(20), branches=[text(LIMIT - NEW - 20, 1)]), Request(main=text(LIMIT))
    expected = alone(model, fitting.main, fitting.branches[0], 1)
    with torch.no_grad():
        model(torch.tensor([text(2 * LIMIT)], device=DEVICE))  # which leaves other frequencies behind
    found = engine.generate([fitting, too_long], GREEDY)
    assert found[0].branches[0].token_ids == expected
    assert found[1].branches[0].error_kind == "too_long"
