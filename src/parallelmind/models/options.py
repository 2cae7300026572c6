"""Which model to load and how: the settings that all commands with a model share."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.errors import SettingsError
from parallelmind.io.fingerprints import fingerprint_of_contents

TINY_MODEL = "tiny"
"""The name of the bundled model."""
DEFAULT_BRANCH_STRIDE = 128
"""Branch position = branch id × stride."""
ROPE_FLAGS = {
    "rope_2d_ratio": "ratio",
    "rope_2d_mode": "mode",
    "rope_2d_pairs": "pairs",
    "branch_stride": "branch_stride",
    "visibility": "visibility",
}
"""The flags of a row's 2D settings, and the field of `RopeSettings` that each one is about."""
AdapterPath = str | os.PathLike[str]
"""Of a `.pth` file or a PEFT folder."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The names are the flags; which adapter to load is each command's own to say.

    Raises:
        SettingsError: a value is out of range.
    """

    base_model: str
    """Hub name, local folder, or "tiny" for the bundled model."""
    lora_rank: int | None = None
    """None: the adapter's own."""
    patch_rope: bool | None = None
    """None: on with an adapter."""
    rope_2d_ratio: float | None = None
    rope_2d_mode: str | None = None
    rope_2d_pairs: str | None = None
    branch_stride: int | None = None
    visibility: str | None = None
    """None for these five: what the adapter was trained with, else the default."""
    device: str | None = None
    """None: cuda, or cpu without a GPU."""
    dtype: str = "bfloat16"
    """A name, or torch's own dtype, which becomes its name; "auto" is the checkpoint's own."""
    device_map: str | None = None
    """"auto" spreads the model over several GPUs; `device` is then unused."""
    load_in_8bit: bool = False
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))  # settings are written as JSON
        for name, least in (("lora_rank", 1), ("branch_stride", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"--{name} is {value!r}; it must be {least} or more.")
        if self.rope_2d_ratio is not None and not (math.isfinite(self.rope_2d_ratio) and 0 <= self.rope_2d_ratio <= 1):
            raise SettingsError(f"--rope_2d_ratio is {self.rope_2d_ratio!r}; it must be from 0 to 1.")
        if self.load_in_8bit and self.load_in_4bit:
            raise SettingsError("--load_in_8bit and --load_in_4bit exclude each other; give one.")

    @classmethod
    def of(cls, options: object, **others: Any) -> ModelOptions:
        """The settings of this class among those of a command; `others` are what it names otherwise."""
        names = (field.name for field in dataclasses.fields(ModelOptions))
        return ModelOptions(**({name: getattr(options, name) for name in names if hasattr(options, name)} | others))

    def loading(self) -> dict[str, Any]:
        """The settings by name: the arguments of `load_model_with_lora`, but for the adapter."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelOptions)}

    def rope_flags(self) -> dict[str, Any]:
        """What was said about 2D RoPE: the arguments of `resolve_rope`."""
        return {name: getattr(self, name) for name in ("patch_rope", *ROPE_FLAGS)}


def bundled_model_path() -> Path:
    """Folder of the model that ships with the package."""
    return Path(__file__).parents[1] / "assets" / "tiny"


def model_path(base_model: str) -> str:
    """Folder or hub name of a base model, the bundled one included."""
    return str(bundled_model_path()) if base_model == TINY_MODEL else base_model


def real_name(name: str | None) -> str | None:
    """Where a local file or folder really is, so that two spellings of it are one; a name of the Hub as it is."""
    return os.path.realpath(name) if name and name != TINY_MODEL and os.path.exists(name) else name


def fingerprint_of_adapter(path: Path) -> str:
    """Of a `.pth` file with its sidecar, or of a PEFT folder."""
    from parallelmind.models.sidecar import sidecar_path

    if path.is_dir():
        weights = (".safetensors", ".bin", ".pth", ".json")
        return fingerprint_of_contents(file for file in sorted(path.iterdir()) if file.suffix in weights)
    return fingerprint_of_contents(file for file in (path, sidecar_path(path)) if file.exists())


def rope_in_effect(options: ModelOptions, lora_path: str | None) -> dict[str, Any]:
    """What the flags of 2D RoPE come to with this model and adapter: the same however much of it was spelled out.

    Raises:
        ParallelMindError: the flags contradict each other or what the adapter was trained with.
    """
    flags = options.rope_flags()
    if (
        lora_path is None
        and not any(value is not None for value in flags.values())
        and not os.path.isdir(options.base_model)
    ):
        return {"patch_rope": False, "visibility": "isolated"}  # without torch, which the rest needs
    from parallelmind.models.rope_settings import resolve_rope

    resolved = resolve_rope(options.base_model, lora_path, **flags)
    if not resolved.patched:
        return {"patch_rope": False, "visibility": resolved.settings.visibility}
    return {"patch_rope": True, **dataclasses.asdict(resolved.settings)}


def dtype_name(dtype: object) -> str:
    """The name of a number format that is given as text or as torch's dtype: "float32" for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
