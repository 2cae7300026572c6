"""The branch engine: requests in, text of all branches out, each main computed and stored once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parallelmind.columnar import VISIBILITIES, Visibility
from parallelmind.data.encode import encode_branch, encode_main
from parallelmind.engine.detokenizer import Detokenizer
from parallelmind.engine.memory import default_kv_cache_bytes
from parallelmind.engine.model_runner import ModelRunner
from parallelmind.engine.request import (
    Branch,
    BranchResult,
    Event,
    Prompt,
    Request,
    RequestResult,
    SamplingParams,
)
from parallelmind.engine.sampler import sample
from parallelmind.engine.scheduler import Schedule, Scheduler
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.engine.stats import EngineStats
from parallelmind.errors import RequestError, SettingsError


class Engine:
    """Decodes all branches of many requests at once over one copy of each main's keys and values.

    One thread at a time may use an engine. The model stays usable in between: `generate`, training and other engines
    see it as it was.

    Args:
        model: a Hugging Face causal language model, patched with 2D RoPE or not.
        tokenizer: its tokenizer.
        visibility: what a branch sees, see `parallelmind.columnar.visibility`.
        branch_stride: branch position = branch id × stride; without 2D RoPE branches have no position.
        max_running_branches: branches decoded at once; None: as many as memory holds.
        max_running_requests: requests decoded at once; None: no limit.
        max_batched_tokens: tokens of one forward; a longer main is prefilled in chunks while others decode.
        kv_cache_bytes: memory for keys and values; None: half of what is free now.
        prefix_cache_bytes: the part of it for mains that no request uses at present; None: half.
    Raises:
        UnsupportedModelError: the model cannot decode branches over a shared main.
        SettingsError: a parameter is out of range.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        visibility: Visibility = "isolated",
        branch_stride: int = 128,
        max_running_branches: int | None = 64,
        max_running_requests: int | None = None,
        max_batched_tokens: int = 2048,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
    ):
        if visibility not in VISIBILITIES:
            raise SettingsError(f"--visibility is {visibility!r}; it must be one of {', '.join(VISIBILITIES)}.")
        if branch_stride < 0:
            raise SettingsError(f"--branch_stride is {branch_stride}; it must be 0 or more.")
        for name, value in (
            ("max_running_branches", max_running_branches),
            ("max_running_requests", max_running_requests),
            ("max_batched_tokens", max_batched_tokens),
        ):
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; it must be at least 1.")
        self.tokenizer = tokenizer
        self.visibility: Visibility = visibility
        self.stats = EngineStats()
        self._runner = ModelRunner(model, branch_stride=branch_stride)
        self.max_model_len = self._runner.max_model_len
        """Main, prompt and new tokens of one branch fit in this."""
        kv_bytes = default_kv_cache_bytes(self._runner.device) if kv_cache_bytes is None else kv_cache_bytes
        prefix_bytes = kv_bytes // 2 if prefix_cache_bytes is None else min(prefix_cache_bytes, kv_bytes)
        self._scheduler = Scheduler(
            stats=self.stats,
            visibility=visibility,
            max_running_branches=max_running_branches,
            max_running_requests=max_running_requests,
            max_batched_tokens=max_batched_tokens,
            max_cached_tokens=kv_bytes // self._runner.bytes_per_token,
            max_prefix_tokens=prefix_bytes // self._runner.bytes_per_token,
        )
        self._eos_token_ids = _eos_token_ids(model, tokenizer)
        self._groups: dict[int, RequestGroup] = {}
        self._next_request_id = 0
        self._outbox: list[Event] = []

    def generate(self, requests: Iterable[Request], sampling: SamplingParams | None = None) -> list[RequestResult]:
        """Run all requests; results in their order, branches in the order of each request.

        A branch that cannot run (too long, nothing to continue) has finish_reason "error" and says why; the others run.
        """
        results: list[RequestResult] = []
        answers: dict[tuple[int, int], BranchResult] = {}

        def counted() -> Iterator[Request]:
            for request in requests:
                results.append(RequestResult())
                yield request

        for event in self.stream(counted(), sampling):
            if event.result is not None:
                answers[event.request_index, event.branch_index] = event.result
        for (request_index, _), answer in sorted(answers.items()):
            results[request_index].branches.append(answer)
        return results

    def stream(self, requests: Iterable[Request], sampling: SamplingParams | None = None) -> Iterator[Event]:
        """Yield the text of all branches as it is generated; the last event of a branch carries its result.

        Requests are taken from the iterable only as far as they can run, so it may be endless. Closing the iterator
        cancels what is still running.
        """
        source = enumerate(requests)
        exhausted = False
        index_of: dict[int, int] = {}
        unfinished: dict[int, int] = {}
        try:
            while not exhausted or unfinished:
                while not exhausted and self._wants_more():
                    entry = next(source, None)
                    if entry is None:
                        exhausted = True
                        break
                    request_id = self.add_request(entry[1], sampling)
                    index_of[request_id] = entry[0]
                    unfinished[request_id] = max(1, len(entry[1].branches))
                for event in self.step():
                    request_id = event.request_index
                    if request_id not in index_of:
                        continue
                    index = index_of[request_id]
                    if event.finish_reason is not None:
                        unfinished[request_id] -= 1
                        if not unfinished[request_id]:
                            del unfinished[request_id], index_of[request_id]
                    yield replace(event, request_index=index)
        finally:
            for request_id in unfinished:
                self.cancel(request_id)
            self._outbox = [event for event in self._outbox if event.request_index not in unfinished]

    def add_request(self, request: Request, sampling: SamplingParams | None = None) -> int:
        """Queue a request; returns its id, which the events of `step` carry as request_index."""
        request_id = self._next_request_id
        self._next_request_id += 1
        group = self._make_group(request_id, request, sampling or SamplingParams())
        if group.waiting:
            self._groups[request_id] = group
            self._scheduler.add(group)
        return request_id

    def has_unfinished(self) -> bool:
        return bool(self._groups or self._outbox)

    @torch.inference_mode()
    def cancel(self, request_id: int, branch_index: int | None = None) -> None:
        """End a request, or one of its branches; what was generated so far is its result. Unknown ids are ignored."""
        group = self._groups.get(request_id)
        if group is None:
            return
        for branch in list(group.branches):
            if not branch.finished and branch_index in (None, branch.index):
                branch.finish_reason = "cancelled"
                self._outbox.append(self._finish(branch, "", ()))

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Run one forward and sample; returns what the branches gained.

        An exception ends everything that was queued, leaving the engine empty and usable.
        """
        try:
            schedule = self._scheduler.schedule()
            events, self._outbox = self._outbox, []
            if schedule is not None:
                for branch, reason in schedule.rejected:
                    events.append(self._fail(branch, reason))
                events += self._execute(schedule)
            return events
        except BaseException:
            self._abort()
            raise

    def join(self, request: Request, result: RequestResult, branches: Sequence[Prompt | Branch] = ()) -> Request:
        """A request whose main is the former one followed by its branches and their answers, in order.

        The keys and values of the former main are reused, if it is still in the prefix cache.
        """
        main = list(self._main_ids(request.main))
        for branch, answer in zip(request.branches or [""], result.branches, strict=True):
            prompt = branch.prompt if isinstance(branch, Branch) else branch
            main += self._prompt_ids(prompt, has_main=bool(main))
            main += [token for token in answer.token_ids if token not in self._eos_token_ids]
        return Request(main=main, branches=branches)

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens of mains held at present."""
        return self._scheduler.mains.num_tokens

    @property
    def kv_cache_bytes(self) -> int:
        """Memory of keys and values held at present, mains and running branches together."""
        return self._scheduler.mains.nbytes() + self._scheduler.slots.nbytes()

    def reset_prefix_cache(self) -> None:
        """Drop all mains that no request uses."""
        self._scheduler.mains.evict(0)

    def _wants_more(self) -> bool:
        return self._scheduler.num_waiting_branches < (self._scheduler.max_running_branches or 64)

    def _make_group(self, request_id: int, request: Request, sampling: SamplingParams) -> RequestGroup:
        branches = [b if isinstance(b, Branch) else Branch(prompt=b) for b in request.branches]
        numbers = [i if b.branch_id is None else b.branch_id for i, b in enumerate(branches, start=1)]
        if numbers != [0] and (len(set(numbers)) != len(numbers) or min(numbers, default=1) < 1):
            raise RequestError(f"branch_id must be 1 or more and different for each branch, got {numbers}.")
        main_ids = self._main_ids(request.main)
        if not branches:
            branches, numbers = [Branch()], [0]
        hidden = self.visibility == "strict" and numbers != [0]
        group = RequestGroup(
            request_id=request_id,
            main_ids=main_ids,
            reads_main=bool(main_ids) and not hidden,
            in_step=self.visibility == "columnar",
        )
        for index, (number, branch) in enumerate(zip(numbers, branches, strict=True)):
            params = branch.sampling or sampling
            prompt_ids = self._prompt_ids(branch.prompt, has_main=group.reads_main)
            room = self.max_model_len - len(main_ids) - len(prompt_ids)
            sequence = BranchSequence(
                group=group,
                index=index,
                branch_id=number,
                prompt_ids=prompt_ids,
                params=params,
                max_new_tokens=min(params.max_new_tokens, room),
                detokenizer=Detokenizer(self.tokenizer, params.stop_texts),
            )
            group.branches.append(sequence)
            problem = self._problem(group, prompt_ids, room)
            if problem is None:
                group.waiting.append(sequence)
            else:
                self._outbox.append(self._fail(sequence, problem))
        return group

    def _problem(self, group: RequestGroup, prompt_ids: Sequence[int], room: int) -> str | None:
        """Why a branch cannot run, or None."""
        if not prompt_ids and not group.reads_main:
            return "nothing to continue: main and the branch's prompt are both empty"
        if room < 1:
            return (
                f"too long for the model: main has {len(group.main_ids)} tokens and the branch {len(prompt_ids)}, the "
                f"model takes {self.max_model_len} with at least one new token; shorten main or the branch"
            )
        size = self._runner.num_embeddings
        wrong = [i for ids in (group.main_ids, prompt_ids) for i in ids if not 0 <= i < size]
        if wrong:
            return f"token id {wrong[0]} is outside the model's vocabulary of {size}; use the model's own tokenizer"
        return None

    def _main_ids(self, main: Prompt) -> tuple[int, ...]:
        return tuple(encode_main(self.tokenizer, main) if isinstance(main, str) else main)

    def _prompt_ids(self, prompt: Prompt, *, has_main: bool) -> list[int]:
        if isinstance(prompt, str):
            return encode_branch(self.tokenizer, prompt, has_main=has_main)
        return list(prompt)

    def _execute(self, schedule: Schedule) -> list[Event]:
        context = schedule.context
        finished_mains = [
            (span.main, end - 1)
            for span, (_, end) in zip(context.main_spans, context.main_ranges, strict=True)
            if span.past + len(span.token_ids) == len(span.main)
        ]
        sampled: list[BranchSequence] = []
        logits_at = [place for _, place in finished_mains]
        place = context.first_branch_token
        for branch, count in schedule.fed:
            place += count
            if count == len(branch.pending) and not branch.finished:
                sampled.append(branch)
                logits_at.append(place - 1)
        logits: Tensor | None = None
        if context.num_tokens:
            # A plan without anything to sample still needs one row: some models take an empty selection for "all".
            logits = self._runner.forward(context, torch.tensor(logits_at or [0]))
            self.stats.forwards += 1
        for span in context.main_spans:
            span.main.num_cached_tokens += len(span.token_ids)
            self.stats.prompt_tokens += len(span.token_ids)
        for branch, count in schedule.fed:
            branch.num_cached_tokens += count
            branch.pending = branch.pending[count:]
            if not branch.output_ids:
                self.stats.prompt_tokens += count
        rows = [] if logits is None else list(logits[len(finished_mains) : len(logits_at)])
        for index, (finished, _) in enumerate(finished_mains):
            assert logits is not None
            finished.last_logits = logits[index].clone()
        for branch in self._scheduler.running:
            main = branch.group.main
            if not branch.starts_from_main or branch.finished or main is None or branch in sampled:
                continue
            if main.last_logits is not None:
                sampled.append(branch)
                rows.append(main.last_logits)
        if not sampled:
            return []
        tokens = sample(torch.stack(rows), [branch.sampler_row() for branch in sampled])
        return [self._advance(branch, token) for branch, token in zip(sampled, tokens, strict=True)]

    def _advance(self, branch: BranchSequence, token: int) -> Event:
        text = branch.append(token, self._eos_token_ids)
        self.stats.generated_tokens += 1
        if branch.finished:
            return self._finish(branch, text, (token,))
        return Event(request_index=branch.group.request_id, branch_index=branch.index, text=text, token_ids=(token,))

    def _finish(self, branch: BranchSequence, text: str, token_ids: tuple[int, ...], error: str | None = None) -> Event:
        group = branch.group
        self._scheduler.release(branch)
        if group.finished:
            self._groups.pop(group.request_id, None)
        self.stats.finished_branches += 1
        result, rest = branch.result()
        result.error = error
        return Event(
            request_index=group.request_id,
            branch_index=branch.index,
            text=text + rest,
            token_ids=token_ids,
            finish_reason=result.finish_reason,
            result=result,
        )

    def _fail(self, branch: BranchSequence, reason: str) -> Event:
        branch.finish_reason = "error"
        return self._finish(branch, "", (), reason)

    def _abort(self) -> None:
        for group in list(self._groups.values()):
            for branch in group.branches:
                if not branch.finished:
                    branch.finish_reason = "cancelled"
                    self._scheduler.release(branch)
        self._groups.clear()
        self._outbox.clear()


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)
