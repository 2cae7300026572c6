"""The documented Python interface."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from parallelmind.columnar import find_rope_patch
from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.identity import bundled_model_path
from parallelmind.models.lora_layers import lora_layers
from tests.compatibility.conftest import Adapters
from tests.compatibility.contract import SECTIONS, proves
from tests.compatibility.inference_runs import QUESTIONS, STORY

PROMPT = STORY + QUESTIONS[0]
IMPORTS = [promise.name for promise in SECTIONS["python"].promises if promise.name.startswith("from ")]
STEPS = (
    "patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5)); "
    "apply_lora(model, rank=8); load_lora(model, path)"
)
LOAD = "load_model_with_lora(base_model=..., lora_path=..., lora_rank=8, rope_2d_ratio=0.5, patch_rope=True)"
INSPECT = 'if hasattr(module, "lora"): module.lora.A.weight.shape, module.lora.B.weight.shape'


def documented() -> dict[str, Any]:
    """The names that the documented imports bring."""
    names: dict[str, Any] = {}
    exec("\n".join(IMPORTS), names)
    return names


@pytest.fixture(scope="module")
def loaded(adapters: Adapters) -> tuple[Any, Any, bool]:
    """As documented, in the type that the bundled model is exact in."""
    load = documented()["load_model_with_lora"]
    settings = {"lora_rank": 8, "rope_2d_ratio": 0.5, "patch_rope": True, "dtype": "float32", "device": "cpu"}
    found: tuple[Any, Any, bool] = load(base_model="tiny", lora_path=str(adapters.pth), **settings)
    return found


@pytest.fixture
def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(bundled_model_path(), dtype=torch.float32).eval()


@proves("python", *IMPORTS)
@pytest.mark.parametrize("line", IMPORTS)
def test_imports(line: str) -> None:
    """The import runs, and each name is a function or class of this package."""
    names: dict[str, Any] = {}
    exec(line, names)
    functions = [value for name, value in names.items() if name != "__builtins__"]
    assert functions
    assert all(callable(function) and function.__module__.startswith("parallelmind.") for function in functions)


@proves("python", "from scripts.inference_hf_lora import auto_pair_indices")
@pytest.mark.parametrize("module", ["trainer.train_hf_lora", "trainer.train_hf_parallel_lora"])
def test_auto_pair_indices_from_the_trainers(module: str) -> None:
    """Both modules have the same function."""
    assert importlib.import_module(module).auto_pair_indices is documented()["auto_pair_indices"]


@proves("python", LOAD)
def test_load_model_with_lora(loaded: tuple[Any, Any, bool], adapters: Adapters) -> None:
    """The model has the adapter and turns half of its pairs by branch; device and dtype may be left out."""
    model, tokenizer, patch_rope = loaded
    assert patch_rope is True
    assert tokenizer.decode(tokenizer(QUESTIONS[0])["input_ids"]).strip().endswith("Dan?")
    patch = find_rope_patch(model)
    assert patch is not None
    assert len(patch.pair_indices) == 16
    assert {layer.lora.A.weight.shape[0] for layer in lora_layers(model).values()} == {8}
    load = documented()["load_model_with_lora"]
    model, _, patch_rope = load(base_model="tiny", lora_path=str(adapters.folder), lora_rank=8, patch_rope=False)
    assert patch_rope is False
    assert find_rope_patch(model) is None
    assert model.dtype == torch.bfloat16


@proves("python", "model, tokenizer = load_model_with_lora(...)", "load_model_with_lora(dtype=torch.float32)")
def test_two_values_and_a_dtype_of_torch(loaded: tuple[Any, Any, bool], adapters: Adapters) -> None:
    """Two targets get model and tokenizer, in the dtype asked for; the logits are those of the three-valued call."""
    load = documented()["load_model_with_lora"]
    settings: dict[str, Any] = {"lora_rank": 8, "rope_2d_ratio": 0.5, "patch_rope": True, "device": "cpu"}
    model, tokenizer = load(base_model="tiny", lora_path=str(adapters.pth), dtype=torch.float32, **settings)
    assert model.dtype == torch.float32
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, loaded[0](ids).logits)
    half, _ = load(base_model="tiny", dtype=torch.float16, device="cpu")
    assert half.dtype == torch.float16


@proves("python", "size mismatch for")
def test_another_rank(base: Any, adapters: Adapters) -> None:
    """apply_lora with rank 16 and a file of rank 8: the error names both and a layer, and so does lora_rank=16."""
    names = documented()
    words = "size mismatch for model.layers.0.self_attn.q_proj.*rank is 8, but rank 16"
    names["apply_lora"](base, rank=16)
    with pytest.raises(AdapterError, match=words):
        names["load_lora"](base, adapters.pth)
    with pytest.raises(AdapterError, match=words):
        names["load_model_with_lora"]("tiny", str(adapters.pth), lora_rank=16, device="cpu")


@proves("python", "from scripts.inference_hf_lora import _prepare_pos2d, _set_prompt_pos2d, _inject_pos2d_hook")
def test_pos2d_by_hand(adapters: Adapters) -> None:
    """A prompt's positions, passed or set, give equal logits; generate with the hook gives the tokens of generate."""
    names = documented()
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    model, tokenizer = names["load_model_with_lora"]("tiny", str(adapters.pth), patch_rope=True, **settings)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = inputs["input_ids"]
    pos2d = names["_prepare_pos2d"](ids)
    assert pos2d.tolist() == [[[0, time] for time in range(ids.shape[1])]]
    plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    with torch.inference_mode():
        passed = model(ids, position_ids=pos2d).logits
        names["_set_prompt_pos2d"](model, ids)
        assert torch.equal(model(ids).logits, passed)
    names["_inject_pos2d_hook"](model)
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False), plain)
    modules = {type(module).__name__ for module in model.modules()}
    assert names["Interleaved2DRoPE"].__name__ in modules


