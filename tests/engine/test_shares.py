"""Several clients of one engine: whoever asks for much does not keep the others waiting."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from parallelmind import Branch, Engine, Request, SamplingParams
from tests.server.serving import QUESTIONS, STORY, tiny_engine


def _request(share: str, branches: int, tokens: int, main: str = STORY) -> Request:
    sampling = SamplingParams(max_new_tokens=tokens, temperature=0, ignore_eos=True)
    return Request(main=main, branches=[Branch(prompt=QUESTIONS[0], sampling=sampling)] * branches, share=share)


def _finished_in(engine: Engine, steps: int = 10_000) -> list[int]:
    """The requests in the order in which they end."""
    left = {request_id: len(groups[0].branches) for request_id, groups in engine._groups.items()}
    order = []
    while engine.has_unfinished() and steps:
        steps -= 1
        for event in engine.step():
            if event.result is not None:
                left[event.request_index] -= 1
                if not left[event.request_index]:
                    order.append(event.request_index)
    return order


def test_one_branch_does_not_wait_for_all_branches_of_another_client() -> None:
    engine = tiny_engine(max_running_branches=4)
    many = engine.add_request(_request("many", 8, 100))
    for _ in range(5):
        engine.step()
    one = engine.add_request(_request("one", 1, 5))
    assert _finished_in(engine, steps=10) == [one]
    assert engine.stats.preemptions == 1, "nor for the end of one of them, which gives its place"
    assert _finished_in(engine) == [many]


@pytest.mark.parametrize("visibility", ["isolated", "columnar"])
def test_what_is_put_back_for_another_client_answers_the_same(visibility: Any) -> None:
    alone = tiny_engine().generate([_request("", 6, 40)])[0]
    engine = tiny_engine(max_running_branches=4)
    many = engine.add_request(_request("many", 6, 40))
    found: dict[int, list[int]] = {}
    for step in range(2000):
        if step % 10 == 5:
            other = _request(f"other {step % 3}", 2, 5)
            engine.add_request(dataclasses.replace(other, visibility=visibility))
        for event in engine.step():
            if event.result is not None and event.request_index == many:
                found[event.branch_index] = event.result.token_ids
        if len(found) == 6:
            break
    assert engine.stats.preemptions
    assert [found[index] for index in range(6)] == [branch.token_ids for branch in alone.branches]
    _finished_in(engine)
    assert engine.num_running_branches == engine.num_waiting_branches == 0


def test_one_client_with_many_short_requests_keeps_no_other_waiting() -> None:
    """Each ends at once, so that none of them ever holds a place that the other could count."""
    engine = tiny_engine(max_running_branches=2, prefix_cache_bytes=0)
    for number in range(100):
        engine.add_request(_request("many", 1, 1, f"{number}. {STORY}"))
    engine.step()
    one = engine.add_request(_request("one", 1, 1, f"Other. {STORY}"))
    assert _finished_in(engine).index(one) < 10


def test_two_clients_that_ask_for_much_get_as_much() -> None:
    engine = tiny_engine(max_running_branches=4)
    for share in ("a", "b"):
        for _ in range(20):
            engine.add_request(_request(share, 1, 10))
    order = _finished_in(engine)
    assert 7 <= sum(request_id < 20 for request_id in order[:20]) <= 13


def _largest_step(engine: Engine) -> int:
    """Tokens of prompts in the largest of the steps up to the end."""
    largest = 0
    while engine.has_unfinished():
        before = engine.stats.prompt_tokens
        engine.step()
        largest = max(largest, engine.stats.prompt_tokens - before)
    return largest


@pytest.mark.parametrize("place", ["main", "branches"])
def test_long_texts_of_one_client_do_not_make_the_steps_of_others_long(place: str) -> None:
    """A forward of 400 tokens would hold up whoever gets one token of it; alone, a client has them all at once."""
    ids = [5 + n % 300 for n in range(380)]
    sampling = SamplingParams(max_new_tokens=2, temperature=0)
    several = [Branch(prompt=[7 + number, *ids], sampling=sampling) for number in range(4)]
    long = Request(branches=several) if place == "branches" else Request(main=ids, branches=[[3]], sampling=sampling)
    expected = tiny_engine(max_batched_tokens=400).generate([long])[0]
    alone = tiny_engine(max_batched_tokens=400)
    alone.add_request(dataclasses.replace(long, share="long"))
    assert _largest_step(alone) > 350
    engine = tiny_engine(max_batched_tokens=400)
    engine.add_request(_request("short", 1, 40))
    engine.step()
    number = engine.add_request(dataclasses.replace(long, share="long"))
    found: dict[int, list[int]] = {}
    largest = 0
    while engine.has_unfinished():
        before = engine.stats.prompt_tokens
        for event in engine.step():
            if event.result is not None and event.request_index == number:
                found[event.branch_index] = event.result.token_ids
        largest = max(largest, engine.stats.prompt_tokens - before)
    assert largest <= 2 * 400 // 4
    assert [found[index] for index in sorted(found)] == [branch.token_ids for branch in expected.branches]


def test_without_shares_requests_end_in_the_order_they_came() -> None:
    engine = tiny_engine(max_running_branches=1)
    for tokens in (5, 1, 3):
        engine.add_request(_request("", 2, tokens))
    assert _finished_in(engine) == [0, 1, 2]
