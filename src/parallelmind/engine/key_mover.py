"""Moves keys and values of joined branches to their place in main, the keys turned to where they then stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from parallelmind.columnar import KeyTurner
from parallelmind.engine.joining import Move
from parallelmind.engine.model_runner import ModelRunner
from parallelmind.engine.pages import PageStore
from parallelmind.engine.readings import Span
from parallelmind.engine.step import Step
from parallelmind.engine.texts import Place
from parallelmind.engine.tree import PageTree

_PROBE = ((0, 0), (0, 1), (3, 37), (1, 400), (2, 1500))
"""(branch id, time) of the same token; the first is what the others are turned from."""
_TOLERANCE, _STEPS = 1e-4, 8
"""Keys may differ by this share of the largest one, or by so many steps of their number format."""


class KeyMover:
    """What is found out of a model when it is used for the first time: how the keys of each of its layers turn."""

    def __init__(self, runner: ModelRunner, store: PageStore):
        self._runner = runner
        self._store = store
        self._turner: KeyTurner | None = None

    def turner(self) -> KeyTurner:
        """How the model's keys turn.

        Raises:
            UnsupportedModelError: they cannot be turned.
        """
        if self._turner is None:
            self._turner = self._probe()
        return self._turner

    def __call__(self, adapter: str, moves: Sequence[Move]) -> None:
        """Copy keys, turned, and values, which do not turn, in all layers."""
        turner = self.turner()
        lengths = torch.tensor([len(move.sources) for move in moves])
        sources, targets = (
            torch.tensor([place for move in moves for place in getattr(move, name)]) for name in ("sources", "targets")
        )
        branches = torch.tensor([move.branch_id for move in moves]).repeat_interleave(lengths)
        old, new = (
            torch.cat([getattr(move, name) + torch.arange(len(move.sources)) for move in moves])
            for name in ("time", "new_time")
        )
        adapters = [(adapter, 0, len(sources))]
        angles = turner.angles(self._runner.positions(branches, old, adapters))
        new_angles = turner.angles(self._runner.positions(torch.zeros_like(branches), new, adapters))
        for layer in range(self._store.num_layers):
            keys, values = (array.flatten(1, 2) for array in self._store.layer(layer))
            sources, targets = sources.to(keys.device), targets.to(keys.device)
            keys[:, targets] = turner.turn(layer, keys[:, sources], angles, new_angles)
            values[:, targets] = values[:, sources]

    @torch.inference_mode()
    def _probe(self) -> KeyTurner:
        """Texts of one token see nothing but themselves, so that their keys differ by their places alone."""
        turner = KeyTurner(self._runner.model)
        store = PageStore(1, 2**31)
        tree = PageTree(store, 0)
        spans = []
        probe = [(number, min(time, self._runner.max_model_len - 1)) for number, time in _PROBE]
        token = self._runner.vocab_size // 2
        for number, time in probe:
            run = tree.open(None, Place(branch_position=number, first_time=time), [token], is_private=True)
            tree.reserve(run, 1)
            spans.append(Span(run=run, past=0, token_ids=[token], branch_id=number))
        self._runner.forward(Step(store, spans), torch.tensor([0]))
        branches, times = torch.tensor(probe).unbind(-1)
        angles = turner.angles(self._runner.positions(branches, times, [("", 0, len(probe))]))
        places = [span.run.pages[0].number for span in spans]
        for layer in range(store.num_layers):
            keys_HTD = store.layer(layer)[0].flatten(1, 2)[:, places]
            turner.fit(layer, keys_HTD, angles, max(_TOLERANCE, _STEPS * torch.finfo(keys_HTD.dtype).eps))
        return turner
