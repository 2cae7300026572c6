"""`Engine.from_pretrained`: the short way is the fast one; `Engine(model, tokenizer)` leaves the model to its owner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from parallelmind import Engine, Request, SamplingParams, load_model_with_lora
from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.cpu.packed_linear import PackedLinear
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.sidecar import RopeSettings, Sidecar
from tests.families import DEVICE, char_tokenizer, tiny_model
from tests.random_model import save_random_model

GREEDY = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True)
REQUESTS = [Request(main="Once upon a time", branches=["How?", "Why is that?"])]
ON_CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_random_model(tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = apply_lora(AutoModelForCausalLM.from_pretrained(base), rank=3, seed=0)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora.B.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    rope = RopeSettings(branch_stride=16, visibility="columnar")
    path = tmp_path_factory.mktemp("adapters") / "mine.pth"
    return str(save_lora(model, path, sidecar=Sidecar(rope=rope, rank=3, base_model=base)))


def texts(engine: Engine) -> list[str]:
    return [branch.text for result in engine.generate(REQUESTS, GREEDY) for branch in result.branches]


def packed_layers(model: nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


def test_it_answers_as_the_long_way_does(base: str, adapter: str) -> None:
    loaded = load_model_with_lora(base, adapter, **ON_CPU)
    trained = {"visibility": loaded.settings.visibility, "branch_stride": loaded.settings.branch_stride}
    long = Engine(loaded.model, loaded.tokenizer, **trained)
    short = Engine.from_pretrained(base, lora_path=adapter, **ON_CPU)
    assert texts(short) == texts(long)
    assert (short.visibility, short.branch_stride_of(), short.patched) == ("columnar", 16, True)
    assert short.tokenizer("abc")["input_ids"] == loaded.tokenizer("abc")["input_ids"]
    plain = Engine.from_pretrained(base, **ON_CPU)
    assert (plain.visibility, plain.patched) == ("isolated", False)
    assert texts(plain) != texts(short)


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="this build of torch has no kernels to pack for")
@pytest.mark.parametrize("several", [False, True])
def test_it_packs_what_it_loads_for_the_cpu_and_nothing_else(base: str, adapter: str, several: bool) -> None:
    engine = Engine.from_pretrained(base, lora_path={"mine": adapter} if several else adapter, **ON_CPU)
    assert packed_layers(engine._runner.model) > 4
    loaded = load_model_with_lora(base, adapter, **ON_CPU)
    Engine(loaded.model, loaded.tokenizer)
    assert packed_layers(loaded.model) == 0


def test_settings_go_to_the_loader_and_to_the_engine(base: str) -> None:
    settings: dict[str, Any] = {"patch_rope": True, "branch_stride": 5, "visibility": "strict", "max_batched_tokens": 7}
    engine = Engine.from_pretrained(base, **settings, **ON_CPU)
    assert (engine.visibility, engine.branch_stride_of(), engine.patched) == ("strict", 5, True)
    assert engine._scheduler.max_batched_tokens == 7
    with pytest.raises(SettingsError, match="max_batched_tokens is 0"):
        Engine.from_pretrained(base, max_batched_tokens=0, **ON_CPU)
    with pytest.raises(SettingsError, match="exclude each other"):
        Engine.from_pretrained(base, load_in_8bit=True, load_in_4bit=True)
    with pytest.raises(TypeError, match="max_batchd_tokens"):
        Engine.from_pretrained(base, max_batchd_tokens=7, **ON_CPU)
    with pytest.raises(AdapterError, match="no such file"):
        Engine.from_pretrained(base, lora_path="nowhere.pth", **ON_CPU)


def test_paths_may_be_path_objects(base: str, adapter: str) -> None:
    one = Engine.from_pretrained(base, lora_path=Path(adapter), **ON_CPU)
    several = Engine.from_pretrained(base, lora_path={"mine": Path(adapter)}, **ON_CPU)
    request = Request(main=REQUESTS[0].main, branches=REQUESTS[0].branches, adapter="mine")
    assert [branch.text for branch in several.generate([request], GREEDY)[0].branches] == texts(one)


def test_what_was_decided_without_being_asked_for_is_logged(base: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "parallelmind"):
        Engine.from_pretrained(base, dtype="float32")
    assert f"loading {base}" in caplog.text
    assert "2D RoPE is off" in caplog.text
    assert torch.cuda.is_available() or "running on the CPU" in caplog.text


def test_a_shared_model_stays_in_the_mode_it_was_in() -> None:
    """Answers have no dropout although the model is being trained, and training goes on as if nothing had been."""
    model = tiny_model("qwen2", attention_dropout=0.5).train()
    frozen = model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    engine = Engine(model, char_tokenizer())
    assert [module.training for module in model.modules()] == modes
    answers = texts(engine)
    assert [module.training for module in model.modules()] == modes
    assert not frozen.training
    engine.reset_prefix_cache()
    assert texts(engine) == answers
    assert texts(Engine(model.eval(), char_tokenizer())) == answers
    assert model.device.type == torch.device(DEVICE).type
