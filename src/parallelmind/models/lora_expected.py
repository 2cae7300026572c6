"""What a caller expects of an adapter file, and the errors where the file says something else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from parallelmind.errors import AdapterError
from parallelmind.models.lora_read import Adapter, LayerWeights

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
        has, lacks = ("the file", "apply_lora's target_modules") if name in layers else ("apply_lora", "the file")
        raise AdapterError(f"{path}: {has} has {name}, {lacks} not; leave target_modules out, {without}")
    stated = adapter.states_scaling
    if stated and expected.alpha is not None:
        for name, layer in layers.items():
            if layer.alpha != expected.alpha:
                raise AdapterError(
                    f"{path}: {name} has alpha {layer.alpha}, but alpha {expected.alpha} was given to apply_lora; "
                    f"call apply_lora(model, rank={adapter.rank}, alpha={layer.alpha}), {without}"
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
