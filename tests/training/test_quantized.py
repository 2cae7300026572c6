"""LoRA over a quantized base (bitsandbytes also computes on a CPU)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from parallelmind import Engine, Request, SamplingParams
from parallelmind.errors import SettingsError
from parallelmind.models.loader import load_base_model, load_model_with_lora
from parallelmind.models.lora import apply_lora
from parallelmind.models.merge import merge_to_folder
from parallelmind.models.merge_options import MergeOptions
from parallelmind.models.quantization import is_quantized_layer, settle
from parallelmind.models.sidecar import read_sidecar
from parallelmind.settings.model import ModelOptions
from parallelmind.training.quantized import check_gradients
from tests.training.runs import RecordedProgress, options, save_model, train, write_records

BITS = pytest.mark.parametrize("bits", [4, 8])


def load(model: Path, bits: int, dtype: str = "float32") -> Any:
    return load_base_model(
        ModelOptions(base_model=str(model), device="cpu", dtype=dtype, **{f"load_in_{bits}bit": True})
    )


def linears(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if is_quantized_layer(module)}


@BITS
def test_gradients_are_those_of_the_dequantized_model(bits: int, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    quantized, plain = (
        load(folder, bits),
        load_base_model(ModelOptions(base_model=str(folder), device="cpu", dtype="float32")),
    )
    weights = {name: dequantize_module_weight(module) for name, module in linears(load(folder, bits)).items()}
    assert len(weights) >= 7
    for name, weight in weights.items():
        layer = plain.get_submodule(name)
        assert not torch.equal(layer.weight, weight)
        layer.weight.data.copy_(weight)
    check_gradients(quantized, torch.float32, "--load_in_4bit")

    def gradients(model: Any) -> dict[str, Tensor]:
        apply_lora(model, 4, seed=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
        model.train()
        ids = torch.arange(1, 13)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}

    expected, found = gradients(plain), gradients(quantized)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name)


def test_weights_that_are_packed_for_answering_are_not_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors with bf16 instructions bitsandbytes packs at the first forward in eval mode, for good."""
    functional = pytest.importorskip("bitsandbytes.functional")
    product = functional.gemv_4bit
    monkeypatch.setattr(functional, "gemv_4bit", lambda *given, **named: product(*given, **named).detach())
    folder = save_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    model = load(folder, 4)
    for module in linears(model).values():
        module.support_avx512bf16_for_cpu = True
    packed, kept = model, load(folder, 4)
    with pytest.raises(SettingsError, match=r"--load_in_4bit cannot be trained with on this device: .*gradient.*64"):
        check_gradients(packed, torch.float32, "--load_in_4bit")
    for module in linears(kept).values():
        module.support_avx512bf16_for_cpu = True
    settle(kept, trained=True)
    check_gradients(kept, torch.float32, "--load_in_4bit")


def test_sizes_that_cannot_be_packed_are_answered_with_as_they_are(tmp_path: Path) -> None:
    model = load(save_model(tmp_path / "model", hidden_size=48, intermediate_size=80), 4)
    for module in linears(model).values():
        module.support_avx512bf16_for_cpu = True
    settle(model)
    model.eval()
    with torch.no_grad():
        assert model(input_ids=torch.arange(1, 5)[None]).logits.isfinite().all()


class _Wrong(nn.Linear):
    """A layer with one thing wrong."""

    def __init__(self, what: str):
        super().__init__(64, 96)
        self.what = what

    def forward(self, given: Tensor) -> Tensor:
        if self.what == "nothing comes back":
            return super().forward(given).detach()
        if self.what == "another matrix":
            other = torch.nn.functional.linear(given, self.weight.roll(1, 0), self.bias)
            return super().forward(given).detach() + other - other.detach()
        if self.what == "another form in eval mode" and not self.training:
            return super().forward(given) * 1.2
        return super().forward(given)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", ""),
        ("nothing comes back", r"no gradient comes back \(element 0 .*\)"),
        ("another matrix", r"gradients are off by 1\d\d% from those of the weights"),
        ("another form in eval mode", "in training is off by 17% from what is computed in answering"),
    ],
)
def test_what_is_wrong_with_a_layer_is_found(what: str, said: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), _Wrong(what))
    if not said:
        check_gradients(model, torch.float32, "--load_in_8bit")
        return
    with pytest.raises(SettingsError, match=rf"--load_in_8bit .*{said} in layers of .*_Wrong from 64 to 96 features"):
        check_gradients(model, torch.float32, "--load_in_8bit")


@BITS
def test_a_quantized_base_is_trained_evaluated_and_answers(bits: int, tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), write_records(tmp_path / "data.jsonl")
    flag = f"load_in_{bits}bit"
    progress = RecordedProgress()
    chosen = options(model, data, tmp_path / "out", epochs=3, eval_ratio=0.2, **{flag: True})
    report = train(chosen, progress)
    losses = [entry["loss"] for entry in progress.entries if "loss" in entry]
    assert losses[-1] < losses[0] * 0.7
    assert "eval_exact" in report.evaluation
    sidecar = read_sidecar(report.written)
    assert sidecar is not None
    assert sidecar.quantization == f"{bits} bits"
    otherwise = load_model_with_lora(str(model), str(report.written), device="cpu", dtype="float32")
    assert any(f"trained over weights in {bits} bits, and this base model has" in note for note in otherwise.notes)
    for path in (report.written, report.written.with_suffix("")):
        loaded = load_model_with_lora(str(model), str(path), device="cpu", dtype="float32", **{flag: True})  # type: ignore[arg-type]
        assert loaded.model.is_quantized
        assert not any("bits" in note for note in loaded.notes)
        sampling = SamplingParams(max_new_tokens=4, temperature=0)
        result = Engine(loaded.model, loaded.tokenizer).generate([Request(main="mmm0", branches=["q0?"])], sampling)
        assert result[0].branches[0].finish_reason in ("stop", "length")


@BITS
def test_a_model_that_is_stored_quantized(bits: int, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    folder = save_model(tmp_path / "model")
    load(folder, bits, "bfloat16").save_pretrained(stored)
    for file in folder.glob("*token*"):
        (stored / file.name).write_bytes(file.read_bytes())
    data = write_records(tmp_path / "data.jsonl")
    report = train(options(stored, data, tmp_path / "out", epochs=1))
    assert report.trained
    # In the format that is fastest on the processor, which may be another one.
    engine = Engine.from_pretrained(str(stored), lora_path=str(report.written), device="cpu", dtype="bfloat16")
    result = engine.generate([Request(main="mmm0", branches=["q0?"])], SamplingParams(max_new_tokens=4, temperature=0))
    assert result[0].branches[0].finish_reason in ("stop", "length")
    with pytest.raises(SettingsError, match=rf"is stored in {bits} bits already; leave --load_in_{12 - bits}bit out"):
        load(stored, 12 - bits)
    with pytest.raises(SettingsError, match="is stored quantized, so what the adapter adds would be rounded away"):
        merge_to_folder(
            MergeOptions(base_model=str(stored), lora_path=str(report.written), output_dir=str(tmp_path / "merged"))
        )
    with pytest.raises(SettingsError, match=r"--task pretrain: .* is stored quantized"):
        train(options(stored, data, tmp_path / "whole", task="pretrain"))
