"""Evaluation on held-out data: the loss of the supervised tokens, and the share of answers that are exact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallelmind.columnar import number_in_range
from parallelmind.data.collator import MicroBatch, ParallelPretrainCollator
from parallelmind.data.encoder import EncodedBranch, EncodedSample
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import Branch, Request
from parallelmind.errors import TrainingError, UnsupportedModelError
from parallelmind.models.lora_layers import unwrap
from parallelmind.prompts.conversation import is_learned, thought_and_answer
from parallelmind.settings.sampling import SamplingParams
from parallelmind.training.compiling import uncompiled
from parallelmind.training.forward import PackedForward

_SPARE_TOKENS = 8
"""The same text may be written with other tokens than the tokenizer's own choice."""
_MOST_GROUPS = 8
_MOST_SHOWN = 8
_Question = tuple[Request, list[str]]
"""A row of prompts, and the right answer of each."""


@dataclass(frozen=True, kw_only=True)
class SampleAnswer:
    """A held-out question, what is right, and what the model answered."""

    main: str
    prompt: str
    branch: int
    """The number of the branch."""
    expected: str
    generated: str
    exact: bool


class Evaluation:
    """The held-out data of a run.

    Args:
        batches: of all processes; each takes its share.
        samples: those whose completions, and last turns of the assistant, are generated and compared; texts without a
            prompt have no one answer.
        most: branches of a row at most.
        branch_range: the branch numbers 1 to R that are trained, which the questions are spread over; None: those of
            the records.
    """

    def __init__(
        self,
        batches: Sequence[MicroBatch],
        samples: Sequence[EncodedSample],
        *,
        tokenizer: Any,
        collator: ParallelPretrainCollator,
        forward: PackedForward,
        most: int,
        branch_range: int | None = None,
    ):
        self._branch_range = branch_range
        self._groups = number_groups(branch_range)
        self._batches = batches
        self._tokenizer = tokenizer
        self._collator = collator
        self._forward = forward
        self.samples: list[SampleAnswer] = []
        """The first answers of the last evaluation, of this process."""
        end = tokenizer.eos_token_id
        found = (_question(sample, tokenizer, end) for sample in samples)
        self._questions = list(_rows((one for one in found if one is not None), most, branch_range))

    @property
    def metrics(self) -> list[str]:
        """The names of what `run` finds."""
        if not self._questions:
            return ["loss"]
        return ["loss", "exact", *(_group_name(first, last) for first, last in self._groups)]

    def run(
        self,
        model: Any,
        *,
        device: torch.device,
        rank: int,
        world_size: int,
        autocast: AbstractContextManager[None] | None = None,
    ) -> dict[str, float]:
        """`loss`, and if there are answers `exact`, in all and by branch number: `exact_1-8` (`number_groups`).

        All processes find the same. The model is left in eval mode.

        Args:
            autocast: that of training, in which the loss is computed.
        """
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        with torch.no_grad(), autocast or nullcontext():
            for micro in self._batches[rank::world_size]:
                inputs = self._collator(micro)
                count = inputs.pop("info").supervised_tokens
                inputs = {name: value.to(device) for name, value in inputs.items()}
                sums[0] += self._forward.loss(model, inputs).double()
                sums[1] += count
        if world_size > 1:
            dist.all_reduce(sums)
        loss, tokens = sums.tolist()
        metrics = {"loss": loss / max(tokens, 1)}
        try:
            with _plain_forward(unwrap(model)), uncompiled():
                hits = self._exact(model, rank, world_size).to(device)
        except UnsupportedModelError as error:
            if math.isfinite(loss):
                raise
            raise TrainingError(
                f"The held-out loss became {loss}, and the model can answer nothing any more; go on from a checkpoint "
                "before that, or begin anew, with a lower --learning_rate or --grad_clip, or with --dtype float32."
            ) from error
        if world_size > 1:
            dist.all_reduce(hits)
        right_all, asked_all = hits.sum(0).tolist()
        if asked_all:
            metrics["exact"] = right_all / asked_all
        for (first, last), (right, asked) in zip(self._groups, hits.tolist(), strict=False):
            if asked:
                metrics[_group_name(first, last)] = right / asked
        return metrics

    def _exact(self, model: Any, rank: int, world_size: int) -> Tensor:
        """(right, asked) of each group of branch numbers, [G, 2]; of all in one row where there are no groups."""
        hits = torch.zeros(max(1, len(self._groups)), 2, dtype=torch.float64)
        questions = self._questions[rank::world_size]
        self.samples = []
        if not questions:
            return hits
        engine = Engine(
            unwrap(model),
            self._tokenizer,
            visibility=self._forward.visibility,
            branch_stride=self._forward.stride,
            branch_range=self._branch_range,
        )
        results = engine.generate([request for request, _ in questions])
        for result, (request, answers) in zip(results, questions, strict=True):
            for branch, answer, expected in zip(request.branches, result.branches, answers, strict=True):
                assert isinstance(branch, Branch)
                assert branch.branch_id is not None
                number = number_in_range(branch.branch_id, self._branch_range)
                group = next((place for place, (_, last) in enumerate(self._groups) if number <= last), 0)
                right = answer.finish_reason == "stop" and answer.text.strip() == expected.strip()
                hits[group] += torch.tensor([right, 1])
                if len(self.samples) < _MOST_SHOWN:
                    self.samples.append(
                        SampleAnswer(
                            main=self._tokenizer.decode(request.main),
                            prompt=self._tokenizer.decode(branch.prompt),
                            branch=number,
                            expected=expected.strip(),
                            generated=answer.text.strip(),
                            exact=right,
                        )
                    )
        return hits


