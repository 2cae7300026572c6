"""What a run is given where a flag is not: the adapter's or the model's own settings, else the defaults."""

from __future__ import annotations

import json
from typing import Any

from transformers import PretrainedConfig

from parallelmind.errors import SettingsError
from parallelmind.models.identity import model_path
from parallelmind.models.lora import adapter_rank
from parallelmind.models.rope_settings import ResolvedRope, resolve_rope
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


def rope_of_run(options: TrainOptions) -> ResolvedRope:
    """The 2D settings of a run: flags over what the adapter to continue from or the model folder says.

    Raises as `parallelmind.models.rope_settings.resolve_rope`.
    """
    return resolve_rope(
        options.base_model,
        options.load_lora,
        patch_rope=options.patch_rope,
        rope_2d_ratio=options.rope_2d_ratio,
        rope_2d_mode=options.rope_2d_mode,
        rope_2d_pairs=options.rope_2d_pairs,
        branch_stride=options.stride,
        visibility=options.visibility,
        training=True,
    )


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
