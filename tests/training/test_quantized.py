"""QLoRA, where bitsandbytes is installed (it also computes on a CPU)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parallelmind import Engine, Request, SamplingParams
from parallelmind.errors import SettingsError
from parallelmind.models.loader import load_model_with_lora
from tests.training.runs import RecordedProgress, options, save_model, train, write_records


def test_4_bits_are_not_trained_with_on_a_cpu(tmp_path: Path) -> None:
    chosen = options(tmp_path, write_records(tmp_path / "data.jsonl"), tmp_path / "out", load_in_4bit=True)
    with pytest.raises(SettingsError, match=r"--load_in_4bit .* gradients .* are wrong.*use --load_in_8bit, or a GPU"):
        train(chosen)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_trained_evaluated_and_answers(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if bits == 4 and not torch.cuda.is_available():
        pytest.skip("4 bits are trained with on a GPU only")
    model, data = save_model(tmp_path / "model"), write_records(tmp_path / "data.jsonl")
    flag = f"load_in_{bits}bit"
    progress = RecordedProgress()
    chosen = options(model, data, tmp_path / "out", epochs=3, eval_ratio=0.2, **{flag: True})
    report = train(chosen, progress)
    losses = [entry["loss"] for entry in progress.entries if "loss" in entry]
    assert losses[-1] < losses[0] * 0.7
    assert "eval_exact" in report.evaluation
    for path in (report.written, report.written.with_suffix("")):
        loaded = load_model_with_lora(str(model), str(path), device="cpu", dtype="float32", **{flag: True})  # type: ignore[arg-type]
        assert loaded.model.is_quantized
        sampling = SamplingParams(max_new_tokens=4, temperature=0)
        result = Engine(loaded.model, loaded.tokenizer).generate([Request(main="mmm0", branches=["q0?"])], sampling)
        assert result[0].branches[0].finish_reason in ("stop", "length")
