"""Functions of single numbers, each with the same result wherever it lies in an array.

torch computes such a function in vectors, and what is left at the end of an array, or of a thread's share of it, number
by number: sigmoids, SiLU and GELU then round otherwise. So arrays are filled up to shares of whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2CLS, GELUActivation, GELUTanh

VECTOR = 64
"""Numbers that one turn of torch's loop takes: two registers of 512 bits in half precision."""
_SHARE = 2**15
"""Numbers from which on a thread is worth it (ATen's grain size)."""
_GELU_SHARE = 2**14
"""Numbers from which on GELU uses all threads."""
_GELU = (nn.GELU, GELUActivation, GELUTanh)
_OTHERS = {nn.GELU, nn.Mish, nn.ELU, nn.Softplus}
_ACTIVATIONS = _OTHERS | {each[0] if isinstance(each, tuple) else each for each in ACT2CLS.values()} - {
    nn.PReLU  # has a weight for each channel
}


def evenly(function: Callable[[Tensor], Tensor], x: Tensor, *, is_gelu: bool = False) -> Tensor:
    """What a function of single numbers gives for an array of any shape, each with the same bits at any place in it.

    Args:
        is_gelu: torch divides it among the threads otherwise than the rest.
    """
    count = x.numel()
    share = _GELU_SHARE if is_gelu else _SHARE
    even = even_count(count, torch.get_num_threads(), is_gelu=is_gelu)
    if even == count and (x.is_contiguous() or (count < share and x.shape[-1] % VECTOR == 0)):
        return function(x)
    flat = x.reshape(-1)
    return function(F.pad(flat, (0, even - count)) if even > count else flat)[:count].view(x.shape)


@lru_cache(maxsize=2**14)
def even_count(count: int, threads: int, *, is_gelu: bool = False) -> int:
    """The smallest number from `count` on that threads share in whole vectors."""
    while count % (VECTOR * (shares := _num_shares(count, threads, is_gelu=is_gelu))):
        count += -count % (VECTOR * shares)
    return count


def even_rows(rows: int, width: int, threads: int) -> int:
    """The smallest even number of rows from `rows` on of which each thread takes whole ones."""
    rows += rows % 2
    while rows % _num_shares(rows * width, threads, is_gelu=False):
        rows += 2
    return rows


def _num_shares(count: int, threads: int, *, is_gelu: bool) -> int:
    """Of how many threads each takes a part of so many numbers."""
    if is_gelu:
        return threads if count > _GELU_SHARE else 1
    return max(1, min(threads, -(-count // _SHARE)))


class EvenActivation(nn.Module):
    """An activation that gives a number the same bits with any others beside it."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return evenly(self.activation, x, is_gelu=isinstance(self.activation, _GELU))


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a function of single numbers of transformers or torch."""
    return type(module) in _ACTIVATIONS
