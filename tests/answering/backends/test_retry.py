"""Which failures are tried again, when, and for how long."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.answering.backends.limits import RateLimits, estimate_tokens
from parallelmind.answering.backends.retry import (
    AttemptError,
    GaveUpError,
    Pause,
    Retrying,
    RetryPolicy,
    retry_after_seconds,
)
from parallelmind.errors import SettingsError
from tests.answering.backends.clocks import FakeClock

BUSY = AttemptError(kind="http_500", message="busy", retry=True)
BAD = AttemptError(kind="http_400", message="bad")


class Run:
    """One row whose attempts fail as listed, then succeed."""

    def __init__(self, *failures: AttemptError, **policy: float) -> None:
        self.clock = FakeClock()
        self.pause = Pause(self.clock, random.Random(0))
        self.failures = list(failures)
        self.attempts: list[float] = []
        self.retrying = Retrying(RetryPolicy(**policy), self.pause, self.clock, random.Random(0))  # type: ignore[arg-type]

    def attempt(self) -> str:
        self.attempts.append(self.clock.now() - 1000.0)
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    def __call__(self) -> tuple[str, int]:
        tried = self.retrying(self.attempt, ready=lambda: None, sleep=self.clock.sleep)
        return tried.result, tried.retries


def test_a_success_needs_one_attempt() -> None:
    run = Run()
    assert run() == ("done", 0)
    assert run.clock.slept == []


def test_failures_are_tried_again_after_growing_random_waits() -> None:
    run = Run(*[BUSY] * 7, base_delay=0.5, max_delay=4.0)
    assert run() == ("done", 7)
    ceilings = [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    assert all(0 <= slept <= most for slept, most in zip(run.clock.slept, ceilings, strict=True))
    assert len(set(run.clock.slept)) == 7


def test_what_cannot_succeed_is_not_tried_again() -> None:
    run = Run(BAD)
    with pytest.raises(GaveUpError, match=r"^bad$") as caught:
        run()
    assert (caught.value.retries, len(run.attempts)) == (0, 1)


def test_attempts_end() -> None:
    run = Run(*[BUSY] * 10, max_attempts=3)
    with pytest.raises(GaveUpError, match=r"busy \(given up after 3 attempts\)") as caught:
        run()
    assert (caught.value.retries, len(run.attempts)) == (2, 3)


def test_time_ends() -> None:
    slow = AttemptError(kind="http_503", message="busy", retry=True, retry_after=40.0)
    run = Run(*[slow] * 10, max_retry_seconds=100)
    with pytest.raises(GaveUpError):
        run()
    assert run.attempts == [0.0, 40.0, 80.0]


def test_too_many_requests_do_not_count_as_attempts_and_pause_everyone() -> None:
    refused = AttemptError(kind="http_429", message="slow down", retry=True, pause=True, retry_after=5.0)
    run = Run(*[refused] * 6, max_attempts=2)
    assert run() == ("done", 6)
    assert all(after - before >= 5.0 for before, after in zip(run.attempts, run.attempts[1:], strict=False))


def test_too_many_requests_end_with_the_time() -> None:
    refused = AttemptError(kind="http_429", message="slow down", retry=True, pause=True, retry_after=5.0)
    run = Run(*[refused] * 100, max_retry_seconds=60)
    with pytest.raises(GaveUpError) as caught:
        run()
    assert not caught.value.failure.fatal
    assert run.attempts[-1] <= 60


def test_a_wait_longer_than_the_limit_stops_the_job() -> None:
    tomorrow = AttemptError(kind="http_429", message="quota used up", retry=True, pause=True, retry_after=86_400.0)
    with pytest.raises(GaveUpError, match=r"quota used up .*asks to wait 86400 s.*start the same command") as caught:
        Run(tomorrow)()
    assert caught.value.failure.fatal


def test_a_pause_holds_others_and_only_grows() -> None:
    clock = FakeClock()
    pause = Pause(clock, random.Random(0))
    pause.hold(10.0)
    pause.hold(3.0)
    pause.wait(clock.sleep)
    assert 1010.0 <= clock.now() <= 1011.0
    pause.wait(clock.sleep)
    assert len(clock.slept) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": formatdate(1_700_000_042, usegmt=True)}, 42.0),
        ({"retry-after": formatdate(1_600_000_000, usegmt=True)}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, 1_700_000_000.0) == seconds


@settings(max_examples=60)
@given(
    rpm=st.sampled_from([1.0, 30.0, 600.0]),
    idle=st.lists(st.floats(0, 90), min_size=1, max_size=60),
)
def test_no_minute_has_more_requests_than_allowed(rpm: float, idle: list[float]) -> None:
    clock = FakeClock()
    limits = RateLimits(rpm=rpm, tpm=None, clock=clock)
    starts = []
    for seconds in idle:
        clock.sleep(seconds)
        for _ in range(3):
            limits.acquire(0, clock.sleep)
            starts.append(clock.now())
    for first, start in enumerate(starts):
        within = sum(start <= other < start + 60 - 1e-6 for other in starts[first:])
        assert within <= rpm + 1


def test_tokens_are_spread_and_corrected_by_what_was_used() -> None:
    clock = FakeClock()
    limits = RateLimits(rpm=None, tpm=6000, clock=clock)  # 100 a second
    limits.acquire(1000, clock.sleep)
    limits.acquire(1000, clock.sleep)
    assert clock.slept == [10.0]
    limits.settle(1000, 200)  # 800 too many were taken: 8 of the next 10 seconds
    limits.acquire(1000, clock.sleep)
    assert clock.slept == [10.0, 2.0]
    limits.settle(1000, 3000)
    limits.acquire(1, clock.sleep)
    assert clock.slept == [10.0, 2.0, 30.0]


def test_idle_time_is_not_saved_up() -> None:
    clock = FakeClock()
    limits = RateLimits(rpm=60, tpm=None, clock=clock)
    limits.acquire(0, clock.sleep)
    clock.sleep(1000)
    limits.acquire(0, clock.sleep)
    limits.acquire(0, clock.sleep)
    assert clock.slept == [1000, 1.0]


def test_token_estimate() -> None:
    assert estimate_tokens(400, 512) == 612


@pytest.mark.parametrize(
    ("limits", "flag"), [({"rpm": 0, "tpm": None}, "--rpm is 0"), ({"rpm": 1, "tpm": -1}, "--tpm")]
)
def test_bad_limits(limits: dict[str, float], flag: str) -> None:
    with pytest.raises(SettingsError, match=flag):
        RateLimits(**limits, clock=FakeClock())


def test_bad_policies() -> None:
    with pytest.raises(SettingsError, match="--max_attempts is 0"):
        RetryPolicy(max_attempts=0)
    with pytest.raises(SettingsError, match="--max_retry_seconds is nan"):
        RetryPolicy(max_retry_seconds=float("nan"))
