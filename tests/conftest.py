"""Shared by all tests."""

from __future__ import annotations

import torch

# The models are tiny: a second thread costs more than it brings, most of all when other programs run.
torch.set_num_threads(1)
