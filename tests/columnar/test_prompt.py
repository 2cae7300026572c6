"""pos2d for `generate`: what the functions give, and that generation is the same with and without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallelmind.columnar import (
    auto_pair_indices,
    find_rope_patch,
    inject_pos2d_hook,
    patch_model_with_interleaved_2d_rope,
    prepare_pos2d,
    remove_pos2d_hook,
    set_prompt_pos2d,
    set_rope_pos2d,
)
from parallelmind.errors import SettingsError
from tests.families import tiny_model

NEW = 6


def patched(family: str = "qwen2") -> Any:
    model = tiny_model(family).eval()
    return patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model))


def generated(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **settings: Any) -> list[list[int]]:
    mask = torch.ones_like(ids) if mask is None else mask
    kwargs = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": NEW, "eos_token_id": None} | settings
    return model.generate(ids, attention_mask=mask, **kwargs)[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_a_prompt_is_one_branch(count: int) -> None:
    by_hand = [[0, time] for time in range(count)]
    assert prepare_pos2d(count).tolist() == [by_hand]
    assert prepare_pos2d(torch.zeros(3, count, dtype=torch.long)).tolist() == [by_hand] * 3


def test_padding_has_no_time() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert prepare_pos2d(torch.zeros_like(mask), attention_mask=mask)[..., 1].tolist() == [
        [0, 0, 0, 1, 2],
        [0, 1, 2, 3, 4],
    ]


def test_a_prompt_that_was_set_is_one_that_was_passed() -> None:
    """With padding, so that the positions are not those the model would take by itself."""
    model = patched()
    ids = torch.arange(1, 9, device=model.device)[None]
    mask = (ids > 3).long()
    with torch.inference_mode():
        passed = model(ids, position_ids=prepare_pos2d(ids, attention_mask=mask)).logits
        assert set_prompt_pos2d(model, ids, mask).equal(prepare_pos2d(ids, attention_mask=mask))
        assert torch.equal(model(ids).logits, passed)
        set_rope_pos2d(model, None)
        assert not torch.allclose(model(ids).logits, passed, atol=1e-3)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "phi3"])
def test_generate_with_the_hook_is_generate_without(family: str) -> None:
    model = patched(family)
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ways: tuple[dict[str, Any], ...] = ({}, {"num_beams": 2}, {"use_cache": False})
    plain = [generated(model, ids, mask, **way) for way in ways]
    original = model.prepare_inputs_for_generation
    assert inject_pos2d_hook(model) is model
    assert [generated(model, ids, mask, **way) for way in ways] == plain
    inject_pos2d_hook(model)  # again: replaced, not stacked
    assert [generated(model, ids, mask, **way) for way in ways] == plain
    assert remove_pos2d_hook(model) is model
    assert model.prepare_inputs_for_generation == original
    assert [generated(model, ids, mask, **way) for way in ways] == plain


def test_models_that_give_no_positions() -> None:
    """The hook then counts on from the cache."""
    model, ids = patched(), torch.arange(5, 12)[None]
    plain = generated(model, ids)
    prepare = model.prepare_inputs_for_generation

    def without(*args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in prepare(*args, **kwargs).items() if name != "position_ids"}

    model.prepare_inputs_for_generation = without
    assert generated(inject_pos2d_hook(model), ids) == plain


def test_positions_of_an_earlier_forward_are_refused_in_the_documented_words() -> None:
    model = patched()
    set_prompt_pos2d(model, torch.arange(5, device=model.device)[None])
    with pytest.raises(SettingsError, match=r"^extra_pos2d is not set\. Call set_rope_pos2d first\. .* 3 tokens, .* 5"):
        model(torch.arange(3, device=model.device)[None])


def test_models_without_2d_rope_are_refused_at_once() -> None:
    model = tiny_model("qwen2")
    for call in (inject_pos2d_hook, lambda model: set_prompt_pos2d(model, torch.arange(3)[None])):
        with pytest.raises(SettingsError, match=r"no 2D RoPE; call patch_model_with_interleaved_2d_rope"):
            call(model)
    assert find_rope_patch(model) is None
    assert "prepare_inputs_for_generation" not in vars(model)
