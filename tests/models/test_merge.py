"""A merged model folder: the logits of base + adapter, and 2D settings that nobody has to repeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from parallelmind.columnar import find_rope_patch, pack_row
from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.loader import load_model_with_lora
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.merge import merge_to_folder
from parallelmind.models.merge_options import MergeOptions
from parallelmind.models.sidecar import RopeSettings, Sidecar, read_sidecar, sidecar_path
from tests.disks import room_for
from tests.families import char_tokenizer, tiny_model
from tests.hub import put_on_hub
from tests.models.adapters import train

ROPE = RopeSettings(ratio=0.25, mode="additive", pairs="interleaved", branch_stride=7, visibility="columnar")
FLAGS = {
    "rope_2d_ratio": 0.25, "rope_2d_mode": "additive", "rope_2d_pairs": "interleaved", "branch_stride": 7,
    "visibility": "columnar",
}  # fmt: skip


def base_and_adapter(
    folder: Path, family: str = "qwen2", *, sidecar: bool = True, rope: RopeSettings | None = ROPE, **changes
) -> tuple[str, str]:
    """A base model and a trained adapter on disk."""
    model = tiny_model(family, **changes)
    model.save_pretrained(folder / "base")
    char_tokenizer().save_pretrained(folder / "base")
    train(apply_lora(model, 4, seed=0))
    note = Sidecar(rope=rope, rank=4, base_model="base") if sidecar else None
    return str(folder / "base"), str(save_lora(model, folder / "adapter.pth", sidecar=note))


@torch.no_grad()
def logits(loaded) -> torch.Tensor:
    """Of a packed row where the model has 2D RoPE, so that its settings matter."""
    row = pack_row(range(3, 9), [range(4, 8), range(9, 14)])
    positions = row.pos2d(loaded.settings.branch_stride) if loaded.patch_rope else row.time_ids
    return loaded.model(input_ids=row.input_ids[None], position_ids=positions[None]).logits


def load(*arguments, **options):
    return load_model_with_lora(*arguments, **{"dtype": "float32", "device": "cpu"} | options)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("qwen2", {}), ("qwen2", {"tie_word_embeddings": True}), ("gemma2", {}), ("gpt_neox", {}), ("phi3", {})],
)
def test_same_logits_and_settings_without_flags(tmp_path, family, changes):
    base, adapter = base_and_adapter(tmp_path, family, **changes)
    expected = load(base, adapter)
    report = merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=tmp_path / "merged"))
    assert report.dtype == "float32"
    merged = load(str(tmp_path / "merged"))
    torch.testing.assert_close(logits(merged), logits(expected), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(load(base, patch_rope=True, **FLAGS)), logits(expected), atol=1e-2)
    assert not lora_layers(merged.model)
    assert merged.patch_rope
    assert merged.settings == ROPE
    assert any("which 2D RoPE it needs" in note for note in merged.notes)
    assert find_rope_patch(merged.model).mode == "additive"


def test_a_plain_pth_is_merged_with_the_settings_given(tmp_path):
    base, adapter = base_and_adapter(tmp_path, sidecar=False)
    options = MergeOptions(base_model=base, lora_path=adapter, lora_rank=4, output_dir=tmp_path / "merged", **FLAGS)
    merge_to_folder(options)
    assert read_sidecar(tmp_path / "merged") == Sidecar(rope=ROPE, rank=4, base_model=base)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"rope_2d_ratio": 0.5},
            r"The model .*merged was trained with .*\n  --rope_2d_ratio 0.5 given, 0.25 stored",
        ),
        ({"visibility": "isolated"}, "--visibility isolated given, columnar stored"),
        ({"patch_rope": False}, "--no_patch_rope contradicts the model .*merged"),
    ],
)
def test_flags_that_contradict_the_folder_are_refused(tmp_path, flags, message):
    base, adapter = base_and_adapter(tmp_path)
    merged = merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=tmp_path / "merged"))
    with pytest.raises(SettingsError, match=message):
        load(str(merged.output_dir), **flags)
    load(str(merged.output_dir), patch_rope=True, **FLAGS)  # the same again is none


def test_an_adapter_on_a_merged_model_must_agree_with_it(tmp_path):
    base, adapter = base_and_adapter(tmp_path)
    merged = merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=tmp_path / "merged"))
    assert load(str(merged.output_dir), adapter).settings == ROPE
    sidecar_path(adapter).unlink()
    assert load(str(merged.output_dir), adapter, lora_rank=4).settings == ROPE
    other = Sidecar(rope=RopeSettings(), rank=4, base_model="base")
    model = train(apply_lora(tiny_model("qwen2"), 4, seed=0))
    save_lora(model, tmp_path / "other.pth", sidecar=other)
    with pytest.raises(SettingsError, match="do not belong together"):
        load(str(merged.output_dir), str(tmp_path / "other.pth"))


def test_a_merged_model_on_the_hub_keeps_its_settings(tmp_path):
    base, adapter = base_and_adapter(tmp_path)
    merged = merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=tmp_path / "merged"))
    put_on_hub("someone/merged", merged.output_dir)
    assert load("someone/merged").settings == ROPE


def test_the_model_card_tells_people(tmp_path):
    base, adapter = base_and_adapter(tmp_path)
    merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=tmp_path / "merged"))
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "needs 2D RoPE" in card
    assert 'Engine.from_pretrained("merged")' in card
    assert "| branch_stride | 7 |" in card
    assert str(tmp_path) not in card


def test_an_adapter_without_2d_rope_makes_an_ordinary_model(tmp_path):
    base, adapter = base_and_adapter(tmp_path, rope=None)
    report = merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=tmp_path / "merged"))
    assert report.rope is None
    assert not sidecar_path(tmp_path / "merged").exists()
    assert "ordinary model" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = load(base, adapter).model(input_ids=ids).logits
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_dtype_is_the_bases_own_unless_given(tmp_path):
    base, adapter = base_and_adapter(tmp_path, dtype=torch.bfloat16)
    for asked, expected in (("auto", "bfloat16"), ("float16", "float16")):
        output = tmp_path / f"merged {asked}"
        report = merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=output, dtype=asked))
        assert report.dtype == expected
        assert json.loads((output / "config.json").read_text())["dtype"] == expected


def test_nothing_is_left_where_saving_fails(tmp_path):
    base, adapter = base_and_adapter(tmp_path)
    with room_for(10_000), pytest.raises(SettingsError, match="File too large"):
        merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=tmp_path / "merged"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter.parallelmind.json",
        "adapter.pth",
        "base",
    ]


def test_wrong_input(tmp_path):
    base, adapter = base_and_adapter(tmp_path)
    with pytest.raises(SettingsError, match="exists already"):
        merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, output_dir=Path(base)))
    with pytest.raises(AdapterError, match="no such file"):
        merge_to_folder(MergeOptions(base_model=base, lora_path="/none.pth", output_dir=tmp_path / "m"))
    with pytest.raises(AdapterError, match="rank"):
        merge_to_folder(MergeOptions(base_model=base, lora_path=adapter, lora_rank=2, output_dir=tmp_path / "m"))
    assert not (tmp_path / "m").exists()
