"""Joins: branches become part of the main that they continued, and their keys are turned to the place they have there.

A key is the rotation of what a layer made of a token, so that a key of a branch, turned to branch position 0 and the
time at which its token stands in the joined main, is what the model would have computed there if the token had seen
nothing but its branch. What the branches would have made of one another is missing; joining by recomputing has that.

A joined text is a function of its tokens and of what `JoinedBranch` says. Where the keys of a branch are gone, or its
last token was never run, they are computed in the branch's own place, and then turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from parallelmind.engine.forms import prompt_of
from parallelmind.engine.input_processor import InputProcessor
from parallelmind.engine.request import Branch, BranchResult, JoinedBranch, Prompt, Request, RequestResult
from parallelmind.engine.request_encoder import NamedPrompt, turns_of
from parallelmind.engine.texts import Place, Run
from parallelmind.engine.tree import PageTree
from parallelmind.errors import RequestError
from parallelmind.prompts.conversation import Message

if TYPE_CHECKING:
    from parallelmind.engine.scheduler import Schedule

JoinWay = Literal["recompute", "turned"]
JOIN_WAYS: tuple[JoinWay, ...] = get_args(JoinWay)


class Move(NamedTuple):
    """Keys and values that are copied from where a branch computed them to where they stand in a joined main."""

    sources: list[int]
    """Places, see `PageStore.write`."""
    targets: list[int]
    branch_id: int
    time: int
    """Of the first token, where it was computed."""
    new_time: int


@dataclass(eq=False)
class _Part:
    """The text in which a joined branch is computed, while a main waits for its keys."""

    joined: JoinedBranch
    run: Run | None = None
    """None: what it continues is not there yet."""
    offset: int = 0
    """Index of the branch's first token in the text."""


@dataclass(eq=False)
class _Parts:
    """What a text waits for, and the beginnings of the text that this continues, by their length."""

    waiting: list[_Part] = field(default_factory=list)
    bases: dict[int, Run] = field(default_factory=dict)


