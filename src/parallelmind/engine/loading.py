"""A model for an engine of its own, from what a user calls it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parallelmind.models.identity import AdapterPath
from parallelmind.settings.model import ModelOptions

if TYPE_CHECKING:
    from parallelmind.models.loader import LoadedModel

_LOGGER = logging.getLogger(__name__)


def load_for_engine(
    base_model: str, lora_path: AdapterPath | Mapping[str, AdapterPath] | None, loading: Mapping[str, Any]
) -> LoadedModel:
    """Load a model, with its adapter or with several to choose from, and pack its weights where it runs on a CPU.

    Decisions that no setting asked for are logged.

    Args:
        loading: settings of `ModelOptions`.
    Raises:
        ParallelMindError: as `load_model_with_lora`.
    """
    # Imported here, as transformers takes seconds to import.
    from parallelmind.models.cpu.optimize import optimize_for_cpu
    from parallelmind.models.loader import load_model, resolve_device

    options = ModelOptions(base_model=base_model, **loading)
    paths = lora_path.values() if isinstance(lora_path, Mapping) else [lora_path] if lora_path else []
    adapter = f" with {', '.join(map(str, paths))}" if paths else ""
    _LOGGER.info("loading %s%s", base_model, adapter)
    if options.device_map is None:  # so that the note comes before the long wait
        device, note = resolve_device(options.device)
        options = dataclasses.replace(options, device=device)
        if note:
            _LOGGER.info("%s", note)
    loaded = load_model(options, lora_path)
    for note in (*loaded.notes, *optimize_for_cpu(loaded.model, deterministic=options.deterministic is not False)):
        _LOGGER.info("%s", note)
    return loaded
