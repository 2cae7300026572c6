"""What transformers itself says of each branch alone, against what the engine answers."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.columnar import auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.engine.request import BranchResult, RequestResult
from parallelmind.errors import ParallelMindError
from parallelmind.models.sidecar import RopeSettings
from tests.families import char_tokenizer
from tests.models.registry import NotBuiltError, Variant, build

EXACT, REFUSED, NOT_BUILT, WRONG, CRASHED = "exact", "refused", "not built", "WRONG", "CRASHED"
_NEW_TOKENS = 8
_TOP = 20
_TOKENIZER = char_tokenizer()
_LONG_MAIN, _SHORT_MAIN = 70, 17
_PROMPTS = (0, 1, 2, 3, 5, 8, 13, 21, 29)
"""Lengths of the branches' prompts under the long main; it and the last ones are longer than every window here."""
_FEW_TOKENS_AT_ONCE = 40
_REMEDY = re.compile(r"\b[Uu]se |--no_patch_rope|\b[Rr]un (it|this model) ")
"""How a refusal says what to do instead."""


@dataclass(frozen=True)
class Verdict:
    """What came out for a type and variant."""

    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class _Label:
    """Log-probabilities [N, V] of the tokens that follow a branch's prompt, by transformers on this branch alone."""

    alone: Tensor
    """By one forward without a cache; where scaling depends on the length, by one for each token."""
    exact: Tensor | None
    """The same in a higher precision; None where the model cannot."""
    cached: Tensor | None
    """By `generate`, as far as its tokens are the branch's; None where it is not to be had."""
    generated: list[int]