@proves("python", 'generate_text(model, tokenizer, "...")')
def test_generate_text(base: Any, loaded: tuple[Any, Any, bool]) -> None:
    """The continuation alone comes back, by the temperature, top_p, top_k and number of tokens that were asked for."""
    generate_text, tokenizer = documented()["generate_text"], loaded[1]
    exact = {"temperature": 0, "repetition_penalty": 1.0}
    assert generate_text(base, tokenizer, PROMPT, **exact) == " 26"
    assert isinstance(generate_text(base, tokenizer, PROMPT, max_new_tokens=4), str)
    torch.manual_seed(0)
    hot = {"temperature": 50.0, "repetition_penalty": 1.0, "max_new_tokens": 8}
    assert generate_text(base, tokenizer, PROMPT, **hot, top_p=1.0, top_k=0) != " 26"
    assert generate_text(base, tokenizer, PROMPT, **hot, top_k=1) == " 26"
    assert generate_text(base, tokenizer, PROMPT, **hot, top_p=1e-6) == " 26"


@proves("python", STEPS)
def test_step_by_step(base: Any, loaded: tuple[Any, Any, bool], adapters: Adapters) -> None:
    """The line, run as written, gives the logits of load_model_with_lora."""
    exec(STEPS, documented() | {"model": base, "path": adapters.pth})
    ids = loaded[1](PROMPT, return_tensors="pt")["input_ids"]
    pos2d = torch.stack([torch.full_like(ids, 128), torch.arange(ids.shape[1])[None]], dim=-1)
    with torch.inference_mode():
        for positions in ({}, {"position_ids": pos2d}):
            torch.testing.assert_close(base.eval()(ids, **positions).logits, loaded[0](ids, **positions).logits)


