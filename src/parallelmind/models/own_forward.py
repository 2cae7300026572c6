"""A model's own forward as the label of what is computed in other ways, and the trial of a model against it.

Shapes: L tokens of a text, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import Reach
from parallelmind.errors import UnsupportedModelError, first_line, is_out_of_memory
from parallelmind.models.architecture import attention_switched, in_eval_mode, model_configs, takes_positions
from parallelmind.models.layer_reach import AttentionNotReachedError, read_reaches, short_reaches
from parallelmind.models.quantization import is_quantized

_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)
"""What a forward raises where a model does not know what it is given."""

_FLOOR = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_FLOOR = 0.02
_MOST = {torch.float32: 1e-2, torch.float64: 1e-5}
_HALF_MOST = 0.1
_TIMES_NOISE = 6


def find_path(model: Any, use: str, differs: Callable[[bool, set[Reach]], str | None]) -> None:
    """Try a model on the attention that is exchanged and on the one that gets a dense mask, until one is right.

    Args:
        use: what the model is tried for, for the error: "cannot …".
        differs: computes something on a path (dense or not) and says what is wrong with it; None: nothing. Windows and
            chunks are shortened meanwhile; it gets those that there are then, on the dense path none.
    Raises:
        UnsupportedModelError: neither is right, with the reasons.
        torch.OutOfMemoryError: the trial does not fit in memory.
    """
    failures: list[str] = []
    errors: list[str] = []
    for dense in (False, True):
        try:
            with in_eval_mode(model), short_reaches(model, None if dense else read_reaches(model)) as short:
                failure = differs(dense, short)
        except AttentionNotReachedError:
            continue
        except UnsupportedModelError as error:
            failures.append(str(error).rstrip("."))
            continue
        except _FORWARD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            errors.append(f"{type(error).__name__}: {first_line(error)}")
            continue
        if failure is None:
            return
        failures.append(failure)
    if not takes_positions(model):
        failures = ["its forward takes no position_ids, and where a branch stands cannot be counted in a packed row"]
    if not failures and errors:
        failures = [f"its forward fails over several branches ({'; '.join(dict.fromkeys(errors))})"]
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot {use}: {'; '.join(dict.fromkeys(failures)) or 'no attention layer found'}. Use "
        "a decoder-only transformer with ordinary attention (for example Qwen, Llama, Mistral, Gemma, Phi), or run "
        "this model with its own generate()."
    )


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
        except _FORWARD_ERRORS as error:
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
        except _FORWARD_ERRORS:
            pass  # it has one way only
        # 8-bit layers round what goes into them, too.
        dtype = torch.bfloat16 if is_quantized(model) else model.dtype
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
