"""The training path, on the bundled model in a temporary folder: a step of LoRA, a whole run, and its adapter."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from parallelmind.data.collator import ParallelPretrainCollator
from parallelmind.jobs.progress import Silent
from parallelmind.models.loader import TINY_MODEL, bundled_model_path, load_model_with_lora
from parallelmind.models.lora import lora_layers
from parallelmind.pipelines.doctor.check import Check, CheckFailedError, DoctorOptions, Once
from parallelmind.training.data import load_data
from parallelmind.training.files import RunFiles
from parallelmind.training.forward import PackedForward
from parallelmind.training.model import Trainee, load_trainee, training_device
from parallelmind.training.options import TrainOptions
from parallelmind.training.run import run_training
from parallelmind.training.saving import save_adapter

__all__ = ["checks"]
