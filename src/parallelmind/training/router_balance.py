"""The loss that keeps the experts of a mixture evenly used, computed by the model's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from parallelmind.errors import UnsupportedModelError


class RouterBalance:
    """The load-balancing loss of a model whose config has `output_router_logits` (Fedus et al., 2021,
    https://arxiv.org/abs/2101.03961).

    transformers computes it inside the model's forward, from an attention mask of one axis, which packed rows do not
    have; so the routers' logits are collected here and given to the same function, without the padding.
    """

    def __init__(self, routers: list[tuple[nn.Module, int]], loss: Callable[[tuple[Tensor, ...], Tensor], Tensor]):
        self._routers = routers
        self._loss = loss
        self._logits: list[Tensor] = []

    @classmethod
    def of(cls, model: Any) -> RouterBalance | None:
        """None where transformers adds no such loss either.

        Raises:
            UnsupportedModelError: the model has one, but its routers cannot be found.
        """
        function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
        if not getattr(model.config, "output_router_logits", False) or function is None:
            return None
        recorder = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
        kind, index = getattr(recorder, "target_class", recorder), getattr(recorder, "index", 0)
        modules: list[nn.Module] = list(model.modules())
        routers = [(module, index) for module in modules if kind is not None and isinstance(module, kind)]
        coefficient = getattr(model, "router_aux_loss_coef", None)
        experts = getattr(model, "num_experts", None)
        if not routers or coefficient is None or experts is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} balances its experts (output_router_logits is true in its config) in a way "
                "that packed rows do not support; set output_router_logits to false to train without."
            )
        return cls(
            routers,
            lambda logits, kept: coefficient * function(logits, experts, model.num_experts_per_tok, kept),
        )

    @contextmanager
    def collected(self) -> Iterator[None]:
        """The block in which the model's forward runs."""
        self._logits = []
        handles = [module.register_forward_hook(self._keep(index)) for module, index in self._routers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, kept: Tensor) -> Tensor:
        """The loss of the last forward; `kept` is false on padding, [B, S]."""
        return self._loss(tuple(self._logits), kept)

    def _keep(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            del module, arguments
            self._logits.append(output[index] if isinstance(output, tuple) else output)

        return hook
