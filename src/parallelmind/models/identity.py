"""Which model, adapter and 2D settings the flags come to: the same however they were spelled."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from parallelmind.io.fingerprints import fingerprint_of_contents
from parallelmind.settings.model import TINY_MODEL, ModelOptions

AdapterPath = str | os.PathLike[str]
"""Of a `.pth` file or a PEFT folder."""


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
    settings = dataclasses.asdict(resolved.settings)
    return {"patch_rope": True} | {name: value for name, value in settings.items() if value is not None}
