"""The inference path: the model with its adapter, and its branches in parallel against one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import number_in_range
from parallelmind.demos.batch import read_demo_records
from parallelmind.doctor.check import Check, CheckFailedError, DoctorOptions, NotApplicableError, Once, Subject
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import Request
from parallelmind.models.architecture import rounding_tolerance
from parallelmind.models.loader import load_model_with_lora
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
class Alone:
    """What a branch says when nothing runs beside it."""

    tokens: list[int]
    steps: list[tuple[Tensor, float]]
    """Of each token: the logits [V] it was chosen by, and what of them is rounding."""

    def differs(self, number: int, tokens: Sequence[int]) -> bool:
        """Whether branch `number` differs by a choice between tokens that rounding decides.

        Raises CheckFailedError if it differs by more.
        """
        if len(tokens) != len(self.tokens):
            raise CheckFailedError(f"branch {number} has {len(tokens)} tokens, alone {len(self.tokens)}")
        for place, (token, expected) in enumerate(zip(tokens, self.tokens, strict=True)):
            if token != expected:
                logits, rounding = self.steps[place]
                gap = float(logits[expected] - logits[token])
                if gap <= rounding:
                    return True
                raise CheckFailedError(
                    f"branch {number} differs from its answer alone at token {place + 1}: {token} instead of "
                    f"{expected}, which is likelier by {gap:.2g} (rounding: {rounding:.2g})"
                )
        return False


@dataclass(kw_only=True)
class Ready:
    """A model ready to answer, and what each of its branches says alone."""

    options: DoctorOptions
    engine: Engine
    summary: str
    """The model in a few words."""
    alone: list[Alone]


def checks(subject: Subject) -> list[Check]:
    return ready_checks(Once(partial(load_ready, subject.options), "loading the model"))


def ready_checks(ready: Callable[[], Ready]) -> list[Check]:
    """The checks of a model that is loaded when the first one runs."""
    return [
        Check(
            "load the model",
            lambda: ready().summary,
            "Check --base_model, --lora_path, --lora_rank and --device; --base_model tiny is the bundled model",
        ),
        Check(
            "parallel answers = one by one",
            lambda: _parallel(ready()),
            "Answers would depend on what runs beside them. Give --device cpu --dtype float32; if it fails there too, "
            "install the versions of torch and transformers that ParallelMind asks for",
        ),
        Check(
            "right answers of the bundled model",
            lambda: _right_answers(ready()),
            "Install ParallelMind again: its model, or torch, is damaged",
        ),
    ]


def load_ready(options: DoctorOptions) -> Ready:
    """Raises as `load_model_with_lora` and `Engine` do."""
    given: dict[str, Any] = {"lora_path": options.lora_path, "lora_rank": options.lora_rank, **options.placement()}
    summary, alone = _reference(options.base_model, **given)
    return Ready(
        options=options, engine=Engine.from_pretrained(options.base_model, **given), summary=summary, alone=alone
    )


def _reference(base_model: str, **given: Any) -> tuple[str, list[Alone]]:
    """The model in a few words, and its branches alone; loaded apart, so that the engine shares nothing with it."""
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
    most = loaded.settings.branch_range
    return summary, [
        _one_by_one(model, tokenizer, branch, number_in_range(number, most), stride)
        for number, branch in enumerate(_BRANCHES, start=1)
    ]


@torch.inference_mode()
def _one_by_one(model: Any, tokenizer: Any, branch: str, number: int, stride: int | None) -> Alone:
    """Greedy tokens by whole forwards of main + branch, without any cache, and the logits of each step."""
    main = encode_main(tokenizer, _MAIN)
    ids = main + encode_branch(tokenizer, branch, has_main=True)
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
        steps.append((logits.cpu(), rounding_tolerance(model) * float(logits.abs().max())))
        ids.append(int(logits.argmax()))
    return Alone(tokens=ids[-_NEW_TOKENS:], steps=steps)


def _parallel(ready: Ready) -> str:
    sampling = SamplingParams(max_new_tokens=_NEW_TOKENS, temperature=0, ignore_eos=True)
    request = Request(main=_MAIN, branches=_BRANCHES, visibility="isolated")
    [result] = ready.engine.generate([request], sampling)
    rounding = 0
    for number, (branch, alone) in enumerate(zip(result.branches, ready.alone, strict=True), start=1):
        if branch.error is not None:
            raise CheckFailedError(f"branch {number}: {branch.error}")
        rounding += alone.differs(number, branch.token_ids)
    same = f"{len(_BRANCHES)} branches of {_NEW_TOKENS} tokens: the same tokens"
    return same if not rounding else f"{same}, but for {rounding} branches where two tokens were equally likely"


def _right_answers(ready: Ready) -> str:
    if ready.options.base_model != TINY_MODEL or ready.options.lora_path is not None:
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
