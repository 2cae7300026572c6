"""LoRA against edited base weights and PEFT's own loader, on tiny random models."""

import copy
import pickle
import runpy
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.lora import adapter_rank, apply_lora, load_lora, merge_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.sidecar import RopeSettings, Sidecar, read_sidecar
from tests.disks import room_for
from tests.models.adapters import logits, make, plain_state, saved, train

FAMILIES = ["qwen2", "llama", "gpt_neox", "phi3", "mixtral"]
TARGETS = {
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "mixtral": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen2_moe": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "phimoe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}


@pytest.mark.parametrize("family", TARGETS)
def test_default_targets_and_documented_inspection(family):
    model = make(family)
    before = logits(model)
    shapes = {name: module.weight.shape for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert apply_lora(model, rank=3) is model
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora"):
            n_out, n_in = shapes[name]
            assert module.lora.A.weight.shape == (3, n_in)
            assert module.lora.B.weight.shape == (n_out, 3)
            found[name] = module
    assert found == lora_layers(model)
    assert {name.rpartition(".")[2] for name in found} == TARGETS[family]
    assert len(found) == sum(name.rpartition(".")[2] in TARGETS[family] for name in shapes)
    assert not any(".lora." in key for key in model.state_dict())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        f"{name}.lora_{part}.default.weight" for name in found for part in "AB"
    }
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_is_w_plus_ba_in_every_form(family, tmp_path, caplog):
    model = train(apply_lora(make(family), rank=4))
    with torch.no_grad():
        edited = make(family)
        for name, layer in lora_layers(model).items():
            edited.get_submodule(name).weight += layer.lora.B.weight @ layer.lora.A.weight
    expected = logits(edited)
    assert not torch.allclose(expected, logits(make(family)), atol=1e-2)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    caplog.clear()
    for path in (tmp_path / "a.pth", tmp_path / "folder"):
        save_lora(model, path)
        torch.testing.assert_close(logits(load_lora(make(family), path)), logits(model), atol=0, rtol=0)
        assert adapter_rank(path) == 4
    by_peft = peft.PeftModel.from_pretrained(make(family), tmp_path / "folder")
    torch.testing.assert_close(logits(by_peft), logits(model), atol=0, rtol=0)
    assert not caplog.records
    merged = merge_lora(copy.deepcopy(model))
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    assert list(merged.state_dict()) == list(edited.state_dict())
    assert not hasattr(merged, "peft_config")


@pytest.mark.parametrize("settings", [{"alpha": 6}, {"alpha": 5, "use_rslora": True}, {"dropout": 0.5}])
def test_scaling_reaches_both_formats(tmp_path, settings):
    pth, expected = saved(tmp_path, "a.pth", target_modules=["q_proj", "down_proj"], **settings)
    folder, _ = saved(tmp_path, "folder", target_modules=["q_proj", "down_proj"], **settings)
    torch.testing.assert_close(logits(load_lora(make(), pth)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load_lora(make(), folder)), expected, atol=1e-6, rtol=1e-6)
    again = save_lora(load_lora(make(), folder), tmp_path / "again.pth")
    torch.testing.assert_close(logits(load_lora(make(), again)), expected, atol=1e-5, rtol=1e-5)
    by_peft = peft.PeftModel.from_pretrained(make(), folder)
    torch.testing.assert_close(logits(by_peft), expected, atol=1e-6, rtol=1e-6)


def test_dora_needs_the_folder_format(tmp_path):
    model = train(apply_lora(make(), rank=4, use_dora=True))
    with pytest.raises(AdapterError, match=r"DoRA.*folder"):
        save_lora(model, tmp_path / "a.pth")
    save_lora(model, tmp_path / "folder")
    expected = logits(model)
    torch.testing.assert_close(logits(load_lora(make(), tmp_path / "folder")), expected, atol=1e-6, rtol=1e-6)
    by_peft = peft.PeftModel.from_pretrained(make(), tmp_path / "folder")
    torch.testing.assert_close(logits(by_peft), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits(merge_lora(model)), expected, atol=1e-5, rtol=1e-5)


