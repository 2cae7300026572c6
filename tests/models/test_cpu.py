"""CPU inference: packed layers compute what the plain ones do."""

from __future__ import annotations

import pytest
import torch

from parallelmind import Engine, Request, SamplingParams
from parallelmind.models.cpu.instructions import has_packed
from parallelmind.models.cpu.optimize import optimize_for_cpu
from parallelmind.models.cpu.packed_linear import PackedLinear
from parallelmind.models.cpu.row_counts import padded_rows
from parallelmind.models.lora import apply_lora
from parallelmind.models.lora_layers import lora_layers
from tests.families import FAMILIES, char_tokenizer, tiny_model
from tests.machines import processor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer(dtype: torch.dtype, bias: bool) -> None:
    if not has_packed(dtype):
        pytest.skip("this processor packs no such weights")
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 80, bias=bias, dtype=dtype)
    packed = PackedLinear(linear.weight, linear.bias)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        for rows in (1, 3, 16, 17, 100, 300):
            x = torch.randn(1, rows, 48, dtype=dtype)
            torch.testing.assert_close(packed(x), linear(x), atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(packed(x[0]), linear(x[0]), atol=tolerance, rtol=tolerance)
    assert packed.weight.dtype == dtype


def test_few_numbers_of_rows_are_computed_with() -> None:
    padded = [padded_rows(rows) for rows in range(1, 2049)]
    assert all(rows <= result < rows + 64 for rows, result in enumerate(padded, start=1))
    assert padded[:16] == list(range(1, 17)), "few branches are not slowed down"
    assert len(set(padded)) < 70


@pytest.mark.parametrize("family", FAMILIES)
def test_an_optimized_model_gives_the_same_logits(family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(ids).logits
        assert optimize_for_cpu(model) == []
        torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=1e-4)
    if family != "falcon":
        assert any(isinstance(module, PackedLinear) for module in model.modules())


def test_adapters_are_merged() -> None:
    model = apply_lora(tiny_model("qwen2"), rank=4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora.B.weight, std=0.1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(ids).logits
        optimize_for_cpu(model)
        torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=1e-4)
    assert not lora_layers(model)


@pytest.mark.parametrize("native", [True, False])
def test_half_precision_is_computed_in_float32_where_the_processor_lacks_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and not has_packed(torch.bfloat16):
        pytest.skip("this processor packs no such weights")
    processor(monkeypatch, bfloat16=native)
    model = tiny_model("qwen2", torch.bfloat16)
    notes = optimize_for_cpu(model)
    assert model.dtype == (torch.bfloat16 if native else torch.float32)
    assert bool(notes) == (not native)
    engine = Engine(model, char_tokenizer())
    result = engine.generate([Request(main="abc", branches=["d"])], SamplingParams(max_new_tokens=4, temperature=0))
    assert result[0].branches[0].finish_reason in ("length", "stop")
