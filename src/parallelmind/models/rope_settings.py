"""Which 2D settings a model runs with: the one rule for flags, the adapter's sidecar and the model folder's own.

A value that was stored with an adapter or a model holds without a flag, and a flag that says something else is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import cached_file

from parallelmind.columnar import auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.errors import AdapterError, SettingsError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.identity import AdapterPath, model_path
from parallelmind.models.sidecar import (
    SIDECAR_NAME,
    RopeSettings,
    Sidecar,
    adapters_in,
    is_weights_file,
    read_sidecar,
    sidecar_path,
)
from parallelmind.settings.model import ROPE_FLAGS
from parallelmind.settings.visibility import RULES


@dataclass(frozen=True, kw_only=True)
class ResolvedRope:
    """The 2D settings that result from flags and stored settings."""

    settings: RopeSettings
    """Stride and visibility hold without 2D RoPE, too."""
    patched: bool
    """Whether the model gets 2D RoPE."""
    trained_on: str = ""
    """The base model that the adapter names; empty if unknown."""
    quantization: str | None = None
    """How that was quantized while the adapter was trained, "" if it was not; None: unknown."""
    notes: list[str] = field(default_factory=list)
    """Decisions that no flag asked for, in sentences for the user."""

    @property
    def rope(self) -> RopeSettings | None:
        """The settings; None without 2D RoPE."""
        return self.settings if self.patched else None

    def apply_to(self, model: nn.Module) -> None:
        """Give a model its 2D RoPE, in place.

        Raises:
            UnsupportedModelError: the model has no rotary embedding, or one of an unknown form.
        """
        if self.patched:
            pairs = auto_pair_indices(model, self.settings.ratio, self.settings.pairs)
            patch_model_with_interleaved_2d_rope(model, pairs, self.settings.mode)


def resolve_rope(
    base_model: str | None,
    lora_path: AdapterPath | None,
    *,
    patch_rope: bool | None = None,
    rope_2d_ratio: float | None = None,
    rope_2d_mode: str | None = None,
    rope_2d_pairs: str | None = None,
    branch_stride: int | None = None,
    branch_range: int | None = None,
    visibility: str | None = None,
    adapter: str | None = None,
    training: bool = False,
) -> ResolvedRope:
    """The 2D settings of a base model and an adapter, without loading either. None means "not given".

    Without a word 2D RoPE is as the adapter or the model folder says, else on with a `.pth` file and in training, and
    off without an adapter and with a PEFT folder from elsewhere. A note says what was decided.

    Args:
        base_model: None is a new model.
        adapter: what errors call the adapter; None: its path.
        training: for a training, which the adapter is continued by; a new one for branches that see one another gets
            interleaved pairs unless `rope_2d_pairs` says otherwise.
    Raises:
        SettingsError: a value is wrong, or contradicts what the adapter or the model was trained with.
        AdapterError: the adapter is not there, or its sidecar is damaged.
    """
    flag = "--load_lora" if training else "--lora_path"
    of_adapter = None if lora_path is None else read_sidecar(_existing(lora_path, flag))
    of_model = None if base_model is None else sidecar_of_model(model_path(base_model))
    name = f"the adapter {lora_path if adapter is None else adapter}"
    stored, owner = of_adapter, name
    notes = []
    if of_model is not None:
        if of_adapter is not None and not _are_alike(of_adapter.rope, of_model.rope):
            raise SettingsError(
                f"--base_model {base_model} needs {of_model.rope or 'no 2D RoPE'}, but {name} was trained with "
                f"{of_adapter.rope or 'none'}: they do not belong together; give the adapter's own base model."
            )
        stored, owner = of_adapter or of_model, f"the model {base_model}"
        notes.append(f"{owner} says itself which 2D RoPE it needs (parallelmind.json)")
    given = {
        "rope_2d_ratio": rope_2d_ratio,
        "rope_2d_mode": rope_2d_mode,
        "rope_2d_pairs": rope_2d_pairs,
        "branch_stride": branch_stride,
        "branch_range": branch_range,
        "visibility": visibility,
    }
    in_effect = {name: value for name, value in given.items() if value is not None}
    if training and stored is None and lora_path is None and visibility is not None and _see_others(visibility):
        in_effect.setdefault("rope_2d_pairs", "interleaved")
    settings = _settings(stored, in_effect, owner)
    if stored is not None:
        patched = stored.rope is not None
        if patch_rope is not None and patch_rope != patched:
            raise SettingsError(
                f"--{'' if patch_rope else 'no_'}patch_rope contradicts {owner}, which was trained "
                f"{'with' if patched else 'without'} 2D RoPE; leave the flag out."
            )
    elif patch_rope is not None:
        patched = patch_rope
    elif training:
        patched = True
    elif lora_path is None:
        patched = False
        notes.append(
            "2D RoPE is off: no adapter was given, and a model not trained for branch positions answers worse with "
            "them; --patch_rope turns it on"
        )
    else:
        # PEFT saves adapters of all kinds, of which few know branch positions; files of ours did so before sidecars.
        patched = is_weights_file(lora_path)
        notes.append(
            f"2D RoPE is {'on' if patched else 'off'}: {name} has no {sidecar_path(lora_path).name} that says how it "
            f"was trained, and {'a .pth file' if patched else 'a PEFT folder'} without one counts as trained "
            f"{'with' if patched else 'without'} it; --{'no_' if patched else ''}patch_rope says otherwise"
        )
    idle = [f"--{name}" for name, value in given.items() if value is not None and name.startswith("rope_2d_")]
    if idle and not patched:
        notes.append(f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect: 2D RoPE is off")
    trained_on, quantization = "", None
    if of_adapter is not None:
        trained_on = of_adapter.base_model
        quantization = of_adapter.quantization if of_adapter.format_version > 2 else None
        if patched and not training and settings.branch_range is None and of_adapter.format_version == 1:
            notes.append(
                f"{name} does not say which branch numbers it was trained on, and answers with others would be worse: "
                "--branch_range N maps them to 1 to N"
            )
    return ResolvedRope(
        settings=settings, patched=patched, trained_on=trained_on, quantization=quantization, notes=notes
    )


def resolve_ropes(
    base_model: str, adapters: Mapping[str, AdapterPath], **flags: Any
) -> tuple[ResolvedRope, AdapterSet]:
    """The 2D settings of a base model with several adapters, by name: the model's, and each adapter's own.

    The flags are those of `resolve_rope` and hold for every adapter. Stride and visibility are each adapter's own;
    which pairs turn by the branch, and how, is one choice for the model.

    Raises:
        SettingsError: as `resolve_rope`, and for adapters that contradict each other.
        AdapterError: as `resolve_rope`.
    """
    resolved = {name: resolve_rope(base_model, path, adapter=name, **flags) for name, path in adapters.items()}
    base = resolve_rope(base_model, None, **flags)
    found = AdapterSet(base_settings=base.rope)
    turned = [] if base.rope is None else [("the base model", base.rope)]
    for name, one in resolved.items():
        found.register(name, one.rope)
        turned += [] if one.rope is None else [(name, one.rope)]
    settings = base.settings
    if turned:
        (first, rope), *others = turned
        settings = replace(settings, ratio=rope.ratio, mode=rope.mode, pairs=rope.pairs)
        for name, other in others:
            _refuse_contradiction(first, rope, name, other)
    notes = list(dict.fromkeys(note for one in resolved.values() for note in one.notes))
    return ResolvedRope(settings=settings, patched=bool(turned), notes=notes), found


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


def _existing(lora_path: AdapterPath, flag: str) -> AdapterPath:
    if not os.path.exists(lora_path):
        raise AdapterError(
            f"{flag} {lora_path}: no such file or folder; give a .pth file or a PEFT folder, or make one with "
            f"parallelmind train{adapters_in(lora_path)}."
        )
    return lora_path


def _settings(stored: Sidecar | None, given: Mapping[str, Any], owner: str) -> RopeSettings:
    """The stored settings, or if there are none the given ones and else the defaults."""
    asked = RopeSettings(**{ROPE_FLAGS[flag]: value for flag, value in given.items()})
    if stored is None or stored.rope is None:
        return asked
    contradictions = [
        f"  --{flag} {value} given, {getattr(stored.rope, ROPE_FLAGS[flag])} stored"
        for flag, value in given.items()
        if not _same(value, getattr(stored.rope, ROPE_FLAGS[flag]))
    ]
    if contradictions:
        raise SettingsError(
            f"{owner[0].upper()}{owner[1:]} was trained with other settings than the flags given:\n"
            + "\n".join(contradictions)
            + "\nLeave these flags out to use the stored values, or train an adapter with the values given."
        )
    return replace(stored.rope, branch_range=stored.rope.branch_range or asked.branch_range)


def _see_others(visibility: str) -> bool:
    """Whether branches see one another, so that they are trained with interleaved pairs.

    With the slowest pairs alone it is a matter of luck whether a training finds how to read what others have written at
    any of many distances (benchmarks/branch_numbers.py).
    """
    return visibility in RULES and RULES[visibility].sees_branches


def _are_alike(one: RopeSettings | None, other: RopeSettings | None) -> bool:
    """Whether two turn alike; they may have been trained on other numbers of branches."""
    if one is None or other is None:
        return one is other
    return replace(one, branch_range=None) == replace(other, branch_range=None)


def _refuse_contradiction(name: str, rope: RopeSettings, other_name: str, other: RopeSettings) -> None:
    for part in ("ratio", "mode", "pairs"):
        mine, theirs = getattr(rope, part), getattr(other, part)
        if mine != theirs:
            raise SettingsError(
                f"--lora_path: the adapters {name} and {other_name} contradict each other: rope_2d_{part} is {mine} "
                f"for {name} and {theirs} for {other_name}, and a model has one; serve them apart."
            )


def _same(left: Any, right: Any) -> bool:
    """Whether a given value is the stored one, or none is stored."""
    if right is None:
        return True
    if isinstance(left, str) or isinstance(right, str):
        return bool(left == right)
    return math.isclose(left, right, rel_tol=1e-9)
