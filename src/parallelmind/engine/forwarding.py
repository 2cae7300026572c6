"""One forward of a schedule, and the search for the culprit when it fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parallelmind.engine.forward_context import ForwardContext, GroupSpan, MainSpan
from parallelmind.engine.kv_cache import MainCache
from parallelmind.engine.model_runner import ModelRunner
from parallelmind.engine.scheduler import Schedule
from parallelmind.engine.sequence import BranchSequence

_LOGGER = logging.getLogger(__name__)


@dataclass
class Forwarded:
    """What a forward gave. Nothing in the schedule has changed yet but keys and values, so it may be repeated."""

    mains: dict[int, Tensor] = field(default_factory=dict)
    """Logits [V] behind each main that is complete now, by the main's identity."""
    branches: dict[BranchSequence, Tensor] = field(default_factory=dict)
    """Logits [V] behind each branch that has all its tokens run."""
    failed: dict[BranchSequence, Exception] = field(default_factory=dict)
    failed_mains: dict[int, Exception] = field(default_factory=dict)


def forward(runner: ModelRunner, schedule: Schedule) -> Forwarded:
    """Run all tokens of a schedule."""
    context = schedule.context
    done = Forwarded()
    if context.num_tokens:
        _forward_part(runner, schedule, context.main_spans, context.groups, done)
    return done


def forward_apart(runner: ModelRunner, schedule: Schedule) -> Forwarded:
    """Run each main and each request by itself, after they failed together; those that fail alone are marked.

    The results are the same, since no request depends on its company.
    """
    context = schedule.context
    done = Forwarded()
    for span in context.main_spans:
        try:
            _forward_part(runner, schedule, [span], [], done)
        except Exception as error:
            _LOGGER.exception("the model failed on a main of %d tokens", len(span.main))
            done.failed_mains[id(span.main)] = error
    for group in context.groups:
        branches = _branches_of(schedule, group)
        if group.main is not None and id(group.main) in done.failed_mains:
            continue
        try:
            _forward_part(runner, schedule, [], [group], done)
        except Exception as error:
            _LOGGER.exception("the model failed on %d branches of a request", len(branches))
            done.failed |= dict.fromkeys(branches, error)
    return done


def _forward_part(
    runner: ModelRunner,
    schedule: Schedule,
    main_spans: Sequence[MainSpan],
    groups: Sequence[GroupSpan],
    done: Forwarded,
) -> None:
    whole = schedule.context
    if main_spans is whole.main_spans and groups is whole.groups:
        context = whole
    else:
        context = ForwardContext(slots=whole.slots, main_spans=main_spans, groups=groups)
    finished: list[MainCache] = []
    sampled: list[BranchSequence] = []
    logits_at: list[int] = []
    for span, (_, end) in zip(context.main_spans, context.main_ranges, strict=True):
        if span.past + len(span.token_ids) == len(span.main):
            finished.append(span.main)
            logits_at.append(end - 1)
    for group, (start, _) in zip(context.groups, context.group_ranges, strict=True):
        place = start
        for branch, fed in zip(_branches_of(schedule, group), group.branches, strict=True):
            place += len(fed.token_ids)
            if len(fed.token_ids) == len(branch.pending) and not branch.finished:
                sampled.append(branch)
                logits_at.append(place - 1)
    # A plan without anything to sample still needs one row: some models take an empty selection for "all".
    logits = runner.forward(context, torch.tensor(logits_at or [0]))
    for index, main in enumerate(finished):
        done.mains[id(main)] = logits[index].clone()
    for index, branch in enumerate(sampled, start=len(finished)):
        done.branches[branch] = logits[index]


def _branches_of(schedule: Schedule, group: GroupSpan) -> list[BranchSequence]:
    return [schedule.branch_in[span.slot] for span in group.branches]
