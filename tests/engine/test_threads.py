"""One engine, several threads and uses at a time: each gets its own answers."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from parallelmind import Engine, Request, SamplingParams
from parallelmind.errors import RequestError
from tests.broken_models import failing
from tests.engine.asking import GREEDY, MAIN, answer
from tests.families import char_tokenizer

THREADS = 4


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result(timeout=120) for future in [pool.submit(function) for function in functions]]


def request(place: int) -> list[Request]:
    return [Request(main=f"{MAIN} {place} {k}", branches=["a", "bc", "d" * (1 + place)]) for k in range(3)]


def tokens(results: Any) -> list[list[list[int]]]:
    return [[branch.token_ids for branch in result.branches] for result in results]


def test_threads_generate_with_one_engine(model: Any) -> None:
    engine = Engine(model, char_tokenizer(), max_running_branches=6, page_tokens=4)
    params = SamplingParams(max_new_tokens=20, temperature=1.0, seed=3, ignore_eos=True, repetition_penalty=1.1)
    expected = [tokens(engine.generate(request(place), params)) for place in range(THREADS)]
    for _ in range(3):
        calls = [lambda place=place: tokens(engine.generate(request(place), params)) for place in range(THREADS)]
        assert in_threads(*calls) == expected
    assert not engine.has_unfinished()


def test_what_threads_ask_for_shares_forwards(model: Any) -> None:
    """The second thread's request runs in the steps of the first one's, and is finished by them."""
    engine = Engine(model, char_tokenizer())
    first = engine.stream("first", GREEDY)
    next(first)
    before = engine.stats.forwards
    assert in_threads(lambda: answer(engine).token_ids) == [answer(engine).token_ids]
    list(first)
    assert engine.stats.forwards - before <= 2 * (GREEDY.max_new_tokens + 2)


def test_streams_of_threads_are_apart(engine: Engine) -> None:
    expected = {place: tokens(engine.generate(request(place), GREEDY)) for place in range(THREADS)}
    started = threading.Barrier(THREADS)

    def run(place: int) -> list[list[list[int]]]:
        found: dict[tuple[int, int], list[int]] = {}
        for count, event in enumerate(engine.stream(request(place), GREEDY)):
            if not count:
                started.wait(60)
            found.setdefault((event.request_index, event.branch_index), []).extend(event.token_ids)
            if place == 0 and count == 5:
                assert answer(engine).finish_reason == "length", "a stream inside a stream"
        return [[found[one, branch] for branch in range(3)] for one in range(3)]

    calls = [lambda place=place: run(place) for place in range(THREADS)]
    assert in_threads(*calls) == list(expected.values())


def test_a_thread_whose_requests_another_one_ended_is_told(engine: Engine, model: Any) -> None:
    started, failed = threading.Event(), threading.Event()

    def victim() -> None:
        stream = engine.stream(Request(main=MAIN, branches=["a", "b"]), GREEDY)
        next(stream)
        started.set()
        failed.wait(60)
        list(stream)

    def culprit() -> None:
        started.wait(60)
        with failing(model, RuntimeError("lost the device")):
            try:
                answer(engine)
            finally:
                failed.set()

    with ThreadPoolExecutor(2) as pool:
        told, raised = pool.submit(victim), pool.submit(culprit)
        with pytest.raises(RuntimeError, match="lost the device"):
            raised.result(60)
        with pytest.raises(RequestError, match="another use of the engine"):
            told.result(60)
    assert answer(engine).finish_reason == "length"


def test_closing_a_stream_in_one_thread_leaves_the_others(engine: Engine) -> None:
    expected = tokens(engine.generate(request(1), GREEDY))

    def closed() -> None:
        for _ in range(5):
            stream = engine.stream(request(0), GREEDY)
            next(stream)
            stream.close()

    assert in_threads(closed, lambda: tokens(engine.generate(request(1), GREEDY)))[1] == expected
    assert not engine.has_unfinished()


def test_step_returns_what_no_stream_waits_for(engine: Engine) -> None:
    expected = answer(engine).token_ids
    stream = engine.stream(Request(main=MAIN, branches=["abc"]), GREEDY)
    found = list(next(stream).token_ids)
    request_id = engine.add_request(Request(main=MAIN, branches=["abc"]), GREEDY)
    stepped: list[int] = []
    while engine.has_unfinished():
        for event in engine.step():
            assert event.request_index == request_id
            stepped += event.token_ids
    assert stepped == expected
    assert found + [token for event in stream for token in event.token_ids] == expected


def test_a_stream_that_is_forgotten_in_the_middle_of_a_step_ends(engine: Engine) -> None:
    """The garbage collector may close a stream anywhere, also where the engine is busy."""
    expected = answer(engine).token_ids
    held: list[Any] = [engine.stream(Request(main="forgotten", branches=["x", "y"]), GREEDY)]
    next(held[0])
    held.append(held)  # so that it takes the collector

    def collect(ids: Any, scores: Any) -> Any:
        nonlocal held
        held = []
        gc.collect()
        return scores

    assert answer(engine, logits_processor=collect).token_ids == expected
    assert not engine.has_unfinished()
    assert engine.num_running_branches == 0
