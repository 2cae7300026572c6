"""Adapter files that are hostile, damaged, incomplete or for another model."""

import contextlib
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from parallelmind.errors import AdapterError
from parallelmind.models.lora import adapter_rank, apply_lora, load_lora, merge_lora, save_lora
from tests.models.adapters import logits, make, plain_state, saved, train


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write_hostile(path, kind, marker):
    content = {"model.layers.0.self_attn.q_proj.lora.A.weight": Hostile(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("place", ["a.pth", "folder/adapter_model.bin"])
def test_pickle_that_runs_code_is_refused_and_not_run(tmp_path, kind, place):
    path, _ = saved(tmp_path, "folder", target_modules=["q_proj"]) if "/" in place else (tmp_path / place, None)
    (tmp_path / "folder" / "adapter_model.safetensors").unlink(missing_ok=True)
    write_hostile(tmp_path / place, kind, tmp_path / "ran")
    for read in (adapter_rank, lambda p: load_lora(make(), p)):
        with pytest.raises(AdapterError, match=r"mkdir.*can run any code.*safetensors"):
            read(path)
    assert not (tmp_path / "ran").exists()
    with contextlib.suppress(RuntimeError):  # a bare pickle runs, and then is no torch file
        torch.load(tmp_path / place, weights_only=False)
    assert (tmp_path / "ran").exists(), "the file of this test is harmless, so it proves nothing"


def test_pickled_peft_weights_load_safely(tmp_path):
    folder, expected = saved(tmp_path, "folder", target_modules=["q_proj"])
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    torch.testing.assert_close(logits(load_lora(make(), folder)), expected, atol=0, rtol=0)


def test_legacy_torch_format_loads(tmp_path):
    model = train(apply_lora(make(), rank=4))
    torch.save(plain_state(model), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(logits(load_lora(make(), tmp_path / "a.pth")), logits(model))


Q = "model.layers.0.self_attn.q_proj"


def one_layer(a=(4, 16), b=(16, 4), name=Q):
    return {f"{name}.lora.A.weight": torch.ones(a), f"{name}.lora.B.weight": torch.ones(b)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "not a LoRA adapter"),
        ({f"{Q}.weight": torch.ones(2)}, f"not a LoRA adapter.*{Q}.weight"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 16)}, "adapter_config.json; give the folder"),
        ({"state_dict": one_layer()}, "'state_dict' is a dict, not a tensor"),
        ({**one_layer(), "step": 3}, "'step' is a int"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({**one_layer(), "lm_head.weight": torch.ones(2)}, "1 entries are no LoRA.*lm_head.weight"),
        ({f"{Q}.lora.A.weight": torch.ones(4, 16)}, f"{Q} has A but not B"),
        ({f"{Q}.lora.B.weight": torch.ones(4, 16)}, f"{Q} has B but not A"),
        (one_layer(b=(16, 5)), r"A \[4, 16\] and B \[16, 5\], not"),
        (one_layer(a=(0, 16), b=(16, 0)), r"A \[0, 16\] and B \[16, 0\], not"),
        (one_layer(a=(16,)), r"A \[16\]"),
        ({**one_layer(), f"{Q}.lora.A.weight": torch.ones(4, 16).long()}, "floating point"),
        ({**one_layer(), f"{Q}.lora.A.weight": torch.ones(4, 16).to_sparse()}, "plain tensor"),
        ({**one_layer(), f"{Q}.lora.B.weight": torch.full((16, 4), float("nan"))}, "B of .*NaN or infinite"),
        ({**one_layer(), f"{Q}.lora.A.weight": torch.full((4, 16), float("-inf"))}, "A of .*NaN or infinite"),
        (
            one_layer(a=(4, 20)),
            rf"(?s)base model.*{Q}: A \[4, 20\] and B \[16, 4\] in the file, A \[4, 16\] and B",
        ),
        (one_layer(name="model.layers.9.mlp.up_proj"), r"(?s)--base_model.*layers.9.*no such module"),
        (one_layer(name="model.embed_tokens"), "a Embedding in the model"),
        ({**one_layer(), **one_layer(name=f"module.{Q}")}, "twice"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    model = train(apply_lora(make(), rank=2, target_modules=["q_proj"]))
    before = logits(model)
    with pytest.raises(AdapterError, match=message) as error:
        load_lora(model, tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(error.value)
    assert torch.equal(logits(model), before)


def test_wrong_base_model_lists_the_first_few(tmp_path):
    pth, _ = saved(tmp_path, "a.pth")
    with pytest.raises(AdapterError) as error:
        load_lora(make(num_hidden_layers=1), pth)
    assert "7 of its 14 layers do not fit" in str(error.value)
    assert str(error.value).count("no such module") == 4
    assert "and 3 more" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello world " * 30, b"PK\x03\x04 not a zip", b"\x80\x02."])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError, match="damaged"):
        load_lora(make(), tmp_path / name)


def test_truncated_file(tmp_path):
    pth, _ = saved(tmp_path, "a.pth", target_modules=["q_proj"])
    pth.write_bytes(pth.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="damaged"):
        adapter_rank(pth)


def test_missing_files_and_wrong_folders(tmp_path):
    with pytest.raises(AdapterError, match="no such file"):
        load_lora(make(), tmp_path / "none.pth")
    with pytest.raises(AdapterError, match="not a PEFT adapter folder"):
        load_lora(make(), tmp_path)
    make().config.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="a whole model, not an adapter"):
        load_lora(make(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(AdapterError, match="no weights"):
        load_lora(make(), tmp_path)


@pytest.mark.parametrize("name", ["a.pth", "folder"])
def test_another_rank_names_both_and_the_remedy(tmp_path, name):
    path, _ = saved(tmp_path, name, target_modules=["q_proj"])
    load_lora(make(), path, rank=4)
    size = r"size mismatch for \S*model\.layers\.0\.self_attn\.q_proj"
    with pytest.raises(AdapterError, match=rf"{size}.*rank is 4, but rank 8 .*--lora_rank 4"):
        load_lora(make(), path, rank=8)


@pytest.mark.parametrize("name", ["a.pth", "folder"])
@pytest.mark.parametrize(
    ("applied", "message"),
    [
        ({"rank": 16}, r"size mismatch for \S+q_proj.*rank is 4, but rank 16 was given to apply_lora.*rank=4\)"),
        ({}, r"size mismatch for .*its rank is 4, but rank 8 was given"),
        ({"rank": 4, "target_modules": ["v_proj"]}, "q_proj, which the target modules given to apply_lora leave out"),
        (
            {"rank": 4, "target_modules": ["q_proj", "v_proj"]},
            r"apply_lora has \S+v_proj, which the file lacks; .*--target_modules",
        ),
        ({"rank": 4, "use_dora": True}, "was trained without use_dora"),
    ],
)
def test_a_file_that_contradicts_apply_lora(tmp_path, name, applied, message):
    path, _ = saved(tmp_path, name, target_modules=["q_proj"])
    model = apply_lora(make(), **applied)
    before = logits(model)
    with pytest.raises(AdapterError, match=message) as error:
        load_lora(model, path)
    assert str(path) in str(error.value)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("applied", "message"), [({"alpha": 32}, r"--lora_alpha.*alpha=6"), ({"use_rslora": True}, "use_rslora")]
)
def test_only_a_folder_contradicts_the_scaling(tmp_path, applied, message):
    """A .pth has the scaling folded into B, so that it says nothing about it."""
    pth, expected = saved(tmp_path, "a.pth", alpha=6)
    folder, _ = saved(tmp_path, "folder", alpha=6)
    torch.testing.assert_close(logits(load_lora(apply_lora(make(), rank=4, **applied), pth)), expected)
    with pytest.raises(AdapterError, match=message):
        load_lora(apply_lora(make(), rank=4, **applied), folder)


@pytest.mark.parametrize("name", ["a.pth", "folder"])
def test_what_agrees_with_apply_lora_or_was_not_said_loads(tmp_path, name):
    path, expected = saved(tmp_path, name, alpha=6, target_modules=["q_proj"])
    for applied in ({}, {"alpha": 6, "target_modules": ["q_proj"]}, {"target_modules": "all-linear"}):
        model = load_lora(apply_lora(make(), rank=4, **applied), path)
        torch.testing.assert_close(logits(model), expected)
    other = save_lora(train(apply_lora(make(), rank=2)), tmp_path / "other.pth")
    load_lora(model, other)  # what was loaded last binds nobody
    apply_lora(merge_lora(model), rank=3)
    with pytest.raises(AdapterError, match="its rank is 4, but rank 3 was given"):
        load_lora(model, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 8}, "rank 4 in adapter_model.safetensors, but adapter_config.json says 8"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 4 .* says 2"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"r": 0}, "r must be a positive"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "uses bias"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head, which adapter_config.json names in modules_to_save"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list"),
        ({"target_parameters": ["experts.down_proj"]}, "uses target_parameters"),
        ({"init_lora_weights": "pissa"}, "also changed the base weights"),
    ],
)
def test_folder_configs_that_mean_something_else(tmp_path, changes, message):
    folder, _ = saved(tmp_path, "folder", target_modules=["q_proj"])
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(AdapterError, match=message):
        load_lora(make(), folder)


def test_safetensors_file_with_the_same_keys(tmp_path):
    model = train(apply_lora(make(), rank=4))
    save_file(plain_state(model), tmp_path / "a.safetensors")
    assert torch.equal(logits(load_lora(make(), tmp_path / "a.safetensors")), logits(model))
