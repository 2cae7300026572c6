"""From a request to the sequences that the scheduler runs, and what is wrong with those that cannot run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from parallelmind.columnar import VISIBILITIES, Visibility, numbers_in_range, sees_branches, sees_main
from parallelmind.engine.detokenizer import Detokenizer
from parallelmind.engine.forms import request_of
from parallelmind.engine.request import (
    BASE_MODEL,
    Branch,
    BranchResult,
    ErrorKind,
    Event,
    Request,
    num_answers,
)
from parallelmind.engine.request_encoder import NamedPrompt, RequestEncoder
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.errors import RequestError
from parallelmind.io.records import shorten
from parallelmind.models.adapters import AdapterSet
from parallelmind.settings.sampling import SamplingParams, seed_of_branch

_MAX_BRANCH_ID = 2**31 - 1
"""So that branch id × stride is a position."""


def default_visibilities(visibility: Visibility, adapters: AdapterSet | None) -> dict[str, Visibility]:
    """The visibility of each adapter, BASE_MODEL included: the one it was trained with, else the given one."""
    found: dict[str, Visibility] = {BASE_MODEL: visibility}
    for name in adapters or ():
        settings = adapters.settings(name) if adapters is not None else None
        found[name] = visibility if settings is None else settings.visibility
    return found


class Problem(NamedTuple):
    """Why a branch cannot run."""

    branch: BranchSequence
    kind: ErrorKind
    reason: str


class Prepared(NamedTuple):
    """A request as the engine runs it."""

    groups: list[RequestGroup]
    """One for each adapter among the branches, and apart from them those of long texts; it may grow."""
    problems: list[Problem]
    """Branches with one are not in any group's `waiting`."""

    @property
    def num_answers(self) -> int:
        return sum(len(group.branches) for group in self.groups)


class _Asked(NamedTuple):
    """A branch of a request, with what holds for it."""

    name: str
    """What messages call it."""
    branch: Branch
    number: int
    adapter: str
    params: SamplingParams
    place: int
    """Among branches that have no number, since all of them continue main itself."""
    seed: int | None
    """That of the request, for a branch without one of its own."""

    def sampling(self, choice: int) -> SamplingParams:
        """The parameters of one of its answers."""
        if self.params.seed is not None and self.seed is None:
            return self.params.with_seed(seed_of_branch(self.params.seed, 1, choice))
        if self.seed is None:
            return self.params
        return self.params.with_seed(seed_of_branch(self.seed, self.number or self.place, choice, self.params.n))


