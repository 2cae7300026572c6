"""Where each token of a row stands: branch id and time, and which token it must predict.

A row is main followed by its branches. Main has branch id 0 and times 0…L-1; branch k has branch id k and times
L, L+1, … (0, 1, … without a main). The branch position of branch k is k × stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAIN_BRANCH = 0
PAD_BRANCH = -1
"""Branch id of padding: a token that nothing sees and that sees only itself."""
IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One packed model sequence of S tokens, main first, then each branch.

    Shapes: `input_ids`, `branch_ids`, `time_ids` are LongTensors [S].
    """

    input_ids: Tensor
    branch_ids: Tensor
    time_ids: Tensor

    def __len__(self) -> int:
        return int(self.input_ids.numel())

    def pos2d(self, stride: int) -> Tensor:
        """(branch position, time position) of each token, LongTensor [S, 2]."""
        return pos2d_ids(self.branch_ids, self.time_ids, stride)


def pos2d_ids(branch_ids: Tensor, time_ids: Tensor, stride: int) -> Tensor:
    """Stack (branch id × stride, time) on a new last axis; padding keeps branch position -1.

    Shapes: [...] and [...] → [..., 2].
    """
    branch_position = torch.where(branch_ids == PAD_BRANCH, branch_ids, branch_ids * stride)
    return torch.stack((branch_position, time_ids), dim=-1)


def pack_row(
    main: Sequence[int], branches: Sequence[Sequence[int]], *, branch_numbers: Sequence[int] | None = None
) -> PackedRow:
    """Lay out one row from token ids.

    `branch_numbers` gives each branch's id (1, 2, … by default), so that branches keep their number when a record is
    split over several rows.

    Raises:
        ValueError: as many numbers as branches are needed, each at least 1 and none twice.
    """
    numbers = list(range(1, len(branches) + 1)) if branch_numbers is None else list(branch_numbers)
    if len(numbers) != len(branches) or len(set(numbers)) != len(numbers) or any(n < 1 for n in numbers):
        raise ValueError(f"branch_numbers must be {len(branches)} different numbers from 1 up, got {numbers}")
    ids = list(main)
    branch_ids = [MAIN_BRANCH] * len(main)
    time_ids = list(range(len(main)))
    for number, tokens in zip(numbers, branches, strict=True):
        ids += tokens
        branch_ids += [number] * len(tokens)
        time_ids += range(len(main), len(main) + len(tokens))
    return PackedRow(
        input_ids=torch.tensor(ids, dtype=torch.long),
        branch_ids=torch.tensor(branch_ids, dtype=torch.long),
        time_ids=torch.tensor(time_ids, dtype=torch.long),
    )


def shift_labels(input_ids: Tensor, branch_ids: Tensor, loss_mask: Tensor | None = None) -> Tensor:
    """The token each position must predict: the next token of the same branch, -100 where there is none.

    The last token of main predicts nothing, since its successors differ from branch to branch.

    Shapes: [..., S] each → [..., S]. `loss_mask` is true on tokens that are learned (as targets).
    """
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    same = (branch_ids[..., 1:] == branch_ids[..., :-1]) & (branch_ids[..., 1:] != PAD_BRANCH)
    if loss_mask is not None:
        same = same & loss_mask[..., 1:].bool()
    labels[..., :-1] = torch.where(same, input_ids[..., 1:], IGNORE_INDEX)
    return labels
