"""From a request to the sequences that the scheduler runs, and what is wrong with those that cannot run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parallelmind.columnar import VISIBILITIES, Visibility, sees_branches, sees_main
from parallelmind.engine.detokenizer import Detokenizer
from parallelmind.engine.request import BASE_MODEL, Branch, ErrorKind, Prompt, Request
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.errors import RequestError
from parallelmind.models.adapters import AdapterSet
from parallelmind.prompts.encode import encode_branch, encode_main
from parallelmind.settings.sampling import SamplingParams


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


@dataclass(frozen=True, kw_only=True)
class InputProcessor:
    """Turns requests into groups of branch sequences."""

    tokenizer: Any
    num_embeddings: int
    is_long: Callable[[int], bool]
    """Whether a text of so many tokens is a long one, see `parallelmind.models.rope_lengths`."""
    visibilities: dict[str, Visibility] = field(default_factory=dict)
    """The visibility of each adapter, BASE_MODEL included, for requests that do not name one."""

    def process(
        self, request_id: int, request: Request, sampling: SamplingParams, max_model_len: int
    ) -> tuple[list[RequestGroup], list[Problem]]:
        """One group for each adapter among the branches; branches with a problem are in no group's `waiting`.

        Raises:
            RequestError: the request as a whole makes no sense.
        """
        branches = [b if isinstance(b, Branch) else Branch(prompt=b) for b in request.branches]
        if not branches:
            branches = [Branch(branch_id=0)]
        numbers = [i if b.branch_id is None else b.branch_id for i, b in enumerate(branches, start=1)]
        adapters = [request.adapter if b.adapter is None else b.adapter for b in branches]
        main_ids = self.main_ids(request.main)
        groups: dict[str, RequestGroup] = {}
        problems: list[Problem] = []
        together: list[RequestGroup] = []  # which grows when a branch gets a group of its own later
        for adapter in dict.fromkeys(adapters):
            groups[adapter] = self._group(request_id, request, adapter, main_ids, numbers)
            groups[adapter].siblings = together
            together.append(groups[adapter])
        if len(groups) > 1 and any(group.in_step for group in groups.values()):
            raise RequestError(
                f"the branches use the adapters {', '.join(name or 'none' for name in groups)}, but with visibility "
                f"{next(iter(groups.values())).visibility!r} they read one another, so they need the same one; use one "
                "adapter, or 'isolated'."
            )
        for index, (number, adapter, branch) in enumerate(zip(numbers, adapters, branches, strict=True)):
            group = groups[adapter]
            params = branch.sampling or sampling
            prompt_ids = self.prompt_ids(branch.prompt, has_main=group.reads_main)
            room = max_model_len - len(main_ids) - len(prompt_ids)
            sequence = BranchSequence(
                group=group,
                index=index,
                branch_id=number,
                prompt_ids=prompt_ids,
                params=params,
                max_new_tokens=min(params.max_new_tokens, room),
                detokenizer=Detokenizer(self.tokenizer, params.stop_texts),
            )
            if not group.in_step and self.is_long(group.length_of(sequence)):
                group = sequence.group = group.long_sibling()
            group.branches.append(sequence)
            problem = self.problem_of(sequence, room, max_model_len)
            if problem is None:
                group.waiting.append(sequence)
            else:
                problems.append(problem)
        for group in groups.values():
            if group.in_step:
                problems += self._lengths_in_step(group)
        return together, problems

    def main_ids(self, main: Prompt) -> tuple[int, ...]:
        return tuple(encode_main(self.tokenizer, main) if isinstance(main, str) else main)

    def prompt_ids(self, prompt: Prompt, *, has_main: bool) -> list[int]:
        if isinstance(prompt, str):
            return encode_branch(self.tokenizer, prompt, has_main=has_main)
        return list(prompt)

    def visibility_of(self, request: Request, adapter: str) -> Visibility:
        """What the branches of a request that use this adapter see.

        Raises:
            RequestError: no such adapter or visibility.
        """
        if adapter not in self.visibilities:
            known = ", ".join(repr(name) for name in self.visibilities if name != BASE_MODEL) or "none"
            raise RequestError(f"adapter {adapter!r} is not loaded; the loaded ones: {known}.")
        if request.visibility is None:
            return self.visibilities[adapter]
        if request.visibility not in VISIBILITIES:
            raise RequestError(f"visibility is {request.visibility!r}; it must be one of {', '.join(VISIBILITIES)}.")
        return request.visibility

    def _group(
        self, request_id: int, request: Request, adapter: str, main_ids: tuple[int, ...], numbers: Sequence[int]
    ) -> RequestGroup:
        visibility = self.visibility_of(request, adapter)
        _check_numbers(numbers, visibility)
        hidden = not sees_main(visibility) and any(numbers)
        return RequestGroup(
            request_id=request_id,
            main_ids=main_ids,
            reads_main=bool(main_ids) and not hidden,
            visibility=visibility,
            adapter=adapter,
            joined=request.joined,
        )

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
        group, prompt_ids = branch.group, branch.prompt_ids
        if not prompt_ids and not group.reads_main:
            return Problem(branch, "empty", "nothing to continue: main and the branch's prompt are both empty")
        if room < 1:
            reason = (
                f"too long for the model: main has {len(group.main_ids)} tokens and the branch {len(prompt_ids)}, the "
                f"model takes {max_model_len} with at least one new token; shorten main or the branch"
            )
            return Problem(branch, "too_long", reason)
        size = self.num_embeddings
        wrong = [i for ids in (group.main_ids, prompt_ids) for i in ids if not 0 <= i < size]
        if wrong:
            reason = f"token id {wrong[0]} is outside the model's vocabulary of {size}; use the model's own tokenizer"
            return Problem(branch, "vocabulary", reason)
        return None


def _check_numbers(numbers: Sequence[int], visibility: Visibility) -> None:
    if all(number == 0 for number in numbers) and (len(numbers) == 1 or not sees_branches(visibility)):
        return
    if len(set(numbers)) != len(numbers) or min(numbers) < 1:
        raise RequestError(
            f"branch_id must be 1 or more and different for each branch, got {list(numbers)}; 0 is for branches that "
            "all continue main itself and do not see one another."
        )
