"""Questions to a backend of the OpenAI protocol, and their results."""

from __future__ import annotations

import random
import threading
from typing import Any

from parallelmind.answering.backends.base import AnswerResult, Prompt
from parallelmind.answering.backends.openai_compatible import HttpSettings, OpenAICompatibleBackend
from parallelmind.io.endpoint import Endpoint
from tests.answering.backends.clocks import FakeClock
from tests.fake_openai import KEY, FakeOpenAI


def prompt_of(question: str) -> Prompt:
    return Prompt(query=question, messages=({"role": "user", "content": question},))


def answer(
    server: FakeOpenAI | str, questions: list[str], *, clock: FakeClock | None = None, **changes: Any
) -> dict[str, AnswerResult]:
    """The result of each question; every question has one."""
    results: dict[str, AnswerResult] = {}
    caller = threading.current_thread()

    def done(question: str, result: AnswerResult) -> None:
        assert question not in results
        assert threading.current_thread() is caller
        results[question] = result

    backend = make_backend(server, clock=clock, **changes)
    try:
        backend.run(questions, prompt_of, done)
    finally:
        backend.close()
    assert sorted(results) == sorted(questions)
    return results


def make_backend(
    server: FakeOpenAI | str, *, clock: FakeClock | None = None, max_response_bytes: int = 2**20, **changes: Any
) -> OpenAICompatibleBackend:
    url = server if isinstance(server, str) else server.base_url
    return OpenAICompatibleBackend(
        Endpoint(url, "TEST_KEY", KEY),
        HttpSettings(**{"model": "fake", "concurrency": 4, "timeout": 60.0} | changes),
        clock=clock or FakeClock(),
        rng=random.Random(0),
        max_response_bytes=max_response_bytes,
    )