@dataclass(frozen=True, kw_only=True)
class InputProcessor:
    """Turns requests into groups of branch sequences."""

    tokenizer: Any
    num_embeddings: int
    is_long: Callable[[int], bool]
    """Whether a text of so many tokens is a long one, see `parallelmind.models.rope_lengths`."""
    visibilities: dict[str, Visibility] = field(default_factory=dict)
    """The visibility of each adapter, BASE_MODEL included, for requests that do not name one."""
    range_of: Callable[[str], int | None] = lambda adapter: None
    """The branch numbers 1 to R that an adapter was trained on; None: any."""

    def process(self, request_id: int, given: Any, sampling: SamplingParams, max_model_len: int) -> Prepared:
        """The sequences of a request of any form (`engine/forms.py`), and the errors of branches that cannot run.

        Raises:
            RequestError: the request as a whole makes no sense.
        """
        request = request_of(given)
        asked = self._asked(request, sampling)
        seen = self._visibilities(request, asked)
        numbers = [one.number for one in asked]
        for adapter, visibility in seen.items():
            _check_numbers(numbers, visibility)
            if sees_branches(visibility):
                numbers = _apart(numbers, self.range_of(adapter), visibility)
        if len(seen) > 1 and any(map(sees_branches, seen.values())):
            raise RequestError(
                f"the branches use the adapters {', '.join(name or 'none' for name in seen)}, but with visibility "
                f"{next(iter(seen.values()))!r} they read one another, so they need the same one; use one adapter, or "
                "'isolated'."
            )
        hidden = {name: not sees_main(visibility) and any(numbers) for name, visibility in seen.items()}
        named = [
            NamedPrompt(f"the prompt of {one.name}", one.branch.prompt, hidden.get(one.adapter, False)) for one in asked
        ]
        main_ids, prompts = self._encoder.encode(request.main, named)
        groups: dict[str, RequestGroup] = {}
        together: list[RequestGroup] = []  # which grows when a branch gets a group of its own later
        for name in dict.fromkeys(one.adapter for one in asked):
            group = RequestGroup(
                request_id=request_id,
                main_ids=tuple(main_ids),
                reads_main=bool(main_ids) and not hidden.get(name, False),
                visibility=seen.get(name, "isolated"),
                adapter=name,
                joined=request.joined,
                share=request.share,
            )
            groups[name] = group
            group.siblings = together
            together.append(group)
        problems: list[Problem] = []
        index = 0
        for one, number, prompt in zip(asked, numbers, prompts, strict=True):
            prompt_ids = [] if isinstance(prompt, RequestError) else prompt
            room = max_model_len - len(main_ids) - len(prompt_ids)
            for choice in range(one.params.n):
                group, params = groups[one.adapter], one.sampling(choice)
                sequence = BranchSequence(
                    group=group,
                    index=index,
                    branch_id=number,
                    prompt_ids=prompt_ids,
                    params=params,
                    max_new_tokens=min(params.max_new_tokens, room),
                    detokenizer=Detokenizer(self.tokenizer, params.stop_texts),
                )
                index += 1
                if not group.in_step and self.is_long(group.length_of(sequence)):
                    group = sequence.group = group.long_sibling()
                group.branches.append(sequence)
                if isinstance(prompt, RequestError):
                    problem: Problem | None = Problem(sequence, "invalid", str(prompt))
                elif one.adapter not in seen:
                    problem = Problem(sequence, "invalid", str(self._unknown(one.adapter)))
                else:
                    problem = self.problem_of(sequence, room, max_model_len)
                if problem is None:
                    group.waiting.append(sequence)
                else:
                    problems.append(problem)
        for group in groups.values():
            if group.in_step:
                problems += self._lengths_in_step(group)
        return Prepared(together, problems)

    def refusals(self, request_id: int, given: Any, sampling: SamplingParams, error: RequestError) -> list[Event]:
        """The ends of the answers of a request that makes no sense as a whole."""
        count = num_answers(given, sampling) if isinstance(given, Request) else 1
        result = BranchResult(finish_reason="error", error=str(error), error_kind="invalid")
        return [
            Event(
                request_index=request_id, branch_index=index, finish_reason="error", result=dataclasses.replace(result)
            )
            for index in range(count)
        ]

    def main_ids(self, main: Any) -> list[int]:
        """Token ids of a main of any form."""
        return self._encoder.main_ids(main)

    def prompt_ids(self, prompt: Any, *, has_main: bool) -> list[int]:
        """Token ids of a branch's prompt of any form."""
        return self._encoder.prompt_ids(prompt, has_main=has_main)

    @cached_property
    def _encoder(self) -> RequestEncoder:
        return RequestEncoder(self.tokenizer)

    def visibility_of(self, request: Request, adapter: str) -> Visibility:
        """What the branches of a request that use this adapter see.

        Raises:
            RequestError: no such adapter or visibility.
        """
        if adapter not in self.visibilities:
            raise self._unknown(adapter)
        if request.visibility is None:
            return self.visibilities[adapter]
        if request.visibility not in VISIBILITIES:
            raise RequestError(f"visibility is {request.visibility!r}; it must be one of {', '.join(VISIBILITIES)}.")
        return request.visibility

    def _unknown(self, adapter: str) -> RequestError:
        known = ", ".join(repr(name) for name in self.visibilities if name != BASE_MODEL) or "none"
        return RequestError(f"adapter {adapter!r} is not loaded; the loaded ones: {known}.")

    def _asked(self, request: Request, sampling: SamplingParams) -> list[_Asked]:
        shared = checked_sampling(request.sampling, "the request's sampling") or sampling
        seed = sampling.seed if shared.seed is None else shared.seed
        branches = [b if isinstance(b, Branch) else Branch(prompt=b) for b in request.branches]
        asked = []
        for place, branch in enumerate(branches or [Branch(branch_id=0)], 1):
            name = f"branch {place - 1}" if branches else "main"
            own = checked_sampling(branch.sampling, f"the sampling of {name}")
            number = place if branch.branch_id is None else branch.branch_id
            if not isinstance(number, int) or isinstance(number, bool) or number > _MAX_BRANCH_ID:
                raise RequestError(
                    f"the branch_id of {name} is {number!r}; it must be a whole number of {_MAX_BRANCH_ID} at most."
                )
            adapter: Any = request.adapter if branch.adapter is None else branch.adapter
            if not isinstance(adapter, str):
                raise RequestError(f"the adapter of {name} is {adapter!r}; it must be the name of a loaded adapter.")
            asked.append(
                _Asked(
                    name=name,
                    branch=branch,
                    number=number,
                    adapter=adapter,
                    params=own or shared,
                    place=place,
                    seed=seed if own is None or own.seed is None else None,
                )
            )
        return asked

    def _visibilities(self, request: Request, asked: Sequence[_Asked]) -> dict[str, Visibility]:
        """Of each adapter among the branches that is loaded.

        Raises:
            RequestError: none is, or the request's own is not, or there is no such visibility.
        """
        names = dict.fromkeys(one.adapter for one in asked)
        loaded = [name for name in names if name in self.visibilities or name == request.adapter]
        return {name: self.visibility_of(request, name) for name in loaded or names}

    def _lengths_in_step(self, group: RequestGroup) -> list[Problem]:
        """Branches that see each other have the frequencies of long texts all the time, or never."""
        if not any(self.is_long(group.length_of(branch) + branch.max_new_tokens) for branch in group.waiting):
            return []
        if all(self.is_long(group.length_of(branch)) for branch in group.waiting):
            group.is_long = True
            return []
        reason = (
            f"with visibility {group.visibility!r} a row may not grow past the length at which the model's rotary "
            "embedding changes (original_max_position_embeddings of its longrope): lower max_new_tokens, shorten main, "
            "or use 'isolated'"
        )
        problems = [Problem(branch, "too_long", reason) for branch in group.waiting]
        group.waiting.clear()
        return problems

    def problem_of(self, branch: BranchSequence, room: int, max_model_len: int) -> Problem | None:
        """Why a branch cannot run, which the model leaves so much room for new tokens; None: it can."""
        group, prompt_ids, params = branch.group, branch.prompt_ids, branch.params
        if params.n > 1 and group.in_step:
            reason = (
                f"n is {params.n}, and with visibility {group.visibility!r} the answers would read one another; "
                "use 'isolated', or a request for each"
            )
            return Problem(branch, "invalid", reason)
        if not prompt_ids and not group.reads_main:
            return Problem(branch, "empty", "nothing to continue: main and the branch's prompt are both empty")
        if room < 1:
            reason = (
                f"too long for the model: main has {len(group.main_ids)} tokens and the branch {len(prompt_ids)}, the "
                f"model takes {max_model_len} with at least one new token; shorten main or the branch"
            )
            return Problem(branch, "too_long", reason)
        size = self.num_embeddings
        wrong = next((i for ids in (group.main_ids, prompt_ids) for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            reason = f"token id {wrong} is outside the model's vocabulary of {size}; use the model's own tokenizer"
            return Problem(branch, "vocabulary", reason)
        if (biased := max(params.logit_bias, default=0)) >= size:
            reason = f"logit_bias names token id {biased}, outside the model's vocabulary of {size}; leave it out"
            return Problem(branch, "vocabulary", reason)
        return None


def checked_sampling(given: Any, name: str) -> SamplingParams | None:
    """Sampling parameters, if there are any.

    Raises:
        RequestError: they are none.
    """
    if given is not None and not isinstance(given, SamplingParams):
        raise RequestError(f"{name} is {shorten(repr(given))}; it must be SamplingParams(...).")
    return given


def _check_numbers(numbers: Sequence[int], visibility: Visibility) -> None:
    if all(number == 0 for number in numbers) and (len(numbers) == 1 or not sees_branches(visibility)):
        return
    if len(set(numbers)) != len(numbers) or min(numbers) < 1:
        raise RequestError(
            f"branch_id must be 1 or more and different for each branch, got {list(numbers)}; 0 is for branches that "
            "all continue main itself and do not see one another."
        )


def _apart(numbers: list[int], branch_range: int | None, visibility: Visibility) -> list[int]:
    """The numbers of branches that see one another: at one position, each would take another's tokens for its own."""
    try:
        return numbers_in_range(numbers, branch_range)
    except ValueError:
        raise RequestError(
            f"the row has {len(numbers)} branches, and the adapter was trained on the numbers 1 to {branch_range}; "
            f"with visibility {visibility!r} branches see one another, and some would stand at one position; give a "
            f"row at most {branch_range} branches (in batch --branches_per_sample {branch_range}), or train with "
            f"--branch_range {len(numbers)}."
        ) from None
