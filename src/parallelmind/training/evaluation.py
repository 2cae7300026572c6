"""Evaluation on held-out data: the loss of the supervised tokens, and the share of answers that are exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from parallelmind.data.collator import MicroBatch, ParallelPretrainCollator
from parallelmind.data.encoder import EncodedBranch, EncodedSample
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import Branch, Request
from parallelmind.models.lora_layers import unwrap
from parallelmind.prompts.conversation import is_learned, thought_and_answer
from parallelmind.settings.sampling import SamplingParams
from parallelmind.training.forward import PackedForward

_SPARE_TOKENS = 8
"""The same text may be written with other tokens than the tokenizer's own choice."""


class Evaluation:
    """The held-out data of a run.

    Args:
        batches: of all processes; each takes its share.
        samples: those whose completions, and last turns of the assistant, are generated and compared; texts without a
            prompt have no one answer.
    """

    def __init__(
        self,
        batches: Sequence[MicroBatch],
        samples: Sequence[EncodedSample],
        *,
        tokenizer: Any,
        collator: ParallelPretrainCollator,
        forward: PackedForward,
    ):
        self._batches = batches
        self._tokenizer = tokenizer
        self._collator = collator
        self._forward = forward
        end = tokenizer.eos_token_id
        self._questions = [q for sample in samples if (q := _question(sample, tokenizer, end)) is not None]

    def run(self, model: Any, *, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """`loss`, and `exact` if there are answers; the same on all processes. The model is left in eval mode."""
        model.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        with torch.no_grad():
            for micro in self._batches[rank::world_size]:
                inputs = self._collator(micro)
                count = inputs.pop("info").supervised_tokens
                inputs = {name: value.to(device) for name, value in inputs.items()}
                sums[0] += self._forward.loss(model, inputs).double()
                sums[1] += count
        with _plain_forward(unwrap(model)):
            right, asked = self._exact(model, rank, world_size)
        sums[2] += right
        sums[3] += asked
        if world_size > 1:
            dist.all_reduce(sums)
        loss, tokens, right_all, asked_all = sums.tolist()
        metrics = {"loss": loss / max(tokens, 1)}
        if asked_all:
            metrics["exact"] = right_all / asked_all
        return metrics

    def _exact(self, model: Any, rank: int, world_size: int) -> tuple[int, int]:
        questions = self._questions[rank::world_size]
        if not questions:
            return 0, 0
        engine = Engine(
            unwrap(model),
            self._tokenizer,
            visibility=self._forward.visibility,
            branch_stride=self._forward.stride,
        )
        results = engine.generate([request for request, _ in questions])
        pairs = [
            (answer, expected)
            for result, (_, answers) in zip(results, questions, strict=True)
            for answer, expected in zip(result.branches, answers, strict=True)
        ]
        right = sum(a.finish_reason == "stop" and a.text.strip() == expected.strip() for a, expected in pairs)
        return right, len(pairs)


@contextmanager
def _plain_forward(model: Any) -> Iterator[None]:
    """Answers are generated as at inference: in the weights' own number format, without Trainer's autocast."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def _question(sample: EncodedSample, tokenizer: Any, end: int) -> tuple[Request, list[str]] | None:
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
