"""Whether quantized layers pass on the gradients of the weights that they compute with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from parallelmind.errors import SettingsError, first_line
from parallelmind.models.lora_layers import plain_modules
from parallelmind.models.quantization import is_quantized_layer

_ROWS = 32
_MOST = 0.05
"""8-bit layers round what goes into them too, by about one part in a hundred."""


def check_gradients(model: nn.Module, dtype: torch.dtype, flag: str) -> None:
    """Compare what each kind of quantized layer passes back with what it passes on, on the device that trains.

    A layer that computes `y = W x` has to pass back `W^T g` for the gradient `g` of `y`, so that `g · (W x)` equals
    `(W^T g) · x` for all `x` and `g`: an equality that needs no other copy of `W`, whatever packed it. It is asked in
    train mode after a forward in eval mode, since there a layer may pack its weights into another form; the answers of
    both modes have to be the same as well. Layers of one class and size are one kind.

    Args:
        model: as it is to be trained; layers with floating-point weights of their own are passed over.
        dtype: that of what goes into the layers.
        flag: what the user asked for, as the error names it.

    Raises:
        SettingsError: the adapter would be trained with wrong gradients.
    """
    kinds: dict[tuple[Any, ...], nn.Module] = {}
    for _, module in plain_modules(model):
        if is_quantized_layer(module):
            weight: Any = module.weight
            kinds.setdefault((type(module), module.in_features, module.out_features, weight.device), module)
    for layer in kinds.values():
        if found := _what_is_wrong(layer, dtype):
            raise SettingsError(
                f"{flag} cannot be trained with on this device: {found} in layers of {type(layer).__module__}."
                f"{type(layer).__name__} from {layer.in_features} to {layer.out_features} features, so the adapter "
                "would not learn what the data says; train on the model without --load_in_4bit and --load_in_8bit, "
                "on another device, or with another version of the library that quantizes."
            )


def _what_is_wrong(layer: nn.Module, dtype: torch.dtype) -> str:
    """What is wrong with its gradients; "" if nothing is."""
    weight: Any = layer.weight
    width_in, width_out = int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(_ROWS, width_in, generator=generator).to(weight.device, dtype)
    back = torch.randn(_ROWS, width_out, generator=generator).to(weight.device, dtype)
    try:
        with _mode(layer, train=False), torch.no_grad():
            answered = (layer(given) - layer(-given)).float() / 2  # without the bias
        with _mode(layer, train=True):
            given.requires_grad_()
            forward = layer(given)
            (gradient,) = torch.autograd.grad(forward, given, back)
            with torch.no_grad():
                trained = (forward - layer(-given)).float() / 2
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        return f"no gradient comes back ({first_line(error)})"
    products = (back.float() * trained).sum(-1)
    off = _norm((gradient.float() * given.detach().float()).sum(-1) - products) / _norm(products)
    if not off < _MOST:
        return f"gradients are off by {off:.0%} from those of the weights"
    apart = _norm(trained - answered) / _norm(answered)
    if not apart < _MOST:
        return f"what is computed in training is off by {apart:.0%} from what is computed in answering"
    return ""


def _norm(values: torch.Tensor) -> float:
    return float(values.norm())


@contextmanager
def _mode(layer: nn.Module, *, train: bool) -> Iterator[None]:
    before = layer.training
    layer.train(train)
    try:
        yield
    finally:
        layer.train(before)
