"""The documented import path of the columnar core: `from parallel.columnar import ...`."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
import run_from_checkout

run_from_checkout.prepare(__name__)

from parallelmind.columnar import (
    Interleaved2DRoPE,
    auto_pair_indices,
    build_columnar_causal_mask,
    patch_model_with_interleaved_2d_rope,
    set_rope_pos2d,
)

__all__ = [
    "Interleaved2DRoPE",
    "auto_pair_indices",
    "build_columnar_causal_mask",
    "patch_model_with_interleaved_2d_rope",
    "set_rope_pos2d",
]
