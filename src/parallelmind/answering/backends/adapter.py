"""Runs a user's `QueryBasedInference` as an `AnswerBackend`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from parallelmind.answering.backends.base import (
    Answer,
    AnswerResult,
    InferenceSettings,
    Prompt,
    QueryBasedInference,
    try_prompt,
)
from parallelmind.answering.backends.threads import run_bounded
from parallelmind.errors import ParallelMindError, SettingsError
from parallelmind.io.records import shorten

_LOGGER = logging.getLogger(__name__)
_SHOWN = 500
T = TypeVar("T")


class UserBackend:
    """One instance of the user's class, made and set up on the first `run`.

    One question after the other in the calling thread, or with `concurrency` above 1 in so many threads.
    """

    def __init__(self, backend_class: type[QueryBasedInference], settings: InferenceSettings) -> None:
        self._class = backend_class
        self._settings = settings
        self._instance: QueryBasedInference | None = None

    def run(self, rows: Iterable[T], prompt_of: Callable[[T], Prompt], done: Callable[[T, AnswerResult], None]) -> None:
        """See `AnswerBackend.run`."""
        instance = self._instance or self._set_up()

        def call(prompt: Prompt | AnswerResult) -> AnswerResult:
            if isinstance(prompt, AnswerResult):
                return prompt
            started = time.monotonic()
            try:
                answer = instance.generate_answer(prompt.query, prompt.context, prompt.retrieval_method)
                return self._result(answer, time.monotonic() - started)
            except Exception as error:
                _LOGGER.debug("%s failed", self._class.__name__, exc_info=True)
                return AnswerResult(
                    error=shorten(str(error), _SHOWN) or type(error).__name__,
                    error_class=type(error).__name__,
                    seconds=time.monotonic() - started,
                )

        if instance.concurrency == 1:
            for row in rows:
                done(row, call(try_prompt(prompt_of, row)))
            return
        run_bounded(
            ((row, try_prompt(prompt_of, row)) for row in rows),
            lambda work: call(work[1]),
            lambda work, result: done(work[0], result),
            concurrency=instance.concurrency,
            stop=threading.Event(),
        )

    def close(self) -> None:
        """Call the user's `close`, if anything was set up."""
        if self._instance:
            instance, self._instance = self._instance, None
            instance.close()

    def _set_up(self) -> QueryBasedInference:
        name = self._class.__name__
        try:
            instance = self._class()
            instance.settings = self._settings
            instance.setup()
        except ParallelMindError:
            raise
        except Exception as error:
            raise SettingsError(f"the backend {name} cannot be set up: {type(error).__name__}: {error}") from error
        concurrency = instance.concurrency
        if not isinstance(concurrency, int) or concurrency < 1:
            raise SettingsError(f"{name}.concurrency is {concurrency!r}; it must be a whole number, at least 1.")
        self._instance = instance
        return instance

    def _result(self, answer: object, seconds: float) -> AnswerResult:
        given = answer.text if isinstance(answer, Answer) else answer
        if not isinstance(given, str):
            raise TypeError(
                f"{self._class.__name__}.generate_answer returned {type(given).__name__}; expected a text or an Answer"
            )
        try:
            given.encode()
        except UnicodeEncodeError:
            raise ValueError("the answer has half of a surrogate pair, which no file can hold") from None
        if not isinstance(answer, Answer):
            return AnswerResult(text=given, seconds=seconds)
        return AnswerResult(
            text=given,
            seconds=seconds,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
            finish_reason=answer.finish_reason,
        )
