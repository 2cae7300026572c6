"""A request and its branches while the engine runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import torch

from parallelmind.columnar import Visibility, sees_branches
from parallelmind.engine.adjustment import Adjustment, MainTokens, adjusts
from parallelmind.engine.detokenizer import Detokenizer
from parallelmind.engine.request import BranchResult, ErrorKind, Event, FinishReason, JoinedBranch, TokenLogprob
from parallelmind.engine.sampler import SamplerRow
from parallelmind.engine.texts import Place, Run
from parallelmind.settings.sampling import SamplingParams


class BranchSequence:
    """One branch: its prompt, what it generated, and how much of both is cached."""

    def __init__(
        self,
        *,
        group: RequestGroup,
        index: int,
        branch_id: int,
        prompt_ids: list[int],
        params: SamplingParams,
        max_new_tokens: int,
        detokenizer: Detokenizer,
        parent: BranchSequence | None = None,
        own_prompt_ids: Sequence[int] = (),
    ):
        self.group = group
        self.index = index
        self.branch_id = branch_id
        self.prompt_ids = prompt_ids
        self.params = params
        self.max_new_tokens = max_new_tokens
        """The number that the parameters ask for, or fewer where the model's length ends."""
        self.output_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.run: Run | None = None
        """Its tokens and their keys and values, while it runs."""
        self.finish_reason: FinishReason | None = None
        self.parent = parent
        """The branch that it was forked from."""
        self.has_own_prompt = bool(own_prompt_ids)
        """Whether it goes on with a prompt of its own, not with what follows its parent's last token."""
        self.prefix_ids: list[int] = [] if parent is None else [*parent.prefix_ids, *parent.output_ids, *own_prompt_ids]
        """Of a fork: the end of its prompt that is not of the prompt that the request gives."""
        self.text_ids: list[int] = [] if parent is None or own_prompt_ids else list(parent.text_ids)
        """Generated tokens whose text belongs together: those of the parent that it goes on from, and its own."""
        self.forks: list[BranchSequence] = []
        """Forks that start when its last token has been run."""
        self.num_forks = 0
        """All that it has had."""
        self._detokenizer = detokenizer
        self._generator: torch.Generator | None = None
        if not params.is_greedy:
            self._generator = torch.Generator()
            if params.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(params.seed)
        self._adjustment: Adjustment | None = None
        if adjusts(params):
            # A fork goes on with its parent's text: what that has generated counts as generated here, too.
            own_prompt = prompt_ids[: len(prompt_ids) - len(self.text_ids)]
            self._adjustment = Adjustment(
                params,
                main=lambda: group.main_tokens,
                context=lambda: [*group.seen_main_ids, *own_prompt],
                prompt_ids=own_prompt,
            )
            for token_id in self.text_ids:
                self._adjustment.append(token_id)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def starts_from_main(self) -> bool:
        """Whether the next token follows main's last one, no token of the branch itself being there yet."""
        return not self.prompt_ids and not self.output_ids

    @property
    def num_pending(self) -> int:
        """Tokens not yet run through the model, while it runs."""
        return 0 if self.run is None else self.run.num_pending

    @property
    def max_tokens(self) -> int:
        """Tokens that it may come to."""
        return len(self.prompt_ids) + self.max_new_tokens

    def sampler_row(self) -> SamplerRow:
        return SamplerRow(params=self.params, generator=self._generator, adjustment=self._adjustment)

    def append(self, token_id: int, eos_token_ids: frozenset[int]) -> str:
        """Take the sampled token; returns the text that became certain and sets the finish reason."""
        self.output_ids.append(token_id)
        self.text_ids.append(token_id)
        if self._adjustment is not None:
            self._adjustment.append(token_id)
        text = self._detokenizer.push(token_id)
        ends = token_id in eos_token_ids and not self.params.ignore_eos
        if self._detokenizer.stopped or ends or token_id in self.params.stop_tokens:
            self.finish_reason = "stop"
        elif len(self.output_ids) >= self.max_new_tokens:
            self.finish_reason = "length"
        return text

    def event(self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> Event:
        """What it gained."""
        return Event(
            request_index=self.group.request_id,
            branch_index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            request_id=self.group.request_id,
        )

    def last_event(
        self,
        text: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        error: tuple[ErrorKind, str] | None,
    ) -> Event:
        """What it gained last, with the result of the finished branch and the text not yet returned by `append`."""
        whole, rest = self._detokenizer.finish()
        result = BranchResult(
            text=whole,
            token_ids=list(self.output_ids),
            finish_reason=self.finish_reason,
            error=None if error is None else error[1],
            error_kind=None if error is None else error[0],
            prompt_tokens=len(self.prompt_ids),
            main_tokens=len(self.group.main_ids),
            cached_main_tokens=self.group.cached_main_tokens,
            logprobs=list(self.logprobs),
            parent=None if self.parent is None else self.parent.index,
            prefix_token_ids=list(self.prefix_ids),
        )
        last = self.event(text + rest, token_ids, logprobs)
        return dataclasses.replace(last, finish_reason=result.finish_reason, result=result)


class RequestGroup:
    """The branches of one request that share one main: those of one adapter, and long ones apart from others."""

    def __init__(
        self,
        *,
        request_id: int,
        main_ids: tuple[int, ...],
        reads_main: bool,
        visibility: Visibility,
        adapter: str,
        is_long: bool = False,
        joined: tuple[JoinedBranch, ...] = (),
        share: str = "",
    ):
        self.request_id = request_id
        self.share = share
        self.main_ids = main_ids
        self.reads_main = reads_main
        """False without a main, and where the visibility hides it from the branches."""
        self.visibility: Visibility = visibility
        self.adapter = adapter
        self.is_long = is_long
        """Whether its texts are long ones, see `parallelmind.models.rope_lengths`."""
        self.weights: int | None = None
        """The number of the weights that it runs with, from its start on."""
        self.joined = joined
        """Parts of main whose keys are turned ones."""
        self.siblings: list[RequestGroup] = [self]
        """All groups of the request."""
        self.branches: list[BranchSequence] = []
        self.waiting: list[BranchSequence] = []
        self.main: Run | None = None
        self.cached_main_tokens = 0

    @property
    def in_step(self) -> bool:
        """Where branches see each other, all of them start together and advance column by column."""
        return sees_branches(self.visibility)

    @cached_property
    def main_key(self) -> tuple[Place, tuple[int, ...], bool]:
        """What requests share that use one main at a time: where it stands, its tokens, and the logits behind."""
        return self.place(), self.main_ids, any(not branch.prompt_ids for branch in self.branches)

    def place(self, branch_position: int = 0, first_time: int = 0) -> Place:
        """Where a text of the group stands: one that begins as main does, or a branch behind it."""
        assert self.weights is not None, "it has started"
        joined = self.joined if (branch_position, first_time) == (0, 0) else ()
        return Place(self.adapter, branch_position, first_time, self.is_long, self.weights, joined)

    @property
    def seen_main_ids(self) -> tuple[int, ...]:
        """Main as far as the branches know of it."""
        return self.main_ids if self.reads_main else ()

    @cached_property
    def main_tokens(self) -> MainTokens:
        """For the penalties of all branches."""
        return MainTokens(self.seen_main_ids)

    @property
    def needs_main_logits(self) -> bool:
        """Whether a branch begins with what follows main's last token."""
        return self.main_key[2]

    @property
    def first_time(self) -> int:
        """Time of the first token of its branches."""
        return len(self.main_ids)

    def length_of(self, branch: BranchSequence) -> int:
        """The time that a branch's text has come to: main's tokens and its own."""
        # Where main is hidden, the branch still stands behind it in time.
        return len(self.main_ids) + len(branch.prompt_ids) + len(branch.output_ids)

    def long_sibling(self) -> RequestGroup:
        """The group of the same branches' long texts."""
        for group in self.siblings:
            if group.is_long and group.adapter == self.adapter:
                return group
        group = RequestGroup(
            request_id=self.request_id,
            main_ids=self.main_ids,
            reads_main=self.reads_main,
            visibility=self.visibility,
            adapter=self.adapter,
            is_long=True,
            joined=self.joined,
            share=self.share,
        )
        group.siblings = self.siblings
        self.siblings.append(group)
        return group

    @property
    def finished(self) -> bool:
        return not self.waiting and all(branch.finished for branch in self.branches)
