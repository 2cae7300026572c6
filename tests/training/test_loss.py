"""The chunked loss: that of the model's full logits and its gradient, in every family, without their memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallelmind.data.collator import ParallelPretrainCollator
from parallelmind.training import loss as loss_module
from parallelmind.training.forward import PackedForward
from parallelmind.training.loss import ChunkedLoss
from tests.cases import few
from tests.families import VOCAB_SIZE, tiny_model
from tests.models import document
from tests.models.judge import EXACT
from tests.models.registry import PLAIN, build
from tests.training.test_forward import BRANCHES, MAIN, PROMPTS, STRIDE, assert_same, gradients, lora_model, row

EXACT_TYPES = [one.model_type for one in document.rows() if one.variant == PLAIN and one.outcome == EXACT]
IDS = torch.tensor([[11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 22, 23, 24, 25, 26, 27, 28]])
ROWS, PLACES = torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([1, 2, 7, 0, 3, 3, 8])
LABELS = torch.tensor([5, 6, -100, 8, 9, 10, 11])


def of_full_logits(model: Any, label_smoothing: float) -> Tensor:
    logits = model(input_ids=IDS, use_cache=False).logits[ROWS, PLACES].float()
    return F.cross_entropy(logits, LABELS, reduction="sum", label_smoothing=label_smoothing)


def in_chunks(model: Any, label_smoothing: float, tokens: int = 3) -> Tensor:
    chunked = ChunkedLoss.of(model)
    assert chunked is not None
    chunked.chunk_tokens = tokens
    with chunked.summing(ROWS, PLACES, LABELS, label_smoothing) as found:
        model(input_ids=IDS, use_cache=False)
    [total] = found
    return total


def assert_exact(model: Any, label_smoothing: float = 0.0, tolerance: float = 1e-5) -> None:
    """Over all parameters, the head's too, and a divisor that bfloat16 does not hold."""
    full = of_full_logits(model, label_smoothing)
    (full / 8191 * 1e4).backward()
    expected = gradients(model)
    chunked = in_chunks(model, label_smoothing)
    (chunked / 8191 * 1e4).backward()
    assert float(chunked.detach()) == pytest.approx(float(full.detach()), rel=tolerance)
    assert_same(gradients(model), expected, tolerance)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 3.0}),
        ("minicpm3", {}),
        ("phi", {}),
        ("falcon", {}),
    ],
)
def test_equals_the_full_logits(model_type: str, settings: dict[str, Any]) -> None:
    model = build(model_type, **settings)
    assert_exact(model)
    assert_exact(model, label_smoothing=0.2)
    with torch.no_grad():
        assert float(in_chunks(model, 0.2)) == pytest.approx(float(of_full_logits(model, 0.2)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", EXACT_TYPES)
def test_equals_the_full_logits_of_every_type(model_type: str) -> None:
    """None of the types that can be trained on packed rows needs its full logits."""
    assert_exact(build(model_type), label_smoothing=0.1)


@pytest.mark.half_precision
@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16], 2))
def test_half_precision(dtype: torch.dtype) -> None:
    """In float16 a gradient of 1e-7 would vanish before it is scaled."""
    assert_exact(build("gemma2", dtype, final_logit_softcapping=0.5), tolerance=0.02)


def test_an_adapter_on_the_head() -> None:
    config = LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    assert_exact(get_peft_model(tiny_model("gemma2"), config).get_base_model())


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "falcon"])
def test_packed_rows_in_chunks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks may end within a row; main's last token stands for the first tokens of several branches."""
    model = lora_model(family)
    rows = [row(MAIN, BRANCHES, PROMPTS), row([], [[30, 31, 32], [33, 34]], [1, 0])]
    expected, whole = packed(model, rows)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", VOCAB_SIZE * 4 * 4 * 2)
    total, found = packed(model, rows)
    assert total == pytest.approx(expected, rel=1e-5)
    assert_same(found, whole, 1e-5)


def packed(model: Any, rows: list[Any], label_smoothing: float = 0.1) -> tuple[float, dict[str, Tensor]]:
    forward = PackedForward(model, visibility="isolated", stride=STRIDE)
    batch = ParallelPretrainCollator(0, stride=STRIDE, two_axes=forward.patched)(rows)
    with forward.installed(model):
        total = forward.loss(model, batch, label_smoothing=label_smoothing)
        total.backward()
    return float(total.detach()), gradients(model)


def reversed_words(logits: Tensor) -> Tensor:
    return logits - 0.5 * logits.flip(-1)


def by_place(logits: Tensor) -> Tensor:
    return logits * torch.arange(1, logits.shape[1] + 1)[:, None]


def in_place(logits: Tensor) -> Tensor:
    logits.mul_(0.5)
    return logits


@pytest.mark.parametrize("change", [reversed_words, by_place, in_place])
def test_what_is_not_the_same_for_each_logit_is_left_to_the_model(change: Any) -> None:
    assert ChunkedLoss.of(with_logits(lora_model("qwen2", None), change)) is None


@pytest.mark.parametrize("change", [reversed_words, in_place])
def test_without_chunks_the_loss_is_that_of_the_models_own_logits(
    change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And the first tokens of branches, which several may follow one place, count as they do in chunks."""
    model = with_logits(lora_model("qwen2", None), change)
    total, found = packed(model, [row(MAIN[:1], [MAIN[1:], BRANCHES[0]], [0, 0])], 0.0)
    assert caplog.text.count("makes its logits in a way of its own") == 1
    expected = torch.zeros(())
    for tokens in (MAIN[1:], BRANCHES[0]):
        ids = torch.tensor([MAIN[:1] + tokens])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        expected = expected + F.cross_entropy(logits, ids[0, 1:], reduction="sum")
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same(found, gradients(model), 1e-5)


def with_logits(model: Any, change: Any) -> Any:
    own = model.forward

    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    model.forward = forward
    return model


class Largest(TorchDispatchMode):
    """Notes the largest array that anything computes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.numel())
        return result


@contextmanager
def largest() -> Iterator[Largest]:
    with Largest() as mode:
        yield mode


def test_no_array_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    words, tokens, chunk = 5000, 400, 16
    model = lora_model("gemma2", vocab_size=words)
    branch = [3 + number % 90 for number in range(tokens)]
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", words * 4 * (4 + 3) * chunk)
    forward = PackedForward(model, visibility="isolated", stride=STRIDE)
    batch = ParallelPretrainCollator(0, stride=STRIDE, two_axes=forward.patched)([row(MAIN, [branch], [0])])
    found = []
    for chunked in (forward._chunked, None):
        forward._chunked = chunked
        with forward.installed(model), largest() as mode:
            forward.loss(model, batch).backward()
        found.append(mode.numbers)
    in_parts, whole = found
    assert whole >= words * tokens
    assert in_parts <= max(words * chunk, 4 * (len(MAIN) + tokens) ** 2 * 2)
