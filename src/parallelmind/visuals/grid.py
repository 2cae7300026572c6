"""What the pictures of a row show: main's tokens in order, and the branches as columns over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallelmind.columnar import PAD_BRANCH, PackedRow, Visibility, visible
from parallelmind.columnar.layout import MAIN_BRANCH

MAIN_COLOUR = "#64748b"
BRANCH_COLOURS = ("#2f6fde", "#e0701b", "#1f9d6b", "#b4459f", "#7a5af0", "#c8901a", "#1496a8", "#d1435b")
"""The colours of the branches in order, then again from the first."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One token."""

    text: str
    branch: int
    time: int
    supervised: bool


@dataclass(frozen=True, slots=True)
class Column:
    """One branch."""

    number: int
    position: int
    """Branch position: number × stride."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class RowGrid:
    """A row without its padding."""

    main: tuple[Cell, ...]
    columns: tuple[Column, ...]
    branch_of: tuple[int, ...]
    """Branch id of each token, in the order of the row."""
    time_of: tuple[int, ...]
    """Time of each of them."""
    stride: int
    visibility: Visibility

    def __len__(self) -> int:
        return len(self.branch_of)

    def seen(self, first: int = 0, last: int | None = None, *, step: int = 1) -> Tensor:
        """bool [Q, ⌈S / step⌉]: which keys the queries from `first` to `last` see, of every `step`-th token.

        A long row has too many pairs for all of them to be held at once.
        """
        branches, times = torch.tensor(self.branch_of[::step]), torch.tensor(self.time_of[::step])
        return visible(branches[first:last], times[first:last], branches, times, self.visibility)

    def pooled(self, step: int) -> Tensor:
        """bool [⌈S / step⌉, ⌈S / step⌉]: whether any token of a square of step x step tokens is seen."""
        side = -(-len(self) // step)
        padding = (0, side * step - len(self))
        lines = (self.seen(top, top + step).any(0) for top in range(0, len(self), step))
        return torch.stack([torch.nn.functional.pad(line, padding).view(side, step).any(1) for line in lines])

    @property
    def summary(self) -> str:
        """What the row holds, in one line."""
        branches = f"{len(self.columns)} branch{'es' if len(self.columns) != 1 else ''}"
        return f"{len(self)} tokens = {len(self.main)} of main + {len(self) - len(self.main)} in {branches}"


def branch_colour(branch: int) -> str:
    """The colour of a branch id, main included."""
    return MAIN_COLOUR if branch == MAIN_BRANCH else BRANCH_COLOURS[(branch - 1) % len(BRANCH_COLOURS)]


def row_grid(
    row: PackedRow,
    tokens: Sequence[str],
    *,
    stride: int,
    visibility: Visibility,
    loss_mask: Sequence[bool] | Tensor | None = None,
) -> RowGrid:
    """Arrange a row of S tokens for drawing; positions and visibility are those the model gets.

    Args:
        tokens: the text of each token.
        loss_mask: which tokens are supervised in training; None: not known.
    Raises:
        ValueError: not one text for every token.
    """
    if len(tokens) != len(row):
        raise ValueError(f"{len(row)} tokens need as many texts, got {len(tokens)}")
    marks = [False] * len(row) if loss_mask is None else [bool(mark) for mark in loss_mask]
    cells = [
        Cell(text, branch, time, mark)
        for text, branch, time, mark in zip(tokens, row.branch_ids.tolist(), row.time_ids.tolist(), marks, strict=True)
        if branch != PAD_BRANCH
    ]
    position_of = dict(zip(row.branch_ids.tolist(), row.pos2d(stride)[:, 0].tolist(), strict=True))
    numbers = dict.fromkeys(cell.branch for cell in cells if cell.branch != MAIN_BRANCH)
    return RowGrid(
        main=tuple(cell for cell in cells if cell.branch == MAIN_BRANCH),
        columns=tuple(
            Column(number, position_of[number], tuple(cell for cell in cells if cell.branch == number))
            for number in numbers
        ),
        branch_of=tuple(cell.branch for cell in cells),
        time_of=tuple(cell.time for cell in cells),
        stride=stride,
        visibility=visibility,
    )
