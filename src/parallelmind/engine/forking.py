"""Forks: further branches that go on from where a branch stands while it decodes.

A fork is a branch of the same request, at the same branch position, whose prompt is everything that its parent has come
to. So the tree of pages shares with the parent what is there, and nothing is computed again: a fork without a
continuation of its own draws its first token from the logits that its parent draws its next one from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from parallelmind.engine.detokenizer import Detokenizer
from parallelmind.engine.input_processor import InputProcessor, Problem
from parallelmind.engine.request import Prompt
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.errors import RequestError
from parallelmind.settings.sampling import SamplingParams, seed_of_fork


def find_parent(groups: Sequence[RequestGroup], request_id: int, branch_index: int) -> BranchSequence:
    """The branch of a request that is to be forked.

    Raises:
        RequestError: there is no such branch, it is done, or it sees other branches.
    """
    found = [branch for group in groups for branch in group.branches if branch.index == branch_index]
    name = f"branch {branch_index} of request {request_id}"
    if not found:
        raise RequestError(
            f"{name} cannot be forked: it is not running; the ids are those of add_request and of events (request_id)."
        )
    [branch] = found
    if branch.finished:
        raise RequestError(
            f"{name} cannot be forked: it has ended; fork it while it decodes, or continue its text in a new request."
        )
    if branch.group.in_step:
        raise RequestError(
            f"{name} cannot be forked: with visibility {branch.group.visibility!r} the branches advance together and "
            "read one another, and a fork would give them what its parent wrote a second time; use 'isolated'."
        )
    return branch


def make_forks(
    parent: BranchSequence,
    *,
    first_index: int,
    n: int | None,
    prompts: Sequence[Prompt] | None,
    sampling: SamplingParams | Sequence[SamplingParams] | None,
    inputs: InputProcessor,
    max_model_len: int,
) -> tuple[list[BranchSequence], list[Problem]]:
    """The forks of a branch, and what is wrong with those that cannot run; see `Engine.fork`.

    Raises:
        RequestError: the numbers of forks, prompts and sampling parameters contradict each other.
    """
    _check_arguments(n, prompts, sampling)
    counts = {len(found) for found in (prompts, sampling) if isinstance(found, Sequence)}
    counts |= {n} if n is not None else set()
    if len(counts) > 1 or min(counts, default=1) < 1:
        raise RequestError(
            f"{' and '.join(map(str, sorted(counts)))} forks were asked for by n, prompts and sampling; "
            "give the same number everywhere, 1 or more."
        )
    forks: list[BranchSequence] = []
    problems: list[Problem] = []
    count = min(counts, default=1)
    # Before any fork is counted, so that one that is refused leaves the seeds of later ones as they are.
    owns = [inputs.prompt_ids(prompt, has_main=True) for prompt in (prompts if prompts is not None else [""] * count)]
    for place in range(count):
        own = owns[place]
        parent.num_forks += 1
        if isinstance(sampling, Sequence):
            params = sampling[place]
        else:
            params = _own_seed(sampling or _continued(parent), parent.num_forks)
        prompt_ids = [*parent.prompt_ids, *parent.output_ids, *own]
        room = max_model_len - len(parent.group.main_ids) - len(prompt_ids)
        fork = BranchSequence(
            group=parent.group,
            index=first_index + place,
            branch_id=parent.branch_id,
            prompt_ids=prompt_ids,
            params=params,
            max_new_tokens=min(params.max_new_tokens, room),
            detokenizer=Detokenizer(inputs.tokenizer, params.stop_texts, before=() if own else parent.text_ids),
            parent=parent,
            own_prompt_ids=own,
        )
        forks.append(fork)
        if (problem := inputs.problem_of(fork, room, max_model_len)) is not None:
            problems.append(problem)
    return forks, problems


def _check_arguments(n: Any, prompts: Any, sampling: Any) -> None:
    if n is not None and (not isinstance(n, int) or isinstance(n, bool)):
        raise RequestError(f"n is {n!r}; it must be a whole number of forks, 1 or more.")
    if prompts is not None and (isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence)):
        raise RequestError(f"prompts is {prompts!r}; it must be a list with a text, or token ids, for each fork.")
    given = sampling if isinstance(sampling, Sequence) and not isinstance(sampling, str | bytes) else [sampling]
    for params in given:
        if not (isinstance(params, SamplingParams) or (params is None and given is not sampling)):
            raise RequestError(f"sampling is {sampling!r}; it must be SamplingParams, or a list of them.")
        if params is not None and params.n > 1:
            raise RequestError(
                f"the n of the sampling parameters is {params.n}; a fork has one answer: give n to fork."
            )


def _continued(parent: BranchSequence) -> SamplingParams:
    """The parameters of a branch for what it may still write."""
    return replace(parent.params, n=1, max_new_tokens=max(1, parent.max_new_tokens - len(parent.output_ids)))


def _own_seed(params: SamplingParams, number: int) -> SamplingParams:
    return params if params.seed is None else params.with_seed(seed_of_fork(params.seed, number))
