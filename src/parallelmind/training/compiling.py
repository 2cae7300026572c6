"""Compiled layers (`--torch_compile`), for packed rows.

Each layer is compiled where it stands, and layers of one kind share their graphs: how many there are does not depend on
the number of layers. Attention stays outside, a fused kernel as it is, whose masks are built from the ids of a row. The
number of tokens is no constant of a graph, since every batch has another one. The loss is computed in chunks as it is
without.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from parallelmind.errors import SettingsError, first_line
from parallelmind.models.packed_attention import keep_out_of_graphs
from parallelmind.models.quantization import is_quantized
from parallelmind.training.options import TrainOptions

FIELDS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
"""The fields of TrainingArguments that ask for it; given to transformers, they would compile the whole model."""
_MODES = ("default", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Compilation:
    """How layers are compiled."""

    backend: str
    mode: str | None

    @classmethod
    def of(cls, options: TrainOptions) -> Compilation | None:
        """None: they are not. As in transformers, a backend or a mode alone turns it on.

        Raises:
            SettingsError: the options exclude it.
        """
        on, backend, mode = (options.hf.get(name) for name in FIELDS)
        if not (on or backend or mode):
            return None
        if mode is not None and mode not in _MODES:
            raise SettingsError(
                f"--torch_compile_mode {mode} cannot be used here: it is {' or '.join(_MODES)}. The other modes record "
                "CUDA graphs, which hold for one number of tokens, or are not torch.compile's."
            )
        if mode is not None and backend not in (None, "inductor"):
            raise SettingsError(
                f"--torch_compile_mode {mode} is for the backend inductor, not for --torch_compile_backend {backend}; "
                "leave one out."
            )
        return cls(str(backend or "inductor"), None if mode is None else str(mode))

    def compile(self, model: Any) -> None:
        """Compile the layers of a model in place; their names and weights stay.

        Raises:
            SettingsError: the backend is not there, or the model cannot be compiled so.
        """
        if is_quantized(model):
            raise SettingsError(
                "--torch_compile cannot be combined with a quantized model: no test has shown that the gradients "
                "through its compiled layers are right; leave it out, or train on the model as it is."
            )
        if getattr(model.config, "output_router_logits", False):
            raise SettingsError(
                f"--torch_compile cannot be combined with the loss that balances experts (output_router_logits is true "
                f"in the config of this {type(model).__name__}), which is read inside of the layers; set it to false, "
                "or leave --torch_compile out."
            )
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise SettingsError(
                f"--torch_compile: {type(model).__name__} has no layers that transformers marks as such; leave it out."
            )
        keep_out_of_graphs()
        try:
            for layer in layers:
                layer.compile(backend=self.backend, mode=self.mode, dynamic=True)
        except RuntimeError as error:
            raise SettingsError(f"--torch_compile_backend {self.backend}: {first_line(error)}") from error


@contextmanager
def uncompiled() -> Iterator[None]:
    """The block in which compiled layers run as they are written."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def failed_to_compile(error: BaseException) -> bool:
    """Whether torch.compile could not make a kernel."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
