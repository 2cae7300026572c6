"""What a run is given where a flag is not: the adapter's or the model's own settings, else the defaults."""

from __future__ import annotations

import json
import os
from typing import Any

from transformers import PretrainedConfig

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.loader import check_agreement, model_path, sidecar_of_model
from parallelmind.models.lora import adapter_rank
from parallelmind.models.sidecar import RopeSettings, Sidecar, read_sidecar, resolve_settings
from parallelmind.training.options import TrainOptions

_DEFAULT_RANK = 8
NEW_MODEL = {
    "model_type": "qwen2",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""The model that is made from scratch."""


def resolve_rope(options: TrainOptions) -> tuple[RopeSettings, bool]:
    """The 2D settings of a run, and whether it has 2D RoPE: flags over what the adapter or model folder says.

    Raises:
        SettingsError: flags contradict the adapter to continue from, or the model.
        AdapterError: the adapter to continue from is not there, or its sidecar file cannot be read.
    """
    stored, owner = _stored(options)
    settings = resolve_settings(
        stored,
        ratio=options.rope_2d_ratio,
        mode=options.rope_2d_mode,
        pairs=options.rope_2d_pairs,
        branch_stride=options.stride,
        visibility=options.visibility,
        owner=owner,
    )
    patched = options.patch_rope is not False if stored is None else stored.rope is not None
    if options.patch_rope is not None and patched != options.patch_rope:
        raise SettingsError(
            f"--{'' if options.patch_rope else 'no_'}patch_rope contradicts {owner}, which was trained "
            f"{'with' if patched else 'without'} 2D RoPE; leave the flag out."
        )
    return settings, patched


def resolve_rank(options: TrainOptions) -> int:
    """The rank of the adapter. Raises AdapterError if the one to continue from cannot be read."""
    return (options.lora_rank or _DEFAULT_RANK) if options.load_lora is None else adapter_rank(options.load_lora)


def model_family(options: TrainOptions) -> str:
    """The `model_type` of the base model, such as qwen2; "hf" where it cannot be read, which loading it then says."""
    assert options.base_model is not None
    try:
        config, _ = PretrainedConfig.get_config_dict(model_path(options.base_model))
    except Exception:  # huggingface_hub and the readers of files have their own types
        return "hf"
    return str(config.get("model_type") or "hf")


def new_model_values(options: TrainOptions) -> dict[str, Any]:
    """What a model from scratch is made from: the defaults or the config file, and the flags over them.

    Raises SettingsError if the config file cannot be read.
    """
    values = dict(NEW_MODEL)
    if options.model_config is not None:
        try:
            values = json.loads(options.model_config.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError(f"expected an object, found a {type(values).__name__}")
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(
                f"--model_config {options.model_config}: not readable as a config.json ({error})."
            ) from error
    return values | options.model_overrides


def _stored(options: TrainOptions) -> tuple[Sidecar | None, str]:
    """The settings that the adapter to continue from, or the model folder, was trained with; and whose they are."""
    adapter = None
    if options.load_lora is not None:
        if not os.path.exists(options.load_lora):
            raise AdapterError(
                f"--load_lora {options.load_lora}: no such file or folder; give a .pth or a PEFT folder."
            )
        adapter = read_sidecar(options.load_lora)
    of_model = None if options.base_model is None else sidecar_of_model(model_path(options.base_model))
    if of_model is None:
        return adapter, f"--load_lora {options.load_lora}"
    assert options.base_model is not None
    check_agreement(adapter, of_model, options.base_model)
    return of_model, f"the model {options.base_model}"
