"""Where each token of a row stands: branch id and time, and which token it must predict.

A row is main followed by its branches. Main has branch id 0 and times 0…L-1; branch k has branch id k and times
L, L+1, … (0, 1, … without a main). The branch position of branch k is k × stride; where a model was trained on the
numbers 1…R only, it is that of the number that `number_in_range` gives.

A token follows from the one before it in its branch (`shift_labels`), the first token of a branch from main's last
(`branch_starts`). The first token of main follows from nothing, nor does that of a branch that has, or sees, no main.

A sequence may hold several rows, one behind the other. Times and branch ids begin anew in each of them, and only the
number of the row (`row_ids`) tells their tokens apart.
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

    def pos2d(self, stride: int, branch_range: int | None = None) -> Tensor:
        """(branch position, time position) of each token, LongTensor [S, 2]."""
        return pos2d_ids(ids_in_range(self.branch_ids, branch_range), self.time_ids, stride)


def number_in_range(number: int, branch_range: int | None) -> int:
    """The number whose position a branch takes, of a model that knows the numbers 1…R: after R it is 1 again.

    Branches that do not see one another may share a position, so that none has to take one that the model never met.

    Args:
        branch_range: R; None: any number is as good as another.
    """
    return number if branch_range is None or number <= branch_range else (number - 1) % branch_range + 1


def numbers_in_range(numbers: Sequence[int], branch_range: int | None) -> list[int]:
    """`number_in_range` of branches that see one another, which must not stand at one position.

    Where two would, since numbers between them are left out, the branches are numbered anew, in order.

    Raises:
        ValueError: there are more of them than positions.
    """
    found = [number_in_range(number, branch_range) for number in numbers]
    if branch_range is None or len(set(found)) == len(found):
        return found
    if len(found) > branch_range:
        raise ValueError(f"{len(found)} branches, {branch_range} positions")
    return list(range(1, len(found) + 1))


def ids_in_range(branch_ids: Tensor, branch_range: int | None) -> Tensor:
    """`number_in_range` of many branch ids, LongTensor [...] → [...]; main and padding keep theirs."""
    if branch_range is None:
        return branch_ids
    return torch.where(branch_ids > branch_range, (branch_ids - 1) % branch_range + 1, branch_ids)


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


def shift_labels(
    input_ids: Tensor, branch_ids: Tensor, loss_mask: Tensor | None = None, *, row_ids: Tensor | None = None
) -> Tensor:
    """The token each position must predict: the next token of the same branch, -100 where there is none.

    The last token of main has none here, since its successors differ from branch to branch: see `branch_starts`.

    Shapes: [..., S] each → [..., S]. `loss_mask` is true on supervised tokens, which are targets; `row_ids` are the
    numbers of the rows of a sequence, which holds one row without them.
    """
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    same = (branch_ids[..., 1:] == branch_ids[..., :-1]) & (branch_ids[..., 1:] != PAD_BRANCH)
    if row_ids is not None:
        same = same & (row_ids[..., 1:] == row_ids[..., :-1])
    if loss_mask is not None:
        same = same & loss_mask[..., 1:].bool()
    labels[..., :-1] = torch.where(same, input_ids[..., 1:], IGNORE_INDEX)
    return labels


def branch_starts(
    input_ids: Tensor, branch_ids: Tensor, loss_mask: Tensor | None = None, *, row_ids: Tensor | None = None
) -> Tensor:
    """The first tokens of branches, which main's last token must predict, one for each of its branches.

    With a visibility in which branches do not see main there are none.

    Shapes: [B, S] each → LongTensor [K, 3] of (sequence, place of main's last token, token to predict).
    """
    rows = torch.zeros_like(branch_ids) if row_ids is None else row_ids
    places = torch.arange(branch_ids.shape[-1], device=branch_ids.device).expand_as(branch_ids)
    main_end = torch.where(branch_ids == MAIN_BRANCH, places, -1).cummax(-1).values
    has_main = (main_end >= 0) & (rows.gather(-1, main_end.clamp(min=0)) == rows)
    branch_before, row_before = (torch.nn.functional.pad(ids[:, :-1], (1, 0), value=0) for ids in (branch_ids, rows))
    first = ((branch_ids != branch_before) | (rows != row_before)) & (branch_ids > MAIN_BRANCH) & has_main
    if loss_mask is not None:
        first = first & loss_mask.bool()
    sequence, place = first.nonzero().unbind(-1)
    return torch.stack((sequence, main_end[sequence, place], input_ids[sequence, place]), dim=-1)
