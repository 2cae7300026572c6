"""The settings of a merge; apart from the merge itself, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parallelmind.settings.model import (
    BaseModel,
    BranchStride,
    Dtype,
    LoadingSettings,
    LoraRank,
    PatchRope,
    RopeMode,
    RopePairs,
    RopeRatio,
    VisibilityOption,
)
from parallelmind.settings.setting import Flag, Setting


@dataclass(frozen=True, kw_only=True)
class MergeOptions(LoadingSettings):
    """What to merge; the names are the flags.

    Raises:
        SettingsError: a value is out of range.
    """

    output_dir: Annotated[
        Path, Setting("the new model folder, which must not exist yet", "files", flag=Flag(metavar="DIR"))
    ]
    base_model: BaseModel
    lora_path: Annotated[str, Setting("adapter: a .pth file or a PEFT folder", "model", flag=Flag(metavar="PATH"))]
    lora_rank: LoraRank = None
    patch_rope: PatchRope = None
    rope_2d_ratio: RopeRatio = None
    rope_2d_mode: RopeMode = None
    rope_2d_pairs: RopePairs = None
    branch_stride: BranchStride = None
    visibility: VisibilityOption = None
    dtype: Dtype = "auto"