def judge(model_type: str, variant: Variant) -> Verdict:
    """Build the model and compare."""
    try:
        model = build(model_type, variant.dtype, **variant.settings)
        _forward(model, torch.tensor([[5, 6, 7]]), None)
    except NotBuiltError as error:
        return Verdict(NOT_BUILT, str(error))
    except Exception as error:
        return Verdict(NOT_BUILT, f"its own forward fails: {_words(error)}")
    stride = 0
    try:
        if variant.with_2d_rope:
            settings = RopeSettings()
            stride = settings.branch_stride
            pairs = auto_pair_indices(model, settings.ratio, settings.pairs)
            patch_model_with_interleaved_2d_rope(model, pairs, settings.mode)
        engine = Engine(model, _TOKENIZER, branch_stride=stride)
    except ParallelMindError as error:
        message = str(error)
        return Verdict(REFUSED if _REMEDY.search(message) else CRASHED, message)
    except Exception as error:
        return Verdict(CRASHED, _words(error))
    try:
        return _compare(model, engine, variant, stride)
    except Exception as error:
        return Verdict(CRASHED, _words(error))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _requests() -> list[Request]:
    """Long and short mains, with and without a common beginning, and branches of many lengths."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(3, 85) for _ in range(count)]

    main, short = tokens(_LONG_MAIN), tokens(_SHORT_MAIN)
    new = [_NEW_TOKENS if number % 3 else _NEW_TOKENS // 2 for number in range(len(_PROMPTS))]
    return [
        Request(
            main=main,
            branches=[
                Branch(prompt=tokens(count), sampling=_greedy(limit))
                for count, limit in zip(_PROMPTS, new, strict=True)
            ],
        ),
        Request(main=short, branches=[tokens(4), tokens(9)]),
        Request(main=main[:41] + tokens(6), branches=[tokens(3)]),
        Request(main=[], branches=[tokens(6)]),
        Request(main=main[:25]),
    ]


def _greedy(count: int = _NEW_TOKENS) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, temperature=0, ignore_eos=True, logprobs=_TOP)


def _compare(model: Any, engine: Engine, variant: Variant, stride: int) -> Verdict:
    requests = _requests()
    if not variant.is_thorough:
        requests = requests[:2]
    results = again = engine.generate(requests, _greedy())
    if variant.is_thorough:
        pieces = Engine(model, _TOKENIZER, branch_stride=stride, max_batched_tokens=_FEW_TOKENS_AT_ONCE, page_tokens=8)
        again = pieces.generate(requests, _greedy())
    changed = _changed_by_company(engine, requests, results) if engine.deterministic else 0
    better = copy.deepcopy(model).to(torch.float64 if variant.dtype == torch.float32 else torch.float32)
    judged = _Judgement(variant.dtype, changed_by_company=changed if engine.deterministic else None)
    for request, result, other in zip(requests, results, again, strict=True):
        prompts = [one.prompt if isinstance(one, Branch) else one for one in request.branches] or [[]]
        for number, (prompt, branch, second) in enumerate(
            zip(prompts, result.branches, other.branches, strict=True), start=1
        ):
            main = [int(token) for token in request.main]
            prefix = main + [int(token) for token in prompt]
            at = number * stride if request.branches else 0
            labels: dict[tuple[int, ...], _Label] = {}
            for answer in (branch, second):
                if answer.error_kind == "too_long":
                    judged.too_long += 1
                    continue
                if answer.error is not None:
                    return Verdict(CRASHED, answer.error)
                tokens = tuple(answer.token_ids)
                if tokens not in labels:
                    labels[tokens] = _label(model, better, prefix, answer.token_ids, len(main), at, variant)
                judged.add(answer, labels[tokens])
    return judged.verdict()


def _changed_by_company(engine: Engine, requests: list[Request], together: list[RequestResult]) -> int:
    """How many branches have other bits when they run alone."""
    changed = 0
    for request, result in zip(requests, together, strict=True):
        for number, answer in enumerate(result.branches, start=1):
            prompt = request.branches[number - 1] if request.branches else None
            branches = []
            if prompt is not None:
                branch = prompt if isinstance(prompt, Branch) else Branch(prompt=prompt)
                branches = [dataclasses.replace(branch, branch_id=number)]
            engine.reset_prefix_cache()
            alone = engine.generate([Request(main=request.main, branches=branches)], _greedy())[0].branches[0]
            changed += (alone.token_ids, alone.logprobs) != (answer.token_ids, answer.logprobs)
    return changed


def _label(model: Any, better: Any, prefix: list[int], new: list[int], main: int, at: int, variant: Variant) -> _Label:
    ids = torch.tensor([prefix + new])
    positions = None
    if variant.with_2d_rope:
        time = torch.arange(ids.shape[1])
        positions = torch.stack((torch.where(time < main, 0, at), time), dim=-1)[None]
    first = len(prefix) - 1
    try:
        exact = _logprobs(better, ids, positions, first, variant)
    except (RuntimeError, TypeError, ValueError):
        exact = None  # parts of the model want their own number format
    alone = _logprobs(model, ids, positions, first, variant)
    cached, generated = None, new
    if (variant.is_thorough or variant.dtype != torch.float32) and not variant.with_2d_rope:
        cached, generated = _generated(model, prefix, len(new), first)
    return _Label(alone, exact, cached, generated)


@torch.no_grad()
def _forward(model: Any, ids: Tensor, positions: Tensor | None) -> Tensor:
    """Logits [T, V]."""
    arguments = {} if positions is None else {"position_ids": positions}
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **arguments)
    logits: Tensor = output.logits[0]
    return logits


def _logprobs(model: Any, ids: Tensor, positions: Tensor | None, first: int, variant: Variant) -> Tensor:
    """Log-probabilities [N, V] of the tokens behind place `first` and each further one but the last."""
    if variant.scales_by_length:
        rows = [
            _forward(model, ids[:, :end], None if positions is None else positions[:, :end])[-1]
            for end in range(first + 1, ids.shape[1])
        ]
        logits = torch.stack(rows)
    else:
        logits = _forward(model, ids, positions)[first:-1]
    return torch.log_softmax(logits.double(), dim=-1)


def _generated(model: Any, prefix: list[int], count: int, first: int) -> tuple[Tensor | None, list[int]]:
    """What `generate` gives for this branch alone: log-probabilities [N, V] and tokens; nothing where it fails."""
    ids = torch.tensor([prefix])
    model.generation_config = GenerationConfig(pad_token_id=0)
    try:
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    except Exception:
        return None, []
    logits = torch.cat(output.logits)
    return torch.log_softmax(logits.double(), dim=-1), output.sequences[0, first + 1 :].tolist()


class _Judgement:
    """Differences gathered over all branches."""

    def __init__(self, dtype: torch.dtype, *, changed_by_company: int | None):
        self.too_long = 0
        self._changed = changed_by_company
        self._half = dtype != torch.float32
        self._noise: list[float] = []
        self._from_alone: list[float] = []
        self._from_cached: list[float] = []
        self._paths: list[float] = []
        self._not_generated = 0
        self._other_tokens = 0
        self._branches = 0

    def add(self, answer: BranchResult, label: _Label) -> None:
        self._branches += 1
        if label.exact is not None:
            self._noise.append(_distance(answer, label.alone, label.exact))
        self._from_alone.append(_error(answer, label.alone))
        if label.cached is None:
            self._not_generated += 1
            return
        same = _common(answer.token_ids, label.generated)
        # The first token that differs was still chosen after the same ones.
        places = min(same + 1, len(answer.token_ids))
        self._from_cached.append(_error(answer, label.cached, places))
        self._paths.append(_distance(answer, label.alone, label.cached, places))
        self._other_tokens += same < len(answer.token_ids)

    def verdict(self) -> Verdict:
        if not self._from_alone:
            return Verdict(REFUSED, "every request is longer than the model takes; use shorter ones")
        tolerance = self._tolerance()
        alone, cached = self._size(self._from_alone), self._size(self._from_cached)
        is_alone, is_cached = alone <= tolerance, bool(self._from_cached) and cached <= tolerance
        disagree = bool(self._paths) and self._size(self._paths) > tolerance
        notes = []
        if self.too_long:
            notes.append(f"{self.too_long} texts longer than max_position_embeddings were refused")
        if disagree:
            which = "neither of them"
            if is_alone or is_cached:
                which = "the forward" if is_alone else "generate"
            notes.append(
                "transformers' generate differs from its own forward without a cache by "
                f"{self._size(self._paths):.2g}; the engine equals {which}"
            )
        if self._changed is None:
            notes.append("runs by its own attention, so that its last bits depend on what runs beside it")
        if self._changed:
            return Verdict(WRONG, f"{self._changed} of {self._branches} branches have other bits alone")
        if is_alone or is_cached:
            return Verdict(EXACT, "; ".join(notes))
        wrong = sum(error > tolerance for error in self._from_alone)
        found = f"log-probabilities off by {alone:.2g}, more than {tolerance:.2g} in {wrong} of {self._branches} texts"
        if self._from_cached:
            found += f"; against generate by {cached:.2g}, other tokens in {self._other_tokens}"
        return Verdict(WRONG, "; ".join([found, *notes]))

    def _size(self, differences: list[float]) -> float:
        """One figure for the differences in all texts: the largest, in half precision the mean.

        There an expert may be chosen otherwise in one text, by which this differs and no other.
        """
        if not differences:
            return float("nan")
        return sum(differences) / len(differences) if self._half else max(differences)

    def _tolerance(self) -> float:
        """By how much a log-probability may differ: a few times what the model's own rounding makes of it."""
        noise = self._size(self._noise) if self._noise else 0.0
        return max(3 * noise, 0.05) if self._half else min(max(20 * noise, 1e-3), 0.02)


def _error(answer: BranchResult, label: Tensor, places: int | None = None) -> float:
    """The largest difference of a log-probability that the engine reports."""
    worst = 0.0
    for place, entry in enumerate(answer.logprobs[:places]):
        for token, logprob in ((entry.token_id, entry.logprob), *entry.top):
            worst = max(worst, abs(logprob - float(label[place, token])))
        # Greedy: what was taken is the most likely one, up to rounding.
        worst = max(worst, float(label[place].max() - label[place, entry.token_id]))
    return worst if worst == worst else float("inf")


def _distance(answer: BranchResult, one: Tensor, other: Tensor, places: int | None = None) -> float:
    """The same between two labels, at the tokens that the engine reports."""
    worst = 0.0
    for place, entry in enumerate(answer.logprobs[:places]):
        tokens = [entry.token_id, *(token for token, _ in entry.top)]
        worst = max(worst, float((one[place, tokens] - other[place, tokens]).abs().max()))
    return worst


def _common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
