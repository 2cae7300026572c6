"""A server under attack for a while, as a process: right answers for everybody else, and no memory that stays behind.

PARALLELMIND_SOAK_SECONDS sets how long; half an hour with the slow tests unless it is set. The figures are printed:
`pytest -m slow -s tests/server/test_hostile_soak.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from typing import Any

import psutil
import pytest

from tests.server.attacks import exchanged, head
from tests.server.test_process import Process, started
from tests.server.texts import ANSWERS, QUESTIONS, STORY

SHORT_SECONDS = 8.0
LONG_SECONDS = float(os.environ.get("PARALLELMIND_SOAK_SECONDS", "1800"))
ATTACKERS = 6
CLIENT = "127.0.0.2"
MIB = 2**20


async def _printed(module: str, *arguments: object) -> Any:
    """What a module of the tests prints as JSON."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"tests.server.{module}", *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(printed)


class _Clients:
    """Those that use the server as it is meant, from an address of their own, and look at what they get."""

    def __init__(self, port: int):
        self._port = port
        self.times: list[float] = []
        self.wrong: list[bytes] = []

    async def ask(self, rng: random.Random, end: float) -> None:
        while time.monotonic() < end:
            place = rng.randrange(3)
            body = {"main": STORY, "branches": [{"prompt": QUESTIONS[place]}] * 2, "temperature": 0}
            raw, begun = json.dumps(body).encode(), time.monotonic()
            answer = await exchanged(self._port, head("/v1/branches", len(raw), "Connection: close") + raw, CLIENT)
            self.times.append(time.monotonic() - begun)
            if answer.count(b'"text":"%b"' % ANSWERS[place].encode()) != 2:
                self.wrong.append(answer)
            await asyncio.sleep(0.1)


def _figures(times: list[float]) -> str:
    ordered = sorted(times)
    middle, late = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"{len(ordered)}, median {middle:.3f} s, 99% below {late:.3f} s, slowest {ordered[-1]:.3f} s"


async def _attacked(server: Process, seconds: float) -> None:
    port, process = server.port, psutil.Process(server.process.pid)
    clients, warm = _Clients(port), _Clients(port)
    await _printed("attacks", port, min(20.0, seconds / 3), ATTACKERS)  # what is loaded and kept once is there then
    await warm.ask(random.Random(0), time.monotonic() + 2)
    before = process.memory_info().rss
    end = time.monotonic() + seconds
    attacks, seen, *_ = await asyncio.gather(
        _printed("attacks", port, seconds, ATTACKERS),
        _printed("watcher", port, process.pid, seconds),
        *(clients.ask(random.Random(seed), end) for seed in range(2)),
    )
    await warm.ask(random.Random(0), time.monotonic() + 2)
    after = process.memory_info().rss
    print(
        f"\n{seconds:.0f} s of {ATTACKERS} attackers: {attacks['made']}\n/health: {_figures(seen['times'])}\n"
        f"answers to others: {_figures(clients.times)}; wrong: {len(clients.wrong)}\n"
        f"memory: {before / MIB:.0f} MiB before, {seen['peak'] / MIB:.0f} at most, {after / MIB:.0f} after"
    )
    assert attacks["wrong"] == seen["wrong"] == clients.wrong == warm.wrong == []
    assert max(seen["times"]) < 5
    assert seen["peak"] - before < 512 * MIB
    assert after - before < 256 * MIB


def soak(seconds: float) -> None:
    # Answered texts are kept for the next ones up to this limit, so that a leak cannot hide behind them.
    with started("--kv_cache_gb", "0.25", "--prefix_cache_gb", "0.02") as server:
        server.wait_for("ready: tiny")
        asyncio.run(_attacked(server, seconds))
        assert "Traceback" not in server.log, server.log
        assert server.process.poll() is None


def test_some_seconds_of_attacks() -> None:
    soak(SHORT_SECONDS)


@pytest.mark.slow
def test_half_an_hour_of_attacks() -> None:
    soak(LONG_SECONDS)
