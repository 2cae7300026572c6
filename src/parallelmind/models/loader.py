"""Base model + adapter + 2D RoPE, from names and flags to a model ready to run."""

from __future__ import annotations

import os
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from parallelmind.columnar import auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.errors import AdapterError, SettingsError, first_line
from parallelmind.models.loaded import LoadedModel
from parallelmind.models.sidecar import (
    SIDECAR_NAME,
    RopeSettings,
    Sidecar,
    adapters_in,
    read_sidecar,
    resolve_settings,
)
from parallelmind.settings.model import TINY_MODEL, dtype_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AUTO_DTYPE = "auto"
"""In Python the name of the checkpoint's own number format."""


def resolve_device(device: str | None) -> tuple[str, str | None]:
    """The device to use, and a note when it is not the one a user would expect.

    Raises:
        SettingsError: the device is unknown or not there.
    """
    if device is None:
        if torch.cuda.is_available():
            return "cuda", None
        return "cpu", "no GPU found and no --device given: running on the CPU"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise SettingsError(f"--device is {device!r}; use cuda, cuda:1, cpu, …") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"--device is {device!r}, but torch sees no GPU; use --device cpu.")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device is {device!r}, but torch sees {torch.cuda.device_count()} GPU(s).")
    return device, None


def resolve_dtype(dtype: str | torch.dtype, base_model: str) -> torch.dtype:
    """The number format that a name, torch's own dtype, or "auto" means for a base model.

    "auto" is the one that the model's config.json names, float32 where it names none of ours.

    Raises:
        SettingsError: models are not loaded in this format.
    """
    name = dtype_name(dtype)
    if name == AUTO_DTYPE:
        try:
            config = AutoConfig.from_pretrained(model_path(base_model))
        except (OSError, ValueError, ImportError):
            return torch.float32  # loading the model says what is wrong with it
        return DTYPES.get(dtype_name(getattr(config, "dtype", None)), torch.float32)
    if name not in DTYPES:
        raise SettingsError(f"--dtype is {name!r}; it must be one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def load_model_with_lora(
    base_model: str,
    lora_path: str | None = None,
    lora_rank: int | None = None,
    rope_2d_ratio: float | None = None,
    patch_rope: bool | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype = "bfloat16",
    rope_2d_mode: str | None = None,
    rope_2d_pairs: str | None = None,
    branch_stride: int | None = None,
    visibility: str | None = None,
    device_map: str | None = None,
    attn_implementation: str | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> LoadedModel:
    """Load a base model, apply 2D RoPE and an adapter, and return (model, tokenizer, patch_rope).

    The result can be unpacked into these three, or into the first two, and has them as attributes: see `LoadedModel`.

    None means "not given": the sidecar of the adapter or of the model folder decides, else the documented
    default (ratio 0.5, split, low, stride 128, isolated; 2D RoPE with an adapter only). The rank is that of the
    adapter's weights. Values that contradict a sidecar or the weights are refused.

    Args:
        base_model: hub name, local folder, or "tiny" for the bundled model.
        lora_path: `.pth` file or PEFT folder.
        dtype: "float32", "float16", "bfloat16" or torch's own dtype of that name; "auto" is the checkpoint's own.
        device_map: "auto" spreads the model over several GPUs; `device` is then unused.
    Raises:
        SettingsError: a flag is wrong, contradicts the sidecar, or the model cannot be found.
        AdapterError: the adapter does not fit or is not safe to read.
        UnsupportedModelError: 2D RoPE cannot be applied to the model.
    """
    notes: list[str] = []
    path = model_path(base_model)
    settings, patched, sidecar = settings_in_force(
        base_model,
        lora_path,
        patch_rope,
        rope_2d_ratio=rope_2d_ratio,
        rope_2d_mode=rope_2d_mode,
        rope_2d_pairs=rope_2d_pairs,
        branch_stride=branch_stride,
        visibility=visibility,
        notes=notes,
    )
    how: dict[str, Any] = {"dtype": resolve_dtype(dtype, base_model)}
    if device_map is None:
        device, note = resolve_device(device)
        if note:
            notes.append(note)
    else:
        how["device_map"] = device_map
    if load_in_8bit or load_in_4bit:
        how["quantization_config"] = _quantization(load_in_8bit, load_in_4bit, how["dtype"])
        how.setdefault("device_map", {"": device})
    if attn_implementation is not None:
        how["attn_implementation"] = attn_implementation
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # tokenizers has no type of its own
        raise SettingsError(_not_loaded(base_model, error)) from error
    model = pretrained_model(base_model, **how)
    if "device_map" not in how:
        model.to(device)
    if patched:
        pairs = auto_pair_indices(model, settings.ratio, settings.pairs)
        patch_model_with_interleaved_2d_rope(model, pairs, settings.mode)
    if lora_path is not None:
        from parallelmind.models.lora import load_lora  # PEFT takes seconds to import

        load_lora(model, lora_path, rank=lora_rank)
        if sidecar is not None and _differ(sidecar.base_model, base_model):
            notes.append(f"the adapter was trained on {sidecar.base_model!r}, the base model is {base_model!r}")
    loaded = LoadedModel((model.eval(), tokenizer, patched))
    loaded.settings = settings
    loaded.notes = notes
    return loaded


def settings_in_force(
    base_model: str,
    lora_path: str | None,
    patch_rope: bool | None,
    *,
    rope_2d_ratio: float | None = None,
    rope_2d_mode: str | None = None,
    rope_2d_pairs: str | None = None,
    branch_stride: int | None = None,
    visibility: str | None = None,
    notes: list[str] | None = None,
) -> tuple[RopeSettings, bool, Sidecar | None]:
    """The settings of a row, whether 2D RoPE is on, and the adapter's sidecar; without loading the model.

    None means "not given", as for `load_model_with_lora`. What a user should know is added to `notes`.

    Raises:
        SettingsError: a value is wrong or contradicts what the adapter or the model was trained with.
        AdapterError: the adapter is not there, or its sidecar is damaged.
    """
    notes = [] if notes is None else notes
    sidecar = None if lora_path is None else read_sidecar(existing_adapter(lora_path))
    model_sidecar = sidecar_of_model(model_path(base_model))
    stored, owner = sidecar, f"the adapter {lora_path}"
    if model_sidecar is not None:
        check_agreement(sidecar, model_sidecar, base_model)
        stored, owner = model_sidecar, f"the model {base_model}"
        notes.append(f"{owner} says itself which 2D RoPE it needs (parallelmind.json)")
    settings = resolve_settings(
        stored,
        ratio=rope_2d_ratio,
        mode=rope_2d_mode,
        pairs=rope_2d_pairs,
        branch_stride=branch_stride,
        visibility=visibility,
        owner=owner,
    )
    return settings, _resolve_patch(patch_rope, lora_path, stored, owner, notes), sidecar


def pretrained_model(base_model: str, **how: Any) -> Any:
    """A model by transformers, with further arguments of its `from_pretrained`.

    Raises:
        SettingsError: it cannot be found or read, or some of its weights are missing, which transformers would
            replace by random ones.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(model_path(base_model), output_loading_info=True, **how)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise SettingsError(
            f"--base_model {base_model}: its weights hold Python objects besides tensors, which can run any code; take "
            "a model with .safetensors files."
        ) from error
    except Exception as error:  # for damaged files safetensors, pickle, torch and huggingface_hub have their own types
        raise SettingsError(_not_loaded(base_model, error)) from error
    # A quantized model's layers name their weights otherwise than its files.
    if (missing := sorted(report["missing_keys"])) and not getattr(model, "is_quantized", False):
        raise SettingsError(
            f"--base_model {base_model}: its files lack {len(missing)} of the model's weights "
            f"({', '.join(missing[:3])}); copy or download it again."
        )
    return model


def bundled_model_path() -> Path:
    """Folder of the model that ships with the package."""
    return Path(__file__).parents[1] / "assets" / "tiny"


def model_path(base_model: str) -> str:
    """Folder or hub name of a base model, the bundled one included."""
    return str(bundled_model_path()) if base_model == TINY_MODEL else base_model


def existing_adapter(lora_path: str) -> str:
    """The path. Raises AdapterError if nothing is there."""
    if not os.path.exists(lora_path):
        raise AdapterError(
            f"--lora_path {lora_path}: no such file or folder; give a .pth file or a PEFT folder, or make one with "
            f"parallelmind train{adapters_in(lora_path)}."
        )
    return lora_path


def _resolve_patch(
    patch_rope: bool | None, lora_path: str | None, sidecar: Sidecar | None, owner: str, notes: list[str]
) -> bool:
    if sidecar is not None:
        check_patch_flag(patch_rope, sidecar, owner)
        return sidecar.rope is not None
    if patch_rope is not None:
        return patch_rope
    if lora_path is None:
        notes.append(
            "2D RoPE is off: no adapter was given, and a model not trained for branch positions answers worse with "
            "them; --patch_rope turns it on"
        )
        return False
    return True


def check_patch_flag(patch_rope: bool | None, sidecar: Sidecar, owner: str) -> None:
    """Raises SettingsError if a flag that was given contradicts what the owner of the sidecar was trained with."""
    trained = sidecar.rope is not None
    if patch_rope is not None and patch_rope != trained:
        raise SettingsError(
            f"--{'' if patch_rope else 'no_'}patch_rope contradicts {owner}, which was trained "
            f"{'with' if trained else 'without'} 2D RoPE; leave the flag out."
        )


def sidecar_of_model(path: str) -> Sidecar | None:
    """The settings in a model folder, or in a repository of the Hub."""
    if os.path.isdir(path):
        return read_sidecar(path)
    try:
        file = cached_file(
            path,
            SIDECAR_NAME,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):
        return None  # no such repository: loading the model says so
    return None if file is None else read_sidecar(Path(file).parent)


def check_agreement(sidecar: Sidecar | None, model_sidecar: Sidecar, base_model: str) -> None:
    """An adapter on top of a model that needs 2D RoPE itself must have been trained with the same one."""
    if sidecar is not None and sidecar.rope != model_sidecar.rope:
        raise SettingsError(
            f"--base_model {base_model} needs {model_sidecar.rope or 'no 2D RoPE'}, but the adapter was trained "
            f"with {sidecar.rope or 'none'}: they do not belong together; give the adapter's own base model."
        )


def _quantization(load_in_8bit: bool, load_in_4bit: bool, dtype: torch.dtype) -> Any:
    if load_in_8bit and load_in_4bit:
        raise SettingsError("--load_in_8bit and --load_in_4bit exclude each other; give one.")
    if find_spec("bitsandbytes") is None:
        raise SettingsError(
            "8-bit and 4-bit loading need bitsandbytes, which is not installed; run: pip install 'parallelmind[quant]'"
        )
    from transformers import BitsAndBytesConfig

    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)


def _not_loaded(base_model: str, error: Exception) -> str:
    reason = first_line(error)
    if isinstance(error, ImportError) or "attn_implementation" in reason:
        return f"--base_model {base_model} cannot be loaded as asked: {reason}"
    if os.path.isdir(model_path(base_model)):
        return f"--base_model {base_model}: the folder does not hold a loadable model ({reason})."
    return (
        f"--base_model {base_model}: not a local folder, and not loadable from the Hugging Face Hub ({reason}). "
        "Check the spelling and the network, or give a folder; --base_model tiny is the bundled model."
    )


def _differ(trained_on: str, base_model: str) -> bool:
    """Whether the names end differently; the folder a model lies in may change."""
    return bool(trained_on) and Path(trained_on).name != Path(base_model).name
