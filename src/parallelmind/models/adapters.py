"""Several LoRA adapters on one model, each token of a forward going through its own.

The linear layers keep their weights, packed or quantized as they may be; `AdaptedLinear` adds each adapter's low-rank
part to the rows of the tokens that use it (Sheng et al., 2023, S-LoRA, https://arxiv.org/abs/2311.03285). A forward
says which rows those are with `AdapterSet.routed`; outside of it the model is the base model.

Shapes: T rows of a forward, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from parallelmind.errors import AdapterError
from parallelmind.models.cpu.even_products import even_linear
from parallelmind.models.identity import AdapterPath
from parallelmind.models.sidecar import RopeSettings

if TYPE_CHECKING:
    from parallelmind.models.lora_read import Adapter, LayerWeights

_Rows = Sequence[tuple[str, slice | Tensor]]
_BASE = ""


@dataclass
class _Routing:
    """Rows of the forward under way, by adapter; shared by all layers of a model."""

    num_tokens: int = 0
    token_rows: _Rows = ()
    num_logits: int = 0
    logit_rows: _Rows = ()
    """Of the output head, which sees the tokens whose logits are wanted only."""
    moved: dict[tuple[torch.device, bool], _Rows] = field(default_factory=dict)
    """The rows on each device of the model's layers, copied once per forward."""

    def rows(self, device: torch.device, *, of_logits: bool) -> _Rows:
        """Those of the tokens, or of the output head, on a layer's device."""
        found = self.moved.get((device, of_logits))
        if found is None:
            rows = self.logit_rows if of_logits else self.token_rows
            found = [(name, places.to(device) if isinstance(places, Tensor) else places) for name, places in rows]
            self.moved[device, of_logits] = found
        return found


