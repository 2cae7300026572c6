"""Rotary embeddings and scales that depend on how long a text is.

With LongRoPE (Ding et al., 2024, https://arxiv.org/abs/2402.13753) a text of more tokens than the model was first
trained on turns all its keys by other frequencies. transformers decides that for a whole batch by its largest position
(`modeling_rope_utils.dynamic_rope_update`), and computes a text again when it grows beyond; here each text follows its
own length, in forwards of long texts and forwards of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_ORIGINAL = "original_max_position_embeddings"


class RopeLengths:
    """Up to which length the texts of a model have the frequencies of short ones."""

    def __init__(self, model: Any):
        self._rotaries = [module for module in model.modules() if _goes_by_length(module)]
        found = [settings[_ORIGINAL] for rotary in self._rotaries for settings in _settings(rotary)]
        self.longest_short: int | None = min(found, default=None)
        """Texts of more tokens are long; None: no text is."""

    def is_long(self, length: int) -> bool:
        """Whether a text of so many tokens has the frequencies of long ones."""
        return self.longest_short is not None and length > self.longest_short

    @contextmanager
    def of_long_texts(self) -> Iterator[None]:
        """The block in which forwards compute tokens of long texts, wherever in their texts these are."""
        with ExitStack() as hooks:
            for rotary in self._rotaries:
                far = max(settings[_ORIGINAL] for settings in _settings(rotary))
                hooks.callback(rotary.register_forward_pre_hook(_Farther(far), with_kwargs=True).remove)
                hooks.callback(rotary.register_forward_hook(_without_last).remove)
            yield

    @contextmanager
    def all_long(self) -> Iterator[None]:
        """The block in which the model itself takes every text of more than one token for a long one, for a trial."""
        former = [(settings, settings[_ORIGINAL]) for rotary in self._rotaries for settings in _settings(rotary)]
        try:
            for settings, _ in former:
                settings[_ORIGINAL] = 1
            yield
        finally:
            for settings, value in former:
                settings[_ORIGINAL] = value


def exact_length(model: nn.Module) -> int | None:
    """The most tokens at which a model's attention still goes by positions alone; None: any number.

    llama4 scales the queries of its layers without rotary embedding by the place in the row, from `floor_scale` on.
    """
    scales = [
        int(vars(module)["floor_scale"]) - 1
        for module in model.modules()
        if getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True)
    ]
    return min(scales, default=None)


def _goes_by_length(module: nn.Module) -> bool:
    """Whether a rotary module turns the keys of long texts otherwise; phimoe does so with every kind of scaling."""
    kinds = _rope_types(module)
    if "longrope" in kinds:
        return True
    settings = getattr(vars(module).get("config"), "rope_parameters", None) or {}
    return kinds.isdisjoint({"None", "default"}) and "long_mscale" in settings and _ORIGINAL in settings


def _rope_types(module: nn.Module) -> set[str]:
    kinds = vars(module).get("rope_type")  # not getattr: the wrapper of 2D RoPE hands out what its module has
    return set(kinds.values()) if isinstance(kinds, dict) else {str(kinds)}


def _settings(rotary: nn.Module) -> list[dict[str, Any]]:
    """The settings of its LongRoPE: one for each kind of layer that has it."""
    config: Any = rotary.config
    kinds = rotary.rope_type
    if isinstance(kinds, dict):
        return [config.rope_parameters[layer_type] for layer_type, kind in kinds.items() if kind == "longrope"]
    return [config.rope_parameters]


class _Farther:
    """Adds a position to a call of a rotary module, at which the text is a long one."""

    def __init__(self, position: int):
        self._position = position

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "position_ids" in settings:
            return arguments, settings | {"position_ids": self._with_one_more(settings["position_ids"])}
        return (arguments[0], self._with_one_more(arguments[1]), *arguments[2:]), settings

    def _with_one_more(self, positions: Tensor) -> Tensor:
        return torch.cat((positions, torch.full_like(positions[..., :1], self._position)), dim=-1)


def _without_last(module: nn.Module, arguments: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part[..., :-1, :] for part in output)
