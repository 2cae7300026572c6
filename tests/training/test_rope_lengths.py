"""Texts beyond the length at which a model's frequencies change are computed apart from shorter ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from parallelmind.columnar import auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.data.batches import BatchLimits
from parallelmind.data.collator import ParallelPretrainCollator
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import JsonlSource
from parallelmind.models.lora import apply_lora
from parallelmind.models.rope_lengths import RopeLengths
from parallelmind.training.forward import PackedForward
from tests.engine.test_rope_lengths import LIMIT, longrope
from tests.families import char_tokenizer
from tests.training.test_forward import STRIDE, assert_same, gradients

RECORDS = [
    {"main": "m" * 20, "branches": ["a" * 5, "b" * 20, {"prompt": "cc", "completion": "d" * 15}, "e" * 4]},
    {"main": "n" * 36, "branches": ["f" * 3, "g" * 9]},
    {"main": "o" * 9, "branches": ["h" * 3, "i" * 9]},
    {"text": "j" * 50},
    {"text": "k" * 6},
]


@pytest.fixture(scope="module")
def model() -> Any:
    model = patch_model_with_interleaved_2d_rope(longrope(), auto_pair_indices(longrope(), 0.5))
    apply_lora(model, rank=4, seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return model.eval()


def found(model: Any, data: Path, batch: BatchLimits, longest_short: int | None) -> tuple[float, dict[str, Tensor]]:
    """The sums over the micro-batches of an epoch."""
    encoder = SampleEncoder(char_tokenizer(), max_seq_len=100)
    dataset = ParallelPretrainDataset(
        JsonlSource(data), encoder, limits=RowLimits(most=8), batch=batch, longest_short=longest_short
    )
    forward = PackedForward(model, visibility="isolated", stride=STRIDE)
    collator = ParallelPretrainCollator(0, stride=STRIDE, visibility="isolated", two_axes=True)
    total = 0.0
    for micro_batch in dataset:
        with forward.installed(model):
            loss = forward.loss(model, collator(micro_batch))
            loss.backward()
        total += float(loss.detach())
    assert dataset.counts.branches == sum(len(one.get("branches", [0])) for one in RECORDS)
    return total, gradients(model)


@pytest.mark.parametrize("batch", [BatchLimits(size=100), BatchLimits(size=400, by_tokens=True)], ids=str)
def test_each_branch_follows_its_own_length(model: Any, batch: BatchLimits, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    expected, alone = found(model, data, BatchLimits(size=1), None)
    assert RopeLengths(model).longest_short == LIMIT
    loss, gradient = found(model, data, batch, LIMIT)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert_same(gradient, alone)
    mixed, _ = found(model, data, batch, None)
    assert mixed != pytest.approx(expected, rel=1e-3)