def _group_name(first: int, last: int) -> str:
    return f"exact_{first}" if first == last else f"exact_{first}-{last}"


def number_groups(branch_range: int | None) -> list[tuple[int, int]]:
    """The trained branch numbers in at most 8 groups of (first, last); none where there is nothing to compare."""
    if branch_range is None or branch_range == 1:
        return []
    size = -(-branch_range // _MOST_GROUPS)
    return [(first, min(first + size - 1, branch_range)) for first in range(1, branch_range + 1, size)]


def _rows(questions: Iterable[_Question], most: int, branch_range: int | None) -> Iterator[_Question]:
    """Rows of at most `most` branches, whose numbers go round the trained ones."""
    number = 0
    for request, answers in questions:
        for start in range(0, len(answers), most):
            branches = [one for one in request.branches[start : start + most] if isinstance(one, Branch)]
            if branch_range is not None:
                branches = [replace(one, branch_id=number + place) for place, one in enumerate(branches, start=1)]
            number += len(branches)
            yield replace(request, branches=branches), answers[start : start + most]


@contextmanager
def _plain_forward(model: Any) -> Iterator[None]:
    """Answers are generated as at inference: in the weights' own number format, without Trainer's autocast."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def _question(sample: EncodedSample, tokenizer: Any, end: int) -> _Question | None:
    """The prompts of a sample's branches that have one right answer, and the answers."""
    branches, answers = [], []
    for branch in sample.branches:
        conversation = bool(branch.sample_branch.messages)
        found = _last_turn(branch, tokenizer) if conversation else _completion(branch, end)
        if found is None:
            continue
        prompt, length, answer = found
        sampling = SamplingParams(max_new_tokens=length + _SPARE_TOKENS, temperature=0)
        branches.append(Branch(prompt=list(branch.ids[:prompt]), sampling=sampling, branch_id=branch.number))
        answers.append(answer)
    return (Request(main=list(sample.main), branches=branches), answers) if branches else None


def _completion(branch: EncodedBranch, end: int) -> tuple[int, int, str] | None:
    """(tokens of the prompt, tokens of the answer, the answer); None without a prompt, or if the answer was cut."""
    if not branch.sample_branch.prompt or branch.ids[-1] != end:
        return None
    prompt = branch.loss_mask.find(1)
    return prompt, len(branch) - prompt, branch.sample_branch.completion


def _last_turn(branch: EncodedBranch, tokenizer: Any) -> tuple[int, int, str] | None:
    """The same of a conversation: the assistant's last turn follows from all before it."""
    stop = branch.loss_mask.rfind(1) + 1
    start = branch.loss_mask.rfind(0, 0, stop) + 1
    messages = branch.sample_branch.messages
    last = max(place for place, message in enumerate(messages) if is_learned(message))
    _, content = thought_and_answer(messages[last])
    written: str = tokenizer.decode(list(branch.ids[start:stop]), skip_special_tokens=True).strip()
    if last < 1 or not content or not written.endswith(content):  # nothing before it, no text, or cut
        return None
    return start, stop - start, written
