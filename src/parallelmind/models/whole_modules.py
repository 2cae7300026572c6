"""Modules that an adapter trains and holds whole beside its LoRA, such as embeddings: PEFT's `modules_to_save`.

They get parameters of their own. Those of the base model are remembered, so that another adapter finds them; where an
output head shared its weight with the embeddings, the one that is trained no longer does, as in PEFT.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.lora_layers import canonical, lora_layers, unwrap

_ATTRIBUTE = "_parallelmind_whole_modules"


class _Former:
    """What whole modules took the place of."""

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.parameters: dict[str, nn.Parameter] = {}
        self.hooks: list[Any] = []


def trained_whole(model: nn.Module) -> list[str]:
    """The paths of the modules that are trained whole."""
    return list(_former(unwrap(model)).modules)


def whole_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Their parameters, by path."""
    base = unwrap(model)
    return {name: base.get_parameter(name) for name in _former(base).parameters}


def whole_state(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Their parameters, by the path of the module and the name in it."""
    base = unwrap(model)
    return {module: dict(base.get_submodule(module).named_parameters()) for module in trained_whole(base)}


def train_whole(model: Any, targets: Iterable[str]) -> None:
    """Let modules be trained whole, in place, by their paths or the last parts of these.

    Raises SettingsError if one is not there, has no parameters, is quantized, or has LoRA in it.
    """
    paths: list[str] = []
    modules = {canonical(name): module for name, module in model.named_modules() if name}
    for target in targets:
        found = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not found:
            known = ", ".join(name for name in ("lm_head", "embed_tokens", "norm") if _is_there(name, modules))
            raise SettingsError(
                f"--modules_to_save {target}: the model has no such module{f'; it has {known}' if known else ''}."
            )
        paths += [name for name in found if name not in paths]
    adapted = lora_layers(model)
    for path in paths:
        if inner := next((name for name in adapted if name == path or name.startswith(f"{path}.")), None):
            raise SettingsError(
                f"--modules_to_save {path}: {inner} has LoRA, and a module is trained whole or with LoRA; leave it out "
                "of one of --modules_to_save and --target_modules."
            )
        values = dict(modules[path].named_parameters())
        if not values:
            raise SettingsError(f"--modules_to_save {path}: this module has no parameters to train; leave it out.")
        if not all(value.dtype.is_floating_point for value in values.values()):
            raise SettingsError(f"--modules_to_save {path}: its weights are quantized, and cannot be trained whole.")
    for path in paths:
        if not any(path.startswith(f"{other}.") for other in paths):
            _replace(model, path, {name: value.detach().clone() for name, value in modules[path].named_parameters()})


def put_whole(model: Any, modules: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put modules of a file, which `check_whole` found to fit, in the place of the model's."""
    for module, values in modules.items():
        former = dict(model.get_submodule(module).named_parameters())
        _replace(model, module, {name: value.to(former[name], copy=True) for name, value in values.items()})


def check_whole(
    model: Any, modules: Mapping[str, Mapping[str, Tensor]], path: str | os.PathLike[str]
) -> dict[str, Mapping[str, Tensor]]:
    """Whole modules of a file by the model's own paths. Raises AdapterError if they do not fit."""
    own = {canonical(name): module for name, module in model.named_modules()}
    found: dict[str, Mapping[str, Tensor]] = {}
    for name, values in modules.items():
        if name not in own:
            raise AdapterError(f"{path}: holds the whole module {name}, which this {type(model).__name__} lacks")
        former = dict(own[name].named_parameters())
        for key, value in values.items():
            shape = list(former[key].shape) if key in former else None
            if shape != list(value.shape):
                raise AdapterError(
                    f"{path}: size mismatch for {name}.{key}: {list(value.shape)} in the file, {shape or 'nothing'} in "
                    "the model; the adapter was trained on another base model"
                )
            if not former[key].dtype.is_floating_point:
                raise AdapterError(
                    f"{path}: holds {name} whole, which is quantized in the model; load it without --load_in_4bit and "
                    "--load_in_8bit"
                )
        found[name] = values
    return found


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let whole modules whose parameters are float32 take and give numbers of the model's own format."""
    former = _former(model)

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted = next(module.parameters()).dtype
        return tuple(one.to(wanted) if torch.is_tensor(one) and one.is_floating_point() else one for one in inputs)

    def give(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output.to(dtype) if torch.is_tensor(output) and output.is_floating_point() else output

    for path in former.modules:
        module = model.get_submodule(path)
        former.hooks += [module.register_forward_pre_hook(take), module.register_forward_hook(give)]


def restore_whole(model: Any) -> None:
    """Give the base model its own modules back."""
    former = _former(model)
    for name, parameter in former.parameters.items():
        _set(model, name, parameter)
    forget_whole(model)


def forget_whole(model: Any) -> None:
    """Let the modules that were trained whole be the model's own."""
    for hook in _former(model).hooks:
        hook.remove()
    if hasattr(model, _ATTRIBUTE):
        delattr(model, _ATTRIBUTE)


def peft_names(model: Any) -> list[str]:
    """The modules as PEFT's `modules_to_save` names them, which matches the ends of paths."""
    paths, all_paths = trained_whole(model), [canonical(name) for name, _ in model.named_modules()]
    names = []
    for path in paths:
        last = path.rpartition(".")[2]
        names.append(last if [name for name in all_paths if name.endswith(last)] == [path] else path)
    return names


def untied(model: Any) -> list[str]:
    """Those of the whole modules that had their weight in common with another one, which they no longer have."""
    base = unwrap(model)
    if not getattr(base.config.get_text_config(decoder=True), "tie_word_embeddings", False):
        return []
    ends = [id(base.get_input_embeddings()), id(base.get_output_embeddings())]
    return [path for path in trained_whole(base) if id(base.get_submodule(path)) in ends]


def _former(model: Any) -> _Former:
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, _Former) else _Former()


def _replace(model: Any, path: str, values: Mapping[str, Tensor]) -> None:
    former = _former(model)
    setattr(model, _ATTRIBUTE, former)
    former.modules.append(path)
    for name, value in values.items():
        former.parameters[f"{path}.{name}"] = model.get_parameter(f"{path}.{name}")
        _set(model, f"{path}.{name}", nn.Parameter(value, requires_grad=True))


def _set(model: Any, name: str, parameter: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)


def _is_there(name: str, modules: Mapping[str, nn.Module]) -> bool:
    return any(path == name or path.endswith(f".{name}") for path in modules)
