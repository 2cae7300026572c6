"""The whole numbers that the kernels of a forward read, brought to the device in one copy.

Shapes: R rows of the forward (those behind its tokens are idle), see `items` for the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from parallelmind.columnar import Reach
from parallelmind.engine.cuda.items import Ints, Items, Shape, items_of
from parallelmind.engine.step import Step

_ALIGNMENT = 4
"""Arrays begin at multiples of 16 bytes: compiled kernels depend on it."""
_NOWHERE = -1


@dataclass(frozen=True, eq=False, slots=True)
class DeviceItems:
    """`Items` on the device, with what the tokens are. `times`, `branches`, `places` [R]."""

    narrow: Tensor
    wide: Tensor
    pages: Tensor
    ends: Tensor
    slots: Tensor
    times: Tensor
    branches: Tensor
    places: Tensor


class KernelInputs(Protocol):
    """Gives the layers of a forward their items."""

    def items(self, reach: Reach, shape: Shape, device: torch.device) -> DeviceItems: ...


class StepInputs:
    """Those of a step whose shapes are its own."""

    def __init__(self, step: Step, num_rows: int):
        self._step = step
        self._num_rows = num_rows
        self._found: dict[Hashable, DeviceItems] = {}
        self.kinds: set[tuple[Reach, Shape]] = set()
        """What was asked for."""

    def items(self, reach: Reach, shape: Shape, device: torch.device) -> DeviceItems:
        key = (reach, shape, device)
        if key not in self._found:
            kind = (reach, shape)
            self.kinds.add(kind)
            arrays = step_arrays(self._step, self._num_rows) | {
                (kind, name): array for name, array in item_arrays(items_of(self._step, reach, shape)).items()
            }
            layout = Layout({name: len(array) for name, array in arrays.items()})
            views = layout.views(layout.filled(arrays).to(device))
            self._found[key] = device_items(views, kind)
        return self._found[key]


class Layout:
    """Where each of several arrays lies in one.

    Args:
        lengths: of each array.
    """

    def __init__(self, lengths: Mapping[Hashable, int]):
        self.lengths = dict(lengths)
        sizes = [-(-length // _ALIGNMENT) * _ALIGNMENT for length in self.lengths.values()]
        self._starts = dict(zip(self.lengths, itertools.accumulate(sizes, initial=0), strict=False))
        self.size = sum(sizes)

    def filled(self, arrays: Mapping[Hashable, Ints], out: Tensor | None = None) -> Tensor:
        """One array with all of them, padded with what their kernel takes for nothing."""
        out = torch.zeros(self.size, dtype=torch.int32) if out is None else out
        flat = out.numpy()
        for name, start in self._starts.items():
            array, length = arrays[name], self.lengths[name]
            flat[start : start + len(array)] = array
            flat[start + len(array) : start + length] = 0
        return out

    def views(self, flat: Tensor) -> dict[Hashable, Tensor]:
        """Each array in the one with all of them."""
        return {name: flat[start : start + self.lengths[name]] for name, start in self._starts.items()}


def step_arrays(step: Step, num_rows: int) -> dict[Hashable, Ints]:
    """What the tokens of a step are; idle rows write nothing."""
    places = np.full(num_rows, _NOWHERE, np.int32)
    places[: step.num_tokens] = step.place_list()
    times, branches = np.zeros((2, num_rows), np.int32)
    times[: step.num_tokens] = step.times
    branches[: step.num_tokens] = step.branch_ids.numpy()
    return {"times": times, "branches": branches, "places": places}


def item_arrays(items: Items, num_rows: int | None = None) -> dict[str, Ints]:
    """The arrays of items; rows behind the tokens have no parts."""
    ends = items.ends
    if num_rows is not None:
        ends = np.concatenate((ends, np.full(num_rows - len(ends), ends[-1], np.int32)))
    narrow, wide = items.narrow.flatten(), items.wide.flatten()
    return {"narrow": narrow, "wide": wide, "pages": items.pages, "ends": ends, "slots": items.slots}


def device_items(views: Mapping[Hashable, Tensor], kind: Hashable) -> DeviceItems:
    """The items of one kind of layer, from the arrays of `step_arrays` and `item_arrays`."""
    own = {name: views[kind, name] for name in ("narrow", "wide", "pages", "ends", "slots")}
    own |= {name: own[name].unflatten(0, (-1, 8)) for name in ("narrow", "wide") if len(own[name])}
    return DeviceItems(**own, times=views["times"], branches=views["branches"], places=views["places"])
