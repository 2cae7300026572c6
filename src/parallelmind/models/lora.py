"""LoRA on the linear layers of a model: W + scaling · B·A (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

The layers are PEFT's, injected in place, so the model keeps its Hugging Face class and its module paths.
`lora_read` and `lora_write` have the file formats, `lora_match` whether a file fits, `lora_layers` the layers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import nn

from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.lora_layers import (
    ADAPTER,
    current_dropout,
    inject,
    linear_layers,
    lora_layers,
    select_targets,
    unload,
    unwrap,
    unwrap_to_change,
)
from parallelmind.models.lora_match import (
    ExpectedLora,
    cast_layer,
    check_expected,
    check_rank,
    expect,
    expected_of,
    match_layers,
    whole_by_path,
)
from parallelmind.models.lora_read import read_adapter
from parallelmind.models.lora_write import folder_config, folder_state, pth_state, write_folder, write_pth
from parallelmind.models.sidecar import Sidecar
from parallelmind.models.whole_modules import (
    check_whole,
    forget_whole,
    put_whole,
    restore_whole,
    train_whole,
    whole_state,
)

ModelT = TypeVar("ModelT", bound=nn.Module)


def apply_lora(
    model: ModelT,
    rank: int = 8,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: str | Iterable[str] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    modules_to_save: Iterable[str] = (),
    seed: int | None = None,
) -> ModelT:
    """Put untrained LoRA (B = 0) on a model's linear layers, in place, and freeze everything else.

    Each wrapped layer gets `layer.lora.A.weight` [rank, in] and `layer.lora.B.weight` [out, rank], of the
    layer's device and dtype. Returns the same model.

    Args:
        alpha: the scaling is alpha / rank (alpha / √rank with rsLoRA); None means alpha = rank.
        target_modules: module paths or their last parts, or one regular expression for whole paths. None or
            "all-linear": every Linear layer of the decoder, except routers of experts; the output head is not
            part of the decoder.
        modules_to_save: modules to be trained whole beside the LoRA, and saved with it, by path or last part:
            "embed_tokens", "lm_head", …
        seed: makes A reproducible without touching the global random state.

    Raises:
        SettingsError: a bad value, or targets that match no Linear layer.
        AdapterError: the model has LoRA already.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise SettingsError(f"--lora_rank must be an integer of 1 or more, not {rank!r}")
    if not 0 <= dropout < 1:
        raise SettingsError(f"--lora_dropout must be at least 0 and below 1, not {dropout!r}")
    if alpha is not None and not 0 < alpha < math.inf:
        raise SettingsError(f"--lora_alpha must be a positive number, not {alpha!r}")
    base = unwrap_to_change(model)
    if lora_layers(base):
        raise AdapterError("The model has LoRA layers already; merge_lora it first, or load_lora to replace them")
    targets = select_targets(base, target_modules)
    layers = dict.fromkeys(targets, (rank, rank if alpha is None else alpha))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        inject(base, layers, dropout=dropout, use_rslora=use_rslora, use_dora=use_dora)
    stated = None if target_modules is None or target_modules == "all-linear" else tuple(targets)
    try:
        train_whole(base, modules_to_save)
    except SettingsError:
        unload(base)
        raise
    said = ExpectedLora(rank=rank, alpha=alpha, target_layers=stated, use_rslora=use_rslora, use_dora=use_dora)
    expect(base, said)
    return model