class AdaptedLinear(nn.Module):
    """A linear layer and the low-rank parts that adapters add to it."""

    def __init__(self, base: nn.Module, routing: _Routing, *, is_head: bool):
        super().__init__()
        self.base = base
        self.is_head = is_head
        self._routing = routing
        self._factors: dict[str, tuple[str, str]] = {}
        self._magnitudes: dict[str, str] = {}

    def add(self, adapter: str, A: Tensor, B: Tensor, magnitude_share: Tensor | None = None) -> None:
        """Take an adapter's A [r, in] and B [out, r], the scaling folded into B.

        `magnitude_share` [out] is DoRA's magnitude over the norm of the adapted weight.
        """
        number = len(self._factors)
        self._factors[adapter] = (f"A{number}", f"B{number}")
        self.register_buffer(f"A{number}", A)
        self.register_buffer(f"B{number}", B)
        if magnitude_share is not None:
            self._magnitudes[adapter] = f"magnitude{number}"
            self.register_buffer(f"magnitude{number}", magnitude_share)

    @property
    def weight(self) -> Tensor:
        """The base layer's: code that asks for its dtype or device gets the right answer."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        out: Tensor = self.base(x)
        rows = self._rows(x.numel() // x.shape[-1], x.device)
        if not any(adapter in self._factors for adapter, _ in rows):
            return out
        flat_x, flat_out = x.reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1])
        for adapter, places in rows:
            if adapter in self._factors:
                flat_out[places] = self._adapted(adapter, flat_x[places], flat_out[places])
        return flat_out.view(out.shape)

    def _adapted(self, adapter: str, x: Tensor, out: Tensor) -> Tensor:
        a, b = (self.get_buffer(name) for name in self._factors[adapter])
        delta = even_linear(even_linear(x.to(a.dtype), a), b).to(out.dtype)
        if adapter not in self._magnitudes:
            return out + delta
        share = self.get_buffer(self._magnitudes[adapter])
        if self.bias is None:
            return share * (out + delta)
        return share * (out - self.bias + delta) + self.bias

    def _rows(self, count: int, device: torch.device) -> _Rows:
        routing = self._routing
        if self.is_head and count == routing.num_logits:
            return routing.rows(device, of_logits=True)
        if count != routing.num_tokens and routing.token_rows:
            raise RuntimeError(
                f"a layer with adapters was given {count} rows of {routing.num_tokens} tokens, so that it cannot tell "
                "whose they are; merge the adapter into the model instead (parallelmind merge)"
            )
        return routing.rows(device, of_logits=False)


@dataclass
class AdapterSet:
    """The adapters of one model by name, and the 2D settings each was trained with."""

    base_settings: RopeSettings | None = None
    """Those of requests without an adapter. None: no 2D RoPE, their tokens turn as in the unpatched model."""
    _settings: dict[str, RopeSettings | None] = field(default_factory=dict)
    _routing: _Routing = field(default_factory=_Routing)

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __contains__(self, name: object) -> bool:
        return name in self._settings

    def settings(self, name: str) -> RopeSettings | None:
        """2D settings of an adapter, or of the base model for ""; None: trained without 2D RoPE."""
        return self.base_settings if name == _BASE else self._settings[name]

    def register(self, name: str, settings: RopeSettings | None) -> None:
        """Announce an adapter whose layers `adapted` has been or will be given."""
        self._settings[name] = settings

    def adapted(self, base: nn.Module, *, is_head: bool) -> AdaptedLinear:
        """A layer to put in the place of `base`."""
        return AdaptedLinear(base, self._routing, is_head=is_head)

    @contextmanager
    def routed(self, ranges: Sequence[tuple[str, int, int]], logits_at: Tensor) -> Iterator[None]:
        """Send the tokens of the forwards inside the block through their adapters.

        Args:
            ranges: (adapter, first token, the one behind the last), covering all tokens in order.
            logits_at: LongTensor of the tokens that reach the output head.
        """
        routing = self._routing
        places: dict[str, list[tuple[int, int]]] = {}
        for adapter, start, end in ranges:
            if adapter != _BASE and start < end:
                places.setdefault(adapter, []).append((start, end))
        of_token = [name for name, start, end in ranges for _ in range(start, end)]
        routing.num_tokens, routing.num_logits = len(of_token), len(logits_at)
        routing.token_rows = [(name, _rows(found)) for name, found in places.items()]
        routing.logit_rows = _logit_rows(of_token, logits_at)
        routing.moved.clear()
        try:
            yield
        finally:
            routing.token_rows = routing.logit_rows = ()
            routing.moved.clear()


def _rows(places: Sequence[tuple[int, int]]) -> slice | Tensor:
    """One slice where the places join, else their indices."""
    if all(end == start for (_, end), (start, _) in pairwise(places)):
        return slice(places[0][0], places[-1][1])
    return torch.cat([torch.arange(start, end) for start, end in places])


def _logit_rows(of_token: Sequence[str], logits_at: Tensor) -> _Rows:
    rows: dict[str, list[int]] = {}
    for row, token in enumerate(logits_at.tolist()):
        rows.setdefault(of_token[token], []).append(row)
    return [(name, _slice_or_indices(found)) for name, found in rows.items() if name != _BASE]


def _slice_or_indices(found: Sequence[int]) -> slice | Tensor:
    if all(b - a == 1 for a, b in pairwise(found)):
        return slice(found[0], found[-1] + 1)
    return torch.tensor(found)


def attach_adapters(
    model: nn.Module, adapters: AdapterSet, paths: Mapping[str, AdapterPath], *, rank: int | None = None
) -> None:
    """Put registered adapters, by name, on a model's linear layers, in place.

    Args:
        rank: what every adapter's rank must be; None: its own.
    Raises:
        AdapterError: one does not fit or is not safe to read; the model is then as it was.
    """
    # Imported here, as PEFT takes seconds to import.
    from parallelmind.models.lora_layers import linear_layers, unwrap_to_change
    from parallelmind.models.lora_match import cast_layer, check_rank, match_layers
    from parallelmind.models.lora_read import read_adapter

    base = unwrap_to_change(model)
    linears = linear_layers(base)
    layers: dict[str, dict[str, tuple[Tensor, Tensor, Tensor | None]]] = {}
    for name, path in paths.items():
        adapter = read_adapter(path)
        check_rank(adapter, rank, path, one_of_several=True)
        if adapter.whole:
            raise AdapterError(
                f"{path}: holds {', '.join(adapter.whole)} whole (modules_to_save), which adapters on one model cannot "
                "share; load it alone with --lora_path, or merge it into a model of its own (parallelmind merge)"
            )
        for layer, found in match_layers(adapter, base, linears, path).items():
            cast = cast_layer(found, linears[layer].weight.dtype, layer, path)
            layers.setdefault(layer, {})[name] = _factors(cast, linears[layer], adapter, path)
    head = base.get_output_embeddings()
    for layer, by_adapter in layers.items():
        linear = linears[layer]
        adapted = adapters.adapted(linear, is_head=linear is head)
        for name, factors in by_adapter.items():
            adapted.add(name, *factors)
        parent, _, leaf = layer.rpartition(".")
        setattr(base.get_submodule(parent), leaf, adapted)
    model.eval()


def _factors(
    layer: LayerWeights, linear: nn.Linear, adapter: Adapter, path: AdapterPath
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A, B with the scaling folded in, and DoRA's magnitude share (Liu et al., 2024, https://arxiv.org/abs/2402.09353)."""
    device = linear.weight.device
    scaling = layer.alpha / (math.sqrt(layer.rank) if adapter.use_rslora else layer.rank)
    # A copy: what was read may be a view of the file, which somebody may overwrite while it is served.
    a, b = layer.A.to(device, copy=True), (layer.B.to(device).float() * scaling).to(layer.B.dtype)
    if layer.magnitude is None:
        return a, b, None
    if not linear.weight.dtype.is_floating_point:
        raise AdapterError(f"{path}: DoRA cannot be served beside other adapters on quantized weights; merge it first")
    with torch.no_grad():
        norm = torch.linalg.vector_norm(linear.weight.float() + b.float() @ a.float(), dim=1)
        share = layer.magnitude.to(device).float() / norm
    return a, b, share.to(layer.B.dtype)