@proves("python", "save_lora(model, path)")
def test_save_lora(base: Any, loaded: tuple[Any, Any, bool], tmp_path: Path) -> None:
    """What is saved as `.pth` or as a folder loads into the base model with the same weights."""
    names = documented()
    expected = {name: layer.lora.B.weight for name, layer in lora_layers(loaded[0]).items()}
    for path in (tmp_path / "saved.pth", tmp_path / "saved"):
        names["save_lora"](loaded[0], path)
        names["load_lora"](base, path)
        found = {name: layer.lora.B.weight for name, layer in lora_layers(base).items()}
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            assert torch.equal(weight, expected[name])


@proves("python", INSPECT)
def test_inspecting(loaded: tuple[Any, Any, bool]) -> None:
    """The documented loop finds A [8, in] and B [out, 8] of every linear layer of the decoder."""
    shapes = {}
    for name, module in loaded[0].named_modules():
        if hasattr(module, "lora"):
            shapes[name] = (module.lora.A.weight.shape, module.lora.B.weight.shape)
    assert len(shapes) == 7 * loaded[0].config.num_hidden_layers
    assert shapes["model.layers.0.mlp.down_proj"] == ((8, 256), (128, 8))


@proves("python", "set_rope_pos2d(model, pos2d)")
def test_set_rope_pos2d(loaded: tuple[Any, Any, bool]) -> None:
    """A forward without position_ids uses the positions that were set, as if they had been passed."""
    model, tokenizer, _ = loaded
    set_rope_pos2d = documented()["set_rope_pos2d"]
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    time = torch.arange(ids.shape[1])[None]
    branch = torch.where(time < 20, 0, 128)
    pos2d = torch.stack([branch, time], dim=-1)
    with torch.inference_mode():
        plain = model(ids).logits
        passed = model(ids, position_ids=pos2d).logits
        set_rope_pos2d(model, pos2d)
        try:
            held = model(ids).logits
        finally:
            set_rope_pos2d(model, None)
    torch.testing.assert_close(held, passed)
    assert not torch.allclose(held[:, 20:], plain[:, 20:], atol=1e-3)
    torch.testing.assert_close(held[:, :20], plain[:, :20])


@proves("python", "build_columnar_causal_mask(...)")
def test_build_columnar_causal_mask() -> None:
    """Main sees its past; a branch sees main, itself, and what other branches wrote at strictly earlier times."""
    pos2d = torch.tensor([[[0, 0], [0, 1], [128, 2], [128, 3], [256, 2], [256, 3]]])
    mask = documented()["build_columnar_causal_mask"](pos2d)
    assert mask.shape == (1, 1, 6, 6)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]


@proves("python", "model.generate(...)")
def test_plain_generate(loaded: tuple[Any, Any, bool]) -> None:
    """On a patched model, generate gives what 1-D positions give, which are those of branch 0."""
    model, tokenizer, _ = loaded
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=inputs["attention_mask"], max_new_tokens=6, do_sample=False)
        row = ids
        for _ in range(6):
            time = torch.arange(row.shape[1])[None]
            branch_0 = torch.stack([torch.zeros_like(time), time], dim=-1)
            following = model(row, position_ids=branch_0).logits[:, -1:].argmax(-1)
            row = torch.cat([row, following], dim=1)
            if following.item() == model.generation_config.eos_token_id:
                break
    assert found.tolist() == row.tolist()


@proves("single", "attn_implementation")
@pytest.mark.parametrize("choice", ["eager", "sdpa", "flex_attention"])
def test_attention(choice: str) -> None:
    """The model has the implementation that load_model_with_lora was asked for."""
    load = documented()["load_model_with_lora"]
    model = load(base_model="tiny", attn_implementation=choice, device="cpu").model
    assert model.config._attn_implementation == choice


@proves("single", "attn_implementation")
def test_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash_attention_2` reaches transformers; where its package is missing, the error says so."""
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed
    with pytest.raises(
        SettingsError, match=r"--base_model tiny cannot be loaded as asked: FlashAttention2 .* installed"
    ):
        documented()["load_model_with_lora"](base_model="tiny", attn_implementation="flash_attention_2", device="cpu")
