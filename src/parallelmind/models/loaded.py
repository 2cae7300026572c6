"""What loading a model gives: a value that two forms of unpacking fit."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from parallelmind.models.adapters import AdapterSet
from parallelmind.models.sidecar import RopeSettings


class LoadedModel(tuple[Any, ...]):
    """A model, its tokenizer, and whether 2D RoPE is applied, with the settings in force and notes for the user.

    It is a tuple of three. Both ways in which programs take it apart work:

        model, tokenizer, patch_rope = loaded
        model, tokenizer = loaded

    The second form is recognised by the caller's next instruction; everything else (indexing, `len`, `list`, starred
    targets, other implementations of Python) has all three values. The names `loaded.model`, `loaded.tokenizer` and
    `loaded.patch_rope` need no unpacking.
    """

    settings: RopeSettings
    """How positions and visibility are encoded."""
    notes: list[str]
    """What was decided without being asked for, in sentences for the user."""
    adapters: AdapterSet | None = None
    """Those that stand beside the model, for requests to choose from."""

    @property
    def model(self) -> Any:
        """The Hugging Face model, in eval mode, with the adapter and 2D RoPE in place."""
        return self[0]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self[1]

    @property
    def patch_rope(self) -> bool:
        """Whether 2D RoPE is applied."""
        return bool(self[2])

    def __iter__(self) -> Iterator[Any]:
        """Two values where the caller unpacks into exactly two targets, else all three."""
        caller = sys._getframe(1) if hasattr(sys, "_getframe") else None
        return iter(self[:2] if caller is not None and _unpacks_into_two(caller) else self[:])


def _unpacks_into_two(frame: FrameType) -> bool:
    """Whether the instruction that runs in a frame is `a, b = …`, also as a part of a larger target or loop."""
    return any(
        instruction.offset == frame.f_lasti and instruction.opname == "UNPACK_SEQUENCE" and instruction.arg == 2
        for instruction in dis.get_instructions(frame.f_code)
    )
