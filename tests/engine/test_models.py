"""Which models an engine takes and which it refuses, and that a model is as before outside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallelmind import Engine, Request
from parallelmind.errors import UnsupportedModelError
from tests.engine.asking import GREEDY, MAIN, answer
from tests.families import DEVICE, WITHOUT_ROPE, char_tokenizer, tiny_model


def test_the_model_is_as_before_outside_the_engine(model: Any, engine: Engine) -> None:
    ids = torch.tensor([[5, 6, 7]], device=DEVICE)
    before = model(ids).logits
    implementation = model.config._attn_implementation
    answer(engine)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(ids).logits, before)


def test_two_engines_share_a_model(model: Any, engine: Engine) -> None:
    other = Engine(model, char_tokenizer(), visibility="strict")
    request = Request(main=MAIN, branches=["abc"])
    expected = engine.generate([request], GREEDY)[0].branches[0].token_ids
    first, second = engine.add_request(request, GREEDY), other.add_request(request, GREEDY)
    tokens: dict[str, list[int]] = {"first": [], "second": []}
    while engine.has_unfinished() or other.has_unfinished():
        for event in engine.step():
            tokens["first"] += event.token_ids if event.request_index == first else ()
        for event in other.step():
            tokens["second"] += event.token_ids if event.request_index == second else ()
    assert tokens["first"] == expected
    assert tokens["second"] != expected


@pytest.mark.parametrize("family", ["mamba", "jamba", "qwen3_next", "bloom", "mpt", "llama4_text"])
def test_models_that_cannot_branch_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"full or sliding attention|decoder-only transformer"):
        Engine(tiny_model(family), char_tokenizer())


def test_a_wrong_model_is_caught_by_the_parity_check() -> None:
    """A rotary embedding that ignores positions of a cached step differs from the model's own forward."""
    model = tiny_model("llama")
    original = model.model.rotary_emb.forward

    def forward(x: Any, position_ids: Any) -> Any:
        return original(x, torch.arange(position_ids.shape[1], device=DEVICE)[None])

    model.model.rotary_emb.forward = forward
    with pytest.raises(UnsupportedModelError, match="logits differ"):
        Engine(model, char_tokenizer())


def test_gpt2_runs_without_2d_rope() -> None:
    assert "gpt2" in WITHOUT_ROPE
    assert len(answer(Engine(tiny_model("gpt2"), char_tokenizer())).token_ids) == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype: torch.dtype) -> None:
    for family in ("qwen2", "gemma2", "falcon"):
        engine = Engine(tiny_model(family, dtype), char_tokenizer(), visibility="columnar")
        result = engine.generate([Request(main=MAIN, branches=["ab", "c"])], GREEDY)[0]
        assert [len(branch.token_ids) for branch in result.branches] == [12, 12]
