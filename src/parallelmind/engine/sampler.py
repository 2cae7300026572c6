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
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from parallelmind.engine.request import TokenLogprob
from parallelmind.settings.sampling import SamplingParams
from parallelmind.settings.setting import names

_NUM_CANDIDATES = 1024
"""Sorting this many instead of a vocabulary of 150,000 is what makes top-p cheap on a CPU."""


_COLD = 1e-3
"""Below this temperature, logits divided by it may be larger than float32 can hold."""


_ANY_DISTRIBUTION = {"max_new_tokens", "stop", "ignore_eos", "seed", "logprobs"}
"""The parameters that do not change how likely a token is. Whatever is not named here counts as changing it."""
_distribution_of = attrgetter(*(name for name in names(SamplingParams) if name not in _ANY_DISTRIBUTION))
"""The parameters that change how likely a token is; branches that share all of them are drawn together."""
_SMALLEST = 1e-30
"""Below this temperature or top_p only the most likely token is left; float32 has no much smaller numbers."""


@dataclass(frozen=True)
class SamplerRow:
    """One branch to sample for."""

    params: SamplingParams
    generator: torch.Generator | None
    """None with temperature 0."""
    main_ids: Sequence[int] = ()
    """The tokens that the branch sees; empty where no penalty needs them."""
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    """The answer so far."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """The token that was drawn for a branch."""

    token_id: int
    logprob: TokenLogprob | None
    """Where asked for."""
    sound: bool
    """False: the logits hold NaN or infinity, so that the token means nothing."""


def next_tokens(logits: Tensor, rows: Sequence[SamplerRow]) -> list[NextToken]:
    """Draw one token per branch from logits [n, V] in float32 (see `sample`) and say how likely it was."""
    tokens = sample(logits, rows)
    logprobs = token_logprobs(logits, tokens, [row.params.logprobs for row in rows])
    sound = logits.amax(-1).isfinite().tolist()
    return [NextToken(token, logprobs.get(row), sound[row]) for row, token in enumerate(tokens)]


def sample(logits: Tensor, rows: Sequence[SamplerRow]) -> list[int]:
    """Draw one token per branch from logits [n, V] in float32.

    A branch's draw depends on its own logits, parameters and generator alone, never on who shares the batch.
    """
    tokens = [0] * len(rows)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(_distribution_of(row.params), []).append(index)
    for indices in alike.values():
        kind = rows[indices[0]].params
        scores = logits if len(indices) == len(rows) else logits[indices]
        if kind.repetition_penalty != 1.0:
            contexts = [[*rows[i].main_ids, *rows[i].prompt_ids, *rows[i].output_ids] for i in indices]
            context = _padded(contexts, scores.device)
            scores = RepetitionPenaltyLogitsProcessor(kind.repetition_penalty)(context, scores)
        if kind.temperature == 0:
            drawn = scores.argmax(-1).tolist()
        else:
            generators = [generator for i in indices if (generator := rows[i].generator) is not None]
            uniform = torch.stack([torch.rand((), generator=generator) for generator in generators])
            drawn = _draw(scores, kind, uniform.to(scores.device))
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
    temperature = kind.temperature
    if temperature < _COLD:  # so that the division does not overflow, nor end in 0 / 0
        scores, temperature = scores - scores.amax(-1, keepdim=True), max(temperature, _SMALLEST)
    scores = TemperatureLogitsWarper(temperature)(None, scores)
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


def _padded(contexts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Contexts as one tensor, shorter ones filled with their own first token, which changes no penalty."""
    longest = max(map(len, contexts))
    return torch.tensor([[*ids, *[ids[0]] * (longest - len(ids))] for ids in contexts], device=device)
