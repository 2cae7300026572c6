"""The next token of each branch, by transformers' own logits processors.

Shapes: n branches, V vocabulary, M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from parallelmind.engine.adjustment import Adjustment, adjust
from parallelmind.engine.request import ErrorKind, TokenLogprob
from parallelmind.settings.sampling import SamplingParams
from parallelmind.settings.setting import names

_NUM_CANDIDATES = 1024
"""Sorting this many instead of a vocabulary of 150,000 is what makes top-p cheap on a CPU."""


_COLD = 1e-3
"""Below this temperature, logits divided by it may be larger than float32 can hold."""


_ANY_DISTRIBUTION = {
    *("max_new_tokens", "stop", "stop_token_ids", "ignore_eos", "seed", "logprobs", "n"),
    *("logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty"),  # see `adjust`
}
"""The parameters that do not change how a token is drawn from scores. What is not named here counts as changing it."""
_distribution_of = attrgetter(*(name for name in names(SamplingParams) if name not in _ANY_DISTRIBUTION))
"""The parameters that change how a token is drawn from scores; branches that share all of them are drawn together."""
_SMALLEST = 1e-30
"""Below this top_p only the most likely token is left; float32 has no much smaller numbers."""
_OVERFLOW = (
    "the model's logits are not finite, which float16 often causes; load it with --dtype bfloat16 or float32, "
    "or look for damaged weights"
)


@dataclass(frozen=True)
class SamplerRow:
    """One branch to sample for."""

    params: SamplingParams
    generator: torch.Generator | None
    """None where nothing is drawn."""
    adjustment: Adjustment | None = None
    """What its parameters do to its logits; None: nothing."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """The token that was drawn for a branch."""

    token_id: int
    logprob: TokenLogprob | None
    """Where asked for."""
    problem: tuple[ErrorKind, str] | None
    """Why the token means nothing."""


def next_tokens(logits: Tensor, rows: Sequence[SamplerRow]) -> list[NextToken]:
    """Draw one token per branch from logits [n, V] in float32 (see `sample`) and say how likely it was.

    What the parameters do to the logits may be done in place.
    """
    sound = logits.amax(-1).isfinite().tolist()
    alternatives = [row.params.logprobs for row in rows]
    adjustments = [row.adjustment for row in rows]
    # Log-probabilities are those of the model.
    keeps = any(count is not None for count in alternatives) and any(one is not None for one in adjustments)
    scores = logits.clone() if keeps else logits
    failed = adjust(scores, adjustments)
    tokens = sample(scores, rows)
    logprobs = token_logprobs(logits, tokens, alternatives)
    problems: dict[int, tuple[ErrorKind, str]] = {row: ("invalid", reason) for row, reason in failed.items()}
    problems |= {row: ("engine", _OVERFLOW) for row, is_sound in enumerate(sound) if not is_sound}
    return [NextToken(token, logprobs.get(row), problems.get(row)) for row, token in enumerate(tokens)]


def sample(scores: Tensor, rows: Sequence[SamplerRow]) -> list[int]:
    """Draw one token per branch from scores [n, V] in float32.

    A branch's draw depends on its own scores, parameters and generator alone, never on who shares the batch.
    """
    tokens = [0] * len(rows)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(_distribution_of(row.params), []).append(index)
    for indices in alike.values():
        kind = rows[indices[0]].params
        some = scores if len(indices) == len(rows) else scores[indices]
        if kind.is_greedy:
            drawn = some.argmax(-1).tolist()
        else:
            generators = [generator for i in indices if (generator := rows[i].generator) is not None]
            uniform = torch.stack([torch.rand((), generator=generator) for generator in generators])
            drawn = _draw(some, kind, uniform.to(some.device))
        for index, token in zip(indices, drawn, strict=True):
            tokens[index] = token
    return tokens


def token_logprobs(
    logits: Tensor, tokens: Sequence[int], alternatives: Sequence[int | None]
) -> dict[int, TokenLogprob]:
    """The log-probability of each token under its logits [n, V], for the rows whose `alternatives` is a number.

    That many of the most likely tokens come with it. Temperature and the other settings have no part in it.
    """
    wanted = [index for index, count in enumerate(alternatives) if count is not None]
    if not wanted:
        return {}
    scores = logits[wanted].log_softmax(-1)
    most = min(scores.shape[-1], max(alternatives[index] or 0 for index in wanted))
    top, ids = scores.topk(most, dim=-1)
    found = {}
    for row, index in enumerate(wanted):
        count = alternatives[index] or 0
        pairs = zip(ids[row, :count].tolist(), top[row, :count].tolist(), strict=True)
        found[index] = TokenLogprob(tokens[index], float(scores[row, tokens[index]]), tuple(pairs))
    return found


def _draw(scores: Tensor, kind: SamplingParams, uniform: Tensor) -> list[int]:
    if kind.temperature < _COLD:  # so that the division does not overflow, nor end in 0 / 0
        scores = scores - scores.amax(-1, keepdim=True)
    scores = TemperatureLogitsWarper(kind.temperature)(None, scores)
    ids, weights, settled = _candidates(scores, kind)
    drawn = ids.gather(1, _invert(weights, uniform)).squeeze(1)
    if not bool(settled.all()):
        open_rows = ~settled
        probabilities = processors(kind)(None, scores[open_rows]).softmax(-1)
        drawn[open_rows] = _invert(probabilities, uniform[open_rows]).squeeze(1)
    tokens: list[int] = drawn.tolist()
    return tokens


def processors(kind: SamplingParams) -> LogitsProcessorList:
    """The processors that `generate` applies after temperature, in its order."""
    chain = LogitsProcessorList()
    if kind.top_k > 0:
        chain.append(TopKLogitsWarper(kind.top_k))
    if kind.top_p < 1.0:
        chain.append(TopPLogitsWarper(kind.top_p))
    if kind.min_p > 0.0:
        chain.append(MinPLogitsWarper(kind.min_p))
    return chain


def _candidates(scores: Tensor, kind: SamplingParams) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely tokens, the weights that the processors leave them, and the rows that need no others.

    Returns:
        ids [n, M], weights [n, M] (0 for dropped ones), settled [n].
    """
    size = min(scores.shape[-1], max(_NUM_CANDIDATES, kind.top_k + 1))
    top, ids = scores.topk(size, dim=-1)
    settled = torch.full((len(scores),), size == scores.shape[-1], device=scores.device)
    if kind.top_k > 0:
        # Ties with the k-th stay, as in TopKLogitsWarper; more of them than candidates leave the row unsettled.
        least = top[:, min(kind.top_k, size) - 1, None]
        settled |= top[:, -1] < least[:, 0]
        top = top.masked_fill(top < least, -torch.inf)
        total = top.logsumexp(-1, keepdim=True)
    else:
        total = scores.logsumexp(-1, keepdim=True)
    weights = (top - total).exp()
    if kind.top_p < 1.0:
        likelier, top_p = weights.cumsum(-1) - weights, max(kind.top_p, _SMALLEST)
        settled |= likelier[:, -1] >= top_p
        weights = weights.masked_fill(likelier >= top_p, 0.0)
    if kind.min_p > 0.0:
        floor = kind.min_p * weights[:, :1]
        settled |= weights[:, -1] < floor[:, 0]
        weights = weights.masked_fill(weights < floor, 0.0)
    return ids, weights, settled


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index [n, 1] at which the running sum of weights [n, M] passes uniform [n] × their total."""
    running = weights.double().cumsum(-1)
    target = uniform.double()[:, None] * running[:, -1:]
    return torch.searchsorted(running, target, right=True).clamp_(max=weights.shape[-1] - 1)
