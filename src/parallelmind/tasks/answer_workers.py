"""Answer questions over contexts: on the engine, where rows with one context share it, or through a backend."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from parallelmind.answering.backends.base import AnswerBackend, AnswerResult
from parallelmind.answering.context_rows import ContextRow, answer_row, parse_context_row, unreadable_row
from parallelmind.answering.prompts import Prompts
from parallelmind.answering.window import ContextWindow
from parallelmind.engine.request import LASTING_ERRORS, Branch, BranchResult, Request
from parallelmind.errors import ParallelMindError
from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.task import WorkerInfo, Write
from parallelmind.settings.sampling import SamplingParams
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.batch_worker import EngineLike, branch_counts, branch_seed

_LOGGER = logging.getLogger(__name__)
EMPTY_ANSWER = "EmptyAnswer"


def unreadable(line: JsonLine, reason: str, error_class: str, *, rank: int | None, final: bool) -> RecordResult:
    """The result of a row that never became a question."""
    return RecordResult.of([unreadable_row(line, reason, worker_rank=rank)], error_class=error_class, final=final)


def parse_rows(lines: Iterable[JsonLine], write: Write, rank: int) -> Iterator[tuple[JsonLine, ContextRow]]:
    """The rows that ask something; what is wrong with the others is written at once, with no call of a model."""
    for line in lines:
        try:
            row = parse_context_row(line)
        except ParallelMindError as error:
            write(line, unreadable(line, str(error), "DataError", rank=rank, final=True))
            continue
        if row.success:
            yield line, row
        else:
            failed = answer_row(row, error=row.error, inference_time=0.0, worker_rank=rank)
            write(line, RecordResult.of([failed], error_class="NoContext", final=True))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    line: JsonLine
    row: ContextRow
    context_cut: bool
    began: float


class EngineAnswers:
    """Rows with the same context, one after the other, become branches of one main.

    With 2D RoPE (`one_each`) a row stands alone under its main, so that its branch position, and with it its answer,
    does not depend on its neighbours; the main is then shared through the prefix cache.
    """

    def __init__(
        self,
        engine: EngineLike,
        window: ContextWindow,
        options: AnswerOptions,
        worker: WorkerInfo,
        *,
        one_each: bool,
        alive: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._window = window
        self._options = options
        self._rank = worker.rank
        self._most = 1 if one_each else options.batch_size
        self._alive = alive
        self._contexts = self._cut = 0

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        asked: dict[int, dict[int, _Asked]] = {}
        requests = self._requests(lines, asked, write)
        try:
            for event in self._engine.stream(requests, sampling=self._options.sampling()):
                self._alive()
                if event.result is not None:
                    # Let go of: memory must not grow with the file.
                    question = asked[event.request_index].pop(event.branch_index)
                    if not asked[event.request_index]:
                        del asked[event.request_index]
                    write(question.line, self._result(question, event.result))
        finally:
            requests.close()
            self._tell_cut()

    def close(self) -> None:
        _LOGGER.debug("%d tokens of contexts from the cache", self._engine.stats.cached_main_tokens)

    def _tell_cut(self) -> None:
        if self._cut:
            _LOGGER.warning(
                "worker %d: %d of %d contexts were too long and are cut to the model's window of %d tokens",
                self._rank, self._cut, self._contexts, self._window.tokens,
            )  # fmt: skip
        self._contexts = self._cut = 0

    def _requests(
        self, lines: Iterable[JsonLine], asked: dict[int, dict[int, _Asked]], write: Write
    ) -> Generator[Request, None, None]:
        number, main_ids = 0, None
        group: list[tuple[_Asked, Branch]] = []

        def request() -> Request:
            nonlocal number, group
            asked[number] = {place: question for place, (question, _) in enumerate(group)}
            branches = [branch for _, branch in group]
            number, group = number + 1, []
            return Request(main=main_ids or [], branches=branches, visibility="isolated")

        for line, row in parse_rows(lines, write, self._rank):
            try:
                sampling = self._sampling(line, row)
                prompt = self._window.fit(row, max_new_tokens=sampling.max_new_tokens)
            except Exception as error:  # a tokenizer or template may raise anything; one row must not stop the job
                self._fail(line, row, error, write)
                continue
            self._contexts += 1
            self._cut += prompt.cut
            if group and (prompt.main_ids != main_ids or len(group) >= self._most):
                yield request()
            main_ids = prompt.main_ids
            question = _Asked(line=line, row=row, context_cut=prompt.cut, began=time.perf_counter())
            group.append((question, Branch(prompt=prompt.prompt_ids, sampling=sampling)))
        if group:
            yield request()

    def _sampling(self, line: JsonLine, row: ContextRow) -> SamplingParams:
        from parallelmind.answering.openai_body import engine_sampling

        changed = engine_sampling(row.body) if row.body is not None else {}
        seed = branch_seed(self._options.engine_seed, line.key, 1)
        return self._options.sampling(**({"seed": seed} | changed))

    def _fail(self, line: JsonLine, row: ContextRow, error: Exception, write: Write) -> None:
        explained = isinstance(error, ParallelMindError)
        reason = str(error) if explained else f"{type(error).__name__}: {error}"
        failed = answer_row(row, error=reason, inference_time=0.0, worker_rank=self._rank)
        # What we can explain lies in the row, the template or the model, which are the same the next time.
        write(line, RecordResult.of([failed], error_class=type(error).__name__, final=explained))

    def _result(self, question: _Asked, result: BranchResult) -> RecordResult:
        seconds = time.perf_counter() - question.began
        counts = {"tokens_in": result.main_tokens + result.prompt_tokens, **branch_counts(result)}
        if result.finish_reason in ("error", "cancelled"):
            reason = result.error or f"the engine ended this answer: {result.finish_reason}"
            row = answer_row(question.row, error=reason, inference_time=seconds, worker_rank=self._rank)
            final = result.error_kind in LASTING_ERRORS
            return RecordResult.of([row], error_class="RequestError", seconds=seconds, final=final)
        empty = _empty(result.text, result.finish_reason)
        row = answer_row(
            question.row,
            answer=None if empty else result.text,
            error=empty,
            inference_time=seconds,
            worker_rank=self._rank,
            tokens_in=counts["tokens_in"],
            tokens_out=counts["tokens_out"],
            finish_reason=result.finish_reason,
            context_cut=question.context_cut,
        )
        # The same model, prompt and seed give the same the next time.
        return RecordResult.of(
            [row], final=empty is not None, error_class=EMPTY_ANSWER if empty else "", seconds=seconds, **counts
        )


class BackendAnswers:
    """Rows through an `AnswerBackend`: a server, or a user's own class."""

    def __init__(
        self, backend: AnswerBackend, prompts: Prompts, worker: WorkerInfo, *, alive: Callable[[], None]
    ) -> None:
        self._backend = backend
        self._prompts = prompts
        self._rank = worker.rank
        self._alive = alive

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        def done(pair: tuple[JsonLine, ContextRow], result: AnswerResult) -> None:
            self._alive()
            write(pair[0], self._result(pair[1], result))

        rows = parse_rows(lines, write, self._rank)
        self._backend.run(rows, lambda pair: self._prompts.prompt(pair[1]), done)

    def close(self) -> None:
        self._backend.close()

    def _result(self, row: ContextRow, result: AnswerResult) -> RecordResult:
        counts: dict[str, Any] = {"tokens_in": result.tokens_in, "tokens_out": result.tokens_out}
        empty = _empty(result.text, result.finish_reason) if result.text is not None else None
        stored = answer_row(
            row,
            answer=None if empty else result.text,
            error=empty or result.error,
            inference_time=result.seconds,
            worker_rank=self._rank,
            finish_reason=result.finish_reason,
            retries=result.retries or None,
            openai_response=result.body,
            **counts,
        )
        return RecordResult.of(
            [stored],
            error_class=EMPTY_ANSWER if empty else result.error_class or "",
            final=result.final,
            tokens_in=result.tokens_in or 0,
            tokens_out=result.tokens_out or 0,
            seconds=result.seconds,
            retries=result.retries,
        )


def _empty(text: str, finish_reason: str | None) -> str | None:
    """Why a text is no answer; None if it is one."""
    if text.strip():
        return None
    ended = f" (it ended by {finish_reason})" if finish_reason else ""
    return f"the answer is empty{ended}; try another model, template or --ignore_eos."
