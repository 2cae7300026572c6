"""What the parameters of a branch do to its logits before temperature: biases, penalties and processors of one's own.

What they need to know of the text so far is kept up to date token by token: a step costs what is new, and main's tokens
are gone through once per request. The order is transformers' and vLLM's: biases, the repetition penalty, presence and
frequency penalties, then the caller's processors.

Shapes: n branches, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from parallelmind.errors import first_line
from parallelmind.settings.sampling import SamplingParams

_LOGGER = logging.getLogger(__name__)


class GrowingTensor:
    """Numbers to which more come: the tensor of all of them costs nothing to have.

    They are held by NumPy, which takes a single number in a tenth of the time that torch does.
    """

    def __init__(self, numbers: Sequence[int] = (), dtype: type = np.int64):
        self._held: np.ndarray[Any, Any] = np.array([*numbers, *([0] * 16)], dtype=dtype)
        self._length = len(numbers)

    def append(self, number: int) -> None:
        if self._length == len(self._held):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        self._held[self._length] = number
        self._length += 1

    def increase(self, place: int) -> None:
        self._held[place] += 1

    @property
    def all(self) -> Tensor:
        return torch.from_numpy(self._held[: self._length])


class TokenCounts:
    """The distinct tokens of a text, in the order in which they first came, and how often each came."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._ids = GrowingTensor()
        self._counts = GrowingTensor(dtype=np.float32)

    def add(self, token_id: int) -> None:
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._slots[token_id] = len(self._slots)
            self._ids.append(token_id)
            self._counts.append(0)
        self._counts.increase(slot)

    @property
    def ids(self) -> Tensor:
        return self._ids.all

    @property
    def counts(self) -> Tensor:
        return self._counts.all


