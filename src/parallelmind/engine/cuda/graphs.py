"""Forwards of few tokens as CUDA graphs: a step of decoding launches one graph instead of thousands of kernels.

A graph repeats what was launched while it was recorded, on the same addresses. So the arrays that a step reads lie in
buffers of their own, whose sizes are rounded up; steps of the same sizes share a graph.

Shapes: R rows of the forward, V vocabulary.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallelmind.columnar import Reach
from parallelmind.engine.cuda.inputs import DeviceItems, KernelInputs, Layout, device_items, item_arrays, step_arrays
from parallelmind.engine.cuda.items import Shape, items_of
from parallelmind.engine.step import Step

MOST_ROWS = 256
"""Larger forwards keep the GPU busy by themselves."""
_MOST_GRAPHS = 32
_ROW_STEPS = (1, 2, 4, 8, 16)
_ROW_STEP = 16
_LEAST_LENGTH = 64
_LOGGER = logging.getLogger(__name__)

Kind = tuple[Reach, Shape]
Forward = Callable[[Step, Tensor, Tensor, KernelInputs], Tensor]
"""Logits [R, V] of all rows from token ids [1, R], positions [1, R] or [1, R, 2], and what the kernels read; of the
step it may depend on what `ForwardGraphs.run` is given as `company` and nothing else."""


class RecordedInputs:
    """Those of all forwards that share a graph."""

    def __init__(self, views: dict[Hashable, Tensor]):
        self._views = views

    def items(self, reach: Reach, shape: Shape, device: torch.device) -> DeviceItems:
        return device_items(self._views, (reach, shape))


@dataclass(eq=False)
class _Recording:
    """A graph and its buffers; the graph is None until it is recorded."""

    layout: Layout
    host: Tensor
    device: Tensor
    ids_host: Tensor
    ids: Tensor
    graph: Any = None
    logits: Tensor | None = None
    """[R, V], of all rows."""
    copied: Any = None
    """Passes when the device has what was last put into the host's buffers."""


class ForwardGraphs:
    """The graphs of a model on one GPU.

    Args:
        forward: runs the model.
    """

    def __init__(self, model: nn.Module, device: torch.device, forward: Forward):
        self._device = device
        self._hooks = [hooks for one in model.modules() for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self._forward = forward
        self._kinds: set[Kind] = set()
        """What the model's layers ask for, known once a forward ran without a graph."""
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        """By sizes; None: such a forward ran once."""
        self._generation = -1
        self._pool: Any = None
        self._is_possible = True

    def learn(self, kinds: set[Kind]) -> None:
        """Note what the layers of the model ask of their items, in forwards of few rows."""
        self._kinds |= kinds

    def run(self, step: Step, rows: int, positions: Tensor, logits_at: Tensor, company: Hashable) -> Tensor | None:
        """The logits of a step, [len(logits_at), V] in float32, or None if it is not one for a graph.

        Args:
            rows: R, see `rounded`.
            positions: [1, R] or [1, R, 2].
            company: what else the forward depends on.
        """
        if not self._is_possible or not self._kinds or step.store.is_copying:
            return None
        if any(self._hooks):  # programs that a graph would not run
            return None
        if step.store.generation != self._generation:  # the graphs read where the pages were
            self._forget()
            self._generation = step.store.generation
        arrays: dict[Hashable, Any] = step_arrays(step, rows)
        for reach, shape in self._kinds:
            items = item_arrays(items_of(step, reach, shape), rows)
            arrays |= {((reach, shape), name): array for name, array in items.items()}
        lengths = {name: _rounded_length(name, len(array)) for name, array in arrays.items()}
        key = (rows, company, positions.shape, tuple(lengths.values()))
        if key not in self._recordings:
            self._recordings[key] = None
            while len(self._recordings) > _MOST_GRAPHS:
                self._recordings.popitem(last=False)
            return None
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        if recording is None:
            recording = self._recordings[key] = self._prepared(lengths, rows, positions)
        token_ids = step.input_ids()
        ids = torch.tensor([*token_ids, *token_ids[-1:] * (rows - len(token_ids))])
        wanted = logits_at.to(self._device)
        self._fill(recording, arrays, torch.cat((ids, positions.flatten())))
        if recording.graph is not None:
            recording.graph.replay()
            assert recording.logits is not None
            return recording.logits.index_select(0, wanted).float()
        logits = self._run(step, recording, rows, positions.shape)
        self._record(step, recording, rows, positions.shape)
        return logits.index_select(0, wanted).float()

    def _fill(self, recording: _Recording, arrays: Mapping[Hashable, Any], ids: Tensor) -> None:
        if recording.copied is not None:
            recording.copied.synchronize()
        recording.layout.filled(arrays, recording.host)
        recording.device.copy_(recording.host, non_blocking=True)
        recording.ids_host.copy_(ids)
        recording.ids.copy_(recording.ids_host, non_blocking=True)
        if self._device.type == "cuda":
            recording.copied = recording.copied or torch.cuda.Event()
            recording.copied.record()

    def _prepared(self, lengths: dict[Hashable, int], rows: int, positions: Tensor) -> _Recording:
        layout = Layout(lengths)
        num_ids = rows + positions.numel()
        return _Recording(
            layout=layout,
            host=torch.zeros(layout.size, dtype=torch.int32, pin_memory=self._device.type == "cuda"),
            device=torch.zeros(layout.size, dtype=torch.int32, device=self._device),
            ids_host=torch.zeros(num_ids, dtype=torch.long, pin_memory=self._device.type == "cuda"),
            ids=torch.zeros(num_ids, dtype=torch.long, device=self._device),
        )

    def _run(self, step: Step, recording: _Recording, rows: int, shape: torch.Size) -> Tensor:
        ids, positions = recording.ids.split((rows, shape.numel()))
        inputs = RecordedInputs(recording.layout.views(recording.device))
        return self._forward(step, ids[None], positions.view(shape), inputs)

    def _record(self, step: Step, recording: _Recording, rows: int, shape: torch.Size) -> None:
        """Record what `_run` launches, which has run before."""
        if self._device.type != "cuda":
            return
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # An old graph that is collected meanwhile would end the recording.
        is_collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                recording.logits = self._run(step, recording, rows, shape)
        except Exception as error:
            self._is_possible = False
            self._forget()
            _LOGGER.info("steps run without CUDA graphs, since the model's forward cannot be recorded: %s", error)
            torch.cuda.synchronize(self._device)
            return
        finally:
            if is_collecting:
                gc.enable()
        recording.graph = graph

    def _forget(self) -> None:
        self._recordings.clear()
        self._pool = None  # which ends with the last of its graphs


def rounded(count: int) -> int:
    """The rows of a forward of so many tokens."""
    return next((step for step in _ROW_STEPS if count <= step), -(-count // _ROW_STEP) * _ROW_STEP)


def _rounded_length(name: Hashable, length: int) -> int:
    """The length that an array is given: those that depend on the rows keep theirs."""
    if not isinstance(name, tuple) or name[1] == "ends" or not length:
        return length
    return max(_LEAST_LENGTH, 1 << (length - 1).bit_length())
