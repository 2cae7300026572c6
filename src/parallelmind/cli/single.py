"""What `chat` and `generate` share: flags, loading, sampling."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from parallelmind.cli.flags import add_settings, given
from parallelmind.settings.model import LoraPath, ModelOptions
from parallelmind.settings.sampling import PRESETS, RepetitionPenalty, SamplingSettings, TopK
from parallelmind.settings.setting import Setting

if TYPE_CHECKING:
    from parallelmind.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class SingleOptions(ModelOptions, SamplingSettings):
    """A model that answers one prompt at a time.

    Raises:
        SettingsError: a value is out of range.
    """

    lora_path: LoraPath = None
    top_k: TopK = 50
    repetition_penalty: RepetitionPenalty = 1.1
    preset: Annotated[
        Literal["factual", "creative", "code", "smalltalk", "translation"] | None,
        Setting("sampling for a usual situation; single flags override it", "sampling"),
    ] = None


def add_single_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a model that answers one prompt at a time."""
    add_settings(parser, SingleOptions)


def single_options(args: argparse.Namespace) -> SingleOptions:
    """A flag that was given, else the preset's value, else the documented default.

    Raises:
        SettingsError: a value is out of range.
    """
    flags = given(args, SingleOptions)
    preset: dict[str, Any] = {**PRESETS[flags["preset"]]} if flags.get("preset") else {}
    return SingleOptions(**preset | flags)


def load_single(options: SingleOptions) -> Engine:
    """Load the model and make its engine."""
    from parallelmind.engine.engine import Engine

    return Engine.from_pretrained(lora_path=options.lora_path, **options.loading())
