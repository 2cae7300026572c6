"""From the choice of a model to an engine that is ready to run it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from parallelmind.engine.engine import Engine
from parallelmind.models.cpu import optimize_for_cpu
from parallelmind.models.loaded import LoadedModel
from parallelmind.models.loader import load_model_with_lora, resolve_device
from parallelmind.settings.model import ModelOptions

_LOGGER = logging.getLogger(__name__)


def load_engine(model: ModelOptions, lora_path: str | None, **settings: Any) -> tuple[Engine, LoadedModel]:
    """Load a model with its adapter and make its engine, with further `settings` of `Engine`.

    Raises:
        ParallelMindError: see `load_model_with_lora` and `Engine`.
    """
    adapter = f" with the adapter {lora_path}" if lora_path else ""
    _LOGGER.info("loading %s%s", model.base_model, adapter)
    if model.device_map is None:  # said before the long wait, not after it
        device, note = resolve_device(model.device)
        model = dataclasses.replace(model, device=device)
        if note:
            _LOGGER.info("%s", note)
    loaded = load_model_with_lora(lora_path=lora_path, **model.loading())
    return make_engine(loaded, **settings), loaded


def make_engine(loaded: LoadedModel, **settings: Any) -> Engine:
    """The engine of a loaded model: visibility and stride are those it was trained with, unless `settings` say other.

    Logs what the loader had to say. On a CPU the weights are packed for inference, in place.

    Raises:
        UnsupportedModelError: the model cannot decode branches over a shared main.
    """
    for note in (*loaded.notes, *optimize_for_cpu(loaded.model)):
        _LOGGER.info("%s", note)
    trained = {"visibility": loaded.settings.visibility, "branch_stride": loaded.settings.branch_stride}
    return Engine(loaded.model, loaded.tokenizer, **(trained | settings))