def test_folder_written_by_peft_itself_loads(tmp_path):
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 3},
        init_lora_weights=False,
    )
    by_peft = peft.get_peft_model(make(), config)
    by_peft.save_pretrained(tmp_path)
    loaded = load_lora(make(), tmp_path, rank=4)
    torch.testing.assert_close(logits(loaded), logits(by_peft), atol=0, rtol=0)
    assert {layer.lora.A.weight.shape[0] for layer in lora_layers(loaded).values()} == {2, 4}
    save_lora(loaded, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(make(), tmp_path / "again")
    torch.testing.assert_close(logits(again), logits(by_peft), atol=0, rtol=0)
    with pytest.raises(AdapterError, match="PeftModel"):
        load_lora(by_peft, tmp_path)
    save_lora(by_peft, tmp_path / "b.pth")
    torch.testing.assert_close(logits(load_lora(make(), tmp_path / "b.pth")), logits(by_peft), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrapped_before", [False, True])
def test_partial_file_applies_exactly_what_it_names(tmp_path, wrapped_before):
    full = train(apply_lora(make(), rank=4))
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"]
    state = {key: value for key, value in plain_state(full).items() if key.startswith(tuple(names))}
    torch.save(state, tmp_path / "part.pth")
    edited = make()
    with torch.no_grad():
        for name in names:
            edited.get_submodule(name).weight += state[f"{name}.lora.B.weight"] @ state[f"{name}.lora.A.weight"]
    model = make()
    if wrapped_before:
        other = train(apply_lora(make(), rank=7, alpha=3, target_modules=["k_proj", "o_proj"]))
        load_lora(model, save_lora(other, tmp_path / "other.pth"), dropout=0.5).train()
        lora_layers(model)["model.layers.0.self_attn.k_proj"].merge()
    load_lora(model, tmp_path / "part.pth")
    assert list(lora_layers(model)) == names
    assert not model.training
    torch.testing.assert_close(logits(model), logits(edited), atol=1e-5, rtol=1e-5)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}.lora_{part}.default.weight" for name in names for part in "AB"}


def test_ranks_may_differ_between_layers_of_a_file(tmp_path):
    model = make()
    state = {}
    for name, rank in (("model.layers.0.mlp.up_proj", 2), ("model.layers.1.mlp.up_proj", 5)):
        state[f"{name}.lora.A.weight"] = torch.randn(rank, 16)
        state[f"{name}.lora.B.weight"] = torch.randn(24, rank)
        model.get_submodule(name).weight.data += state[f"{name}.lora.B.weight"] @ state[f"{name}.lora.A.weight"]
    torch.save(state, tmp_path / "a.pth")
    loaded = load_lora(make(), tmp_path / "a.pth", rank=5)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    save_lora(loaded, tmp_path / "folder")
    by_peft = peft.PeftModel.from_pretrained(make(), tmp_path / "folder")
    torch.testing.assert_close(logits(by_peft), logits(loaded), atol=0, rtol=0)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_tolerated(tmp_path, prefix):
    model = train(apply_lora(make(), rank=4, target_modules=["q_proj"]))
    torch.save({prefix + key: value for key, value in plain_state(model).items()}, tmp_path / "a.pth")
    torch.testing.assert_close(logits(load_lora(make(), tmp_path / "a.pth")), logits(model), atol=0, rtol=0)


@pytest.mark.usefixtures("compiling")
def test_compiled_model_saves_and_loads_plain_names(tmp_path):
    model = train(apply_lora(make(), rank=4, target_modules=["v_proj"]))
    expected = logits(model)
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    save_lora(torch.compile(model, backend="eager"), tmp_path / "a.pth")
    assert not any("_orig_mod" in key for key in torch.load(tmp_path / "a.pth"))
    torch.testing.assert_close(logits(load_lora(make(), tmp_path / "a.pth")), expected, atol=0, rtol=0)
    target = make()
    target.model.layers[0] = torch.compile(target.model.layers[0], backend="eager")
    load_lora(target, tmp_path / "a.pth")
    assert len(lora_layers(target)) == len(lora_layers(model))
    target.model.layers[0] = target.model.layers[0]._orig_mod
    torch.testing.assert_close(logits(target), expected, atol=0, rtol=0)


@pytest.mark.parametrize("file_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_follow_the_base_layer(tmp_path, file_dtype, model_dtype):
    state = {
        key: value.to(file_dtype)
        for key, value in plain_state(train(apply_lora(make(), rank=4, target_modules=["q_proj"]))).items()
    }
    torch.save(state, tmp_path / "a.pth")
    model = load_lora(make().to(model_dtype), tmp_path / "a.pth")
    for name, layer in lora_layers(model).items():
        assert layer.lora.A.weight.dtype == layer.lora.B.weight.dtype == model_dtype
        assert torch.equal(layer.lora.A.weight, state[f"{name}.lora.A.weight"].to(model_dtype))


def test_values_too_large_for_the_model_are_refused(tmp_path):
    state = plain_state(apply_lora(make(), rank=4))
    next(iter(state.values()))[0, 0] = 1e6
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(AdapterError, match=r"too large for torch\.float16"):
        load_lora(make().half(), tmp_path / "a.pth")


def test_merge_rounds_once(tmp_path):
    pth, _ = saved(tmp_path, "a.pth")
    state = torch.load(pth)
    model = load_lora(make().bfloat16(), pth)
    name = "model.layers.1.mlp.down_proj"
    a, b = (state[f"{name}.lora.{part}.weight"].bfloat16().float() for part in "AB")
    expected = (make().bfloat16().get_submodule(name).weight.float() + b @ a).bfloat16()
    assert torch.equal(merge_lora(model).get_submodule(name).weight, expected)
    assert merge_lora(model) is model


def test_merge_of_a_tied_head_leaves_the_embedding(tmp_path):
    model = train(apply_lora(make(tie_word_embeddings=True), rank=4, target_modules=["lm_head"]))
    expected, embedding = logits(model), model.get_input_embeddings().weight.clone()
    merged = merge_lora(model)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-5, rtol=1e-5)


def test_deepcopy_is_independent():
    model = train(apply_lora(make(), rank=4))
    before = logits(model)
    copied = copy.deepcopy(model)
    for name, layer in lora_layers(copied).items():
        assert layer.lora.A is layer.lora_A["default"]
        assert layer.lora.A is not lora_layers(model)[name].lora.A
        layer.lora.B.weight.data.zero_()
    torch.testing.assert_close(logits(copied), logits(make()), atol=1e-6, rtol=1e-6)
    assert torch.equal(logits(model), before)
    assert pickle.loads(pickle.dumps(lora_layers(model)[name])).lora.A.weight.shape == layer.lora.A.weight.shape


def test_adapter_learns_and_the_base_does_not():
    model = apply_lora(make(), rank=4, seed=0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tokens = torch.arange(1, 13).reshape(2, 6)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # A gets no gradient while B is zero
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name


def test_seed_is_reproducible_and_leaves_the_global_state(tmp_path):
    pth, _ = saved(tmp_path, "a.pth", target_modules=["v_proj"])
    model = make()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = plain_state(apply_lora(model, rank=4, target_modules=["v_proj"], seed=3))
    load_lora(make(), pth)
    assert torch.equal(torch.rand(1), expected)
    second, other = (plain_state(apply_lora(make(), rank=4, target_modules=["v_proj"], seed=seed)) for seed in (3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_target_modules_by_path_last_part_and_expression():
    def targets(wanted):
        return list(lora_layers(apply_lora(make(), rank=1, target_modules=wanted)))

    assert targets(["layers.1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]
    assert targets(r".*\.0\.mlp\..*") == [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert targets("all-linear") == list(lora_layers(apply_lora(make())))
    with pytest.raises(SettingsError, match=r"--target_modules \['qkv'\] match no Linear layer.*q_proj"):
        targets(["q_proj", "qkv"])


@pytest.mark.filterwarnings("ignore")  # PEFT's about the experts it takes the layers for
def test_dense_layers_of_moe_models_keep_their_adapter(tmp_path, caplog):
    dense_first = {"decoder_sparse_step": 2}
    model = train(apply_lora(make("qwen3_moe", **dense_first), rank=4))
    assert "model.layers.0.mlp.gate_proj" in lora_layers(model)
    for path in (tmp_path / "a.pth", tmp_path / "folder"):
        save_lora(model, path)
        assert torch.equal(logits(load_lora(make("qwen3_moe", **dense_first), path)), logits(model))
    assert "load_lora can" in caplog.text
    by_peft = peft.PeftModel.from_pretrained(make("qwen3_moe", **dense_first), tmp_path / "folder")
    assert not torch.allclose(logits(by_peft), logits(model), atol=1e-3), "the warning is no longer needed"


@pytest.mark.parametrize(
    ("bad", "flag"),
    [
        ({"rank": 0}, "--lora_rank"),
        ({"rank": True}, "--lora_rank"),
        ({"rank": 2.0}, "--lora_rank"),
        ({"dropout": 1.0}, "--lora_dropout"),
        ({"alpha": 0}, "--lora_alpha"),
    ],
)
def test_bad_settings(bad, flag):
    with pytest.raises(SettingsError, match=f"{flag} must be"):
        apply_lora(make(), **bad)


def test_apply_twice_is_an_error():
    with pytest.raises(AdapterError, match="already"):
        apply_lora(apply_lora(make()))


def test_save_without_lora_or_to_an_odd_name(tmp_path):
    with pytest.raises(AdapterError, match="no LoRA"):
        save_lora(make(), tmp_path / "a.pth")
    with pytest.raises(AdapterError, match=r"ends in \.pth"):
        save_lora(apply_lora(make()), tmp_path / "a.safetensors")


def test_sidecar_goes_with_its_adapter(tmp_path):
    model = apply_lora(make(), rank=4, target_modules=["v_proj"])
    sidecar = Sidecar(rope=RopeSettings(ratio=0.25), rank=4, base_model="some/model")
    for path in (tmp_path / "a.pth", tmp_path / "folder"):
        save_lora(model, path, sidecar=sidecar)
        assert read_sidecar(path) == sidecar
        load_lora(make(), path)
        save_lora(model, path)
        assert read_sidecar(path) is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pth", "folder"]


@pytest.mark.parametrize("name", ["a.pth", "folder"])
def test_failed_write_keeps_the_former_adapter(tmp_path, name):
    sidecar = Sidecar(rope=None, rank=4, base_model="")
    path, expected = saved(tmp_path, name, target_modules=["q_proj"])
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with room_for(1000), pytest.raises(AdapterError, match="could not be written"):
        save_lora(apply_lora(make(), rank=2, target_modules=["q_proj"]), path, sidecar=sidecar)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert torch.equal(logits(load_lora(make(), path)), expected)
    save_lora(apply_lora(make(), rank=2, target_modules=["q_proj"]), path, sidecar=sidecar)
    assert adapter_rank(path) == 2
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"


def test_documented_import_path_works_uninstalled(monkeypatch):
    root = Path(__file__).resolve().parents[2]
    monkeypatch.syspath_prepend(str(root))
    module = runpy.run_path(str(root / "model" / "model_lora.py"))
    assert sys.path[0] == str(root / "src")
    for function in (apply_lora, load_lora, save_lora):
        assert module[function.__name__] is function
