"""Reading LoRA from disk: `.pth` files and PEFT folders, apart from any model.

Everything read here is untrusted: pickles are read with `weights_only=True`, and what a file says is checked
before it reaches a model.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from parallelmind.errors import AdapterError
from parallelmind.models.sidecar import adapters_in, is_weights_file

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLED_WEIGHTS_NAME = "adapter_model.bin"

_PTH_KEY = re.compile(r"(?P<module>.+)\.lora\.(?P<part>[AB])\.weight")
_PEFT_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(\.default)?(\.weight)?")
_WHOLE_KEY = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<name>.+)")
_PART_NAMES = {"A": "A", "B": "B", "magnitude_vector": "magnitude"}
# Ways to start an adapter that leave the base weights alone; PiSSA, CorDA, OLoRA and others change them too.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# Fields of adapter_config.json that change the model in a way W + B·A does not express.
_FOREIGN_FIELDS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_qalora",
)  # fmt: skip


@dataclass
class LayerWeights:
    """One layer's adapter: W + scaling · B·A, or the DoRA of it where `magnitude` is given."""

    A: torch.Tensor
    """[rank, in]"""
    B: torch.Tensor
    """[out, rank]"""
    alpha: float
    magnitude: torch.Tensor | None = None
    """[out]"""

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for tensor in (self.A, self.B, self.magnitude) if tensor is not None]


