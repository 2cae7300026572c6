"""Modules that are trained whole beside LoRA: loaded again they are what was trained, here and in PEFT's own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.adapters import AdapterSet, attach_adapters
from parallelmind.models.lora import apply_lora, load_lora, merge_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.whole_modules import trained_whole, whole_parameters
from tests.models.adapters import logits, make, train

BOTH = ("embed_tokens", "lm_head")


def trained(*, tied: bool = False, modules: tuple[str, ...] = BOTH, **more: Any) -> Any:
    model = train(apply_lora(make(tie_word_embeddings=tied), rank=4, modules_to_save=modules, **more))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in whole_parameters(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_only_the_adapter_and_these_modules_are_trained() -> None:
    model = apply_lora(make(), rank=2, modules_to_save=("lm_head", "norm"))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in names if ".lora_" not in name} == {"lm_head.weight", "model.norm.weight"}
    assert trained_whole(model) == ["lm_head", "model.norm"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("modules", [BOTH, ("lm_head",), ("embed_tokens",), ("norm",)])
@pytest.mark.parametrize("name", ["a.pth", "folder"])
def test_loaded_is_what_was_trained(tied: bool, modules: tuple[str, ...], name: str, tmp_path: Path) -> None:
    model = trained(tied=tied, modules=modules)
    save_lora(model, tmp_path / name)
    again = load_lora(make(tie_word_embeddings=tied), tmp_path / name)
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(make(tie_word_embeddings=tied)), logits(model))
    save_lora(again, tmp_path / f"again_{name}")
    first, second = (tmp_path / f"{prefix}{name}" for prefix in ("", "again_"))
    if name == "folder":
        one, other = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    else:
        one, other = (torch.load(file, weights_only=True) for file in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("modules", [BOTH, ("lm_head",), ("norm",)])
def test_peft_loads_the_folder_as_we_do(tied: bool, modules: tuple[str, ...], tmp_path: Path) -> None:
    model = trained(tied=tied, modules=modules)
    save_lora(model, tmp_path / "folder")
    theirs = PeftModel.from_pretrained(make(tie_word_embeddings=tied), str(tmp_path / "folder"))
    assert torch.equal(logits(theirs), logits(model))


@pytest.mark.parametrize("modules", [BOTH, ("lm_head",)])
def test_we_load_what_peft_saves(modules: tuple[str, ...], tmp_path: Path) -> None:
    model = trained(modules=modules)
    save_lora(model, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(make(), str(tmp_path / "ours"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert torch.equal(logits(load_lora(make(), tmp_path / "theirs")), logits(model))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("modules", [BOTH, ("lm_head",), ("embed_tokens",)])
def test_merged_and_saved_it_is_the_same_model(tied: bool, modules: tuple[str, ...], tmp_path: Path) -> None:
    model = trained(tied=tied, modules=modules)
    expected = logits(model)
    merged = merge_lora(model)
    assert trained_whole(merged) == []
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(merged))


def test_another_adapter_finds_the_base_model(tmp_path: Path) -> None:
    save_lora(trained(tied=True), tmp_path / "whole")
    plain = train(apply_lora(make(tie_word_embeddings=True), rank=4), scale=0.2)
    save_lora(plain, tmp_path / "plain")
    model = load_lora(make(tie_word_embeddings=True), tmp_path / "whole")
    load_lora(model, tmp_path / "plain")
    assert torch.equal(logits(model), logits(plain))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_lora(trained(), tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save({**state, "lm_head.modules_to_save.weight": torch.zeros(3, 3)}, tmp_path / "small.pth")
    torch.save({**state, "other.modules_to_save.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    torch.save({**state, "lm_head.modules_to_save.weight": torch.full((9, 16), torch.nan)}, tmp_path / "nan.pth")
    model = make()
    before = logits(model)
    for name, message in (
        ("small.pth", r"size mismatch for lm_head\.weight: \[3, 3\] in the file"),
        ("other.pth", "holds the whole module other, which this Qwen2ForCausalLM lacks"),
        ("nan.pth", "weight of lm_head holds NaN"),
    ):
        with pytest.raises(AdapterError, match=message):
            load_lora(model, tmp_path / name)
    assert torch.equal(logits(model), before)
    with pytest.raises(AdapterError, match=r"embed_tokens, lm_head whole .*\(parallelmind merge\)"):
        attach_adapters(make(), AdapterSet(), {"a": tmp_path / "a.pth"})


@pytest.mark.parametrize(
    ("modules", "more", "message"),
    [
        (("head",), {}, "--modules_to_save head: the model has no such module; it has lm_head, embed_tokens, norm"),
        (("q_proj",), {}, "q_proj has LoRA, and a module is trained whole or with LoRA"),
        (("layers",), {}, "has LoRA"),
        (("act_fn",), {}, "no parameters to train"),
    ],
)
def test_modules_that_cannot_be_trained_whole(modules: tuple[str, ...], more: dict[str, Any], message: str) -> None:
    model = make()
    with pytest.raises(SettingsError, match=message):
        apply_lora(model, rank=2, modules_to_save=modules, **more)
    assert not lora_layers(model)
