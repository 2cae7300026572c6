"""The masked path, for models that do not use transformers' AttentionInterface (falcon).

The model sees one row whose keys are all pages, as they lie, and a dense mask says which ones each token sees. Main is
still stored once, but all tokens attend over the keys of all requests: correct, not fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import additive_mask, visible
from parallelmind.engine.readings import Span
from parallelmind.engine.step import Step
from parallelmind.engine.texts import Run


class DenseCache:
    """What the model takes for its key/value cache during one forward."""

    is_compileable = False

    def __init__(self, step: Step):
        self._step = step

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys [1, H, T, D] and values; return those of all pages, [1, H, N·P, D]."""
        store = self._step.store
        store.write(layer_idx, self._step.places(key.device), key[0], value[0])
        keys, values = store.layer(layer_idx)
        return keys.flatten(1, 2)[None], values.flatten(1, 2)[None]

    def get_seq_length(self, *_: Any) -> int:
        return 0


def dense_mask(step: Step, dtype: torch.dtype) -> Tensor:
    """What each token sees of all pages, additive, [1, 1, T, N·P]."""
    store = step.store
    seen = torch.zeros(step.num_tokens, store.num_places, dtype=torch.bool)
    for span, (start, end) in zip(step.spans, step.ranges, strict=True):
        query_time = step.time_ids[start:end]
        for run, length in _seen_whole(span):
            places, times = _places(run, length, store.page_tokens)
            seen[start:end, places] = times <= query_time[:, None]
        if span.company is not None:
            query_branch = step.branch_ids[start:end]
            for run, branch_id, length in span.company.members:
                places, times = _places(run, length, store.page_tokens)
                key_branch = torch.full_like(times, branch_id)
                seen[start:end, places] = visible(query_branch, query_time, key_branch, times, span.company.visibility)
    return additive_mask(seen, dtype)[None, None]


def _seen_whole(span: Span) -> list[tuple[Run, int]]:
    """The texts that a span sees up to its own time, and how much of each is there."""
    texts = [] if span.run.base is None else [(span.run.base, len(span.run.base))]
    return texts if span.company is not None else [*texts, (span.run, span.end)]


def _places(run: Run, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Where a text's first tokens are in the pages, and their times; without those that it does not hold any more."""
    numbers = torch.tensor([page.number for page in run.pages[run.first_page : -(-length // size)]], dtype=torch.long)
    first = run.first_page * size
    places = (numbers[:, None] * size + torch.arange(size)).flatten()[: length - first]
    return places, run.place.first_time + torch.arange(first, length)
