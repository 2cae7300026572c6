"""Whether an adapter file fits a model and what the caller asked for, and the errors where it does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from parallelmind.errors import AdapterError
from parallelmind.models.lora_layers import canonical, plain_modules
from parallelmind.models.lora_read import Adapter, LayerWeights

_FILE_PREFIXES = ("module.", "base_model.model.")
_ATTRIBUTE = "_parallelmind_expected_lora"


@dataclass(frozen=True, kw_only=True)
class ExpectedLora:
    """What `apply_lora` was told; None and False: not said, so the file may say anything."""

    rank: int
    alpha: float | None
    target_layers: tuple[str, ...] | None
    use_rslora: bool
    use_dora: bool


def expect(model: Any, expected: ExpectedLora | None) -> None:
    """Remember with a model what a file that is loaded into it must agree with; None forgets it."""
    if expected is not None:
        setattr(model, _ATTRIBUTE, expected)
    elif hasattr(model, _ATTRIBUTE):
        delattr(model, _ATTRIBUTE)


def expected_of(model: Any) -> ExpectedLora | None:
    """What was remembered; None where the model's LoRA layers come from a file, or it has none."""
    found: ExpectedLora | None = getattr(model, _ATTRIBUTE, None)
    return found


def check_rank(
    adapter: Adapter, rank: int | None, path: str | os.PathLike[str], *, one_of_several: bool = False
) -> None:
    """Raises AdapterError, naming both ranks and a layer, if the adapter is not of the rank that --lora_rank says."""
    more = ", or leave it out where adapters differ" if one_of_several else ""
    said = f"was asked for; pass --lora_rank {adapter.rank}{more}"
    _compare_ranks(adapter, rank, path, said)


def check_expected(
    adapter: Adapter, layers: dict[str, LayerWeights], expected: ExpectedLora, path: str | os.PathLike[str]
) -> None:
    """Raises AdapterError if a file contradicts what `apply_lora` was told. `layers`: by the model's module paths."""
    without = "or leave apply_lora out: load_lora makes the layers that the file names"
    said = f"was given to apply_lora; call apply_lora(model, rank={adapter.rank}), {without}"
    _compare_ranks(adapter, expected.rank, path, said)
    if expected.target_layers is not None and (odd := set(expected.target_layers) ^ set(layers)):
        name = min(odd)
        odd_one = (
            f"the file has {name}, which the target modules given to apply_lora leave out"
            if name in layers
            else f"apply_lora has {name}, which the file lacks"
        )
        raise AdapterError(f"{path}: {odd_one}; leave target_modules (--target_modules) out, {without}")
    stated = adapter.states_scaling
    if stated and expected.alpha is not None:
        for name, layer in layers.items():
            if layer.alpha != expected.alpha:
                raise AdapterError(
                    f"{path}: {name} has alpha {layer.alpha}, but alpha {expected.alpha} (--lora_alpha) was given to "
                    f"apply_lora; call apply_lora(model, rank={adapter.rank}, alpha={layer.alpha}), {without}"
                )
    # A .pth has scaling folded into B, which hides alpha and rsLoRA; DoRA it cannot hold.
    if (expected.use_rslora and stated and not adapter.use_rslora) or (expected.use_dora and not adapter.use_dora):
        name = "use_dora" if expected.use_dora and not adapter.use_dora else "use_rslora"
        raise AdapterError(
            f"{path}: was trained without {name}, which apply_lora was given; leave {name} out, {without}"
        )


def _compare_ranks(adapter: Adapter, rank: int | None, path: str | os.PathLike[str], said: str) -> None:
    if rank is None or rank == adapter.rank:
        return
    name = next(name for name, layer in adapter.layers.items() if layer.rank == adapter.rank)
    raise AdapterError(
        f"{path}: size mismatch for {name}.lora.A.weight: its rank is {adapter.rank}, but rank {rank} {said}"
    )


def match_layers(
    adapter: Adapter, model: nn.Module, linears: Mapping[str, nn.Linear], path: str | os.PathLike[str]
) -> dict[str, LayerWeights]:
    """The adapter's layers by the model's module paths. Raises AdapterError naming the first misfits."""
    modules = dict(plain_modules(model))
    layers: dict[str, LayerWeights] = {}
    problems = []
    for file_name, layer in adapter.layers.items():
        name = _name_in_model(file_name, modules)
        if name in layers:
            raise AdapterError(f"{path}: holds {name} twice, under different prefixes")
        layers[name] = layer
        shapes = f"A {list(layer.A.shape)} and B {list(layer.B.shape)} in the file"
        if name not in modules:
            problems.append(f"  {file_name}: {shapes}, no such module in the model")
        elif name not in linears:
            problems.append(f"  {name}: {shapes}, a {type(modules[name]).__name__} in the model, not a Linear")
        else:
            n_in, n_out, rank = linears[name].in_features, linears[name].out_features, layer.rank
            wrong_magnitude = layer.magnitude is not None and list(layer.magnitude.shape) != [n_out]
            if (layer.A.shape[1], layer.B.shape[0]) != (n_in, n_out) or wrong_magnitude:
                problems.append(
                    f"  size mismatch for {name}: {shapes}, A [{rank}, {n_in}] and B [{n_out}, {rank}] in the model"
                )
    if problems:
        more = [f"  and {len(problems) - 4} more"] if len(problems) > 4 else []
        raise AdapterError(
            f"{path}: {len(problems)} of its {len(adapter.layers)} layers do not fit this "
            f"{type(model).__name__}: the adapter was trained on another base model; give that one as "
            "--base_model. What differs:\n" + "\n".join(problems[:4] + more)
        )
    return layers


def _name_in_model(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The path without prefixes of wrappers; a prefix that the model itself has stays."""
    name = canonical(name)
    while name not in modules:
        prefix = next((prefix for prefix in _FILE_PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    return name


def whole_by_path(adapter: Adapter, model: nn.Module) -> dict[str, Mapping[str, torch.Tensor]]:
    """The modules that an adapter holds whole, by the model's module paths."""
    modules = dict(plain_modules(model))
    return {_name_in_model(name, modules): values for name, values in adapter.whole.items()}


def cast_layer(layer: LayerWeights, dtype: torch.dtype, name: str, path: str | os.PathLike[str]) -> LayerWeights:
    if not dtype.is_floating_point:  # quantized weights: PEFT chooses the adapter's dtype
        return layer
    cast = LayerWeights(
        layer.A.to(dtype),
        layer.B.to(dtype),
        alpha=layer.alpha,
        magnitude=None if layer.magnitude is None else layer.magnitude.to(dtype),
    )
    if not all(torch.isfinite(tensor.float()).all() for tensor in cast.tensors()):
        raise AdapterError(f"{path}: {name} has values too large for {dtype}; pass --dtype bfloat16 or float32")
    return cast
