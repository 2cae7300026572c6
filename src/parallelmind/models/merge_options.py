"""The settings of a merge; apart from the merge itself, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parallelmind.settings.model import AdaptedModelSettings, Dtype
from parallelmind.settings.setting import Flag, Setting


@dataclass(frozen=True, kw_only=True)
class MergeOptions(AdaptedModelSettings):
    """What to merge; the names are the flags.

    Raises:
        SettingsError: a value is out of range.
    """

    output_dir: Annotated[
        Path, Setting("the new model folder, which must not exist yet", "files", flag=Flag(metavar="DIR"))
    ]
    lora_path: Annotated[str, Setting("adapter: a .pth file or a PEFT folder", "model", flag=Flag(metavar="PATH"))]
    dtype: Dtype = "auto"
