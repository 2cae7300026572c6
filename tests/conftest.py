"""Shared by all tests."""

from __future__ import annotations

import os

# Before torch is imported, and for the programs that tests start: see parallelmind.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

# The models are tiny: a second thread costs more than it brings, most of all when other programs run.
torch.set_num_threads(1)
