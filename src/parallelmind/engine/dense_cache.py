"""The masked path, for models that do not use transformers' AttentionInterface (falcon).

The model sees one row whose keys are all cached tokens, and a dense mask says which ones each token sees. Main is still
stored once, but all tokens attend over the keys of all requests: correct, not fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import Visibility, additive_mask, visible
from parallelmind.engine.forward_context import BranchSpan, ForwardContext
from parallelmind.engine.kv_cache import MainCache


class DenseCache:
    """What the model takes for its key/value cache during one forward."""

    is_compileable = False

    def __init__(self, context: ForwardContext):
        self.context = context
        self._mains: dict[int, tuple[MainCache, int]] = {}
        for span in context.main_spans:
            self._mains[id(span.main)] = (span.main, span.past + len(span.token_ids))
        for group in context.groups:
            if group.main is not None:
                self._mains.setdefault(id(group.main), (group.main, len(group.main)))

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys [1, H, T, D] and values; return those of all tokens in the order of `mask`."""
        context = self.context
        for span, (start, end) in zip(context.main_spans, context.main_ranges, strict=True):
            span.main.write(layer_idx, span.past, key[0, :, start:end], value[0, :, start:end])
        first = context.first_branch_token
        if first < context.num_tokens:
            slots, places = context.write_slots(key.device), context.write_places(key.device)
            context.slots.write(layer_idx, slots, places, key[0, :, first:], value[0, :, first:])
        keys = [main.keys[layer_idx][:, :length] for main, length in self._mains.values()]
        values = [main.values[layer_idx][:, :length] for main, length in self._mains.values()]
        for _index, branch in self._rows():
            length = branch.past + len(branch.token_ids)
            keys.append(context.slots.keys[layer_idx][branch.slot, :, :length])
            values.append(context.slots.values[layer_idx][branch.slot, :, :length])
        return torch.cat(keys, dim=1)[None], torch.cat(values, dim=1)[None]

    def mask(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Additive, [1, 1, T, K]."""
        context = self.context
        # (row, branch, time) of each key and query; a main is a row of its own that groups may also see. Branches go by
        # their slots, since several may continue main under id 0.
        key_main: list[int] = []
        key_group: list[int] = []
        key_branch: list[int] = []
        key_time: list[int] = []
        for identity, (_, length) in self._mains.items():
            key_main += [identity] * length
            key_group += [-1] * length
            key_branch += [0] * length
            key_time += range(length)
        for group_index, span in self._rows():
            length = span.past + len(span.token_ids)
            key_main += [-1] * length
            key_group += [group_index] * length
            key_branch += [span.slot + 1] * length
            key_time += range(span.first_time, span.first_time + length)
        query_main: list[int] = []
        query_group: list[int] = []
        slots: list[int] = []
        visibilities: list[Visibility] = []
        for main_span in context.main_spans:
            count = len(main_span.token_ids)
            query_main += [id(main_span.main)] * count
            query_group += [-2] * count
            slots += [0] * count
            visibilities += ["isolated"] * count
        for group_index, group in enumerate(context.groups):
            for span in group.branches:
                count = len(span.token_ids)
                query_main += [-2 if group.main is None else id(group.main)] * count
                query_group += [group_index] * count
                slots += [span.slot + 1] * count
                visibilities += [group.visibility] * count
        query_branch = torch.tensor(slots)
        query_time = context.time_ids()
        branch, time = torch.tensor(key_branch), torch.tensor(key_time)
        in_main = torch.tensor(query_main)[:, None] == torch.tensor(key_main)[None]
        in_group = torch.tensor(query_group)[:, None] == torch.tensor(key_group)[None]
        seen_main = in_main & (time[None] <= query_time[:, None])
        seen_group = torch.zeros_like(in_group)
        for visibility in dict.fromkeys(visibilities):
            asking = torch.tensor([one == visibility for one in visibilities])
            seen = visible(query_branch, query_time, branch, time, visibility)
            seen_group |= asking[:, None] & in_group & seen
        return additive_mask(seen_main | seen_group, dtype)[None, None].to(device)

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def _rows(self) -> list[tuple[int, BranchSpan]]:
        return [
            (index, span)
            for index, group in enumerate(self.context.groups)
            for span in (*group.branches, *group.finished)
        ]
