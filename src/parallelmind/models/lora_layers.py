"""LoRA layers inside a model: finding its linear layers, wrapping and unwrapping them with PEFT's layers."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from parallelmind.errors import AdapterError, SettingsError

ADAPTER = "default"
# Parts of a module path that torch.compile, FSDP and activation checkpointing put in.
_WRAPPER_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Routers choose experts: their outputs are logits over experts, and training them unbalances the load.
_ROUTER = re.compile(r"(.*\.)?(([^.]*router[^.]*)(\..*)?|gate|shared_expert_gate)")


class LoraFactors:
    """What `module.lora` is: `A` (weight [rank, in]) and `B` (weight [out, rank]), PEFT's own modules.

    It is no Module itself, so the state dict names each weight once, and it holds no reference back to the
    layer, so an unwrapped layer is freed at once.
    """

    def __init__(self, a: nn.ModuleDict, b: nn.ModuleDict) -> None:
        self._a = a
        self._b = b

    @property
    def A(self) -> nn.Module:  # noqa: N802
        return self._a[ADAPTER]

    @property
    def B(self) -> nn.Module:  # noqa: N802
        return self._b[ADAPTER]


def unwrap(model: nn.Module) -> Any:
    """The Hugging Face model inside DDP, torch.compile or a PeftModel."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, PeftModel):
            model = model.get_base_model()
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def unwrap_to_change(model: nn.Module) -> Any:
    """As `unwrap`, for changing LoRA layers. Raises AdapterError for a PeftModel, which keeps own books."""
    if isinstance(model, PeftModel):
        raise AdapterError("A PeftModel was given; pass the plain model, or model.merge_and_unload()")
    return unwrap(model)


def canonical(name: str) -> str:
    """A module path without the parts that wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The model's LoRA layers by module path, in model order.

    `layer.lora.A.weight` is [rank, in], `layer.lora.B.weight` is [out, rank], `layer.base_layer` holds W.
    Raises AdapterError if PEFT has put something else into the model, such as LoRA on embeddings or experts.
    """
    layers = {}
    for name, module in unwrap(model).named_modules():
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else None
        plain = isinstance(base, nn.Linear) and ADAPTER in getattr(module, "lora_A", {})
        if not plain or module.lora_B[ADAPTER].bias is not None:
            raise AdapterError(
                f"{canonical(name)} is a PEFT {type(module).__name__}; ParallelMind handles LoRA on linear "
                f"layers named {ADAPTER!r} only. Merge it into the model first: merge_and_unload() of the "
                "PeftModel"
            )
        layers[canonical(name)] = module
    return layers


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by canonical path as if no LoRA were there: a LoRA layer counts as the layer it wraps."""
    inside = None
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside = f"{name}."
            module = module.get_base_layer()
        yield canonical(name), module


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """All Linear layers (quantized ones included), wrapped or not, by canonical path."""
    return {name: module for name, module in plain_modules(model) if isinstance(module, nn.Linear)}


def select_targets(model: Any, target_modules: str | Iterable[str] | None) -> list[str]:
    """Paths of the Linear layers to adapt; see `apply_lora`. Raises SettingsError if a target has none."""
    found = linear_layers(model)
    if target_modules is None or target_modules == "all-linear":
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        within = {id(module) for module in decoder.modules()}
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        names = [
            name
            for name, module in found.items()
            if id(module) in within and module is not head and not _ROUTER.fullmatch(name)
        ]
        if not names:
            raise SettingsError(
                f"{type(model).__name__} has no Linear layer in its decoder to put LoRA on; use another model"
            )
        return names
    if isinstance(target_modules, str):
        names = [name for name in found if re.fullmatch(target_modules, name)]
        unmatched = [] if names else [target_modules]
    else:
        targets = list(target_modules)
        names = [name for name in found if any(_is_named(name, target) for target in targets)]
        unmatched = [target for target in targets if not any(_is_named(name, target) for name in names)]
    if unmatched or not names:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in found}))
        raise SettingsError(f"--target_modules {unmatched} match no Linear layer; the model's are called {known}")
    return names


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def rank_patterns(layers: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """LoraConfig's r and lora_alpha, with a pattern for each layer that differs from the most common pair."""
    (rank, alpha), _ = Counter(layers.values()).most_common(1)[0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): pair[0] for name, pair in layers.items() if pair[0] != rank},
        "alpha_pattern": {re.escape(name): pair[1] for name, pair in layers.items() if pair[1] != alpha},
    }


def inject(
    model: nn.Module,
    layers: Mapping[str, tuple[int, float]],
    *,
    dropout: float,
    use_rslora: bool,
    use_dora: bool,
) -> None:
    """Wrap exactly the layers of these canonical paths, each with its (rank, alpha), and freeze the rest."""
    real = {canonical(name): name for name, _ in model.named_modules()}
    pairs = {real[name]: pair for name, pair in layers.items()}
    config = LoraConfig(
        lora_dropout=dropout,
        use_rslora=use_rslora,
        use_dora=use_dora,
        task_type="CAUSAL_LM",
        **rank_patterns(pairs),
    )
    # PEFT matches target_modules by suffix, and in mixture-of-experts models redirects dense layers such as
    # `shared_expert.gate_proj` to the fused experts. State dict keys it takes literally: the paths go there.
    config.target_modules = set()
    keys = {f"{name}.lora_A.weight": torch.empty(0) for name in pairs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "While injecting the PEFT adapters", RuntimeWarning)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER, state_dict=keys)
    config.target_modules = set(layers)
    for layer in lora_layers(model).values():
        layer.lora = LoraFactors(layer.lora_A, layer.lora_B)
        layer.train(layer.get_base_layer().training)


def unload(model: Any) -> None:
    """Put the wrapped layers back in their places, without the adapter."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def current_dropout(layers: Mapping[str, Any]) -> float:
    return max((getattr(layer.lora_dropout[ADAPTER], "p", 0.0) for layer in layers.values()), default=0.0)
