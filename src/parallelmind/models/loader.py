"""A base model with its adapters and 2D RoPE, from names and settings to a model ready to run or to train."""

from __future__ import annotations

import dataclasses
import dis
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from parallelmind.errors import SettingsError, first_line, is_out_of_memory
from parallelmind.models.adapters import AdapterSet, attach_adapters
from parallelmind.models.identity import AdapterPath, model_path
from parallelmind.models.quantization import (
    is_quantized,
    is_to_be_quantized,
    quantization_name,
    quantization_of,
    settle,
)
from parallelmind.models.rope_settings import resolve_rope, resolve_ropes
from parallelmind.models.sidecar import RopeSettings
from parallelmind.settings.model import ModelOptions, dtype_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AUTO_DTYPE = "auto"
"""In Python the name of the checkpoint's own number format."""
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways of transformers to spread a model over devices."""


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
    lora_path: str | os.PathLike[str] | None = None,
    lora_rank: int | None = None,
    rope_2d_ratio: float | None = None,
    patch_rope: bool | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype = "bfloat16",
    rope_2d_mode: str | None = None,
    rope_2d_pairs: str | None = None,
    branch_stride: int | None = None,
    branch_range: int | None = None,
    visibility: str | None = None,
    device_map: str | None = None,
    attn_implementation: str | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> LoadedModel:
    """Load a base model, apply 2D RoPE and an adapter, and return (model, tokenizer, patch_rope).

    The result can be unpacked into these three, or into the first two, and has them as attributes: see `LoadedModel`.

    None means "not given": the sidecar of the adapter or of the model folder decides, else the documented
    default, that of the flag of this name (2D RoPE with an adapter only). The rank is that of the
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
    settings: dict[str, Any] = {
        "base_model": base_model,
        "lora_rank": lora_rank,
        "patch_rope": patch_rope,
        "rope_2d_ratio": rope_2d_ratio,
        "rope_2d_mode": rope_2d_mode,
        "rope_2d_pairs": rope_2d_pairs,
        "branch_stride": branch_stride,
        "branch_range": branch_range,
        "visibility": visibility,
        "device": device,
        "dtype": dtype,
        "device_map": device_map,
        "load_in_8bit": load_in_8bit,
        "load_in_4bit": load_in_4bit,
    }
    return load_model(ModelOptions(**settings), lora_path, attn_implementation=attn_implementation)


def load_model(
    options: ModelOptions,
    lora_path: AdapterPath | Mapping[str, AdapterPath] | None = None,
    *,
    attn_implementation: str | None = None,
) -> LoadedModel:
    """As `load_model_with_lora`, from options, and with one adapter or several.

    Args:
        lora_path: the adapter that is part of the model; or the paths of adapters by name, which stand beside the
            model (`LoadedModel.adapters`), each token of a forward going through its own.
    Raises:
        SettingsError: as there, or two adapters contradict each other.
        AdapterError: as there.
        UnsupportedModelError: as there.
    """
    named = lora_path if isinstance(lora_path, Mapping) else {}
    path = None if isinstance(lora_path, Mapping) else lora_path
    adapters = None
    if named:
        rope, adapters = resolve_ropes(options.base_model, named, **options.rope_flags())
    else:
        rope = resolve_rope(options.base_model, path, **options.rope_flags())
    notes = list(rope.notes)
    if options.device_map is None:
        device, note = resolve_device(options.device)
        options = dataclasses.replace(options, device=device)
        notes += [note] if note else []
    tokenizer = load_tokenizer(options)
    model = load_base_model(options, attn_implementation=attn_implementation)
    rope.apply_to(model)
    if adapters is not None:
        attach_adapters(model, adapters, named, rank=options.lora_rank)
    elif path is not None:
        from parallelmind.models.lora import load_lora  # PEFT takes seconds to import

        load_lora(model, path, rank=options.lora_rank)
        if rope.trained_on and Path(rope.trained_on).name != Path(options.base_model).name:  # folders may move
            notes.append(f"the adapter was trained on {rope.trained_on!r}, the base model is {options.base_model!r}")
        now = quantization_name(model)
        if rope.quantization is not None and rope.quantization != now:
            notes.append(
                f"the adapter was trained over {_in_bits(rope.quantization)}, and this base model has {_in_bits(now)}: "
                "answers differ where that decides; --load_in_4bit and --load_in_8bit choose"
            )
    loaded = LoadedModel((model.eval(), tokenizer, rope.patched))
    loaded.settings, loaded.notes, loaded.adapters = rope.settings, notes, adapters
    return loaded


def _in_bits(quantization: str) -> str:
    return f"weights in {quantization}" if quantization else "weights that are not quantized"


def load_tokenizer(options: ModelOptions) -> Any:
    """The tokenizer of the model that the options name. Raises SettingsError if it cannot be found or read."""
    return load_tokenizer_from(options.base_model)


