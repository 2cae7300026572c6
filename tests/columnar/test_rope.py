"""2D RoPE, against a second derivation: rotation by an angle, one pair of features at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from parallelmind.columnar import (
    Interleaved2DRoPE,
    auto_pair_indices,
    choose_pairs,
    find_rope_patch,
    patch_model_with_interleaved_2d_rope,
    set_rope_pos2d,
)
from parallelmind.columnar.rope import probe_pairs
from parallelmind.errors import SettingsError, UnsupportedModelError
from tests.families import DEVICE, FAMILIES, MORE_FAMILIES, WITHOUT_ROPE, tiny_model

THETA = 10000.0


def rotary_of(model: Any) -> Any:
    return next(module for module in model.modules() if "RotaryEmbedding" in type(module).__name__)


@pytest.mark.parametrize("mode", ["split", "additive"])
@pytest.mark.parametrize("pairs", ["low", "interleaved"])
def test_angles_follow_the_equations(mode: Any, pairs: Any) -> None:
    """Llama: entry e of cos and sin belongs to pair e mod F, whose frequency is θ^(-2·pair/D)."""
    model = tiny_model("llama")
    num_pairs = model.config.head_dim // 2
    chosen = auto_pair_indices(model, 0.5, pairs)
    patch_model_with_interleaved_2d_rope(model, chosen, mode)
    positions = torch.tensor([[[0, 0], [0, 9], [128, 4], [256, 70], [896, 11]]], device=DEVICE)
    cos, sin = model.model.rotary_emb(torch.zeros(1, device=DEVICE), positions)
    for token, (branch, time) in enumerate(positions[0].tolist()):
        for entry in range(2 * num_pairs):
            pair = entry % num_pairs
            turn = time
            if pair in chosen:
                turn = branch if mode == "split" else branch + time
            angle = turn * THETA ** (-2 * pair / (2 * num_pairs))
            assert cos[0, token, entry].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert sin[0, token, entry].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_pairs_are_chosen_by_ratio() -> None:
    assert choose_pairs(8, 0.5) == [4, 5, 6, 7]
    assert choose_pairs(8, 0.25) == [6, 7]
    assert choose_pairs(8, 0.5, "interleaved") == [1, 3, 5, 7]
    assert choose_pairs(9, 1 / 3, "interleaved") == [1, 4, 7]
    assert choose_pairs(8, 0) == choose_pairs(8, 0.0, "interleaved") == []
    assert choose_pairs(8, 1) == choose_pairs(8, 1.0, "interleaved") == list(range(8))
    for ratio in (0.1, 0.3, 0.7, 0.9):
        for pairs in ("low", "interleaved"):
            chosen = choose_pairs(32, ratio, pairs)  # type: ignore[arg-type]
            assert len(set(chosen)) == round(ratio * 32)
    with pytest.raises(SettingsError, match="rope_2d_ratio"):
        choose_pairs(8, 1.5)
    with pytest.raises(SettingsError, match="rope_2d_pairs"):
        choose_pairs(8, 0.5, "high")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_the_layout_of_pairs_is_found_by_probing(family: str) -> None:
    """The probed frequencies are the module's own, from fastest to slowest, whatever their layout."""
    model = tiny_model(family)
    rotary = rotary_of(model)
    layer_type = None if hasattr(rotary, "inv_freq") else "sliding_attention"
    inv_freq = rotary.inv_freq if layer_type is None else rotary.sliding_attention_inv_freq
    pair_of_entry, num_pairs = probe_pairs(rotary, layer_type)
    assert num_pairs == len(inv_freq)
    arguments = (layer_type,) if layer_type else ()
    cos, _ = rotary(torch.zeros(1, device=DEVICE), torch.tensor([[3]], device=DEVICE), *arguments)
    scaling = rotary(torch.zeros(1, device=DEVICE), torch.tensor([[0]], device=DEVICE), *arguments)[0][0, 0, 0]
    expected = torch.cos(3 * inv_freq[pair_of_entry]) * scaling
    torch.testing.assert_close(cos[0, 0], expected, atol=1e-5, rtol=0)
    assert torch.equal(inv_freq, inv_freq.sort(descending=True).values)