def load_lora(
    model: ModelT, path: str | os.PathLike[str], *, rank: int | None = None, dropout: float | None = None
) -> ModelT:
    """Load a `.pth` file or PEFT folder into a model, in place: it then has that adapter and no other.

    Exactly the Linear layers that the file names are wrapped; an adapter that was loaded before is taken off.
    `apply_lora` need not come before. If it did, what it was told must not contradict the file: its rank, and
    alpha, target modules, rsLoRA and DoRA where they were given. The adapter takes the device and dtype of the
    layers it wraps. The model is in eval mode, the adapter trainable, the rest frozen. Parameters are new ones, so
    make an optimizer after loading. If the file does not fit, the model stays as it was. Returns the same model.

    Args:
        rank: the rank expected (--lora_rank); None takes the file's.
        dropout: of the layers' inputs while they train; None keeps that of the layers before, else 0.

    Raises:
        AdapterError: the file is missing, unsafe, damaged, no adapter, of another rank or for another model, or
            contradicts `apply_lora`.
    """
    adapter = read_adapter(path)
    check_rank(adapter, rank, path)
    base = unwrap_to_change(model)
    linears = linear_layers(base)
    layers = {
        name: cast_layer(layer, linears[name].weight.dtype, name, path)
        for name, layer in match_layers(adapter, base, linears, path).items()
    }
    if (expected := expected_of(base)) is not None:
        check_expected(adapter, layers, expected, path)
    former = lora_layers(base)
    dropout = current_dropout(former) if dropout is None else dropout
    whole = check_whole(base, whole_by_path(adapter, base), path)
    for layer in former.values():
        if layer.merged:
            layer.unmerge()
    unload(base)
    restore_whole(base)
    expect(base, None)
    pairs = {name: (layer.rank, layer.alpha) for name, layer in layers.items()}
    # PEFT starts the layers at random before they get the file's values; that must not shift anyone's seed.
    with torch.random.fork_rng(devices=[]):
        inject(base, pairs, dropout=dropout, use_rslora=adapter.use_rslora, use_dora=adapter.use_dora)
    with torch.no_grad():
        for name, wrapped in lora_layers(base).items():
            loaded = layers[name]
            wrapped.lora.A.weight.copy_(loaded.A)
            wrapped.lora.B.weight.copy_(loaded.B)
            if loaded.magnitude is not None:
                wrapped.lora_magnitude_vector[ADAPTER].weight.copy_(loaded.magnitude)
    put_whole(base, whole)
    model.eval()
    return model


def save_lora(model: nn.Module, path: str | os.PathLike[str], *, sidecar: Sidecar | None = None) -> Path:
    """Save the adapter alone: to a state dict if `path` ends in `.pth`, otherwise to a PEFT folder.

    A `.pth` holds `<module path>.lora.A.weight` [rank, in] and `<module path>.lora.B.weight` [out, rank] with
    PEFT's scaling folded into B, so that W + B·A is the adapted weight, and `<module path>.modules_to_save.<parameter>`
    of modules that were trained whole. A failed write leaves a former file
    unchanged. Without `sidecar` a former sidecar is removed, since it described the former adapter. Returns
    the absolute path.

    Raises:
        AdapterError: no LoRA in the model, DoRA (which `.pth` cannot express), or the write failed.
    """
    path = Path(os.path.abspath(path))
    base = unwrap(model)
    layers = lora_layers(base)
    if not layers:
        raise AdapterError(f"{path}: the model has no LoRA to save; call apply_lora or load_lora first")
    if path.suffix in (".pt", ".bin", ".safetensors"):
        raise AdapterError(f"{path}: save to a name that ends in .pth, or to a folder name for the PEFT format")
    if path.suffix == ".pth":
        write_pth(path, pth_state(layers, whole_state(base), path), sidecar)
        return path
    write_folder(path, folder_config(base, layers, sidecar), folder_state(layers, whole_state(base)), sidecar)
    return path


def adapter_rank(path: str | os.PathLike[str]) -> int:
    """The rank of a `.pth` file or PEFT folder; where its layers differ, the largest. Raises AdapterError."""
    return read_adapter(path).rank


def merge_lora(model: ModelT) -> ModelT:
    """Merge the adapter into the weights and remove all LoRA layers; returns the same model.

    W + scaling · B·A is computed in float32 and cast to W's dtype. Quantized layers and DoRA go through
    PEFT's own merge. Merged weights of an adapter trained with 2D RoPE still need the 2D RoPE patch.
    """
    base = unwrap_to_change(model)
    with torch.no_grad():
        for layer in lora_layers(base).values():
            if layer.merged:
                continue
            if type(layer) is not PeftLoraLinear or layer.lora_variant:
                layer.merge(safe_merge=True, adapter_names=[ADAPTER])
                continue
            linear = layer.get_base_layer()
            delta = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
            merged = linear.weight.float() + delta * layer.scaling[ADAPTER]
            # A new parameter: W may be shared, as an output head's often is with the embedding.
            linear.weight = nn.Parameter(merged.to(linear.weight.dtype), linear.weight.requires_grad)
    unload(base)
    forget_whole(base)
    expect(base, None)
    config = getattr(base, "config", None)
    if config is not None and getattr(config, "tie_word_embeddings", False):
        head = base.get_output_embeddings()
        if head is not None and head.weight is not base.get_input_embeddings().weight:
            config.tie_word_embeddings = False  # else save_pretrained would drop the merged head
    return model
