"""The model card, and what plain PEFT makes of an adapter: the same numbers, or a warning."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from parallelmind.columnar import pack_row
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.lora_write import NEEDS_ROPE
from parallelmind.training.card import CARD_NAME, card_text, write_card
from tests.training.runs import options, train
from tests.training.test_report import facts


def plain_peft(model: Path, adapter: Path) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter))
    return loaded.eval(), [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"patch_rope": False}, True),
        ({"rope_2d_mode": "additive", "stride": 0}, True),
        pytest.param({"rope_2d_ratio": 0.0}, True, marks=pytest.mark.slow),
        pytest.param({"rope_2d_mode": "additive"}, False, marks=pytest.mark.slow),
        pytest.param({"stride": 0}, False, marks=pytest.mark.slow),
        ({}, False),
    ],
)
def test_plain_peft_computes_the_same_or_warns(
    settings: dict[str, Any], same: bool, model: Path, data: Path, tmp_path: Path
) -> None:
    train(options(model, data, tmp_path, max_steps=4, **settings))
    folder = tmp_path / "lora" / "hf_parallel_lora_final"
    ours, _, patched = load_model_with_lora(str(model), folder, device="cpu", dtype="float32")
    theirs, messages = plain_peft(model, folder)
    row = pack_row([5, 6, 7, 8], [[9, 10, 11]])
    stride = settings.get("stride", 128)
    positions = row.pos2d(stride) if patched else row.time_ids
    with torch.no_grad():
        expected = ours(input_ids=row.input_ids[None], position_ids=positions[None]).logits
        found = theirs(input_ids=row.input_ids[None]).logits
    assert torch.allclose(found, expected, atol=1e-5) == same
    assert any(NEEDS_ROPE in message for message in messages) != same
    assert not any(NEEDS_ROPE not in message and "nexpected keyword" in message for message in messages)
    text = (folder / CARD_NAME).read_text()
    assert ("PEFT by itself computes what was trained" in text) == same
    assert ("**not what was trained**" in text) != same
    assert PeftConfig.from_pretrained(str(folder)).r == 8


def test_what_the_card_of_a_run_says(model: Path, data: Path, tmp_path: Path) -> None:
    more = {"eval_data_path": data, "eval_interval": 2, "save_interval": 2, "loraplus_lr_ratio": 4.0, "lora_rank": 2}
    train(options(model, data, tmp_path, max_steps=4, **more))
    for name, steps in (("step2", 2), ("final", 4)):
        text = (tmp_path / "lora" / f"hf_parallel_lora_{name}" / CARD_NAME).read_text()
        card = ModelCard(text)
        assert card.data.to_dict() == {
            "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["parallelmind", "lora", "2d-rope"],
        }  # fmt: skip
        for line in (
            "| rank | 2 |", "| visibility | isolated |", "| stride | 128 |", "| LoRA+ ratio | 4 |",
            "| branch numbers (branch_range) | 3 |", f"- trained on: `{data.name}`, blake2b `", "| exact answers |",
            f"--base_model {model.name} --lora_path hf_parallel_lora_{name}", f"| steps | {steps} |",
        ):  # fmt: skip
            assert line in text, line
        assert str(tmp_path) not in text
        assert str(model) not in text
        assert str(data.parent) not in text


def test_a_model_of_the_hub_is_linked_and_a_folder_is_not(tmp_path: Path) -> None:
    card = ModelCard(card_text(facts(), folder="a"))
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B"
    assert "[Qwen/Qwen2.5-0.5B](https://huggingface.co/Qwen/Qwen2.5-0.5B)" in card.text
    local = ModelCard(card_text(facts(base_model="mine", base_model_on_hub=False), folder="a"))
    assert local.data.base_model is None
    assert "huggingface.co" not in local.text
    assert "not recorded" in card.text


def test_an_edited_card_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_card(tmp_path, card_text(facts(), folder="a"))
    write_card(tmp_path, card_text(facts(name="b"), folder="a"))
    card = tmp_path / CARD_NAME
    assert "# b\n" in card.read_text()
    card.write_text(card.read_text().replace("# b\n", "# Mine\n"))
    write_card(tmp_path, card_text(facts(name="c"), folder="a"))
    assert "# Mine\n" in card.read_text()
    assert f"{card} was edited, so it stays as it is" in caplog.text
    card.write_text("my own")
    write_card(tmp_path, card_text(facts(), folder="a"))
    assert card.read_text() == "my own"


def test_adapters_saved_without_settings_say_nothing_to_peft(model: Path, data: Path, tmp_path: Path) -> None:
    train(options(model, data, tmp_path, max_steps=1, patch_rope=False))
    config = json.loads((tmp_path / "lora" / "hf_parallel_lora_final" / "adapter_config.json").read_text())
    assert NEEDS_ROPE not in config


def test_names_are_words_of_a_shell() -> None:
    text = card_text(facts(base_model="my model", base_model_on_hub=False), folder="a `name`")
    assert "--base_model 'my model' --lora_path 'a `name`'" in text
