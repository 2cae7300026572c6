"""Adapters for the bundled model, with an effect."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from parallelmind import load_model_with_lora
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers


class Adapters(NamedTuple):
    """Of rank 8, with the same weights, without a sidecar; and one of rank 4."""

    pth: Path
    folder: Path
    rank_4: Path


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    folder = tmp_path_factory.mktemp("adapters")

    def adapted(rank: int) -> torch.nn.Module:
        model = load_model_with_lora("tiny", device="cpu", dtype="float32").model
        apply_lora(model, rank=rank, seed=0)
        generator = torch.Generator().manual_seed(rank)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora.B.weight, std=2.0, generator=generator)
        return model

    model = adapted(8)
    return Adapters(
        pth=save_lora(model, folder / "eight.pth"),
        folder=save_lora(model, folder / "eight"),
        rank_4=save_lora(adapted(4), folder / "four.pth"),
    )


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As started by hand."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
