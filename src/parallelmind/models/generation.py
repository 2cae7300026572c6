"""Plain generation with a loaded model, patched or not."""

from __future__ import annotations

from typing import Any

import torch

from parallelmind.errors import RequestError
from parallelmind.settings.sampling import SamplingSettings


@torch.inference_mode()
def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = SamplingSettings.max_new_tokens,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 50,
    repetition_penalty: float = 1.1,
    *,
    streamer: Any = None,
) -> str:
    """The model's continuation of a prompt (without the prompt), by transformers' own `generate`.

    Temperature 0 is greedy. `streamer` is a transformers streamer that receives the tokens as they come.

    Raises:
        RequestError: the prompt is empty, or the temperature negative.
    """
    if temperature < 0:
        raise RequestError(f"temperature is {temperature!r}; it must be 0 (greedy) or more.")
    inputs = tokenizer(prompt, return_tensors="pt").to(model.get_input_embeddings().weight.device)
    if not inputs["input_ids"].numel():
        raise RequestError("nothing to continue: the prompt is empty")
    inputs.pop("token_type_ids", None)
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling |= {"temperature": float(temperature), "top_p": top_p, "top_k": top_k}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        repetition_penalty=float(repetition_penalty),
        pad_token_id=pad,
        streamer=streamer,
        **sampling,
    )
    text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text
