"""How flags, an adapter's sidecar and a model folder's own come together: by one rule, in the same words everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from parallelmind import Engine, load_model_with_lora
from parallelmind.errors import AdapterError, ParallelMindError, SettingsError
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.merge import merge_to_folder
from parallelmind.models.merge_options import MergeOptions
from parallelmind.models.rope_settings import resolve_rope, resolve_ropes
from parallelmind.models.sidecar import RopeSettings, Sidecar, write_sidecar
from parallelmind.settings.model import DEFAULT_STRIDE
from parallelmind.tasks.batch_options import BatchOptions
from parallelmind.training.model import load_trainee
from parallelmind.training.options import TrainOptions
from tests.families import tiny_model

STORED = RopeSettings(ratio=0.25, mode="additive", pairs="interleaved", branch_stride=0, visibility="columnar")


@pytest.fixture(scope="module")
def adapters(base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One trained with 2D RoPE, one without, and one that says nothing."""
    folder = tmp_path_factory.mktemp("adapters")
    model = apply_lora(tiny_model("qwen2"), rank=4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora.B.weight, std=0.1)
    sidecars = {
        "with": Sidecar(rope=STORED, rank=4, base_model=base),
        "without": Sidecar(rope=None, rank=4, base_model="other/model"),
        "silent": None,
    }
    return {name: str(save_lora(model, folder / f"{name}.pth", sidecar=one)) for name, one in sidecars.items()}


def test_defaults_given_and_stored_values(base: str, adapters: dict[str, str]) -> None:
    def settings(adapter: str | None, **flags: Any) -> RopeSettings:
        return resolve_rope(base, None if adapter is None else adapters[adapter], **flags).settings

    for adapter in (None, "silent", "without"):
        assert settings(adapter) == RopeSettings(branch_stride=DEFAULT_STRIDE)
        asked = {"rope_2d_ratio": 0.75, "rope_2d_mode": "additive", "branch_stride": 32}
        assert settings(adapter, **asked) == RopeSettings(ratio=0.75, mode="additive", branch_stride=32)
    assert settings("with") == STORED
    assert settings("with", rope_2d_ratio=0.25, visibility="columnar") == STORED


def test_2d_rope_is_on_with_an_adapter_and_in_training_unless_something_says_otherwise(
    base: str, adapters: dict[str, str]
) -> None:
    for adapter, training, expected in (
        (None, False, False), (None, True, True), ("silent", False, True), ("silent", True, True),
        ("without", False, False), ("without", True, False), ("with", False, True), ("with", True, True),
    ):  # fmt: skip
        path = None if adapter is None else adapters[adapter]
        assert resolve_rope(base, path, training=training).patched is expected, (adapter, training)
        if adapter in (None, "silent"):
            assert resolve_rope(base, path, training=training, patch_rope=not expected).patched is not expected
    assert "2D RoPE is off" in resolve_rope(base, None).notes[0]
    assert "2D RoPE is on" in resolve_rope(base, adapters["silent"]).notes[0]
    assert resolve_rope(None, None, training=True).patched, "a new model"


