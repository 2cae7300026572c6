"""The flags that describe a model that is trained from scratch. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from parallelmind.settings.setting import Flag, Setting, Settings

_MODEL = "model"

Shape = Annotated[int | None, Ge(1), Setting("pretrain: shape of the new model", _MODEL, default="the config's")]


@dataclass(frozen=True, kw_only=True)
class NewModelOptions(Settings):
    """Fields of the config of a model that is trained from scratch, over those of its config file.

    Raises:
        SettingsError: a value is out of range.
    """

    model_type: Annotated[
        str | None, Setting("pretrain: family of the new model", _MODEL, default="qwen2", flag=Flag(metavar="NAME"))
    ] = None
    hidden_size: Shape = None
    intermediate_size: Shape = None
    num_hidden_layers: Shape = None
    num_attention_heads: Shape = None
    num_key_value_heads: Shape = None
    max_position_embeddings: Shape = None