@pytest.mark.parametrize(
    "rope_parameters",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ],
    ids=lambda parameters: parameters["rope_type"],
)
def test_scaling_stays_the_models_own(rope_parameters: dict[str, Any]) -> None:
    """Each axis turns as the model itself turns that position; far branch positions do not rescale time."""
    model = tiny_model("llama", rope_parameters=rope_parameters | {"rope_theta": THETA}, max_position_embeddings=256)
    rotary = model.model.rotary_emb
    time = torch.tensor([[0, 5, 77]], device=DEVICE)
    expected_time = rotary(torch.zeros(1, device=DEVICE), time)[0]
    expected_branch = rotary(torch.zeros(1, device=DEVICE), torch.tensor([[0, 128, 250]], device=DEVICE))[0]
    num_pairs = expected_time.shape[-1] // 2
    patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    for branch, expected in (([0, 128, 250], expected_branch), ([0, 128, 4000], None)):
        positions = torch.stack((torch.tensor([branch], device=DEVICE), time), dim=-1)
        cos, _ = model.model.rotary_emb(torch.zeros(1, device=DEVICE), positions)
        half = num_pairs // 2
        torch.testing.assert_close(cos[..., :half], expected_time[..., :half])
        if expected is not None:
            torch.testing.assert_close(cos[..., half:num_pairs], expected[..., half:num_pairs])


def test_plain_positions_and_generate_mean_branch_0() -> None:
    model = tiny_model("qwen2")
    patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    ids = torch.tensor([[5, 6, 7, 8]], device=DEVICE)
    positions = torch.stack((torch.zeros(1, 4, dtype=torch.long), torch.arange(4)[None]), dim=-1).to(DEVICE)
    ones = torch.ones_like(ids)
    explicit = model(ids, position_ids=positions, attention_mask=ones).logits
    assert torch.equal(model(ids).logits, explicit)
    generated = model.generate(ids, attention_mask=ones, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated[0, 4] == explicit[0, -1].argmax()


def test_set_rope_pos2d_acts_like_position_ids_and_never_silently_on_another_length() -> None:
    model = tiny_model("qwen2")
    patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    ids = torch.tensor([[5, 6, 7, 8]], device=DEVICE)
    positions = torch.tensor([[[0, 0], [0, 1], [128, 2], [128, 3]]], device=DEVICE)
    expected = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    before = model(ids).logits
    set_rope_pos2d(model, positions)
    assert torch.equal(model(ids).logits, expected)
    with pytest.raises(SettingsError, match="set_rope_pos2d"):
        model(ids[:, :3])
    set_rope_pos2d(model, None)
    assert torch.equal(model(ids).logits, before)
    assert not torch.equal(before, expected)
    with pytest.raises(SettingsError, match=r"\[batch, seq, 2\]"):
        set_rope_pos2d(model, positions[0])
    with pytest.raises(SettingsError, match="no 2D RoPE"):
        set_rope_pos2d(tiny_model("qwen2"), positions)


def test_patching_again_replaces_the_patch() -> None:
    model = tiny_model("qwen2")
    patch_model_with_interleaved_2d_rope(model, [7])
    patch_model_with_interleaved_2d_rope(model, [3], "additive")
    ropes = [module for module in model.modules() if isinstance(module, Interleaved2DRoPE)]
    assert len(ropes) == 1
    patch = find_rope_patch(model)
    assert patch is not None
    assert patch.pair_indices == (3,)
    assert patch.mode == "additive"
    assert not isinstance(patch.rotary, Interleaved2DRoPE)


@pytest.mark.parametrize("family", WITHOUT_ROPE)
def test_a_model_without_rope_is_refused_with_the_remedy(family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(UnsupportedModelError, match="--no_patch_rope"):
        auto_pair_indices(model, 0.5)
    with pytest.raises(UnsupportedModelError, match="--no_patch_rope"):
        patch_model_with_interleaved_2d_rope(model, [0])


def test_wrong_pairs_and_modes_are_refused() -> None:
    model = tiny_model("qwen2")
    with pytest.raises(SettingsError, match="8 pairs"):
        patch_model_with_interleaved_2d_rope(model, [8])
    with pytest.raises(SettingsError, match="rope_2d_mode"):
        patch_model_with_interleaved_2d_rope(model, [1], "both")  # type: ignore[arg-type]
    assert find_rope_patch(model) is None