class MainTokens:
    """The distinct tokens of a main, for all branches under it."""

    def __init__(self, token_ids: Iterable[int]):
        self._ids = dict.fromkeys(token_ids)
        self._on: dict[torch.device, Tensor] = {}

    def __contains__(self, token_id: int) -> bool:
        return token_id in self._ids

    def on(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = torch.tensor(list(self._ids), dtype=torch.long, device=device)
        return self._on[device]


class Adjustment:
    """One branch's part in it.

    Args:
        main: the tokens of main that the branch sees; called only where a penalty needs them.
        context: the ids that the branch sees, its prompt included; called only where a processor needs them.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        main: Callable[[], MainTokens],
        context: Callable[[], Sequence[int]],
        prompt_ids: Sequence[int],
    ):
        self.params = params
        self.bias = (
            torch.tensor(list(params.logit_bias), dtype=torch.long),
            torch.tensor(list(params.logit_bias.values()), dtype=torch.float32),
        )
        self.main: MainTokens | None = None
        self.own = TokenCounts()
        """Tokens of prompt and answer that main does not have, for the repetition penalty."""
        self.answer = TokenCounts()
        """Tokens of the answer, for the presence and frequency penalties."""
        self.context: GrowingTensor | None = None
        if params.repetition_penalty != 1.0:
            self.main = main()
            for token_id in prompt_ids:
                self._add_own(token_id)
        if params.logits_processors:
            self.context = GrowingTensor(context())

    def append(self, token_id: int) -> None:
        """Take a token of the answer."""
        if self.main is not None:
            self._add_own(token_id)
        if self.params.presence_penalty or self.params.frequency_penalty:
            self.answer.add(token_id)
        if self.context is not None:
            self.context.append(token_id)

    def _add_own(self, token_id: int) -> None:
        if self.main is not None and token_id not in self.main:
            self.own.add(token_id)


def adjusts(params: SamplingParams) -> bool:
    """Whether the parameters do anything to the logits before temperature."""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.logits_processors
    )


def adjust(scores: Tensor, adjustments: Sequence[Adjustment | None]) -> dict[int, str]:
    """Change scores [n, V] in float32, in place; returns why those of some rows cannot be used."""
    rows = {index: one for index, one in enumerate(adjustments) if one is not None}
    _add(scores, {index: one.bias for index, one in rows.items() if one.params.logit_bias})
    _discourage_repetition(scores, rows)
    _add(
        scores,
        {
            index: (one.answer.ids, -_penalties(one))
            for index, one in rows.items()
            if one.params.presence_penalty or one.params.frequency_penalty
        },
    )
    return _process(scores, rows)


def _penalties(one: Adjustment) -> Tensor:
    """What each token of the answer loses, by OpenAI's definition."""
    return one.params.presence_penalty + one.params.frequency_penalty * one.answer.counts


def _add(scores: Tensor, addends: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Add (ids, values) to rows of scores, in place."""
    if not addends:
        return
    places = _places(list(addends), [ids for ids, _ in addends.values()], scores.device)
    values = torch.cat([values for _, values in addends.values()]).to(scores.device)
    scores[places] = scores[places] + values


def _discourage_repetition(scores: Tensor, rows: Mapping[int, Adjustment]) -> None:
    """Transformers' own penalty on what each row has seen, in place; main and the rest have no token in common."""
    alike: dict[float, list[int]] = {}
    under: dict[tuple[MainTokens, float], list[int]] = {}
    for index, one in rows.items():
        if one.main is not None:
            alike.setdefault(one.params.repetition_penalty, []).append(index)
            under.setdefault((one.main, one.params.repetition_penalty), []).append(index)
    for (main, penalty), indices in under.items():
        ids = main.on(scores.device)
        for start, end in _runs(indices):
            some, places = scores[start:end], ids.expand(end - start, -1)
            some.scatter_(1, places, _penalised(some.gather(1, places), penalty))
    for penalty, indices in alike.items():
        places_of_own = _places(indices, [rows[index].own.ids for index in indices], scores.device)
        scores[places_of_own] = _penalised(scores[places_of_own], penalty)


def _penalised(found: Tensor, penalty: float) -> Tensor:
    """Scores all of which belong to tokens that were seen."""
    if not found.numel():
        return found
    flat = found.reshape(1, -1)
    every = torch.arange(flat.shape[1], device=found.device)[None]
    penalised: Tensor = RepetitionPenaltyLogitsProcessor(penalty)(every, flat)
    return penalised.view_as(found)


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows that lie side by side, as (first, behind the last); the branches of a main mostly do."""
    start = end = indices[0]
    for index in indices:
        if index != end:
            yield start, end
            start = index
        end = index + 1
    yield start, end


def _places(rows: Sequence[int], ids: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Index of the ids of each row in scores."""
    lengths = torch.tensor([len(one) for one in ids])
    return torch.tensor(rows).repeat_interleave(lengths).to(device), torch.cat(list(ids)).to(device)


def _process(scores: Tensor, rows: Mapping[int, Adjustment]) -> dict[int, str]:
    """Apply the caller's processors, in place; says which rows they leave without a token to draw."""
    failed = {}
    for index, one in rows.items():
        if one.context is None:
            continue
        reason, context, row = "", one.context.all[None].to(scores.device), scores[index : index + 1]
        try:
            for processor in one.params.logits_processors:
                row = processor(context, row.clone())
            scores[index] = row[0]
            if row.shape != (1, scores.shape[1]) or not bool(row.amax().isfinite()):
                reason = (
                    f"the logits_processor of this branch returned no scores to draw from: their shape is "
                    f"{list(row.shape)} and the highest is {float(row.amax())}, where a finite number is needed"
                )
        except Exception as error:
            _LOGGER.warning("a logits processor failed", exc_info=True)
            reason = (
                f"the logits_processor of this branch failed ({type(error).__name__}: {first_line(error)}); it takes "
                "token ids [1, S] and scores [1, V], and returns scores [1, V]"
            )
        if reason:
            failed[index] = reason
    return failed
