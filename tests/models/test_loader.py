"""From names and flags to a model: what decides, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file

from parallelmind import Engine, Request, SamplingParams
from parallelmind.columnar import find_rope_patch
from parallelmind.errors import AdapterError, RequestError, SettingsError, UnsupportedModelError
from parallelmind.models.generation import generate_text
from parallelmind.models.loader import DTYPES, load_model_with_lora, resolve_device
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.sidecar import RopeSettings, Sidecar
from parallelmind.server.options import ServeOptions
from parallelmind.settings.model import ModelOptions
from parallelmind.tasks.batch_options import BatchOptions
from parallelmind.training.options import TrainOptions
from tests.families import char_tokenizer, tiny_model
from tests.machines import machine_with_gpus


@pytest.fixture(scope="module")
def adapters(base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Adapters of rank 4: a bare .pth, a .pth and a folder with a sidecar, and one trained without 2D RoPE."""
    folder = tmp_path_factory.mktemp("adapters")
    model = apply_lora(tiny_model("qwen2"), rank=4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora.B.weight, std=0.1)
    rope = RopeSettings(ratio=0.25, mode="additive", pairs="interleaved", branch_stride=32, visibility="columnar")
    with_rope = Sidecar(rope=rope, rank=4, base_model=base)
    paths = {name: str(folder / name) for name in ("bare.pth", "full.pth", "folder", "plain.pth")}
    save_lora(model, paths["bare.pth"])
    save_lora(model, paths["full.pth"], sidecar=with_rope)
    save_lora(model, paths["folder"], sidecar=with_rope)
    save_lora(model, paths["plain.pth"], sidecar=Sidecar(rope=None, rank=4, base_model="other/model"))
    return paths


def load(base: str, **settings: Any) -> Any:
    return load_model_with_lora(base_model=base, **({"device": "cpu", "dtype": "float32"} | settings))


def test_the_documented_call(base: str, adapters: dict[str, str]) -> None:
    model, tokenizer, patch_rope = load_model_with_lora(
        base_model=base, lora_path=adapters["bare.pth"], lora_rank=4, rope_2d_ratio=0.5, patch_rope=True
    )
    assert patch_rope is True
    patch = find_rope_patch(model)
    assert patch is not None
    assert patch.pair_indices == (4, 5, 6, 7)
    assert tokenizer("abc")["input_ids"]
    shapes = [
        (module.lora.A.weight.shape, module.lora.B.weight.shape)
        for _, module in model.named_modules()
        if hasattr(module, "lora")
    ]
    assert shapes
    assert all(a[0] == b[1] == 4 for a, b in shapes)


def test_without_an_adapter_2d_rope_is_off_and_the_note_says_why(base: str) -> None:
    loaded = load(base)
    assert loaded.patch_rope is False
    assert find_rope_patch(loaded.model) is None
    assert any("2D RoPE is off" in note for note in loaded.notes)
    forced = load(base, patch_rope=True)
    assert forced.patch_rope is True
    assert find_rope_patch(forced.model) is not None
    assert not forced.notes


@pytest.mark.parametrize("name", ["full.pth", "folder"])
def test_the_sidecar_decides_and_no_flag_need_be_repeated(base: str, adapters: dict[str, str], name: str) -> None:
    loaded = load(base, lora_path=adapters[name])
    assert loaded.patch_rope is True
    settings = loaded.settings
    assert (settings.ratio, settings.mode, settings.pairs) == (0.25, "additive", "interleaved")
    assert (settings.branch_stride, settings.visibility) == (32, "columnar")
    patch = find_rope_patch(loaded.model)
    assert patch is not None
    assert (patch.pair_indices, patch.mode) == ((2, 6), "additive")
    with pytest.raises(SettingsError, match=r"rope_2d_ratio.*0\.5"):
        load(base, lora_path=adapters[name], rope_2d_ratio=0.5)
    with pytest.raises(SettingsError, match="no_patch_rope"):
        load(base, lora_path=adapters[name], patch_rope=False)


def test_an_adapter_trained_without_2d_rope(base: str, adapters: dict[str, str]) -> None:
    loaded = load(base, lora_path=adapters["plain.pth"])
    assert loaded.patch_rope is False
    assert find_rope_patch(loaded.model) is None
    assert any("other/model" in note for note in loaded.notes)
    with pytest.raises(SettingsError, match="trained without 2D RoPE"):
        load(base, lora_path=adapters["plain.pth"], patch_rope=True)


def test_the_rank_is_that_of_the_file_and_a_rank_that_is_given_must_agree(base: str, adapters: dict[str, str]) -> None:
    for given in ({}, {"lora_rank": 4}):
        layers = lora_layers(load(base, lora_path=adapters["bare.pth"], **given).model)
        assert {layer.lora.A.weight.shape[0] for layer in layers.values()} == {4}
    with pytest.raises(AdapterError, match="its rank is 4, but rank 8 was asked for; pass --lora_rank 4"):
        load(base, lora_path=adapters["bare.pth"], lora_rank=8)


def test_what_cannot_be_loaded_is_named(base: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"--lora_path .*missing\.pth"):
        load(base, lora_path=str(tmp_path / "missing.pth"))
    with pytest.raises(SettingsError, match="does not hold a loadable model"):
        load(str(tmp_path))
    for base_model in (base, "tiny"):
        with pytest.raises(SettingsError, match=r'cannot be loaded as asked: .*"nope"` is not supported'):
            load(base_model, attn_implementation="nope")
    with pytest.raises(SettingsError, match="float32, float16, bfloat16"):
        load(base, dtype="int8")
    accepted = "it must be auto, balanced, balanced_low_0, sequential, or one device such as cuda:0 or cpu"
    for device_map in ("nope", "cuda:99"):
        with pytest.raises(SettingsError, match=rf"--device_map is '{device_map}'.*{accepted}"):
            load(base, device_map=device_map)
    with pytest.raises(SettingsError, match="exclude each other"):
        load(base, load_in_8bit=True, load_in_4bit=True)