def load_tokenizer_from(name: str, *, flag: str = "--base_model") -> Any:
    """A tokenizer by its hub name or folder. Raises SettingsError if it cannot be found or read."""
    try:
        return AutoTokenizer.from_pretrained(model_path(name))
    except Exception as error:  # tokenizers has no type of its own
        raise SettingsError(_not_loaded(flag, name, error)) from error


def load_base_model(options: ModelOptions, *, attn_implementation: str | None = None) -> Any:
    """The model that the options name, in their number format or bits and on their device, as transformers makes it.

    Raises:
        SettingsError: it cannot be found or read, or some of its weights are missing, which transformers would
            replace by random ones.
    """
    name = options.base_model
    if options.device_map is not None:
        _check_device_map(options.device_map)
    how: dict[str, Any] = {"dtype": resolve_dtype(options.dtype, name)}
    device = None if options.device_map is not None else resolve_device(options.device)[0]
    how |= quantization_of(options, how["dtype"])
    if is_to_be_quantized(options):
        how["device_map"] = {"": device}
    if options.device_map is not None:
        how["device_map"] = options.device_map
    if attn_implementation is not None:
        how["attn_implementation"] = attn_implementation
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(model_path(name), output_loading_info=True, **how)
        if "device_map" not in how:
            model = model.to(device)
    except pickle.UnpicklingError as error:
        raise SettingsError(
            f"--base_model {name}: its weights hold Python objects besides tensors, which can run any code; take a "
            "model with .safetensors files."
        ) from error
    except Exception as error:  # for damaged files safetensors, pickle, torch and huggingface_hub have their own types
        if is_out_of_memory(error):
            raise SettingsError(
                f"--base_model {name}: no memory for its weights on {options.device_map or device}; free some, or take "
                f"--load_in_4bit, --load_in_8bit, another --device, or --device_map auto. ({first_line(error)})"
            ) from error
        raise SettingsError(_not_loaded("--base_model", name, error)) from error
    if is_quantized(model):
        settle(model)
    # A quantized model's layers name their weights otherwise than its files.
    elif missing := sorted(report["missing_keys"]):
        raise SettingsError(
            f"--base_model {name}: its files lack {len(missing)} of the model's weights "
            f"({', '.join(missing[:3])}); copy or download it again."
        )
    return model


def _check_device_map(given: str) -> None:
    """Raises SettingsError; transformers would take a wrong one for a damaged model."""
    if given in _DEVICE_MAPS:
        return
    accepted = f"it must be {', '.join(_DEVICE_MAPS)}, or one device such as cuda:0 or cpu"
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise SettingsError(f"--device_map is {given!r}; {accepted}.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SettingsError(f"--device_map is {given!r}, and this machine has {count} GPUs; {accepted}.")


def _not_loaded(flag: str, name: str, error: Exception) -> str:
    reason = first_line(error)
    what = "model" if flag == "--base_model" else "tokenizer"
    if isinstance(error, ImportError) or "attn_implementation" in reason:
        return f"{flag} {name} cannot be loaded as asked: {reason}"
    if os.path.isdir(model_path(name)):
        return f"{flag} {name}: the folder does not hold a loadable {what} ({reason})."
    return (
        f"{flag} {name}: not a local folder, and not loadable from the Hugging Face Hub ({reason}). "
        "Check the spelling and the network, or give a folder; --base_model tiny is the bundled model."
    )


class LoadedModel(tuple[Any, ...]):
    """A model, its tokenizer, and whether 2D RoPE is applied, with the settings in force and notes for the user.

    It is a tuple of three. Both ways in which programs take it apart work:

        model, tokenizer, patch_rope = loaded
        model, tokenizer = loaded

    The second form is recognised by the caller's next instruction; everything else (indexing, `len`, `list`, starred
    targets, other implementations of Python) has all three values. The names `loaded.model`, `loaded.tokenizer` and
    `loaded.patch_rope` need no unpacking.
    """

    settings: RopeSettings
    """How positions and visibility are encoded."""
    notes: list[str]
    """Decisions that no flag asked for, in sentences for the user."""
    adapters: AdapterSet | None = None
    """Those that stand beside the model, for requests to choose from."""

    @property
    def model(self) -> Any:
        """The Hugging Face model, in eval mode, with the adapter and 2D RoPE in place."""
        return self[0]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self[1]

    @property
    def patch_rope(self) -> bool:
        """Whether 2D RoPE is applied."""
        return bool(self[2])

    def __iter__(self) -> Iterator[Any]:
        """Two values where the caller unpacks into exactly two targets, else all three."""
        caller = sys._getframe(1) if hasattr(sys, "_getframe") else None
        return iter(self[:2] if caller is not None and _unpacks_into_two(caller) else self[:])


def _unpacks_into_two(frame: FrameType) -> bool:
    """Whether the instruction that runs in a frame is `a, b = …`, also as a part of a larger target or loop."""
    return any(
        instruction.offset == frame.f_lasti and instruction.opname == "UNPACK_SEQUENCE" and instruction.arg == 2
        for instruction in dis.get_instructions(frame.f_code)
    )
