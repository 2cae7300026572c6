"""A model that cannot run says which of its layers stands in the way and what to do, from Python as from a command."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from parallelmind import Engine
from parallelmind.columnar import auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.errors import UnsupportedModelError
from tests.engine.asking import answer
from tests.families import char_tokenizer
from tests.models.registry import build


@pytest.mark.parametrize(
    ("model_type", "kind", "reason"),
    [
        ("axk2", "indexed_attention", "choose by themselves which tokens they see"),
        ("lfm2_moe", "conv", "keep a state"),
        ("qwen3_next", "linear_attention", "keep a state"),
        ("rwkv", "recurrent", "keep a state"),
    ],
)
def test_a_refusal_names_the_kind_of_layer_and_what_it_does(model_type: str, kind: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        Engine(build(model_type), char_tokenizer())
    message = str(caught.value)
    assert f"layers of kind {kind} " in message
    assert reason in message
    assert "Use a model whose layers are all full or sliding attention" in message
    assert ("state" in message) == ("state" in reason)


def test_each_kind_of_layer_has_its_own_reason() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"of kind linear_attention keep a state.*; its layers of kind indexed"
    ):
        Engine(build("qwen4_exp_text"), char_tokenizer())


def test_a_hybrid_class_with_attention_alone_runs() -> None:
    model = build("granitemoehybrid", layer_types=["attention"] * 4)
    assert len(answer(Engine(model, char_tokenizer())).token_ids) == 12


def test_a_model_without_positions_is_refused_for_that() -> None:
    with pytest.raises(UnsupportedModelError, match="takes no position_ids"):
        Engine(build("bloom"), char_tokenizer())


@pytest.mark.parametrize("model_type", ["gptj", "codegen", "roformer"])
def test_rotation_inside_the_attention_layers_is_called_so(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"inside its attention layers.*--no_patch_rope"):
        auto_pair_indices(build(model_type))


def test_positions_used_outside_of_the_rotary_embedding_are_refused_with_2d_rope() -> None:
    model = _patched(build("ministral3"))
    with pytest.raises(UnsupportedModelError, match=r"elsewhere than in its rotary embedding.*--no_patch_rope"):
        Engine(model, char_tokenizer())


def test_2d_rope_would_change_nothing_beside_alibi() -> None:
    with pytest.raises(UnsupportedModelError, match=r"ALiBi.*--no_patch_rope"):
        _patched(build("falcon", alibi=True))


def test_three_axes_are_not_patched_from_python_either() -> None:
    """Their settings stand in the config of the text part, which the model's own config may only contain."""
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 97,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        text_config=text | {"num_key_value_heads": 1, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    model = Qwen2VLForConditionalGeneration(config)
    with pytest.raises(UnsupportedModelError, match="three position axes"):
        patch_model_with_interleaved_2d_rope(model, [7])
    with pytest.raises(UnsupportedModelError, match="three position axes"):
        auto_pair_indices(model)


def _patched(model: Any) -> Any:
    return patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model))
