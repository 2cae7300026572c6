"""pos2d for code that generates by itself: transformers' `generate`, or a loop of one's own.

None of it is needed for a model patched here: ordinary positions [B, S] mean branch position 0, and so do these. It is
for programs that set the positions of every forward themselves.
"""

from __future__ import annotations

import types
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from parallelmind.columnar.rope import set_rope_pos2d

ModelT = TypeVar("ModelT", bound=nn.Module)

_METHOD = "prepare_inputs_for_generation"
_ORIGINAL = f"_orig_{_METHOD}"


def prepare_pos2d(
    tokens: int | Tensor, device: torch.device | str | None = None, *, attention_mask: Tensor | None = None
) -> Tensor:
    """pos2d [B, S, 2] of whole prompts, each a single branch: branch position 0, and time 0, 1, 2, ….

    Args:
        tokens: `input_ids` [B, S], or a number of tokens S, for B = 1.
        device: of the result; None: that of `input_ids`, else the CPU.
        attention_mask: [B, S], 0 for padding: time counts the other tokens, as transformers does.
    """
    if isinstance(tokens, int):
        time = torch.arange(tokens, device=device)[None]
    elif attention_mask is None:
        time = torch.arange(tokens.shape[-1], device=device or tokens.device).expand(tokens.shape)
    else:
        time = (attention_mask.long().cumsum(-1) - 1).clamp(min=0).to(device or tokens.device)
    return _single_branch(time)


def set_prompt_pos2d(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Give the next forward, over a whole prompt, its positions; returns them, [B, S, 2].

    They stay in force until changed: `set_rope_pos2d(model, None)` clears them.

    Raises:
        SettingsError: the model has no 2D RoPE.
    """
    pos2d = prepare_pos2d(input_ids, attention_mask=attention_mask)
    set_rope_pos2d(model, pos2d)
    return pos2d


def inject_pos2d_hook(model: ModelT) -> ModelT:
    """Make `model.generate` call `set_rope_pos2d` before each forward, for the prompt and for every new token.

    The model's own `prepare_inputs_for_generation` becomes `_orig_prepare_inputs_for_generation`, and is called first.
    A hook that is there already is replaced; `remove_pos2d_hook` takes it off. Returns the same model.

    Raises:
        SettingsError: the model has no 2D RoPE.
    """
    remove_pos2d_hook(model)
    set_rope_pos2d(model, None)  # refuses a model without 2D RoPE now rather than in the middle of generate

    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = getattr(self, _ORIGINAL)(input_ids, **kwargs)
        time = inputs.get("position_ids")
        if time is None:
            past = inputs.get("past_key_values")
            start = 0 if past is None else int(past.get_seq_length())
            ids = inputs["input_ids"]
            time = start + torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)
            inputs["position_ids"] = time
        set_rope_pos2d(self, _single_branch(time))
        return inputs

    setattr(model, _ORIGINAL, getattr(model, _METHOD))
    setattr(model, _METHOD, types.MethodType(prepare_inputs_for_generation, model))
    return model


def remove_pos2d_hook(model: ModelT) -> ModelT:
    """Give `generate` the model's own way of preparing inputs again, and clear the positions that were set."""
    if _ORIGINAL in vars(model):
        delattr(model, _METHOD)
        delattr(model, _ORIGINAL)
        set_rope_pos2d(model, None)
    return model


def _single_branch(time: Tensor) -> Tensor:
    return torch.stack((torch.zeros_like(time), time), dim=-1)
