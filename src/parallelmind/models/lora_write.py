"""Writing LoRA to disk, so that a failed write leaves a former adapter whole."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from parallelmind.errors import AdapterError
from parallelmind.models.lora_layers import ADAPTER, current_dropout, plain_modules, rank_patterns
from parallelmind.models.lora_read import CONFIG_NAME, PICKLED_WEIGHTS_NAME, WEIGHTS_NAME
from parallelmind.models.sidecar import Sidecar, sidecar_path, sidecar_text
from parallelmind.models.whole_modules import peft_names

logger = logging.getLogger(__name__)


NEEDS_ROPE = "needs_parallelmind_for_2d_rope"
"""A field of adapter_config.json that PEFT does not know, and so warns of by its name when it loads the folder."""
_Whole = Mapping[str, Mapping[str, torch.Tensor]]
"""Parameters of modules that were trained whole, by the path of the module and the name in it."""


def pth_state(layers: Mapping[str, Any], whole: _Whole, path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a `.pth`, of LoRA layers and whole modules by path. Raises AdapterError for DoRA."""
    state = {}
    for name, layer in layers.items():
        a, b, scaling = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
        if ADAPTER in layer.lora_variant:
            raise AdapterError(
                f"{path}: {name} has DoRA, which the W + B·A of a .pth cannot express; save to a folder "
                "name instead (PEFT format)"
            )
        state[f"{name}.lora.A.weight"] = _to_file(a)
        state[f"{name}.lora.B.weight"] = _to_file(b if scaling == 1 else (b.float() * scaling).to(b.dtype))
    for module, values in whole.items():
        state |= {f"{module}.modules_to_save.{name}": _to_file(value) for name, value in values.items()}
    return state


def folder_state(layers: Mapping[str, Any], whole: _Whole) -> dict[str, torch.Tensor]:
    """The state dict of a PEFT folder, of LoRA layers and whole modules by path."""
    state = {}
    for name, layer in layers.items():
        prefix = f"base_model.model.{name}"
        state[f"{prefix}.lora_A.weight"] = _to_file(layer.lora_A[ADAPTER].weight)
        state[f"{prefix}.lora_B.weight"] = _to_file(layer.lora_B[ADAPTER].weight)
        if ADAPTER in layer.lora_variant:
            state[f"{prefix}.lora_magnitude_vector"] = _to_file(layer.lora_magnitude_vector[ADAPTER].weight)
    for module, values in whole.items():
        state |= {f"base_model.model.{module}.{name}": _to_file(value) for name, value in values.items()}
    return state


def folder_config(model: Any, layers: Mapping[str, Any], sidecar: Sidecar | None) -> Any:
    """The LoraConfig with which PEFT's own loader wraps the same layers with the same scaling."""
    rslora = all(layer.use_rslora[ADAPTER] for layer in layers.values())
    pairs = {}
    for name, layer in layers.items():
        rank = layer.r[ADAPTER]
        alpha = layer.scaling[ADAPTER] * (math.sqrt(rank) if rslora else rank)
        pairs[name] = (rank, round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-9) else alpha)
    last_parts = {name.rpartition(".")[2] for name in layers}
    also_matched = {name for name, _ in plain_modules(model) if name.rpartition(".")[2] in last_parts}
    base_model = (sidecar.base_model if sidecar else "") or getattr(model, "name_or_path", None) or None
    config = LoraConfig(
        target_modules=last_parts if also_matched == set(layers) else set(layers),
        lora_dropout=current_dropout(layers),
        use_rslora=rslora,
        use_dora=any(ADAPTER in layer.lora_variant for layer in layers.values()),
        base_model_name_or_path=base_model,
        task_type="CAUSAL_LM",
        inference_mode=True,
        modules_to_save=peft_names(model) or None,
        **rank_patterns(pairs),
    )
    if _redirected_to_experts(config, model):
        logger.warning(
            "PEFT's own loader takes some of %s for weights of the experts of this %s, and cannot load the "
            "folder; load_lora can",
            ", ".join(sorted(last_parts)),
            type(model).__name__,
        )
    return config


def _redirected_to_experts(config: Any, model: Any) -> bool:
    """Whether PEFT's loader will redirect targets such as `mlp.gate_proj` of a dense layer to fused experts.

    It does so by name alone, for the sake of adapters made when experts were separate layers.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older PEFT, which does no such thing
        return False
    probe = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(probe, model=model, conversions=None)
    except ValueError:
        return True
    return bool(probe.target_parameters)


def _to_file(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def write_pth(path: Path, state: Mapping[str, torch.Tensor], sidecar: Sidecar | None) -> None:
    """Write a state dict, and the sidecar beside it. Raises AdapterError; a former one is then unchanged."""
    files: dict[str, Callable[[Path], None]] = {path.name: lambda temporary: torch.save(dict(state), temporary)}
    _write_files(path.parent, files, sidecar, sidecar_path(path).name, whole_folder=False)


def write_folder(path: Path, config: Any, state: Mapping[str, torch.Tensor], sidecar: Sidecar | None) -> None:
    """Write a PEFT folder from a LoraConfig and a state dict, and the sidecar in it.

    Raises AdapterError if it cannot; a former adapter is then unchanged.
    """
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    if sidecar is not None and sidecar.rope is not None and sidecar.rope.moves_branches:
        values[NEEDS_ROPE] = True
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    files: dict[str, Callable[[Path], None]] = {
        WEIGHTS_NAME: lambda temporary: save_file(dict(state), temporary, metadata={"format": "pt"}),
        CONFIG_NAME: lambda temporary: _write_text(temporary, text),
    }
    _write_files(path, files, sidecar, sidecar_path(path).name, whole_folder=True)


def _write_files(
    folder: Path,
    files: dict[str, Callable[[Path], None]],
    sidecar: Sidecar | None,
    sidecar_name: str,
    *,
    whole_folder: bool,
) -> None:
    """Write all files under a temporary folder first and only then move them to their names."""
    if sidecar is not None:
        files[sidecar_name] = lambda temporary: _write_text(temporary, sidecar_text(sidecar))
    new_folder = whole_folder and not folder.is_dir()
    temporary = (folder.parent if new_folder else folder) / f".adapter.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        for name, write in files.items():
            write(temporary / name)
            with open(temporary / name, "rb+") as written:
                os.fsync(written.fileno())
        if new_folder:
            temporary.rename(folder)
            return
        for name in files:
            (temporary / name).replace(folder / name)
        # What described the former adapter must not be taken for the new one's.
        if sidecar is None:
            (folder / sidecar_name).unlink(missing_ok=True)
        if whole_folder:
            (folder / PICKLED_WEIGHTS_NAME).unlink(missing_ok=True)
    except Exception as error:  # torch and safetensors raise their own types on a full disk
        raise AdapterError(
            f"{folder}: the adapter could not be written ({error}); a former one is unchanged"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
