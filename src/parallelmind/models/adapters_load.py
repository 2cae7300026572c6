"""Base model + several adapters that requests choose from, from names and paths to a model ready to run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.loaded import LoadedModel
from parallelmind.models.loader import (
    check_agreement,
    check_patch_flag,
    existing_adapter,
    load_model_with_lora,
    model_path,
    sidecar_of_model,
)
from parallelmind.models.lora import cast_layer, match_layers
from parallelmind.models.lora_expected import check_rank
from parallelmind.models.lora_layers import linear_layers, unwrap_to_change
from parallelmind.models.lora_read import Adapter, LayerWeights, read_adapter
from parallelmind.models.sidecar import RopeSettings, Sidecar, read_sidecar, resolve_settings


def load_model_with_adapters(
    base_model: str,
    adapters: Mapping[str, str],
    lora_rank: int | None = None,
    rope_2d_ratio: float | None = None,
    patch_rope: bool | None = None,
    *,
    rope_2d_mode: str | None = None,
    rope_2d_pairs: str | None = None,
    branch_stride: int | None = None,
    visibility: str | None = None,
    **loading: Any,
) -> tuple[LoadedModel, AdapterSet]:
    """Load a base model and adapters beside it, each token of a forward going through its own.

    The flags are those of `load_model_with_lora`, and hold for every adapter. Stride and visibility are each
    adapter's own; which pairs turn by the branch, and how, is one choice for the model.

    Args:
        adapters: path of a `.pth` file or PEFT folder, by name.
    Raises:
        SettingsError: a flag contradicts an adapter, or two adapters contradict each other.
        AdapterError: an adapter does not fit or is not safe to read.
        UnsupportedModelError: 2D RoPE cannot be applied to the model.
    """
    flags = {
        "ratio": rope_2d_ratio,
        "mode": rope_2d_mode,
        "pairs": rope_2d_pairs,
        "branch_stride": branch_stride,
        "visibility": visibility,
    }
    model_sidecar = sidecar_of_model(model_path(base_model))
    found = AdapterSet()
    for name, path in adapters.items():
        sidecar = read_sidecar(existing_adapter(path))
        found.register(name, _settings(name, sidecar, model_sidecar, base_model, patch_rope, flags))
    if model_sidecar is not None:
        found.base_settings = model_sidecar.rope
    elif patch_rope:
        found.base_settings = resolve_settings(None, **flags)  # type: ignore[arg-type]
    chosen = _common_rope(found)
    loaded = load_model_with_lora(
        base_model,
        None,
        rope_2d_ratio=rope_2d_ratio if chosen is None else chosen.ratio,
        rope_2d_mode=rope_2d_mode if chosen is None else chosen.mode,
        rope_2d_pairs=rope_2d_pairs if chosen is None else chosen.pairs,
        patch_rope=None if model_sidecar is not None else chosen is not None,
        branch_stride=branch_stride,
        visibility=visibility,
        **loading,
    )
    attach_adapters(loaded.model, found, {name: _read(path, lora_rank) for name, path in adapters.items()}, adapters)
    return loaded, found


def attach_adapters(
    model: nn.Module, adapters: AdapterSet, weights: Mapping[str, Adapter], paths: Mapping[str, str]
) -> None:
    """Put registered adapters on a model's linear layers, in place.

    Raises:
        AdapterError: one does not fit; the model is then as it was.
    """
    base = unwrap_to_change(model)
    linears = linear_layers(base)
    layers: dict[str, dict[str, tuple[Tensor, Tensor, Tensor | None]]] = {}
    for name, adapter in weights.items():
        for layer, found in match_layers(adapter, base, linears, paths[name]).items():
            cast = cast_layer(found, linears[layer].weight.dtype, layer, paths[name])
            layers.setdefault(layer, {})[name] = _factors(cast, linears[layer], adapter, paths[name])
    head = base.get_output_embeddings()
    for layer, by_adapter in layers.items():
        linear = linears[layer]
        adapted = adapters.adapted(linear, is_head=linear is head)
        for name, factors in by_adapter.items():
            adapted.add(name, *factors)
        parent, _, leaf = layer.rpartition(".")
        setattr(base.get_submodule(parent), leaf, adapted)
    model.eval()


def _settings(
    name: str,
    sidecar: Sidecar | None,
    model_sidecar: Sidecar | None,
    base_model: str,
    patch_rope: bool | None,
    flags: Mapping[str, Any],
) -> RopeSettings | None:
    owner = f"the adapter {name}"
    if model_sidecar is not None:
        check_agreement(sidecar, model_sidecar, base_model)
    stored = sidecar if sidecar is not None else model_sidecar
    resolved = resolve_settings(stored, owner=owner, **flags)
    if stored is not None:
        check_patch_flag(patch_rope, stored, owner)
        return None if stored.rope is None else resolved
    return None if patch_rope is False else resolved


def _common_rope(adapters: AdapterSet) -> RopeSettings | None:
    """2D settings that hold for the model: those of all adapters that have any."""
    known = {name or "the base model": settings for name in ("", *adapters) if (settings := adapters.settings(name))}
    first, *others = known.items() or [("", None)]
    for name, settings in others:
        assert first[1] is not None
        for field in ("ratio", "mode", "pairs"):
            mine, theirs = getattr(first[1], field), getattr(settings, field)
            if mine != theirs:
                raise SettingsError(
                    f"--lora_path: the adapters {first[0]} and {name} contradict each other: rope_2d_{field} is {mine} "
                    f"for {first[0]} and {theirs} for {name}, and a model has one; serve them apart."
                )
    return first[1]


def _read(path: str, rank: int | None) -> Adapter:
    adapter = read_adapter(path)
    check_rank(adapter, rank, path, one_of_several=True)
    return adapter


def _factors(
    layer: LayerWeights, linear: nn.Linear, adapter: Adapter, path: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A, B with the scaling folded in, and DoRA's magnitude share (Liu et al., 2024, https://arxiv.org/abs/2402.09353)."""
    device = linear.weight.device
    scaling = layer.alpha / (math.sqrt(layer.rank) if adapter.use_rslora else layer.rank)
    # A copy: what was read may be a view of the file, which somebody may overwrite while it is served.
    a, b = layer.A.to(device, copy=True), (layer.B.to(device).float() * scaling).to(layer.B.dtype)
    if layer.magnitude is None:
        return a, b, None
    if not linear.weight.dtype.is_floating_point:
        raise AdapterError(f"{path}: DoRA cannot be served beside other adapters on quantized weights; merge it first")
    with torch.no_grad():
        norm = torch.linalg.vector_norm(linear.weight.float() + b.float() @ a.float(), dim=1)
        share = layer.magnitude.to(device).float() / norm
    return a, b, share.to(layer.B.dtype)
