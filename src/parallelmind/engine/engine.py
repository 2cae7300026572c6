"""The branch engine: requests in, text of all branches out, each main computed and stored once."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from parallelmind.columnar import VISIBILITIES, Visibility
from parallelmind.engine.forking import find_parent, make_forks
from parallelmind.engine.forms import requests_of
from parallelmind.engine.input_processor import InputProcessor, Prepared, checked_sampling, default_visibilities
from parallelmind.engine.joining import JoinWay, check_joined, joined_request
from parallelmind.engine.key_mover import KeyMover
from parallelmind.engine.loading import load_for_engine
from parallelmind.engine.memory import default_kv_cache_bytes
from parallelmind.engine.model_runner import ModelOutput, ModelRunner, end_token_ids
from parallelmind.engine.pages import PageStore
from parallelmind.engine.request import (
    BASE_MODEL,
    Branch,
    BranchResult,
    ErrorKind,
    Event,
    Prompt,
    Request,
    RequestResult,
    TokenLogprob,
)
from parallelmind.engine.sampler import NextToken, next_tokens
from parallelmind.engine.scheduler import Schedule, Scheduler
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.engine.step import KEY_STEP
from parallelmind.engine.tree import PageTree
from parallelmind.engine.uses import Mailbox, Uses
from parallelmind.errors import RequestError, SettingsError, UnsupportedModelError
from parallelmind.models.adapters import AdapterSet
from parallelmind.models.identity import AdapterPath
from parallelmind.models.weights_version import WeightsVersion
from parallelmind.settings.model import DEFAULT_STRIDE, ModelOptions
from parallelmind.settings.sampling import SamplingParams
from parallelmind.settings.setting import names

_LOGGER = logging.getLogger(__name__)
Requests: TypeAlias = "Prompt | Request | Iterable[Prompt | Request]"
"""What `generate` and `stream` take."""


class Engine:
    """Decodes all branches of many requests at once over one copy of each main's keys and values.

    `Engine.from_pretrained` loads a model for an engine alone. `Engine(model, tokenizer)` shares a model: between two
    calls `generate`, training and other engines see it as it was. Threads may share an engine: what they ask for runs
    in the same forwards, whichever of them drives these.

    Args:
        model: a Hugging Face causal language model, patched with 2D RoPE or not.
        tokenizer: its tokenizer.
        visibility: what a branch sees unless its request says otherwise, see `parallelmind.columnar.visibility`.
        branch_stride: branch position = branch id × stride; without 2D RoPE branches have no position.
        branch_range: the branch numbers 1 to R that the model was trained on; a number beyond takes the position of one
            of them. None: any number has a position of its own.
        max_running_branches: branches decoded at once; None: as many as memory holds.
        max_running_requests: requests decoded at once; None: no limit.
        max_batched_tokens: tokens of one forward; a longer main is prefilled in chunks while others decode.
        kv_cache_bytes: memory for keys and values; None: half of what is free now.
        prefix_cache_bytes: the part of it for texts that no request uses at present; None: half.
        page_tokens: keys and values are held in pages of so many tokens.
        adapters: adapters of the model that requests choose from, see `parallelmind.models.adapters`; without any,
            requests run on the model as it is.
        deterministic: whether a branch has the same token ids and log-probabilities, to the last bit, whatever runs
            beside it; None: where it can, see `deterministic` of the engine.
        isolate_failures: a forward that raises is repeated one request at a time, and those that fail alone end
            with an error, instead of the exception reaching the caller of `step` and ending everything.
    Raises:
        UnsupportedModelError: the model cannot decode branches over a shared main.
        SettingsError: a parameter is out of range, or `deterministic` asks for what this model or device cannot give.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        visibility: Visibility = "isolated",
        branch_stride: int = DEFAULT_STRIDE,
        branch_range: int | None = None,
        max_running_branches: int | None = 64,
        max_running_requests: int | None = None,
        max_batched_tokens: int = 2048,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        page_tokens: int = 64,
        adapters: AdapterSet | None = None,
        deterministic: bool | None = None,
        isolate_failures: bool = False,
    ):
        if visibility not in VISIBILITIES:
            raise SettingsError(f"--visibility is {visibility!r}; it must be one of {', '.join(VISIBILITIES)}.")
        if branch_stride < 0:
            raise SettingsError(f"--branch_stride is {branch_stride}; it must be 0 or more.")
        for name, value, least in (
            ("max_running_branches", max_running_branches, 1),
            ("max_running_requests", max_running_requests, 1),
            ("max_batched_tokens", max_batched_tokens, 1),
            ("kv_cache_bytes", kv_cache_bytes, 0),
            ("prefix_cache_bytes", prefix_cache_bytes, 0),
            ("page_tokens", page_tokens, 1),
            ("branch_range", branch_range, 1),
        ):
            if value is not None and value < least:
                raise SettingsError(f"{name} is {value}; it must be at least {least}.")
        if page_tokens % KEY_STEP:
            if deterministic:
                raise SettingsError(
                    f"--deterministic cannot be kept with page_tokens {page_tokens}; use a multiple of {KEY_STEP}."
                )
            deterministic = False
        self.tokenizer = tokenizer
        self.visibility: Visibility = visibility
        self.isolate_failures = isolate_failures
        self._runner = ModelRunner(
            model,
            branch_stride=branch_stride,
            branch_range=branch_range,
            adapters=adapters,
            deterministic=deterministic,
        )
        self.max_model_len = self._runner.max_model_len
        """Main, prompt and new tokens of one branch fit in this."""
        kv_bytes = default_kv_cache_bytes(self._runner.device) if kv_cache_bytes is None else kv_cache_bytes
        prefix_bytes = kv_bytes // 2 if prefix_cache_bytes is None else min(prefix_cache_bytes, kv_bytes)
        page_bytes = page_tokens * self._runner.bytes_per_token
        store = PageStore(page_tokens, kv_bytes // page_bytes)
        self._tree = PageTree(store, prefix_bytes // page_bytes, self._runner.reaches)
        self._mover = KeyMover(self._runner, self._tree.store)
        self._scheduler = Scheduler(
            self._tree,
            position_of=self._runner.branch_position,
            is_long=self._runner.rope_lengths.is_long,
            weights=WeightsVersion(model).current,
            move=self._mover,
            max_running_branches=max_running_branches,
            max_running_requests=max_running_requests,
            max_batched_tokens=min(max_batched_tokens, self._runner.exact_length or max_batched_tokens),
        )
        self.stats = self._scheduler.stats
        self._input = InputProcessor(
            tokenizer=tokenizer,
            num_embeddings=self._runner.num_embeddings,
            is_long=self._runner.rope_lengths.is_long,
            visibilities=default_visibilities(visibility, adapters),
            range_of=self._runner.range_of,
        )
        self._eos_token_ids = end_token_ids(model, tokenizer)
        self._groups: dict[int, list[RequestGroup]] = {}
        self._next_request_id = 0
        self._uses = Uses()

    @classmethod
    def from_pretrained(
        cls, base_model: str, *, lora_path: AdapterPath | Mapping[str, AdapterPath] | None = None, **settings: Any
    ) -> Engine:
        """Load a model, with its adapter or with several to choose from, for an engine of its own.

        Visibility and stride are those the adapter was trained with, unless a setting says otherwise. On a CPU the
        weights are packed for inference. Decisions that no setting asked for are logged.

        Args:
            base_model: hub name, local folder, or "tiny" for the bundled model.
            lora_path: a `.pth` file or PEFT folder; or several by the names that requests choose them by.
            settings: those of `parallelmind.settings.model.ModelOptions` (`dtype`, `device`, `load_in_4bit`,
                `patch_rope`, …), and parameters of `Engine` (`max_running_branches`, `kv_cache_bytes`, …).
        Raises:
            ParallelMindError: as `load_model_with_lora` and `Engine`.
            TypeError: a setting has a name that neither has.
        """
        loading = {name: value for name, value in settings.items() if name in names(ModelOptions)}
        limits = {name: value for name, value in settings.items() if name not in loading}
        inspect.signature(cls).bind(None, None, **limits)  # so that a misspelled name is an error before the long wait
        loaded = load_for_engine(base_model, lora_path, loading)
        return cls(
            loaded.model,
            loaded.tokenizer,
            visibility=loaded.settings.visibility,
            branch_stride=loaded.settings.branch_stride,
            branch_range=loaded.settings.branch_range,
            adapters=loaded.adapters,
            deterministic=loading.get("deterministic"),
            **limits,
        )

    def generate(self, requests: Requests, sampling: SamplingParams | None = None) -> list[RequestResult]:
        """Run all requests; results in their order, branches in the order of each request.

        A request is a `Request`, a text, token ids (a list, tuple, NumPy array or tensor of shape [S] or [1, S]) or a
        conversation (`{"role", "content"}` turns); one of these, or an iterable of them. The result is a list always.

        A request or branch that cannot run (too long, nothing to continue, of a wrong type) has finish_reason "error"
        and says why; the others run.

        Raises:
            RequestError: `sampling` is none, or an error in another use of the engine ended the requests.
        """
        answers: dict[int, dict[int, BranchResult]] = {}
        for event in self.stream(requests, sampling):
            if event.result is not None:
                answers.setdefault(event.request_index, {})[event.branch_index] = event.result
        return [
            RequestResult(branches=[found[place] for place in sorted(found)]) for _, found in sorted(answers.items())
        ]

    def stream(self, requests: Requests, sampling: SamplingParams | None = None) -> Iterator[Event]:
        """Yield the text of all branches as it is generated; the last event of a branch carries its result.

        Requests are taken from the iterable only as far as they can run, so it may be endless. Closing the iterator
        cancels what is still running. Another stream of the engine may run in between, also one inside the other, or
        in another thread.

        Raises:
            RequestError: as `generate`.
        """
        shared = checked_sampling(sampling, "sampling") or SamplingParams()
        source = enumerate(requests_of(requests))
        mailbox, exhausted = Mailbox(), False
        try:
            while not exhausted or mailbox:
                while not exhausted and self._wants_more():
                    entry = next(source, None)
                    if entry is None:
                        exhausted = True
                        break
                    self._take(mailbox, *entry, shared)
                yield from self._events_for(mailbox)
        finally:
            self._uses.leave(mailbox, self._cancel)

    def add_request(self, request: Any, sampling: SamplingParams | None = None) -> int:
        """Queue a request of any form; returns its id, which the events of `step` carry as request_index.

        Raises:
            RequestError: the request makes no sense as a whole.
        """
        shared = checked_sampling(sampling, "sampling") or SamplingParams()
        with self._uses.alone():
            request_id = self._new_id()
            self._queue(request_id, self._prepared(request_id, request, shared))
        return request_id

    @torch.inference_mode()
    def fork(
        self,
        request_id: int,
        branch_index: int,
        n: int | None = None,
        *,
        prompts: Sequence[Prompt] | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[int]:
        """Let n forks of a branch go on from where it stands, while it decodes; returns their branch indices.

        They share what the branch has computed, and are branches of the same request: their events carry these indices
        and their results come behind those of the others. A fork may be forked again. The branch itself goes on.

        Args:
            request_id: `Event.request_id`, or what `add_request` returned.
            n: None: as many as there are prompts or parameters, else one.
            prompts: a text or token ids for each fork, with which it continues; none: right behind the last token.
            sampling: parameters for each fork, taken as they are; or for all of them, or None for the branch's own
                with the new tokens that are left to it. A seed that several share becomes another one for each fork,
                the same in every run.
        Raises:
            RequestError: the branch is not running, its request has a visibility in which branches see one another, or
                the numbers contradict each other.
        """
        with self._uses.alone():
            groups = self._groups.get(request_id, ())
            parent = find_parent(groups, request_id, branch_index)
            forks, problems = make_forks(
                parent,
                first_index=sum(len(group.branches) for group in groups),
                n=n,
                prompts=prompts,
                sampling=sampling,
                inputs=self._input,
                max_model_len=self.max_model_len,
            )
            parent.group.branches += forks
            self._uses.expect_more(request_id, len(forks))
            wrong = [problem.branch for problem in problems]
            self._scheduler.add_forks(parent, [fork for fork in forks if fork not in wrong])
            self._uses.deliver([self._fail(*problem) for problem in problems])
            return [fork.index for fork in forks]

    def visibility_of(self, request: Request, adapter: str | None = None) -> Visibility:
        """What the branches of a request that use an adapter (the request's own) see.

        Raises:
            RequestError: no such adapter or visibility.
        """
        return self._input.visibility_of(request, request.adapter if adapter is None else adapter)

    def branch_stride_of(self, adapter: str = BASE_MODEL) -> int:
        """Branch position = branch id × this, for the branches that use an adapter."""
        return self._runner.stride_of(adapter)

    def branch_range_of(self, adapter: str = BASE_MODEL) -> int | None:
        """The branch numbers 1 to R that an adapter was trained on; None: unknown, or its branches have no position."""
        return self._runner.range_of(adapter)

    @property
    def deterministic(self) -> bool:
        """Whether a branch has the same bits whatever runs beside it: on a CPU, unless the model runs by its own
        attention (docs/models.md names these families) or the engine was told otherwise."""
        return self._runner.deterministic

    @property
    def patched(self) -> bool:
        """Whether the model has 2D RoPE, so that branches have a position of their own."""
        return self._runner.patched

    def has_unfinished(self) -> bool:
        return bool(self._groups) or self._uses.has_others()

    def cancel(self, request_id: int, branch_index: int | None = None) -> None:
        """End a request, or one of its branches; what was generated so far is its result. Unknown ids are ignored."""
        with self._uses.alone():
            self._cancel(request_id, branch_index)

    @torch.inference_mode()
    def _cancel(self, request_id: int, branch_index: int | None = None) -> None:
        for branch in [b for group in self._groups.get(request_id, ()) for b in group.branches]:
            if not branch.finished and branch_index in (None, branch.index):
                branch.finish_reason = "cancelled"
                self._uses.deliver([self._finish(branch, "")])

    def step(self) -> list[Event]:
        """Run one forward and sample; returns what the branches gained, but for those that a stream waits for.

        An exception ends everything that was queued, leaving the engine empty and usable.
        """
        with self._uses.alone():
            self._run_step()
            return self._uses.take_others()

    def join(
        self,
        request: Request,
        result: RequestResult,
        branches: Sequence[Prompt | Branch] = (),
        *,
        take: Sequence[int] | None = None,
        join: JoinWay = "recompute",
    ) -> Request:
        """A request whose main is the former one followed by its branches and their answers, in order.

        The keys and values of the former main are reused, if they are still held. With "recompute", the request is what
        it would be if the joined text were given as main. With "turned", the keys of the branches are turned to their
        new place instead of being computed again, so that each branch is to main what it was without the others.
        A conversation goes on by the turns of the branches and their answers.

        Args:
            take: indices of the results that are joined, in order; None: all. A fork is joined with what it continues.
            join: "recompute" or "turned".
        Raises:
            RequestError: there is no such result, or, with "turned", the branches saw more or less than main, or main
                is a conversation.
            UnsupportedModelError: keys of the model cannot be turned.
        """
        if join == "turned":
            with self._uses.alone():  # the first time it tries the model
                self._mover.turner()
        return joined_request(
            request,
            result,
            branches,
            take=take,
            way=join,
            inputs=self._input,
            position_of=self._runner.branch_position,
            end_tokens=self._eos_token_ids,
        )

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens whose keys and values are held at present for requests to come, and those of running ones."""
        return self._tree.num_tokens()

    @property
    def kv_cache_bytes(self) -> int:
        """Memory of keys and values held at present."""
        return self._tree.store.nbytes()

    @property
    def kv_cache_bytes_allotted(self) -> int:
        """Of this, what texts take, counting those that are still being computed as whole."""
        return self._tree.store.num_taken * self._tree.store.page_tokens * self._runner.bytes_per_token

    def reset_prefix_cache(self) -> None:
        """Drop all texts that no request uses."""
        with self._uses.alone():
            self._tree.trim(0)

    @property
    def num_running_branches(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting_branches(self) -> int:
        return self._scheduler.num_waiting_branches

    def _wants_more(self) -> bool:
        return self._scheduler.num_waiting_branches < (self._scheduler.max_running_branches or 64)

    def _new_id(self) -> int:
        self._next_request_id += 1
        return self._next_request_id - 1

    def _prepared(self, request_id: int, request: Any, sampling: SamplingParams) -> Prepared:
        if isinstance(request, Request) and request.joined:
            check_joined(request)
            try:
                self._mover.turner()
            except UnsupportedModelError as error:
                raise RequestError(f"the request's joined branches come from another model: {error}") from error
        return self._input.process(request_id, request, sampling, self.max_model_len)

    def _queue(self, request_id: int, prepared: Prepared) -> None:
        self._uses.deliver([self._fail(*problem) for problem in prepared.problems])
        if any(group.waiting for group in prepared.groups):
            self._groups[request_id] = prepared.groups
            for group in prepared.groups:
                self._scheduler.add(group)

    def _take(self, mailbox: Mailbox, index: int, request: Any, sampling: SamplingParams) -> None:
        """Queue a stream's request, or have errors stand for it."""
        with self._uses.alone():
            request_id = self._new_id()
            try:
                prepared = self._prepared(request_id, request, sampling)
            except RequestError as error:
                errors = self._input.refusals(request_id, request, sampling, error)
                self._uses.expect(mailbox, request_id, index, len(errors))
                self._uses.deliver(errors)
            else:
                self._uses.expect(mailbox, request_id, index, prepared.num_answers)
                self._queue(request_id, prepared)

    def _events_for(self, mailbox: Mailbox) -> list[Event]:
        """What there is for a stream; runs a step if that is nothing yet."""
        with self._uses.alone():
            if not (events := mailbox.take()):
                if not mailbox.unfinished.keys() <= self._groups.keys():
                    raise RequestError("an error in another use of the engine ended these requests; run them again.")
                self._run_step()
                events = mailbox.take()
        return events

    @torch.inference_mode()
    def _run_step(self) -> None:
        with self._uses.stepping(self._cancel):
            try:
                schedule = self._scheduler.schedule()
                if schedule is not None:
                    events = [self._fail(branch, "memory", reason) for branch, reason in schedule.rejected]
                    self._uses.deliver(events + self._execute(schedule))
            except BaseException:
                self._abort()
                raise

    def _execute(self, schedule: Schedule) -> list[Event]:
        store = self._tree.store
        try:
            output = self._runner.execute(store, schedule)
        except Exception:
            if not self.isolate_failures:
                raise
            _LOGGER.exception("a forward failed; repeating it one request at a time")
            output = self._runner.execute_apart(store, schedule)
        sampled, rows = list(output.branches), list(output.branches.values())
        for main, logits in output.mains.items():
            main.logits = logits
        for branch in self._scheduler.running:
            main_run = branch.group.main
            if main_run is None or main_run.logits is None or branch.finished or branch in output.branches:
                continue
            if branch.starts_from_main:
                sampled.append(branch)
                rows.append(main_run.logits)
        parents = [branch for branch in output.branches if branch.forks]
        for parent in parents:
            for fork in parent.forks:
                if not fork.has_own_prompt and not fork.finished:
                    sampled.insert(0, fork)  # before its parent, which may end and give up the pages that it takes over
                    rows.insert(0, output.branches[parent])
        tokens = next_tokens(torch.stack(rows), [branch.sampler_row() for branch in sampled]) if sampled else []
        self._commit(schedule, output)
        events = self._fail_culprits(output)
        for branch, token in zip(sampled, tokens, strict=True):
            if branch in parents:
                self._scheduler.start_forks(branch)
            if not branch.finished:
                events.append(self._fail(branch, *token.problem) if token.problem else self._advance(branch, token))
        return events

    def _commit(self, schedule: Schedule, output: ModelOutput) -> None:
        if schedule.spans:
            self.stats.forwards += 1
        for span in schedule.spans:
            branch, count = schedule.branches.get(span.run), len(span.token_ids)
            main = span.run if branch is None else branch.group.main
            if main in output.failed_mains or branch in output.failed:
                continue
            self._tree.note_computed(span.run, count)
            if branch is None or not branch.output_ids:
                self.stats.prompt_tokens += count

    def _fail_culprits(self, output: ModelOutput) -> list[Event]:
        if not output.failed and not output.failed_mains:
            return []
        culprits = dict(output.failed)
        failed_mains = self._scheduler.joins.failed(output.failed_mains)
        for groups in self._groups.values():
            for group in groups:
                if group.main is not None and group.main in failed_mains:
                    culprits |= dict.fromkeys(group.branches, failed_mains[group.main])
        return [self._fail(b, "engine", _broken(error)) for b, error in culprits.items() if not b.finished]

    def _advance(self, branch: BranchSequence, token: NextToken) -> Event:
        try:
            text = branch.append(token.token_id, self._eos_token_ids)
        except Exception as error:
            if not self.isolate_failures:
                raise
            _LOGGER.exception("a token could not be turned into text")
            return self._fail(branch, "engine", _broken(error))
        if branch.run is not None:
            self._tree.append(branch.run, token.token_id)
        self.stats.generated_tokens += 1
        found = () if token.logprob is None else (token.logprob,)
        branch.logprobs += found
        if branch.finished:
            return self._finish(branch, text, (token.token_id,), found)
        return branch.event(text, (token.token_id,), found)

    def _finish(
        self,
        branch: BranchSequence,
        text: str,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        error: tuple[ErrorKind, str] | None = None,
    ) -> Event:
        group = branch.group
        self._scheduler.release(branch, is_spoilt=error is not None and error[0] == "engine")
        if all(other.finished for other in self._groups.get(group.request_id, ())):
            self._groups.pop(group.request_id, None)
        return branch.last_event(text, token_ids, logprobs, error)

    def _fail(self, branch: BranchSequence, kind: ErrorKind, reason: str) -> Event:
        branch.finish_reason = "error"
        return self._finish(branch, "", error=(kind, reason))

    def _abort(self) -> None:
        for branch in [b for groups in self._groups.values() for group in groups for b in group.branches]:
            if not branch.finished:
                branch.finish_reason = "cancelled"
                self._scheduler.release(branch)
        self._groups.clear()
        self._uses.clear()


def _broken(error: Exception) -> str:
    return f"the model failed on this request ({type(error).__name__}); the log has the details"