def test_a_peft_folder_from_elsewhere_runs_without_2d_rope_unless_asked(base: str, tmp_path: Path) -> None:
    """PEFT's own `save_pretrained` says nothing of branch positions; the answers are those of PEFT's model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    theirs.save_pretrained(tmp_path)
    loaded = load_model_with_lora(base, str(tmp_path), device="cpu", dtype="float32")
    assert loaded[2] is False
    [note] = [note for note in loaded.notes if "2D RoPE is off" in note]
    assert "--patch_rope" in note
    assert str(tmp_path) in note
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded[0](ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert load_model_with_lora(base, str(tmp_path), device="cpu", patch_rope=True)[2] is True


def test_flags_of_2d_rope_that_is_off_are_said_to_have_no_effect(base: str, adapters: dict[str, str]) -> None:
    for adapter, more in ((None, {}), (None, {"patch_rope": False}), ("without", {})):
        path = None if adapter is None else adapters[adapter]
        notes = resolve_rope(base, path, rope_2d_ratio=0.25, rope_2d_mode="split", **more).notes  # type: ignore[arg-type]
        assert notes[-1] == "--rope_2d_ratio and --rope_2d_mode have no effect: 2D RoPE is off"
    assert not resolve_rope(base, adapters["with"], rope_2d_ratio=0.25).notes


def test_every_contradiction_is_listed_with_both_values(base: str, adapters: dict[str, str]) -> None:
    asked = {"rope_2d_ratio": 0.5, "rope_2d_mode": "additive", "branch_stride": 128, "visibility": "strict"}
    with pytest.raises(SettingsError) as error:
        resolve_rope(base, adapters["with"], **asked)  # type: ignore[arg-type]
    message = str(error.value)
    assert "--rope_2d_ratio 0.5 given, 0.25 stored" in message
    assert "--branch_stride 128 given, 0 stored" in message
    assert "--visibility strict given, columnar stored" in message
    assert "--rope_2d_mode" not in message
    assert "Leave these flags out" in message


def test_a_wrong_value_is_an_error_whatever_is_stored(base: str, adapters: dict[str, str]) -> None:
    for path in (None, *adapters.values()):
        with pytest.raises(SettingsError, match="--rope_2d_mode must be split or additive"):
            resolve_rope(base, path, rope_2d_mode="both")


def test_several_adapters_have_their_own_stride_and_one_rotation(base: str, adapters: dict[str, str]) -> None:
    rope, found = resolve_ropes(base, {"a": adapters["with"], "b": adapters["without"]}, branch_stride=0)
    assert (rope.patched, rope.settings.mode, rope.settings.ratio) == (True, "additive", 0.25)
    assert [found.settings(name) for name in ("", "a", "b")] == [None, STORED, None]
    with pytest.raises(SettingsError, match=r"adapters a and c contradict each other: rope_2d_ratio is 0\.25 for a"):
        resolve_ropes(base, {"a": adapters["with"], "c": adapters["silent"]})
    with pytest.raises(SettingsError, match="the adapters the base model and a contradict"):
        resolve_ropes(base, {"a": adapters["with"]}, patch_rope=True, visibility="columnar", rope_2d_mode="additive")


CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("with", {"rope_2d_ratio": 0.5, "branch_stride": 7}),
    ("with", {"visibility": "strict"}),
    ("with", {"patch_rope": False}),
    ("without", {"patch_rope": True}),
]


@pytest.mark.parametrize(("adapter", "flags"), CONTRADICTIONS, ids=str)
def test_a_contradiction_has_the_same_words_at_every_entrance(
    base: str, adapters: dict[str, str], adapter: str, flags: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"main": "a", "branches": ["b"]}\n')
    path, here = adapters[adapter], {"device": "cpu", "dtype": "float32"}

    def train() -> None:
        renamed = {{"branch_stride": "stride"}.get(name, name): value for name, value in flags.items()}
        load_trainee(TrainOptions(base_model=base, load_lora=path, data_path=data, **here, **renamed), device="cpu")  # type: ignore[arg-type]

    def batch() -> None:
        BatchOptions(
            base_model=base, lora_path=path, data_path=data, out_path=tmp_path / "out.jsonl", **here, **flags
        ).identity()

    def merge() -> None:
        merge_to_folder(MergeOptions(base_model=base, lora_path=path, output_dir=tmp_path / "new", **here, **flags))

    entrances: dict[str, Callable[[], object]] = {
        "load_model_with_lora": lambda: load_model_with_lora(base, path, **here, **flags),
        "one adapter": lambda: Engine.from_pretrained(base, lora_path=path, **here, **flags),
        "several adapters": lambda: Engine.from_pretrained(base, lora_path={path: path}, **here, **flags),
        "training": train,
        "batch": batch,
        "merge": merge,
    }
    said = {}
    for name, enter in entrances.items():
        with pytest.raises(ParallelMindError) as error:
            enter()
        said[name] = str(error.value)
    assert set(said.values()) == {said["load_model_with_lora"]}, said
    assert f"adapter {path}" in said["training"]


def test_what_a_model_folder_needs_is_not_to_be_contradicted_either(
    base: str, adapters: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    write_sidecar(folder, Sidecar(rope=STORED, rank=4, base_model=base))
    assert resolve_rope(str(folder), None).rope == STORED
    for training in (False, True):
        with pytest.raises(SettingsError, match=r"^The model .*merged was trained with other settings"):
            resolve_rope(str(folder), None, branch_stride=5, training=training)
        with pytest.raises(SettingsError, match=r"merged needs .*, but the adapter .*without\.pth was trained with"):
            resolve_rope(str(folder), adapters["without"], training=training)


def test_an_old_sidecar_does_not_know_the_numbers(base: str, tmp_path: Path) -> None:
    write_sidecar(tmp_path, Sidecar(rope=STORED, rank=4, base_model=base))
    path = tmp_path / "parallelmind.json"
    content = json.loads(path.read_text())
    del content["rope"]["branch_range"], content["quantization"]
    path.write_text(json.dumps(content | {"format_version": 1}))
    said = "does not say which branch numbers it was trained on"
    for settings, is_said in (({}, True), ({"branch_range": 8}, False), ({"training": True}, False)):
        assert (said in " ".join(resolve_rope(base, str(tmp_path), **settings).notes)) == is_said
    assert resolve_rope(base, str(tmp_path)).quantization is None  # unknown, which is not the same as not quantized


def test_a_missing_adapter_is_named_with_its_flag(base: str) -> None:
    for training, flag in ((False, "--lora_path"), (True, "--load_lora")):
        with pytest.raises(AdapterError, match=f"^{flag} nowhere.pth: no such file"):
            resolve_rope(base, "nowhere.pth", training=training)
