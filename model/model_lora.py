"""The documented import path of LoRA: `from model.model_lora import apply_lora, load_lora, save_lora`."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
import run_from_checkout

run_from_checkout.prepare(__name__)

from parallelmind.models.lora import apply_lora, load_lora, save_lora

__all__ = ["apply_lora", "load_lora", "save_lora"]
