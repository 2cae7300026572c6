"""Machines with and without GPUs, as torch tells of them; nothing can be computed on those that are not there."""

from __future__ import annotations

import pytest
import torch


def machine_with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A machine with so many GPUs, 0 for one with a CPU alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
