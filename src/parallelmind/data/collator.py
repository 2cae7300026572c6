"""Training rows to the tensors of one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import (
    IGNORE_INDEX,
    PAD_BRANCH,
    PackedRow,
    Visibility,
    additive_mask,
    branch_starts,
    pos2d_ids,
    sees_main,
    shift_labels,
    visible,
)
from parallelmind.settings.model import DEFAULT_STRIDE


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One packed row of S tokens, and which of them are supervised (BoolTensor [S])."""

    row: PackedRow
    loss_mask: Tensor
    sources: tuple[str, ...] = ()
    """File and line of its records."""

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward, and the state of the data after them."""

    rows: Sequence[TrainingRow]
    state: dict[str, Any] = field(default_factory=dict)
    """What `ParallelPretrainDataset.load_state_dict` takes."""
    last: bool = False
    """No other micro-batch follows."""
    sequences: Sequence[int] = ()
    """How many of the rows, in their order, stand one behind the other in each sequence; none: one in each."""


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """Counts and origin of a batch, besides its tensors."""

    sources: tuple[str, ...]
    useful_tokens: int
    padded_tokens: int
    """Tokens computed, padding included."""
    supervised_tokens: int
    state: dict[str, Any]
    last: bool


def packed_ids(branch_ids: Tensor, time_ids: Tensor, row_ids: Tensor | None = None) -> Tensor:
    """The ids that packed attention builds its masks from: [B, S] each → int32 [B, 1, S, 3].

    Args:
        row_ids: the number of each token's row within its sequence; None: there is one row in each.
    """
    rows = torch.zeros_like(branch_ids) if row_ids is None else row_ids
    return torch.stack((branch_ids, time_ids, rows), dim=-1)[:, None].to(torch.int32)


class ParallelPretrainCollator:
    """Puts training rows behind one another where their micro-batch says so, and pads sequences to one length.

    | key | shape | |
    |---|---|---|
    | `input_ids` | [B, S] | |
    | `position_ids` | [B, S, 2] | pos2d; with `two_axes=False` (a model without 2D RoPE) the times [B, S] |
    | `attention_mask` | int32 [B, 1, S, 3] | (branch id, time, row of the sequence), from which packed attention \
builds each layer's mask |
    | `labels` | [B, S] | the token itself where it is supervised, else -100 |
    | `shift_labels` | [B, S] | the token each position must predict: the next of its branch if supervised, else -100 |
    | `branch_starts` | [K, 3] | (sequence, place, token): supervised first tokens of branches; each is predicted at \
that place, main's last token. None with `strict` visibility, and none in rows without a main. |
    | `info` | | a `BatchInfo` |

    With `dense_mask` the mask is the additive [B, 1, S, S] itself, for any model whose layers all have full attention.

    Args:
        pad_token_id: fills up rows; padding is neither seen nor supervised, so any token will do.
        stride: branch position = branch id × stride.
        pad_to_multiple_of: S is a multiple of this (FlexAttention computes blocks of 128).
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        stride: int = DEFAULT_STRIDE,
        visibility: Visibility = "isolated",
        two_axes: bool = True,
        dense_mask: bool = False,
        pad_to_multiple_of: int = 1,
    ):
        self.pad_token_id = pad_token_id
        self.stride = stride
        self.visibility: Visibility = visibility
        self.two_axes = two_axes
        self.dense_mask = dense_mask
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, batch: MicroBatch | Sequence[TrainingRow]) -> dict[str, Any]:
        """Raises ValueError for a batch without rows."""
        micro = batch if isinstance(batch, MicroBatch) else MicroBatch(batch)
        rows = micro.rows
        if not rows:
            raise ValueError("a batch needs at least one row")
        sequences = _sequences(micro)
        longest = max(sum(map(len, sequence)) for sequence in sequences)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(sequences), width)
        input_ids = torch.full(shape, self.pad_token_id)
        branch_ids = torch.full(shape, PAD_BRANCH)
        time_ids = torch.zeros(shape, dtype=torch.long)
        row_ids = torch.zeros(shape, dtype=torch.long)
        loss_mask = torch.zeros(shape, dtype=torch.bool)
        for index, sequence in enumerate(sequences):
            start = 0
            for number, row in enumerate(sequence):
                place = (index, slice(start, start + len(row)))
                input_ids[place] = row.row.input_ids
                branch_ids[place] = row.row.branch_ids
                time_ids[place] = row.row.time_ids
                row_ids[place] = number
                loss_mask[place] = row.loss_mask
                start += len(row)
        targets = shift_labels(input_ids, branch_ids, loss_mask, row_ids=row_ids)
        starts = branch_starts(input_ids, branch_ids, loss_mask & sees_main(self.visibility), row_ids=row_ids)
        return {
            "input_ids": input_ids,
            "position_ids": pos2d_ids(branch_ids, time_ids, self.stride) if self.two_axes else time_ids,
            "attention_mask": self._mask(branch_ids, time_ids, row_ids),
            "labels": torch.where(loss_mask, input_ids, IGNORE_INDEX),
            "shift_labels": targets,
            "branch_starts": starts,
            "info": BatchInfo(
                sources=tuple(source for row in rows for source in row.sources),
                useful_tokens=sum(len(row) for row in rows),
                padded_tokens=input_ids.numel(),
                supervised_tokens=int((targets != IGNORE_INDEX).sum()) + len(starts),
                state=micro.state,
                last=micro.last,
            ),
        }

    def _mask(self, branch_ids: Tensor, time_ids: Tensor, row_ids: Tensor) -> Tensor:
        if not self.dense_mask:
            return packed_ids(branch_ids, time_ids, row_ids)
        seen = visible(branch_ids, time_ids, branch_ids, time_ids, self.visibility, query_row=row_ids, key_row=row_ids)
        seen = seen | torch.eye(seen.shape[-1], dtype=torch.bool)
        return additive_mask(seen, torch.float32)[:, None]


def _sequences(micro: MicroBatch) -> list[list[TrainingRow]]:
    rows = iter(micro.rows)
    sizes = micro.sequences or [1] * len(micro.rows)
    return [list(islice(rows, size)) for size in sizes]
