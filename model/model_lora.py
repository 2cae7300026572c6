"""The documented import path of LoRA: `from model.model_lora import apply_lora, load_lora, save_lora`."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("parallelmind") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from parallelmind.models.lora import apply_lora, load_lora, save_lora

__all__ = ["apply_lora", "load_lora", "save_lora"]
