"""Machines, as torch tells of them: nothing can be computed on GPUs that are not there."""

from __future__ import annotations

import pytest
import torch


def machine_with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A machine with so many GPUs, 0 for one with a CPU alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def processor(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    """A processor with or without instructions for bfloat16."""
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: bfloat16, raising=False)
