"""From a request to the sequences that the scheduler runs, and what is wrong with those that cannot run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parallelmind.columnar import VISIBILITIES, Visibility, sees_branches, sees_main
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


def default_visibilities(visibility: Visibility, adapters: AdapterSet | None) -> dict[str, Visibility]:
    """The visibility of each adapter, BASE_MODEL included: the one it was trained with, else the given one."""
    found: dict[str, Visibility] = {BASE_MODEL: visibility}
    for name in adapters or ():
        settings = adapters.settings(name) if adapters is not None else None
        found[name] = visibility if settings is None else settings.visibility
    return found


@dataclass
class Prepared:
    """A request as the engine runs it."""

    groups: list[RequestGroup] = field(default_factory=list)
    """One for each adapter among the branches."""
    errors: list[Event] = field(default_factory=list)
    """The ends of the answers that cannot be given."""
    num_answers: int = 0
    """Those of both kinds."""

    def next_index(self) -> int:
        """The place of one more answer."""
        self.num_answers += 1
        return self.num_answers - 1

    def refuse(
        self, request_id: int, index: int, problem: Problem, *, prompt_tokens: int = 0, main_tokens: int = 0
    ) -> None:
        """Add an answer that cannot be given."""
        result = BranchResult(
            finish_reason="error",
            error=problem.reason,
            error_kind=problem.kind,
            prompt_tokens=prompt_tokens,
            main_tokens=main_tokens,
        )
        self.errors.append(Event(request_index=request_id, branch_index=index, finish_reason="error", result=result))


class Problem(NamedTuple):
    """Why a branch cannot run."""

    kind: ErrorKind
    reason: str


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

    encoder: RequestEncoder
    num_embeddings: int
    is_long: Callable[[int], bool]
    """Whether a text of so many tokens is a long one, see `parallelmind.models.rope_lengths`."""
    visibilities: dict[str, Visibility] = field(default_factory=dict)
    """The visibility of each adapter, BASE_MODEL included, for requests that do not name one."""

    def process(self, request_id: int, given: Any, sampling: SamplingParams, max_model_len: int) -> Prepared:
        """The sequences of a request of any form (`engine/forms.py`), and the errors of branches that cannot run.

        Raises:
            RequestError: the request as a whole makes no sense.
        """
        request = request_of(given)
        asked = self._asked(request, sampling)
        seen = self._visibilities(request, asked)
        numbers = [one.number for one in asked]
        for visibility in seen.values():
            _check_numbers(numbers, visibility)
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
        main_ids, prompts = self.encoder.encode(request.main, named)
        groups = {
            name: RequestGroup(
                request_id=request_id,
                main_ids=tuple(main_ids),
                reads_main=bool(main_ids) and not hidden[name],
                visibility=visibility,
                adapter=name,
            )
            for name, visibility in seen.items()
        }
        prepared = Prepared()
        for one, prompt in zip(asked, prompts, strict=True):
            problem = self._problem(one, groups.get(one.adapter), main_ids, prompt, max_model_len)
            for choice in range(one.params.n):
                index = prepared.next_index()
                if problem is not None or isinstance(prompt, RequestError):
                    prepared.refuse(
                        request_id,
                        index,
                        problem or Problem("invalid", str(prompt)),
                        prompt_tokens=0 if isinstance(prompt, RequestError) else len(prompt),
                        main_tokens=len(main_ids),
                    )
                    continue
                group, params = groups[one.adapter], one.sampling(choice)
                sequence = BranchSequence(
                    group=group,
                    index=index,
                    branch_id=one.number,
                    prompt_ids=prompt,
                    params=params,
                    max_new_tokens=min(params.max_new_tokens, max_model_len - len(main_ids) - len(prompt)),
                    detokenizer=Detokenizer(self.encoder.tokenizer, params.stop_texts),
                )
                if not group.in_step and self.is_long(group.length_of(sequence)):
                    group = sequence.group = group.long_sibling()
                group.branches.append(sequence)
                group.waiting.append(sequence)
        for group in groups.values():
            if group.in_step:
                self._check_lengths_in_step(group, prepared)
        prepared.groups = list(dict.fromkeys(other for group in groups.values() for other in group.siblings))
        return prepared

    def refused(self, request_id: int, given: Any, sampling: SamplingParams, error: RequestError) -> Prepared:
        """The same for a request that makes no sense as a whole: an error for each of its answers."""
        prepared = Prepared()
        for _ in range(num_answers(given, sampling) if isinstance(given, Request) else 1):
            prepared.refuse(request_id, prepared.next_index(), Problem("invalid", str(error)))
        return prepared

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
            if not isinstance(number, int) or isinstance(number, bool):
                raise RequestError(f"the branch_id of {name} is {number!r}; it must be a whole number.")
            asked.append(
                _Asked(
                    name=name,
                    branch=branch,
                    number=number,
                    adapter=request.adapter if branch.adapter is None else branch.adapter,
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

    def _check_lengths_in_step(self, group: RequestGroup, prepared: Prepared) -> None:
        """Branches that see each other have the frequencies of long texts all the time, or never."""
        if not any(self.is_long(group.length_of(branch) + branch.max_new_tokens) for branch in group.waiting):
            return
        if all(self.is_long(group.length_of(branch)) for branch in group.waiting):
            group.is_long = True
            return
        reason = (
            f"with visibility {group.visibility!r} a row may not grow past the length at which the model's rotary "
            "embedding changes (original_max_position_embeddings of its longrope): lower max_new_tokens, shorten main, "
            "or use 'isolated'"
        )
        for branch in group.waiting:
            prepared.refuse(
                group.request_id,
                branch.index,
                Problem("too_long", reason),
                prompt_tokens=len(branch.prompt_ids),
                main_tokens=len(group.main_ids),
            )
        group.branches.clear()
        group.waiting.clear()

    def _problem(
        self,
        one: _Asked,
        group: RequestGroup | None,
        main_ids: Sequence[int],
        prompt: list[int] | RequestError,
        max_model_len: int,
    ) -> Problem | None:
        if isinstance(prompt, RequestError):
            return Problem("invalid", str(prompt))

        if group is None:
            return Problem("invalid", str(self._unknown(one.adapter)))
        if one.params.n > 1 and group.in_step:
            return Problem(
                "invalid",
                f"n is {one.params.n}, and with visibility {group.visibility!r} the answers would read one another; "
                "use 'isolated', or a request for each",
            )
        if not prompt and not group.reads_main:
            return Problem("empty", "nothing to continue: main and the branch's prompt are both empty")
        if max_model_len - len(main_ids) - len(prompt) < 1:
            return Problem(
                "too_long",
                f"too long for the model: main has {len(main_ids)} tokens and the branch {len(prompt)}, the "
                f"model takes {max_model_len} with at least one new token; shorten main or the branch",
            )
        size = self.num_embeddings
        wrong = next((i for ids in (main_ids, prompt) for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            return Problem(
                "vocabulary",
                f"token id {wrong} is outside the model's vocabulary of {size}; use the model's own tokenizer",
            )
        if (biased := max(one.params.logit_bias, default=0)) >= size:
            return Problem(
                "vocabulary",
                f"logit_bias names token id {biased}, outside the model's vocabulary of {size}; leave it out",
            )
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
