"""Which token sees which: the mask of each visibility, always with time at most one's own.

| name | a branch token sees |
|---|---|
| isolated | main and its own branch |
| columnar | main, its own branch, and every other branch's tokens of strictly earlier time |
| strict | its own branch only |

Rows that stand in one sequence do not see each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallelmind.columnar.layout import MAIN_BRANCH, PAD_BRANCH
from parallelmind.settings.visibility import RULES, VISIBILITIES, Visibility


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back the tokens of a layer see, in time: everything, a sliding window, or their own chunk."""

    window: int | None = None
    """A token sees times above its own minus this, as in transformers' `sliding_window_overlay`."""
    chunk: int | None = None
    """A token sees times of the same multiple of this, as in transformers' `chunked_overlay`."""

    @property
    def is_full(self) -> bool:
        return self.window is None and self.chunk is None

    def __str__(self) -> str:
        if self.is_full:
            return "all tokens before"
        return f"a window of {self.window}" if self.chunk is None else f"chunks of {self.chunk}"

    def earliest(self, time: Tensor) -> Tensor:
        """The earliest time that a token of each time sees, in the shape of `time`; never falls as time rises."""
        if self.chunk is not None:
            return time // self.chunk * self.chunk
        return torch.zeros_like(time) if self.window is None else time - self.window + 1

    def earliest_at(self, time: int) -> int:
        """`earliest` of one token."""
        if self.chunk is not None:
            return time // self.chunk * self.chunk
        return 0 if self.window is None else time - self.window + 1

    @property
    def furthest(self) -> int | None:
        """How many tokens before its own a token sees at most; None: all."""
        length = self.window if self.chunk is None else self.chunk
        return None if length is None else length - 1


FULL = Reach()


def visible(
    query_branch: Tensor,
    query_time: Tensor,
    key_branch: Tensor,
    key_time: Tensor,
    visibility: Visibility,
    reach: Reach = FULL,
    *,
    query_row: Tensor | None = None,
    key_row: Tensor | None = None,
) -> Tensor:
    """Whether each query token sees each key token.

    Windows and chunks are counted in time, so that a branch far down the row sees what it would see alone.

    Shapes: [..., Q], [..., Q], [..., K], [..., K] → bool [..., Q, K]. Branch ids, not branch positions. `query_row` and
    `key_row`, the numbers of the rows within their sequence, are needed where it holds several.
    Raises:
        ValueError: an unknown visibility.
    """
    if visibility not in VISIBILITIES:
        raise ValueError(f"visibility is {visibility!r}; it must be one of {', '.join(VISIBILITIES)}")
    rule = RULES[visibility]
    q_branch, q_time = query_branch[..., :, None], query_time[..., :, None]
    k_branch, k_time = key_branch[..., None, :], key_time[..., None, :]
    seen = (q_branch == k_branch) & (k_time <= q_time)
    if rule.sees_main:
        seen = seen | ((k_branch == MAIN_BRANCH) & (k_time <= q_time))
    if rule.sees_branches:
        seen = seen | ((k_branch != MAIN_BRANCH) & (k_time < q_time))
    seen = seen & (q_branch != PAD_BRANCH) & (k_branch != PAD_BRANCH)
    if query_row is not None and key_row is not None:
        seen = seen & (query_row[..., :, None] == key_row[..., None, :])
    if not reach.is_full:
        seen = seen & (k_time >= reach.earliest(q_time))
    return seen


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, the dtype's lowest value elsewhere. Shape and device of `seen`."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, lowest)


def build_columnar_causal_mask(
    pos2d: Tensor,
    attention_mask: Tensor | None = None,
    *,
    visibility: Visibility = "columnar",
    sliding_window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The attention mask of packed rows, to be passed as `attention_mask` to any transformers model.

    Additive and floating point, since eager attention takes a boolean 4-D mask for numbers and gives wrong logits.
    A model with sliding-window layers needs one mask per kind of layer: a 4-D mask replaces the model's own window.

    Args:
        pos2d: LongTensor [B, S, 2] of (branch position, time position); tokens with equal branch position form a
            branch, 0 is main, -1 is padding. The stride must therefore not be 0.
        attention_mask: [B, S], 0 on padding.
    Returns:
        Tensor [B, 1, S, S], 0 where the query (third axis) sees the key (fourth), the dtype's lowest value elsewhere.
    Raises:
        ValueError: pos2d has another shape, or visibility is unknown.
    """
    if pos2d.dim() != 3 or pos2d.shape[-1] != 2:
        raise ValueError(f"pos2d must be [batch, seq, 2], got {list(pos2d.shape)}")
    branch, time = pos2d.unbind(-1)
    if attention_mask is not None:
        branch = torch.where(attention_mask.bool(), branch, PAD_BRANCH)
    seen = visible(branch, time, branch, time, visibility, Reach(window=sliding_window))
    # A row of the softmax without any key would be NaN and spread through the batch.
    seen = seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
    return additive_mask(seen, dtype)[:, None]
