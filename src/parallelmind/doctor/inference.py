"""The inference path: the model with its adapter, and its branches in parallel against one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from parallelmind.demos.batch import read_demo_records
from parallelmind.doctor.check import Check, CheckFailedError, DoctorOptions, NotApplicableError, Once
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import Request
from parallelmind.models.architecture import rounding_tolerance
from parallelmind.models.loader import load_model_with_lora, resolve_device
from parallelmind.models.lora_layers import lora_layers
from parallelmind.prompts.encode import encode_branch, encode_main
from parallelmind.settings.model import TINY_MODEL
from parallelmind.settings.sampling import SamplingParams

_MAIN = "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue. Tina counted 36 coins.\n"
_BRANCHES = ("How old is Dan?", "How much does the hat cost?", "Which colour does Emma like?", "小明几岁？🙂")
_NEW_TOKENS = 8
_ANSWERING = SamplingParams(max_new_tokens=16, temperature=0)
_RECORDS = 2


@dataclass(kw_only=True)
class _Ready:
    """A model ready to answer, and the tokens it gives one by one."""

    engine: Engine
    summary: str
    alone: list[list[int]]
    gaps: list[list[tuple[Any, float]]]
    """Of each branch and step: the logits [V], and what of them is rounding."""


def checks(options: DoctorOptions) -> list[Check]:
    ready = Once(partial(_load, options), "loading the model")
    same = "Answers would depend on what runs beside them. Give --device cpu --dtype float32; if it fails there too, "
    same += "install the versions of torch and transformers that ParallelMind asks for"
    return [
        Check(
            group="inference",
            name="load the model",
            run=lambda: ready().summary,
            remedy="Check --base_model, --lora_path, --lora_rank and --device; --base_model tiny is the bundled model",
        ),
        Check(group="inference", name="parallel answers = one by one", run=lambda: _parallel(ready()), remedy=same),
        Check(
            group="inference",
            name="right answers of the bundled model",
            run=lambda: _right_answers(options, ready()),
            remedy="Install ParallelMind again: its model, or torch, is damaged",
        ),
    ]


def _load(options: DoctorOptions) -> _Ready:
    device, _ = resolve_device(options.device)
    dtype = options.dtype or ("float32" if device == "cpu" else "bfloat16")
    given: dict[str, Any] = {"lora_path": options.lora_path, "lora_rank": options.lora_rank}
    summary, answers = _reference(options.base_model, device=device, dtype=dtype, **given)
    return _Ready(
        engine=Engine.from_pretrained(options.base_model, device=device, dtype=dtype, **given),
        summary=summary,
        alone=[tokens for tokens, _ in answers],
        gaps=[gaps for _, gaps in answers],
    )


def _reference(base_model: str, **given: Any) -> tuple[str, list[tuple[list[int], list[tuple[Any, float]]]]]:
    """The model in a few words, and its answers one by one; loaded apart, so that the engine shares nothing with it."""
    loaded = load_model_with_lora(base_model, **given)
    model, tokenizer, patched = loaded
    parameters, adapted = sum(one.numel() for one in model.parameters()), len(lora_layers(model))
    summary = (
        f"{base_model}: {model.config.model_type}, {parameters:,} parameters, "
        f"{str(model.dtype).removeprefix('torch.')} on {given['device']}, "
        + (f"adapter on {adapted} layers, " if adapted else "no adapter, ")
        + (f"2D RoPE on ({loaded.settings.mode})" if patched else "2D RoPE off")
    )
    stride = loaded.settings.branch_stride if patched else None
    return summary, [
        _one_by_one(model, tokenizer, branch, number, stride) for number, branch in enumerate(_BRANCHES, start=1)
    ]


@torch.inference_mode()
def _one_by_one(
    model: Any, tokenizer: Any, branch: str, number: int, stride: int | None
) -> tuple[list[int], list[tuple[Any, float]]]:
    """Greedy tokens by whole forwards of main + branch, without any cache, and the logits of each step."""
    main = encode_main(tokenizer, _MAIN)
    ids = main + encode_branch(tokenizer, branch, has_main=True)
    tolerance = rounding_tolerance(model)
    steps = []
    for _ in range(_NEW_TOKENS):
        time = torch.arange(len(ids))
        positions = time if stride is None else torch.stack(((time >= len(main)) * number * stride, time), dim=-1)
        inputs = torch.tensor([ids], device=model.device)
        logits = model(
            input_ids=inputs,
            position_ids=positions[None].to(model.device),
            attention_mask=torch.ones_like(inputs),
            use_cache=False,
        ).logits[0, -1].float()  # fmt: skip
        steps.append((logits.cpu(), tolerance * float(logits.abs().max())))
        ids.append(int(logits.argmax()))
    return ids[-_NEW_TOKENS:], steps


def _parallel(ready: _Ready) -> str:
    sampling = SamplingParams(max_new_tokens=_NEW_TOKENS, temperature=0, ignore_eos=True)
    request = Request(main=_MAIN, branches=_BRANCHES, visibility="isolated")
    [result] = ready.engine.generate([request], sampling)
    rounding = 0
    for number, (branch, alone, steps) in enumerate(zip(result.branches, ready.alone, ready.gaps, strict=True), 1):
        if branch.error is not None:
            raise CheckFailedError(f"branch {number}: {branch.error}")
        rounding += _compare(number, branch.token_ids, alone, steps)
    same = f"{len(_BRANCHES)} branches of {_NEW_TOKENS} tokens: the same tokens"
    return same if not rounding else f"{same}, but for {rounding} branches where two tokens were equally likely"


def _compare(number: int, tokens: Sequence[int], alone: Sequence[int], steps: Sequence[tuple[Any, float]]) -> int:
    """0 if equal, 1 if the first difference is a choice between tokens that rounding decides."""
    if len(tokens) != len(alone):
        raise CheckFailedError(f"branch {number} has {len(tokens)} tokens, alone {len(alone)}")
    for place, (token, expected) in enumerate(zip(tokens, alone, strict=True)):
        if token != expected:
            logits, rounding = steps[place]
            gap = float(logits[expected] - logits[token])
            if gap <= rounding:
                return 1
            raise CheckFailedError(
                f"branch {number} differs from its answer alone at token {place + 1}: {token} instead of {expected}, "
                f"which is likelier by {gap:.2g} (rounding: {rounding:.2g})"
            )
    return 0


def _right_answers(options: DoctorOptions, ready: _Ready) -> str:
    if options.base_model != TINY_MODEL or options.lora_path is not None:
        raise NotApplicableError("another model or an adapter was given")
    records = read_demo_records()[:_RECORDS]
    results = ready.engine.generate(
        [Request(main=record.main, branches=record.branches) for record in records], _ANSWERING
    )
    given = [branch.text.strip() for result in results for branch in result.branches]
    right = [answer for record in records for answer in record.answers]
    exact = sum(one == other for one, other in zip(given, right, strict=True))
    if exact < 0.9 * len(right):
        raise CheckFailedError(f"{exact} of {len(right)} right: {given} instead of {right}")
    return f"{exact} of {len(right)} right, such as {given[0]!r} to {records[0].branches[0].strip()!r}"
