"""A server under mixed use for a while: right answers to the end, and no memory that stays behind.

PARALLELMIND_SOAK_SECONDS sets how long; half an hour with the slow tests unless it is set.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import time
from functools import partial
from typing import Any

import psutil
import pytest

from tests.server.serving import ANSWERS, LONG, QUESTIONS, STORY, Running, running, stream, tiny_engine

SHORT_SECONDS = 12.0
LONG_SECONDS = float(os.environ.get("PARALLELMIND_SOAK_SECONDS", "1800"))
CLIENTS = 12
MIB = 2**20


class Soak:
    """Clients that do random things until the time is over."""

    def __init__(self, server: Running, seconds: float):
        self.server = server
        self.end = time.monotonic() + seconds
        self.done: dict[str, int] = {}
        self.wrong: list[Any] = []

    async def run(self) -> None:
        await asyncio.gather(*(self._client(random.Random(seed)) for seed in range(CLIENTS)))

    async def _client(self, rng: random.Random) -> None:
        kinds = [self._ask, self._ask, self._stream, self._leave, self._bad, self._mixed]
        while time.monotonic() < self.end:
            kind = rng.choice(kinds)
            await kind(rng)
            self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1

    async def _post(self, path: str, body: Any) -> tuple[int, Any]:
        async with stream(self.server.port, path, body, Connection="close") as reader:
            head, _, raw = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(raw)

    def _main(self, rng: random.Random) -> str:
        return f"Day {rng.randrange(40)}. {STORY}"

    async def _ask(self, rng: random.Random) -> None:
        place = rng.randrange(3)
        body = {"main": STORY, "branches": [{"prompt": QUESTIONS[place]}] * rng.randrange(1, 5), "temperature": 0}
        status, answer = await self._post("/v1/branches", body)
        if status != 200 or {branch["text"] for branch in answer["branches"]} != {ANSWERS[place]}:
            self.wrong.append((status, answer))

    async def _stream(self, rng: random.Random) -> None:
        body: dict[str, Any] = {"prompt": self._main(rng), "n": rng.randrange(1, 4), "stream": True, "seed": 1}
        body |= {"max_tokens": rng.randrange(1, 30), "logprobs": rng.choice([None, 3])}
        async with stream(self.server.port, "/v1/completions", body) as reader:
            raw = await reader.readuntil(b"[DONE]")
        if raw.count(b'"finish_reason":"stop"') + raw.count(b'"finish_reason":"length"') != body["n"]:
            self.wrong.append(raw)

    async def _leave(self, rng: random.Random) -> None:
        body: dict[str, Any] = {"main": self._main(rng), "branches": [{"prompt": "x"}] * 3}
        async with stream(self.server.port, "/v1/branches", body | {"stream": rng.random() < 0.7} | LONG) as reader:
            if rng.random() < 0.7:
                await asyncio.wait([asyncio.create_task(reader.read(rng.randrange(1, 3000)))], timeout=0.2)

    async def _bad(self, rng: random.Random) -> None:
        body = rng.choice(
            [{}, {"prompt": 1}, {"prompt": "x", "top_p": 9}, {"prompt": ["x"] * 200}, {"prompt": "x" * 9000}]
        )
        status, answer = await self._post("/v1/completions", body)
        if status != 400 or not answer["error"]["message"]:
            self.wrong.append((status, answer))

    async def _mixed(self, rng: random.Random) -> None:
        body = {
            "main": self._main(rng),
            "branches": [{"prompt": question, "seed": rng.randrange(9)} for question in QUESTIONS],
            "visibility": rng.choice(["isolated", "columnar", "strict"]),
            "max_tokens": rng.randrange(1, 20),
        }
        status, answer = await self._post("/v1/branches", body)
        if status != 200 or any(branch["error"] for branch in answer["branches"]):
            self.wrong.append((status, answer))


def soak(seconds: float) -> None:
    process = psutil.Process()
    # Answered texts are kept for the next ones up to this limit, so that a leak cannot hide behind them.
    engine = partial(tiny_engine, prefix_cache_bytes=16 * MIB)
    with running(engine, max_queue=1000) as server:
        warm = Soak(server, seconds / 3)
        asyncio.run(warm.run())
        server.wait_until(server.idle, "the first part has ended")
        kv_bytes = server.kv_bytes_without_prefixes()
        gc.collect()
        before = process.memory_info().rss
        whole = Soak(server, seconds * 2 / 3)
        asyncio.run(whole.run())
        server.wait_until(server.idle, "all requests have ended")
        assert server.kv_bytes_without_prefixes() == kv_bytes == 0
        gc.collect()
        grown = process.memory_info().rss - before
    assert warm.wrong + whole.wrong == []
    assert set(whole.done) == {"_ask", "_stream", "_leave", "_bad", "_mixed"}
    assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB more after {whole.done}"


def test_some_seconds_of_mixed_use() -> None:
    soak(SHORT_SECONDS)


@pytest.mark.slow
def test_half_an_hour_of_mixed_use() -> None:
    soak(LONG_SECONDS)
