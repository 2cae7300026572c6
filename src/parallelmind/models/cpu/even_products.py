"""Products outside packed layers, each row with the same bits whatever rows are beside it.

A router or the experts of a mixture multiply by weights that no layer holds, by functions of torch. Which rows they
multiply at once depends on who is in the batch. Inside `even_products` these functions compute with numbers of rows
that sum alike, see `row_counts`.

Shapes: R rows, K features that are summed over, N features that come out, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from parallelmind.models.cpu.elementwise import evenly
from parallelmind.models.cpu.row_counts import RowCounts, alike, cancelling

_ELEMENTWISE = (F.silu, F.gelu, F.sigmoid, torch.sigmoid, Tensor.sigmoid, F.softplus, F.mish, F.elu, torch._C._nn.silu)
_NUMBERS = (torch.float32, torch.bfloat16, torch.float16)


def has_loose_products(model: nn.Module) -> bool:
    """Whether a module multiplies by a weight of its own: not one of the packed layers, nor a table of embeddings."""
    return any(
        parameter.dim() > 1 and parameter.is_floating_point() and not isinstance(module, nn.Embedding)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )


def even_products(*, wanted: bool) -> AbstractContextManager[Any]:
    """Where wanted, products of torch inside the block give a row the same bits in any company; on a CPU only."""
    return _EvenProducts() if wanted else nullcontext()


def even_linear(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows [..., K] by a weight [N, K]: [..., N], on a CPU each with the same bits in any company."""
    out = _linear(rows, weight)
    return F.linear(rows, weight) if out is None else out


class _EvenProducts(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        even = _EVEN.get(func)
        result = None if even is None else even(*args, **kwargs or {})
        return func(*args, **kwargs or {}) if result is None else result


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Rows [..., K] by a weight [N, K]; None: not a product for this."""
    if not _suits(rows, weight) or weight.dim() != 2:
        return None
    flat = rows.reshape(-1, rows.shape[-1])
    counts = _even_rows(*weight.shape, weight.dtype, torch.get_num_threads(), weight.stride(-1) == 1)
    out = counts.apply(flat, lambda some: F.linear(some, weight, bias))
    return out.view(*rows.shape[:-1], out.shape[-1])


def _matmul(rows: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor | None:
    """Rows [..., R, K] by a weight [K, N], or rows [E, R, K] by the weights [E, K, N]."""
    if out is not None or not _suits(rows, weight):
        return None
    if weight.dim() == 2:
        return _linear(rows, weight.t())
    if weight.dim() != 3 or rows.dim() != 3 or len(rows) != len(weight):
        return None
    parts = [_linear(some, one.t()) for some, one in zip(rows, weight, strict=True)]
    return torch.stack([part for part in parts if part is not None])


def _addmm(bias: Tensor, rows: Tensor, weight: Tensor, **scales: Any) -> Tensor | None:
    """Rows [R, K] by a weight [K, N], and a bias [N]."""
    return None if scales or bias.dim() != 1 else _linear(rows, weight.t(), bias)


def _grouped(rows: Tensor, weights: Tensor, *, offs: Tensor | None = None, **others: Any) -> Tensor | None:
    """Rows [R, K], those of each expert together, by the weights [E, K, N]; offs [E]: where each one's rows end."""
    if offs is None or rows.dim() != 2 or weights.dim() != 3 or not _suits(rows, weights):
        return None
    if any(value is not None for value in others.values()):
        return None
    out = rows.new_zeros(len(rows), weights.shape[-1])
    start = 0
    for expert, end in enumerate(offs.tolist()):
        if end > start:
            part = _linear(rows[start:end], weights[expert].t())
            assert part is not None
            out[start:end] = part
        start = end
    return out


def _elementwise(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    if x.device.type != "cpu" or kwargs.get("inplace") or kwargs.get("out") is not None:
        return None
    return evenly(lambda numbers: function(numbers, *args, **kwargs), x, is_gelu=function is F.gelu)


def _suits(rows: Tensor, weight: Tensor) -> bool:
    return (
        isinstance(rows, Tensor)
        and isinstance(weight, Tensor)
        and rows.device.type == "cpu"
        and weight.device.type == "cpu"
        and rows.dtype == weight.dtype
        and rows.dtype in _NUMBERS
        and rows.numel() > 0
    )


@cache
def _even_rows(out_features: int, in_features: int, dtype: torch.dtype, threads: int, is_row_by_row: bool) -> RowCounts:
    """The numbers of rows of plain products that round alike, with the process's number of threads."""

    with torch.inference_mode():
        weight, vectors = cancelling(out_features, in_features, dtype)
        laid = weight if is_row_by_row else weight.t().contiguous().t()
        return alike(lambda rows: F.linear(rows, laid), vectors, out_features)


_EVEN: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.mm: _matmul,
    Tensor.mm: _matmul,
    torch.bmm: _matmul,
    Tensor.bmm: _matmul,
    torch.addmm: _addmm,
}
"""By function of torch: what it computes evenly, or None where it is something else."""
_EVEN.update({function: partial(_elementwise, function) for function in _ELEMENTWISE})
if hasattr(torch, "_grouped_mm"):
    _EVEN[torch._grouped_mm] = _grouped