@dataclass
class Adapter:
    """A LoRA file: its layers by the module path that the file gives them."""

    layers: dict[str, LayerWeights]
    use_rslora: bool = False
    use_dora: bool = False
    states_scaling: bool = False
    """Whether alpha and rsLoRA are those of the training; a `.pth` has them folded into B."""
    whole: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Modules that were trained whole (PEFT's modules_to_save): their parameters, by the path that the file gives."""

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(layer.rank for layer in self.layers.values())


@dataclass
class _Parts:
    A: torch.Tensor | None = None
    B: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read a `.pth` file (or a `.safetensors` file with the same keys) or a PEFT folder, to CPU tensors.

    Raises AdapterError if it is missing, unsafe, damaged, no LoRA adapter, incomplete, or not finite.
    """
    path = Path(path)
    if not path.exists():
        raise AdapterError(f"{path}: no such file or folder; --lora_path takes a .pth file or a PEFT adapter folder")
    if is_weights_file(path):
        tensors = _load_tensors(path)
        whole = _take_whole(tensors, path)
        parts = _sort_keys(tensors, _PTH_KEY, path)
        return Adapter({name: _layer(part, name, path) for name, part in parts.items()}, whole=whole)
    return _read_folder(path)


def _read_folder(folder: Path) -> Adapter:
    if not (folder / CONFIG_NAME).is_file():
        kind = "a whole model, not an adapter" if (folder / "config.json").is_file() else "not a PEFT adapter folder"
        raise AdapterError(f"{folder}: {kind} (it has no {CONFIG_NAME}){adapters_in(folder / CONFIG_NAME)}")
    config = _read_config(folder / CONFIG_NAME)
    weights = next((folder / n for n in (WEIGHTS_NAME, PICKLED_WEIGHTS_NAME) if (folder / n).is_file()), None)
    if weights is None:
        raise AdapterError(f"{folder}: no weights; a PEFT folder holds {WEIGHTS_NAME}")
    layers = {}
    tensors = _load_tensors(weights)
    whole = _take_whole(tensors, weights, config["modules_to_save"])
    for name, part in _sort_keys(tensors, _PEFT_KEY, weights).items():
        layer = layers[name] = _layer(part, name, weights)
        try:
            rank = config["rank_pattern"].get(get_pattern_key(config["rank_pattern"], name), config["r"])
            layer.alpha = config["alpha_pattern"].get(
                get_pattern_key(config["alpha_pattern"], name), config["lora_alpha"]
            )
        except re.error as error:
            raise AdapterError(f"{folder / CONFIG_NAME}: rank_pattern or alpha_pattern: {error}") from error
        if rank != layer.rank:
            raise AdapterError(
                f"{folder}: {name} has rank {layer.rank} in {weights.name}, but {CONFIG_NAME} says {rank} "
                "(r, rank_pattern); the two files are not of one adapter"
            )
        if (layer.magnitude is not None) != config["use_dora"]:
            raise AdapterError(f"{folder}: use_dora is {config['use_dora']}, which the weights of {name} contradict")
    return Adapter(
        layers, use_rslora=config["use_rslora"], use_dora=config["use_dora"], states_scaling=True, whole=whole
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: must be a JSON object, not {type(config).__name__}")
    defaults: dict[str, Any] = {"r": 8, "lora_alpha": 8, "use_rslora": False, "use_dora": False}
    defaults.update(rank_pattern={}, alpha_pattern={}, modules_to_save=[])
    config = {**defaults, **{name: value for name, value in config.items() if value is not None}}
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {config.get('peft_type')!r}; only LORA adapters can be loaded")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config[name], dict) or not all(_is_positive(value) for value in config[name].values()):
            raise AdapterError(f"{path}: {name} must map module names to positive numbers, not {config[name]!r}")
    saved = config["modules_to_save"]
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise AdapterError(f"{path}: modules_to_save must be a list of module names, not {saved!r}")
    for name in ("r", "lora_alpha"):
        if not _is_positive(config[name]):
            raise AdapterError(f"{path}: {name} must be a positive number, not {config[name]!r}")
    for name in ("use_rslora", "use_dora"):
        if not isinstance(config[name], bool):
            raise AdapterError(f"{path}: {name} must be true or false, not {config[name]!r}")
    foreign = [name for name in _FOREIGN_FIELDS if config.get(name)]
    if foreign or config.get("bias", "none") != "none":
        raise AdapterError(
            f"{path}: uses {', '.join(foreign) or 'bias'}, more than LoRA on linear layers; merge the "
            "adapter into its base model with peft's merge_and_unload() and take the result as "
            "--base_model"
        )
    if config.get("init_lora_weights") not in _PLAIN_INITS:
        raise AdapterError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} also changed the base weights; "
            "convert the adapter to plain LoRA with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    return config


_TORCH_STARTS = (b"PK", b"\x80")
"""A zip archive, and the pickle that torch wrote before 1.6."""


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except pickle.UnpicklingError as error:
        if not path.read_bytes()[:2].startswith(_TORCH_STARTS):
            raise AdapterError(
                f"{path}: not a file that torch.save wrote; --lora_path takes an adapter, a .pth file or a PEFT folder"
            ) from error
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({refused.group(1)})" if refused else ""
        raise AdapterError(
            f"{path}: holds Python objects besides tensors{what} and was not loaded, since unpickling them "
            "can run any code. Ask its author for the adapter as safetensors (a PEFT folder) or as a plain "
            "state dict; if you made it yourself, save its tensors alone: torch.save({name: tensor}, path)"
        ) from error
    except Exception as error:  # a damaged file can make the readers raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AdapterError(
            f"{path}: damaged or not a file of tensors ({reason}); copy it again or take an earlier checkpoint"
        ) from error
    if not isinstance(content, Mapping):
        raise AdapterError(
            f"{path}: holds a {type(content).__name__}, not a state dict of tensors; save that one alone"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise AdapterError(
                f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor; save the adapter's state dict alone"
            )
    return dict(content)


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):  # the format before torch 1.6
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _sort_keys(tensors: Mapping[str, torch.Tensor], pattern: re.Pattern[str], path: Path) -> dict[str, _Parts]:
    layers: dict[str, _Parts] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = pattern.fullmatch(key)
        if not match:
            unknown.append(key)
            continue
        part = layers.setdefault(match["module"], _Parts())
        setattr(part, _PART_NAMES[match["part"]], tensor)
    if not layers and any(_PEFT_KEY.fullmatch(key) for key in tensors):
        raise AdapterError(f"{path}: weights of a PEFT adapter, which need its {CONFIG_NAME}; give the folder instead")
    if not layers:
        wanted = "<module>.lora.A.weight" if pattern is _PTH_KEY else "<module>.lora_A.weight"
        found = ", ".join(list(tensors)[:3]) or "nothing"
        raise AdapterError(f"{path}: not a LoRA adapter: no key of the form {wanted}; found {found}")
    if unknown:
        raise AdapterError(
            f"{path}: {len(unknown)} entries are no LoRA of linear layers and would be lost "
            f"({', '.join(unknown[:3])}). Save the LoRA alone, or merge the whole into the base model with "
            "peft's merge_and_unload()"
        )
    return layers


def _take_whole(
    tensors: dict[str, torch.Tensor], path: Path, names: Sequence[str] | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """Take the parameters of whole modules out of a file's: in a folder those of the modules that its config names."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in list(tensors):
        if _PEFT_KEY.fullmatch(key) or _PTH_KEY.fullmatch(key):
            continue
        if names is None:
            match = _WHOLE_KEY.fullmatch(key)
            module, name = (match["module"], match["name"]) if match else ("", "")
        else:
            module, name = _module_of(key, names)
        if module:
            _check_tensor(tensors[key], name, module, path)
            found.setdefault(module, {})[name] = tensors.pop(key)
    missing = [name for name in names or () if not any(module.endswith(name) for module in found)]
    if missing:
        raise AdapterError(f"{path}: lacks {missing[0]}, which {CONFIG_NAME} names in modules_to_save")
    return found


def _module_of(key: str, names: Sequence[str]) -> tuple[str, str]:
    """The module of a parameter, one of which the path ends as these do, and the parameter's name in it; else ""."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        if any(module == name or module.endswith(f".{name}") for name in names):
            return module, ".".join(parts[end:])
    return "", ""


def _check_tensor(tensor: torch.Tensor, key: str, name: str, path: Path) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
        raise AdapterError(f"{path}: {key} of {name} is no plain tensor of floating point numbers ({tensor.dtype})")
    if not torch.isfinite(tensor.float()).all():
        raise AdapterError(f"{path}: {key} of {name} holds NaN or infinite values; use an earlier checkpoint")


def _layer(parts: _Parts, name: str, path: Path) -> LayerWeights:
    if parts.A is None or parts.B is None:
        present, missing = ("B", "A") if parts.A is None else ("A", "B")
        raise AdapterError(f"{path}: {name} has {present} but not {missing}; the file is incomplete")
    for tensor, key in ((parts.A, "A"), (parts.B, "B"), (parts.magnitude, "magnitude")):
        if tensor is not None:
            _check_tensor(tensor, key, name, path)
    shapes = tuple(parts.A.shape), tuple(parts.B.shape)
    if [len(shape) for shape in shapes] != [2, 2] or not 0 < shapes[0][0] == shapes[1][1]:
        raise AdapterError(
            f"{path}: {name} has A {list(shapes[0])} and B {list(shapes[1])}, not [rank, in] and [out, rank]"
        )
    return LayerWeights(parts.A, parts.B, alpha=shapes[0][0], magnitude=parts.magnitude)
