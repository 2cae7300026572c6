"""Clients that try to take a server from the others, each in another way, from one address.

`python -m tests.server.attacks PORT SECONDS CLIENTS` attacks for a while, and prints what it did and what was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

from tests.server.texts import LONG, STORY

MIB = 2**20
ATTACKER = "127.0.0.1"
FLOATS = b'{"prompt":[' + b",".join([b"1.5"] * (2 * MIB - 10)) + b"]}"
EMPTY_BRANCHES = b'{"branches":[' + b",".join([b"{}"] * (2 * MIB)) + b"]}"
LONG_TEXT = b'{"branches":[{"prompt":"x"}],"main":"' + b"The hat costs 91 dollars. " * 300_000 + b'"}'
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def head(path: str, length: int | None, *more: str) -> bytes:
    """The head of a request with a JSON body, in chunks if no length is given."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", size, *more]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.asynccontextmanager
async def connected(port: int, address: str = ATTACKER) -> AsyncIterator[Streams]:
    """A connection, closed at the end of the block as by a client that is gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0), limit=2**24)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchanged(port: int, sent: bytes, address: str = ATTACKER) -> bytes:
    """What the server says until it closes the connection; what it said before it did so early may be lost."""
    async with connected(port, address) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            await writer.drain()
            return await reader.read()
    return b""


class Attacks:
    """The attacks on a port."""

    def __init__(self, port: int):
        self.port = port
        self.wrong: list[str] = []
        self.made: dict[str, int] = {}

    async def go_on(self, rng: random.Random, end: float) -> None:
        """Attack at random until a time of the event loop."""
        attacks = [
            self.floats, self.empty_branches, self.text_and_gone, self.log_probabilities, self.large_answer,
            self.idle, self.half_a_head, self.half_a_body, self.deaf, self.full_queue, self.crumbs, self.behind,
        ]  # fmt: skip
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            attack = rng.choice(attacks)
            # The server closes connections of one who has too many.
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout_at(end):
                    await attack()
            self.made[attack.__name__] = self.made.get(attack.__name__, 0) + 1

    async def floats(self) -> None:
        await self._refused("/v1/completions", FLOATS)

    async def empty_branches(self) -> None:
        await self._refused("/v1/branches", EMPTY_BRANCHES)

    async def log_probabilities(self) -> None:
        chat = {"messages": [{"role": "user", "content": "x"}], "n": 128, "logprobs": True, "top_logprobs": 20}
        await self._refused("/v1/chat/completions", json.dumps(chat | {"max_tokens": 300}).encode())

    async def text_and_gone(self) -> None:
        async with connected(self.port) as (_, writer):
            writer.write(head("/v1/branches", len(LONG_TEXT)) + LONG_TEXT)
            await writer.drain()

    async def large_answer(self) -> None:
        body: dict[str, Any] = {"prompt": STORY, "n": 32, "logprobs": 20, "max_tokens": 100, "ignore_eos": True}
        raw = json.dumps(body).encode()
        async with connected(self.port) as (reader, writer):
            writer.write(head("/v1/completions", len(raw), "Connection: close") + raw)
            await asyncio.wait([asyncio.create_task(reader.read())], timeout=30)

    async def idle(self) -> None:
        await self._hold(b"", 200, 3)

    async def half_a_head(self) -> None:
        await self._hold(b"GET /health HTTP/1.1\r\nHost: loc", 100, 3)

    async def half_a_body(self) -> None:
        await self._hold(head("/generate", 1000) + b'{"prompt": "', 50, 3)

    async def deaf(self) -> None:
        raw = json.dumps({"prompt": STORY, "n": 16, "logprobs": 20, "stream": True} | LONG).encode()
        await self._hold(head("/v1/completions", len(raw)) + raw, 1, 5)

    async def full_queue(self) -> None:
        raw = json.dumps({"main": STORY, "branches": [{"prompt": "a"}] * 64} | LONG).encode()
        await self._hold(head("/v1/branches", len(raw)) + raw, 6, 5)

    async def crumbs(self) -> None:
        answer = await exchanged(self.port, head("/generate", None) + b"1\r\n \r\n" * 50_000)
        self._expect(answer, b" 400 ", b" 429 ", b" 503 ")

    async def behind(self) -> None:
        one = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await exchanged(self.port, one * 200 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async def _refused(self, path: str, body: bytes) -> None:
        answer = await exchanged(self.port, head(path, len(body), "Connection: close") + body)
        self._expect(answer, b" 400 ", b" 429 ", b" 503 ")

    async def _hold(self, sent: bytes, count: int, seconds: float) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(count):
                _, writer = await stack.enter_async_context(connected(self.port))
                writer.write(sent)
            await asyncio.sleep(seconds)

    def _expect(self, answer: bytes, *status: bytes) -> None:
        if answer and not any(one in answer[:20] for one in status):
            self.wrong.append(f"{answer[:300]!r}, not {status}")


async def _main(port: int, seconds: float, clients: int) -> None:
    attacks = Attacks(port)
    end = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(*(attacks.go_on(random.Random(seed), end) for seed in range(clients)))
    print(json.dumps({"made": attacks.made, "wrong": attacks.wrong}))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
