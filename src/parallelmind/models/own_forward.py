"""A model's own forward as the label of what is computed in other ways, and how far its rounding reaches.

Shapes: L tokens of a text, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallelmind.errors import UnsupportedModelError, first_line, is_out_of_memory
from parallelmind.models.architecture import attention_switched, model_configs

FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)
"""What a forward raises where a model does not know what it is given."""

_FLOOR = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_FLOOR = 0.02
_MOST = {torch.float32: 1e-2, torch.float64: 1e-5}
_HALF_MOST = 0.1
_TIMES_NOISE = 6


class OwnForward:
    """The logits of some texts, each alone, in one batch of the model's own forward.

    Args:
        texts: token ids of each.
        positions: LongTensor [L] of each, or [L, 2] with 2D RoPE.
    Raises:
        UnsupportedModelError: its forward fails over them.
    """

    def __init__(self, model: Any, texts: Sequence[Sequence[int]], positions: Sequence[Tensor]):
        try:
            self.logits = _logits(model, texts, positions)
            """[L, V] of each text."""
        except FORWARD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise UnsupportedModelError(_failing(error, with_2d_rope=positions[0].dim() == 2)) from error
        self._scale = max(1e-6, *(float(one.abs().max()) for one in self.logits))
        self.limit = self._limit(model, texts, positions)
        """By how much, as a share of the largest logit, another way may differ."""

    def refusal(self, index: int, first: int, logits: Tensor) -> str | None:
        """What is wrong with logits of a text from a token on, computed in another way; None if nothing is.

        The median over the tokens counts: in half precision an expert may be chosen otherwise for a single token,
        while a token seen too many or too few differs everywhere behind it.
        """
        difference = self._difference(self.logits[index][first:], logits)
        if difference <= self.limit:  # not for NaN
            return None
        return (
            f"logits differ from the model's own forward by {difference:.2g} of their size, its own rounding allows "
            f"{self.limit:.2g}"
        )

    def _difference(self, one: Tensor, other: Tensor) -> float:
        return float((one - other.to(one.device)).abs().amax(-1).median()) / self._scale

    def _limit(self, model: Any, texts: Sequence[Sequence[int]], positions: Sequence[Tensor]) -> float:
        """The model computes the same by another attention of its own; the difference is rounding."""
        noise = 0.0
        try:
            with attention_switched(model_configs(model), "eager"):
                others = _logits(model, texts, positions)
            noise = max(self._difference(one, other) for one, other in zip(self.logits, others, strict=True))
        except FORWARD_ERRORS:
            pass  # it has one way only
        # 8-bit layers round what goes into them, too.
        dtype = torch.bfloat16 if getattr(model, "is_quantized", False) else model.dtype
        most = _MOST.get(dtype, _HALF_MOST)
        return max(_FLOOR.get(dtype, _HALF_FLOOR), min(_TIMES_NOISE * noise, most))


def _failing(error: Exception, *, with_2d_rope: bool) -> str:
    found = f"its own forward fails over the positions of a branch ({type(error).__name__}: {first_line(error)})"
    if not with_2d_rope:
        return found
    return (
        f"{found}; with 2D RoPE these have two axes, and it uses them elsewhere than in its rotary embedding: run it "
        "with --no_patch_rope (patch_rope=False)"
    )


@torch.no_grad()
def _logits(model: Any, texts: Sequence[Sequence[int]], positions: Sequence[Tensor]) -> list[Tensor]:
    device = model.get_input_embeddings().weight.device
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    padded = torch.stack([torch.cat((one, one[-1:].expand(longest - len(one), *one.shape[1:]))) for one in positions])
    logits: Tensor = model(
        input_ids=ids.to(device),
        position_ids=padded.to(device),
        attention_mask=torch.ones_like(ids).to(device),
        use_cache=False,
    ).logits.float()
    return [row[: len(text)] for row, text in zip(logits, texts, strict=True)]