class Joins:
    """Brings turned keys into the texts that have joined branches.

    Args:
        position_of: the branch position of a branch id, with an adapter.
        move: copies keys and values, turning the keys, for an adapter.
    """

    def __init__(
        self,
        tree: PageTree,
        *,
        position_of: Callable[[str, int], int],
        move: Callable[[str, Sequence[Move]], None],
    ):
        self.num_turned = 0
        """Tokens so far whose keys were turned."""
        self._tree = tree
        self._position_of = position_of
        self._move = move
        self._parts: dict[Run, _Parts] = {}

    def open(self, place: Place, tokens: list[int], at_most: int | None) -> Run:
        """Hold a text. What is there of its joined branches is held too, until the text has it."""
        if not place.joined:
            return self._tree.open(None, place, tokens, at_most=at_most)
        parts = _Parts()
        # Before the text, which would take over the page in which its main ends, and what follows it there.
        for joined in place.joined:
            part = _Part(joined)
            parts.waiting.append(part)
            self._open_part(place, tokens, parts, part)
        # Where what a branch continues is gone, the text computes that first.
        self._drop(parts, [part for part in parts.waiting if part.run is None or part.run.num_cached < part.offset])
        text = self._tree.open(None, place, tokens, at_most=at_most)
        self._drop(parts, [part for part in parts.waiting if part.joined.end <= text.num_cached])
        if parts.waiting:
            self._parts[text] = parts
        return text

    def allowed(self, text: Run, plan: Schedule) -> int:
        """How many of a text's next tokens the model may run now; 0 while keys of joined branches are to come."""
        while True:
            coming = next((one for one in text.place.joined if one.end > text.num_cached), None)
            if coming is None:
                return text.num_pending
            if coming.start > text.num_cached:
                return coming.start - text.num_cached
            if not self._bring(text, coming, plan):
                return 0

    def close(self, text: Run) -> None:
        """The text is not in use any more, or there is no memory for what it waits for, which is computed later."""
        if text in self._parts:
            parts = self._parts.pop(text)
            self._drop(parts, parts.waiting)

    def give_way(self, text: Run, plan: Schedule) -> bool:
        """Close what a text waits for, to be opened again later, unless it is being computed; whether that was so."""
        if text not in self._parts:
            return False
        parts = self._parts[text]
        held = [*parts.bases.values(), *(part.run for part in parts.waiting if part.run is not None)]
        if any(plan.has(run) for run in held):
            return False
        self.close(text)
        return True

    def holds(self, text: Run) -> bool:
        """Whether memory is held for what a text waits for."""
        return text in self._parts

    def failed(self, runs: dict[Run, Exception]) -> dict[Run, Exception]:
        """These, and the texts that wait for one of them."""
        found = dict(runs)
        for text, parts in self._parts.items():
            for run in (*parts.bases.values(), *(part.run for part in parts.waiting)):
                if run in runs:
                    found[text] = runs[run]
        return found if len(found) == len(runs) else self.failed(found)

    def _bring(self, text: Run, coming: JoinedBranch, plan: Schedule) -> bool:
        """Compute what is missing of the joined branches that come next; False: the first of them is not there yet."""
        parts = self._parts.setdefault(text, _Parts())
        of = {part.joined: part for part in parts.waiting}
        there: list[_Part] = []
        end = coming.start
        for joined in text.place.joined:
            if joined.start < coming.start or joined.behind != coming.behind:
                continue
            if joined not in of:
                of[joined] = _Part(joined)
                parts.waiting.append(of[joined])
            if self._is_there(text, parts, of[joined], plan) and joined.start == end:
                there.append(of[joined])
                end = joined.end
        if not there:
            return False
        self._tree.store.settle()  # so that what is to be copied is there, and the pages that it goes to
        self._move(text.place.adapter, [self._move_of(text, part) for part in there])
        self.num_turned += end - coming.start
        self._tree.note_computed(text, end - text.num_cached)
        self._drop(parts, there)
        if not parts.waiting:
            del self._parts[text]
        return True

    def _is_there(self, text: Run, parts: _Parts, part: _Part, plan: Schedule) -> bool:
        """Whether all of a joined branch is computed; what is not goes into the plan as far as possible."""
        self._open_part(text.place, text.tokens, parts, part)
        if part.run is None:
            base = parts.bases[part.joined.behind]
            if not self._feed(base, plan):
                return False
            self._open_part(text.place, text.tokens, parts, part)
        return part.run is not None and self._feed(part.run, plan, part.joined.branch_id)

    def _open_part(self, place: Place, tokens: list[int], parts: _Parts, part: _Part) -> None:
        if part.run is not None:
            return
        joined = part.joined
        before, own = place.before(joined.behind), tokens[joined.start : joined.end]
        position = self._position_of(place.adapter, joined.branch_id)
        if position == 0:  # it went on as main
            part.run = self._tree.open(None, before, [*tokens[: joined.behind], *own], kept_from=joined.behind)
            part.offset = joined.behind
            return
        base = parts.bases.get(joined.behind)
        if base is None and joined.behind:
            base = parts.bases[joined.behind] = self._tree.open(None, before, tokens[: joined.behind])
        if base is None or base.complete:
            there = dataclasses.replace(place, branch_position=position, first_time=joined.behind, joined=())
            part.run = self._tree.open(base, there, own, kept_from=0)

    def _feed(self, run: Run, plan: Schedule, branch_id: int = 0) -> bool:
        """Whether all of a text is there; what is not goes into the plan as far as possible."""
        if run.complete:
            return True
        if plan.has(run) or not self._tree.reserve(run, len(run)) or not self._tree.advance(run):
            return False
        count = min(self.allowed(run, plan), plan.budget)
        if count > 0:
            plan.add_main(run, count, branch_id)
        return run.complete

    def _move_of(self, text: Run, part: _Part) -> Move:
        joined, run = part.joined, part.run
        assert run is not None
        sources, targets = (
            [one.pages[i // size].number * size + i % size for i in range(first, first + joined.end - joined.start)]
            for size in [self._tree.store.page_tokens]
            for one, first in ((run, part.offset), (text, joined.start))
        )
        return Move(sources, targets, joined.branch_id, joined.behind, joined.start)

    def _drop(self, parts: _Parts, done: Sequence[_Part]) -> None:
        """A text has these parts, or does without them."""
        parts.waiting = [part for part in parts.waiting if part not in done]
        for part in done:
            if part.run is not None:
                self._close(part.run)
        needed = {part.joined.behind for part in parts.waiting}
        for length in [length for length in parts.bases if length not in needed]:
            self._close(parts.bases.pop(length))

    def _close(self, run: Run) -> None:
        self.close(run)
        if run.logits is not None and not run.logits.isfinite().all():
            run.is_spoilt = True
        self._tree.close(run)


def joined_request(
    request: Request,
    result: RequestResult,
    branches: Sequence[Prompt | Branch],
    *,
    take: Sequence[int] | None,
    way: JoinWay,
    inputs: InputProcessor,
    position_of: Callable[[str, int], int],
    end_tokens: frozenset[int],
) -> Request:
    """See `Engine.join`.

    Raises:
        RequestError: there is no such way or result, or turned keys would not be those of the branches.
    """
    _check_arguments(request, result, take)
    asked = [b if isinstance(b, Branch) else Branch(prompt=b) for b in request.branches] or [Branch(branch_id=0)]
    if way not in JOIN_WAYS:
        raise RequestError(f"join is {way!r}; it must be one of {', '.join(JOIN_WAYS)}.")
    if way == "turned" and (visibility := inputs.visibility_of(request, request.adapter)) != "isolated":
        raise RequestError(
            f"branches of visibility {visibility!r} cannot be joined by turning their keys, which come from more or "
            'less than main and the branch alone; use join="recompute".'
        )
    numbers = [place if b.branch_id is None else b.branch_id for place, b in enumerate(asked, start=1)]
    num_roots = sum(answer.parent is None for answer in result.branches)
    if num_roots < len(asked) or num_roots % len(asked):
        raise RequestError(
            f"the request has {len(asked)} branches, and the result {num_roots}; with n, give all branches the same."
        )
    choices = num_roots // len(asked)
    asked = [branch for branch in asked for _ in range(choices)]
    numbers = [number for number in numbers for _ in range(choices)]
    chosen = range(len(result.branches)) if take is None else take
    if wrong := [index for index in chosen if not 0 <= index < len(result.branches)]:
        raise RequestError(f"take has {wrong[0]}, and the result has branches 0 to {len(result.branches) - 1}.")
    conversation = None if request.main is None else prompt_of(request.main, "main")
    if isinstance(conversation, tuple):
        if way == "turned":
            raise RequestError(
                "branches under a conversation cannot be joined by turning their keys, since the chat template writes "
                'their turns anew; use join="recompute".'
            )
        turns = list(conversation)
        for index in chosen:
            root = _root_of(result, index)
            turns += _turns(
                NamedPrompt(f"the prompt of branch {root}", asked[root].prompt, False), result, index, inputs
            )
        return dataclasses.replace(request, main=turns, branches=branches)
    main = list(inputs.main_ids(request.main))
    behind, joined = len(main), list(request.joined)
    for index in chosen:
        root, answer = _root_of(result, index), result.branches[index]
        start = len(main)
        main += inputs.prompt_ids(asked[root].prompt, has_main=bool(main))
        main += [*answer.prefix_token_ids, *_answer_ids(answer, inputs, end_tokens)]
        branch_id = numbers[root]
        # A branch that stands behind main as it did before is there without turning.
        if (start > behind or position_of(request.adapter, branch_id)) and len(main) > start:
            joined.append(JoinedBranch(start, len(main), behind, branch_id))
    if joined and joined[-1].end == len(main):  # what comes next follows from the last token, seen from its new place
        last = joined.pop()
        joined += [dataclasses.replace(last, end=last.end - 1)] if last.end - last.start > 1 else []
    found = tuple(joined) if way == "turned" else ()
    return dataclasses.replace(request, main=main, branches=branches, joined=found)


def _root_of(result: RequestResult, index: int) -> int:
    """The branch of the request that a fork comes from.

    Raises:
        RequestError: the branch has ended with an error.
    """
    answer = result.branches[index]
    if answer.finish_reason == "error":
        raise RequestError(
            f"branch {index} of the result has ended with an error ({answer.error}); leave it out with take."
        )
    while (parent := result.branches[index].parent) is not None:
        index = parent
    return index


def _turns(prompt: NamedPrompt, result: RequestResult, index: int, inputs: InputProcessor) -> list[Message]:
    """What a branch under a conversation has added to it."""
    answer = result.branches[index]
    before = inputs.tokenizer.decode(list(answer.prefix_token_ids), skip_special_tokens=True)
    return [*turns_of(prompt), {"role": "assistant", "content": before + answer.text}]


def _check_arguments(request: Any, result: Any, take: Any) -> None:
    if not isinstance(request, Request) or not isinstance(result, RequestResult):
        raise RequestError(
            "join takes the Request and its RequestResult (the item of `generate` in its place), "
            f"not {type(request).__name__} and {type(result).__name__}."
        )
    if take is not None and (
        not isinstance(take, Sequence) or not all(isinstance(one, int) and not isinstance(one, bool) for one in take)
    ):
        raise RequestError(f"take is {take!r}; it must be a list of indices of the result's branches.")


def check_joined(request: Request) -> None:
    """Raises RequestError unless what a request says of joined branches fits its main."""
    if not request.joined:
        return
    main: Any = request.main
    given: Any = request.joined
    end, is_right = 0, isinstance(main, Sequence) and not isinstance(main, str)
    is_right &= isinstance(given, tuple) and all(isinstance(one, JoinedBranch) for one in given)
    for one in request.joined if is_right else ():
        is_right &= one.branch_id >= 0 <= one.behind <= one.start
        is_right &= end <= one.start < one.end < len(main)
        end = one.end
    if not is_right:
        raise RequestError(
            "joined does not fit main: take both from Engine.join and change main at its end only, or set joined to ()."
        )


def _answer_ids(answer: BranchResult, inputs: InputProcessor, end_tokens: frozenset[int]) -> list[int]:
    tokens = [token for token in answer.token_ids if token not in end_tokens]
    if answer.finish_reason == "stop" and tokens == answer.token_ids:  # a stop text is among the tokens
        return inputs.prompt_ids(answer.text, has_main=True)
    return tokens
