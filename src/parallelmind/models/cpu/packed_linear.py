"""A linear layer for inference, its weight packed once for the processor's matrix kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallelmind.models.cpu.row_counts import RowCounts, alike, cancelling

_PACK_ROWS = 16
"""Rows the layout is chosen for: a decode step of several branches. Measured in float32 against the plain layer, on a
busy machine: 1.3 to 2.4 times as fast from 4 to 64 rows, no clear difference above, at a single row down to half."""
_ANY_ROWS = RowCounts(least=1)
_LARGE = 2**26
"""Weights; a layer of more, such as an output head, is tried with its own instead of ones made for it."""
_VECTORS = 9
_known: dict[tuple[int, int, torch.dtype, int], RowCounts] = {}
"""By features in and out, number format and number of threads."""


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's blocked layout, so that no call has to rearrange it.

    For inference only: it has no gradient, and a state dict of the model no longer holds the weight.

    Args:
        weight: [out, in], float32 or bfloat16.
        bias: [out], or None.
        deterministic: give a row the same bits with any rows beside it, see `row_counts`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, deterministic: bool = True):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.deterministic = deterministic
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACK_ROWS)

    @property
    def weight(self) -> Tensor:
        """The packed weight: code that asks for its dtype or device gets the right answer."""
        return self._packed

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        rows = x.reshape(-1, self.in_features)
        out = self._row_counts().apply(rows, lambda some: _multiply(some, self._packed, self.bias))
        return out.view(*x.shape[:-1], self.out_features)

    def _row_counts(self) -> RowCounts:
        if not self.deterministic:
            return _ANY_ROWS
        kind = (self.in_features, self.out_features, self._packed.dtype, torch.get_num_threads())
        found = _known.get(kind)
        if found is None:
            found = _known[kind] = self._tried()
        return found

    @torch.inference_mode()
    def _tried(self) -> RowCounts:
        """The numbers of rows that round alike, by trial."""
        packed, dtype = self._packed, self._packed.dtype
        if self.in_features * self.out_features > _LARGE:
            # So many sums show a difference without numbers that cancel; and no copy has to be made.
            vectors = torch.randn(_VECTORS, self.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
        else:
            weight, vectors = cancelling(self.out_features, self.in_features, dtype)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        return alike(lambda rows: _multiply(rows, packed, None), vectors, self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self._packed.dtype}"


def _multiply(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out