def test_weights_that_memory_has_no_room_for_are_not_a_damaged_folder(base: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "vast"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2**50}))
    rest = {name: weight for name, weight in load_file(folder / "model.safetensors").items() if len(weight) != 97}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"vast: no memory for its weights on cpu; .* --load_in_4bit"):
        load(str(folder))


def test_damaged_folders_are_errors_of_the_user(base: str, tmp_path: Path) -> None:
    def damaged(name: str, content: bytes) -> str:
        folder = tmp_path / name
        shutil.copytree(base, folder)
        (folder / name).write_bytes(content)
        return str(folder)

    for name, content in (
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"),
        ("tokenizer.json", b'{"version": "1.0", "added_tokens": [], "model": {"type": "New"}}'),
        ("config.json", b'{"model_type": "qwen2", "hidden_size": "wide"}'),
    ):
        with pytest.raises(SettingsError, match="does not hold a loadable model"):
            load(damaged(name, content))
    pickled = tmp_path / "pickled"
    shutil.copytree(base, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({"lm_head.weight": print}, pickled / "pytorch_model.bin")
    with pytest.raises(SettingsError, match="Python objects besides tensors"):
        load(str(pickled))


def test_weights_that_are_missing_are_not_made_up(base: str, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        SettingsError, match=r"lack 1 of the model's weights \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        load(str(tmp_path))


def test_generate_text_takes_whole_numbers_and_refuses_nothing(base: str) -> None:
    model, tokenizer, _ = load(base)
    assert isinstance(generate_text(model, tokenizer, "ab", 3, temperature=2, repetition_penalty=2), str)
    with pytest.raises(RequestError, match="the prompt is empty"):
        generate_text(model, tokenizer, "")
    with pytest.raises(RequestError, match="temperature is -1"):
        generate_text(model, tokenizer, "ab", temperature=-1)


def test_a_model_without_rope_names_the_flag(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    char_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="--no_patch_rope"):
        load(str(tmp_path), patch_rope=True)
    assert load(str(tmp_path), patch_rope=False).patch_rope is False


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with_gpus(monkeypatch, 0)
    device, note = resolve_device(None)
    assert device == "cpu"
    assert "no GPU" in str(note)
    assert resolve_device("cpu") == ("cpu", None)
    with pytest.raises(SettingsError, match="--device cpu"):
        resolve_device("cuda")
    with pytest.raises(SettingsError, match="'gpu'"):
        resolve_device("gpu")
    machine_with_gpus(monkeypatch, 2)
    assert resolve_device(None) == ("cuda", None)
    assert resolve_device("cuda:1") == ("cuda:1", None)
    with pytest.raises(SettingsError, match=r"2 GPU"):
        resolve_device("cuda:2")


def test_a_model_spread_by_accelerate_runs_in_the_engine(base: str) -> None:
    """The hooks that move each layer's inputs to its device do not disturb the engine."""
    plain, tokenizer, _ = load(base)
    spread = load(base, device_map="auto").model
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"), "cpu")
    spread = dispatch_model(
        spread, places | {"model.rotary_emb": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True
    )
    assert hasattr(spread.model.layers[1], "_hf_hook")
    request, greedy = Request(main="shared", branches=["a", "bc"]), SamplingParams(max_new_tokens=6, temperature=0)
    answers = [Engine(model, tokenizer).generate([request], greedy)[0].branches for model in (plain, spread)]
    assert [b.token_ids for b in answers[0]] == [b.token_ids for b in answers[1]]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        *((name, dtype) for name, dtype in DTYPES.items()),
        *((dtype, dtype) for dtype in DTYPES.values()),
        ("torch.float16", torch.float16),
        ("auto", torch.float16),
    ],
)
def test_dtypes_by_name_and_as_torch_has_them(asked: Any, expected: torch.dtype, tmp_path: Path) -> None:
    tiny_model("qwen2").half().save_pretrained(tmp_path)
    char_tokenizer().save_pretrained(tmp_path)
    model, _ = load_model_with_lora(str(tmp_path), device="cpu", dtype=asked)
    assert model.dtype == expected


@pytest.mark.parametrize("asked", [torch.int8, "auto32", "torch.float8_e4m3fn"])
def test_dtypes_that_no_model_is_loaded_in(asked: Any, base: str) -> None:
    with pytest.raises(SettingsError, match=r"--dtype is '\w+'; it must be one of float32, float16, bfloat16"):
        load(base, dtype=asked)


def test_settings_take_dtypes_as_torch_has_them() -> None:
    """They are written as JSON, so they hold the name."""
    files: dict[str, Any] = {"data_path": Path("a"), "out_path": Path("b")}
    for options in (
        ModelOptions(base_model="tiny", dtype=torch.float32),  # type: ignore[arg-type]
        BatchOptions(base_model="tiny", dtype=torch.float32, **files),  # type: ignore[arg-type]
        ServeOptions(base_model="tiny", dtype=torch.float32),  # type: ignore[arg-type]
        TrainOptions(base_model="tiny", data_path=Path(__file__), dtype=torch.float32),  # type: ignore[arg-type]
    ):
        assert options.dtype == "float32"
