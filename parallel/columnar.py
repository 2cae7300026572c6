"""The documented import path of the columnar core: `from parallel.columnar import …`."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("parallelmind") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

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
