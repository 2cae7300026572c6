"""Answer records with the engine: tokenise ahead, decode rows, collect the branches of each record.

Nothing here knows where records come from or where rows go, so that one worker or many can run it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from parallelmind.data.rows import RowLimits, split_rows
from parallelmind.engine.request import LASTING_ERRORS, Branch, BranchResult, Event, Request
from parallelmind.errors import DataError, RequestError
from parallelmind.io.jsonl import JsonLine
from parallelmind.io.records import Record, salvage_fields, shorten
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.task import WorkerInfo, Write
from parallelmind.prompts.encode import PromptIds
from parallelmind.prompts.length import LengthBound
from parallelmind.settings.sampling import SamplingParams
from parallelmind.tasks.batch_options import BatchOptions
from parallelmind.tasks.batch_records import Dialogue, read_record
from parallelmind.tasks.job_engine import PREFIX_CACHE_BYTES, spread_over

_LOGGER = logging.getLogger(__name__)
_ITEMS_PER_WORKER = 8
_BYTES_AHEAD = 32 * 2**20

Row = dict[str, Any]
"""One output row."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class StatsLike(Protocol):
    """What the engine has counted since it was made."""

    @property
    def generated_tokens(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_main_tokens(self) -> int: ...


class EngineLike(Protocol):
    """What is asked of the engine."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def stats(self) -> StatsLike: ...
    def stream(self, requests: Iterable[Request], sampling: SamplingParams) -> Iterator[Event]: ...


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An engine and the tokenisation that belongs to its model."""

    engine: EngineLike
    encode_main: Callable[[str], list[int]]
    encode_branch: Callable[[str, bool], list[int]]
    """(text, whether there is a main before it)."""
    encode_dialogue: Callable[[Dialogue], PromptIds] | None = None
    """Main and branches of a record with conversations."""
    bound: LengthBound | None = None
    """What is known of the number of tokens of a text before it is tokenized."""

    def cannot_fit(self, text: str) -> str:
        """Why a text cannot fit the model, if its length tells: tokenizing it might take minutes and gigabytes."""
        room = self.engine.max_model_len
        if self.bound is None or (least := self.bound.least_tokens(text)) < room:
            return ""
        return f"{len(text):,} characters, which are {least:,} tokens at least, and the model takes {room}"


@dataclass(kw_only=True)
class _Answers:
    """A record on its way: its output rows as far as they are known."""

    line: JsonLine
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Copied to every row."""
    inputs: tuple[str, ...] = ()
    first_branch_id: int = 1
    rows: list[Row | None] = field(default_factory=list)
    missing: int = 0
    """Branches without an output row."""
    main_ids: list[int] = field(default_factory=list)
    prompt_ids: list[list[int]] = field(default_factory=list)
    packed: list[list[int]] = field(default_factory=list)
    """For each row of the model, the branches in it."""
    error_class: str = ""
    """Kind of the first failure."""
    retryable: bool = False
    """A branch failed that may succeed when it is tried again."""
    counts: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.perf_counter)

    def expect(self, inputs: tuple[str, ...]) -> None:
        self.inputs, self.rows, self.missing = inputs, [None] * len(inputs), len(inputs)

    def fail(self, branch: int, error: str, error_class: str, *, retryable: bool = False) -> None:
        self.error_class = self.error_class or error_class
        self.retryable = self.retryable or retryable
        self._put(branch, {"input": self.inputs[branch], "output": None, "error": error})

    def take(self, branch: int, result: BranchResult) -> None:
        if result.finish_reason in ("error", "cancelled"):
            error = result.error or f"the engine ended this branch: {result.finish_reason}"
            self.fail(branch, error, "RequestError", retryable=result.error_kind not in LASTING_ERRORS)
            return
        self.counts.update(branch_counts(result))
        answer = {"input": self.inputs[branch], "output": result.text}
        ending = {"finish_reason": result.finish_reason, "output_tokens": len(result.token_ids)}
        self._put(branch, answer, ending)

    def fail_whole(self, text: str, error: str, error_class: str) -> None:
        self.error_class = error_class
        row = {"input": text, "output": None, "error": error, "line": self.line.number}
        self.rows, self.missing, self.packed = [{**row, **self.fields}], 0, []

    def result(self) -> RecordResult:
        assert not self.missing
        return RecordResult.of(
            [row for row in self.rows if row is not None],
            final=not self.retryable,
            error_class=self.error_class,
            tokens_in=len(self.main_ids) + sum(map(len, self.prompt_ids)),
            seconds=time.perf_counter() - self.started,
            **self.counts,
        )

    def _put(self, branch: int, answer: Row, ending: Row | None = None) -> None:
        assert self.rows[branch] is None
        place = {"line": self.line.number, "branch": branch}
        self.rows[branch] = {**answer, **place, **self.fields, **(ending or {})}
        self.missing -= 1


@dataclass(kw_only=True)
class _RunningRow:
    """A row the engine has; its branches by their place in the request."""

    answers: _Answers
    branches: list[int]
    unfinished: int


class BatchWorker:
    """Answers records; `run` may be called for any share of them."""

    def __init__(
        self,
        backend: Backend,
        *,
        sampling: SamplingParams,
        limits: RowLimits,
        seed: int = 0,
        num_workers: int = 1,
        as_messages: bool = False,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._backend = backend
        self._as_messages = as_messages
        self._sampling = sampling
        self._limits = limits
        self._seed = seed
        self._num_workers = num_workers
        self._on_step = on_step

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        """Answer `lines` and hand each record's result to `write` as soon as it is complete.

        Records are read only as far ahead as the engine and the reading threads need.
        """
        running: dict[int, _RunningRow] = {}
        requests = self._requests(lines, running, write)
        try:
            for event in self._backend.engine.stream(requests, sampling=self._sampling):
                self._on_step()
                if event.result is None:
                    continue
                row = running[event.request_index]
                row.answers.take(row.branches[event.branch_index], event.result)
                row.unfinished -= 1
                if not row.unfinished:
                    del running[event.request_index]
                if not row.answers.missing:
                    write(row.answers.line, row.answers.result())
        finally:
            requests.close()
        assert not running, "the engine ended before every branch had its result"

    def close(self) -> None:
        _LOGGER.debug("%d tokens of main from the cache", self._backend.engine.stats.cached_main_tokens)

    def _requests(
        self,
        lines: Iterable[JsonLine],
        running: dict[int, _RunningRow],
        write: Write,
    ) -> Generator[Request, None, None]:
        number = 0
        prepared = map_ahead(self._prepare, lines, workers=self._num_workers, size=lambda line: len(line.content))
        try:
            for answers in prepared:
                if not answers.missing:  # nothing the engine could do
                    write(answers.line, answers.result())
                    self._on_step()
                for branches in answers.packed:
                    running[number] = _RunningRow(answers=answers, branches=branches, unfinished=len(branches))
                    number += 1
                    yield self._request(answers, branches)
        finally:
            prepared.close()

    def _prepare(self, line: JsonLine) -> _Answers:
        answers = _Answers(line=line)
        try:
            record = read_record(line, as_messages=self._as_messages)
        except DataError as error:
            answers.fields = salvage_fields(line)
            answers.fail_whole(answers.fields["input"], str(error), "DataError")
            return answers
        answers.fields = record.fields
        main = record.main_text if isinstance(record, Dialogue) else record.main
        try:
            self._encode(answers, record)
        except RequestError as error:
            answers.fail_whole(main, f"line {line.number}: {error}", "RequestError")
        except Exception as error:  # tokenizers raise plain Exception; one text must not stop the job
            _LOGGER.debug("line %d cannot be tokenised", line.number, exc_info=True)
            reason = shorten(f"{type(error).__name__}: {error}", 200)
            message = f"line {line.number} cannot be tokenised ({reason})."
            answers.fail_whole(main, message, "TokenizerError")
        return answers

    def _encode(self, answers: _Answers, record: Record | Dialogue) -> None:
        if isinstance(record, Dialogue):
            self._encode_dialogue(answers, record)
            return
        where = f"line {answers.line.number}: main has"
        if reason := self._backend.cannot_fit(record.main):
            answers.fail_whole(record.main, f"{where} {reason}; shorten it.", "TooLong")
            return
        main_ids = self._backend.encode_main(record.main) if record.main else []
        room = self._backend.engine.max_model_len
        if len(main_ids) >= room:
            error = (
                f"{where} {len(main_ids)} tokens, and the model takes {room} with at least one new token; shorten it."
            )
            answers.fail_whole(record.main, error, "TooLong")
            return
        answers.main_ids = main_ids
        answers.expect(record.inputs)
        # A {"text"} record is one continuation of main itself: branch id 0.
        answers.first_branch_id = 1 if record.branches else 0
        prompts = record.branches or ("",)
        encode = self._backend.encode_branch
        too_long = [self._backend.cannot_fit(text) for text in prompts]
        answers.prompt_ids = [
            encode(text, bool(main_ids)) if text and not reason else []
            for text, reason in zip(prompts, too_long, strict=True)
        ]
        self._pack(answers, too_long)

    def _encode_dialogue(self, answers: _Answers, record: Dialogue) -> None:
        assert self._backend.encode_dialogue is not None
        answers.main_ids, answers.prompt_ids = self._backend.encode_dialogue(record)
        answers.expect(record.inputs)
        self._pack(answers, [""] * len(record.inputs))

    def _pack(self, answers: _Answers, too_long: list[str]) -> None:
        line, main, room = answers.line.number, len(answers.main_ids), self._backend.engine.max_model_len
        fitting = []
        for branch, prompt_ids in enumerate(answers.prompt_ids):
            prompt, limit = len(prompt_ids), self._limits.max_tokens
            lengths = f"line {line}, branch {branch}: main has {main} tokens and the prompt {prompt}"
            if too_long[branch]:
                message = f"line {line}, branch {branch}: the prompt has {too_long[branch]}; shorten it."
                answers.fail(branch, message, "TooLong")
            elif not main + prompt:
                answers.fail(branch, f"{lengths}; there is nothing to continue.", "Empty")
            elif main + prompt >= room:
                answers.fail(
                    branch,
                    f"{lengths}, and the model takes {room} with at least one new token; shorten them.",
                    "TooLong",
                )
            elif limit and main + prompt > limit:
                message = f"{lengths}, above --max_total_tokens {limit}; shorten them or raise it."
                answers.fail(branch, message, "TooLong")
            else:
                fitting.append(branch)
        rows = split_rows([len(answers.prompt_ids[branch]) for branch in fitting], self._limits, main_tokens=main)
        answers.packed = [[fitting[place] for place in row] for row in rows]

    def _request(self, answers: _Answers, branches: list[int]) -> Request:
        return Request(main=answers.main_ids, branches=[self._branch(answers, branch) for branch in branches])

    def _branch(self, answers: _Answers, branch: int) -> Branch:
        branch_id = branch + answers.first_branch_id
        seed = branch_seed(self._seed, answers.line.key, branch_id)
        sampling = self._sampling.with_seed(seed)
        return Branch(prompt=answers.prompt_ids[branch], branch_id=branch_id, sampling=sampling)


def load_backend(options: BatchOptions, worker: WorkerInfo | None = None) -> Backend:
    """Load the model with its adapter, and make the engine.

    Raises:
        ParallelMindError: the model or adapter cannot be loaded or does not fit the settings.
    """
    from parallelmind.columnar import sees_main
    from parallelmind.engine.engine import Engine
    from parallelmind.prompts.encode import encode_branch, encode_main
    from parallelmind.prompts.length import length_bound
    from parallelmind.prompts.prompt_encoder import PromptEncoder

    engine = Engine.from_pretrained(
        lora_path=options.lora_path,
        **spread_over(options, worker).loading(),
        max_running_branches=None if options.batch_by_samples else options.batch_size,
        max_running_requests=options.batch_size if options.batch_by_samples else None,
        prefix_cache_bytes=PREFIX_CACHE_BYTES,
        kv_cache_bytes=None if options.kv_cache_gb is None else int(options.kv_cache_gb * 2**30),
    )
    tokenizer, reads_main = engine.tokenizer, sees_main(engine.visibility)
    prompts = PromptEncoder(tokenizer, max_tokens=engine.max_model_len)
    return Backend(
        engine=engine,
        encode_main=lambda text: encode_main(tokenizer, text),
        encode_branch=lambda text, has_main: encode_branch(tokenizer, text, has_main=has_main and reads_main),
        encode_dialogue=lambda record: record.encode(prompts, engine.visibility),
        bound=length_bound(tokenizer),
    )


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, size: Callable[[Item], int]
) -> Generator[Result, None, None]:
    """Yield `function(item)` of each item in order, so that the next ones are ready while the current one is used.

    `workers` threads work ahead, on at most 8 items each, and 32 MiB of items by `size` in all (a single one
    may be larger). With 0 workers nothing is done before it is asked for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    source = iter(items)
    ahead: deque[tuple[Future[Result], int]] = deque()
    bytes_ahead = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    try:
        exhausted = False
        while True:
            while not exhausted and len(ahead) < workers * _ITEMS_PER_WORKER and bytes_ahead < _BYTES_AHEAD:
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                else:
                    ahead.append((pool.submit(function, item), size(item)))
                    bytes_ahead += ahead[-1][1]
            if not ahead:
                return
            future, item_size = ahead.popleft()
            result = future.result()
            bytes_ahead -= item_size
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def branch_counts(result: BranchResult) -> dict[str, int]:
    """What an answered branch adds to the counts of its record (`jobs/results.py`), besides what was read."""
    return {"tokens_out": len(result.token_ids)}


def lost_record(line: JsonLine, reason: str, error_class: str) -> RecordResult:
    """The result of a record that no worker survived."""
    row = {**salvage_fields(line), "output": None, "error": reason, "line": line.number}
    return RecordResult.of([row], error_class=error_class)


def branch_seed(seed: int, record: bytes, branch_id: int) -> int:
    """The seed of one branch, from 0 to 2^63 - 1: the same however records are batched, split, moved or resumed.

    Args:
        record: its key in the job (`JsonLine.key`).
    """
    digest = hashlib.blake2b(f"{seed} {record.hex()} {branch_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
