"""One client cannot take the service from the others: what is sent is refused while it comes, or waits beside it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from fastapi import applications

from parallelmind.prompts.encode import PromptIds
from parallelmind.server.body_shape import BodyShape
from parallelmind.server.lanes import Turns
from parallelmind.server.loading import load_served
from parallelmind.server.options import ServeOptions
from tests.server.serving import ANSWERS, QUESTIONS, STORY, Answer, Running, running, tiny_engine

MIB = 2**20
SLOW = 5.0
"""Seconds that nothing here may take on any machine; it took minutes before."""
ASK = {"prompt": STORY + QUESTIONS[0], "temperature": 0, "return_full_text": False}


def filled(before: bytes, item: bytes, after: bytes, size: int = 8 * MIB) -> bytes:
    """A body of nearly so many bytes, most of them equal elements of a list."""
    count = (size - len(before) - len(after)) // (len(item) + 1)
    return before + b",".join([item] * count) + after


def numbered(before: bytes, item: bytes, after: bytes, size: int = 8 * MIB) -> bytes:
    """The same with elements that differ."""
    count = (size - len(before) - len(after)) // (len(item % 0) + 8)
    return before + b",".join([item % number for number in range(count)]) + after


BRANCH = b'"branches":[{"prompt":"a"}]'
BODIES = {
    "floats as token ids": ("/v1/completions", filled(b'{"prompt":[', b"1.5", b"]}"), 400),
    "fewer floats": ("/v1/completions", filled(b'{"prompt":[', b"1.5", b"]}", MIB), 400),
    "too many token ids": ("/v1/completions", filled(b'{"prompt":[', b"5", b"]}"), 400),
    "lists of floats": ("/v1/completions", filled(b'{"prompt":[', b"[1.5]", b"]}", 2**16), 400),
    "empty branches": ("/v1/branches", filled(b'{"branches":[', b"{}", b"]}"), 400),
    "fewer empty branches": ("/v1/branches", filled(b'{"branches":[', b"{}", b"]}", 48_000), 400),
    "branches of a conversation": ("/v1/chat/completions", filled(b'{"branches":[', b"{}", b"]}", 48_000), 400),
    "branches of a grid": ("/v1/grid", filled(b'{"branches":[', b"{}", b"]}", 48_000), 400),
    "wrong messages": ("/v1/chat/completions", filled(b'{"messages":[', b"{}", b"]}", 48_000), 400),
    "wrong parts": (
        "/v1/chat/completions",
        filled(b'{"messages":[{"role":"user","content":[', b"1", b"]}]}", MIB // 2),
        400,
    ),
    "tools": (
        "/v1/chat/completions",
        filled(b'{"messages":[{"role":"user","content":"x"}],"tools":[', b"{}", b"]}"),
        400,
    ),
    "stop texts": ("/generate", filled(b'{"prompt":"x","stop":[', b'"a"', b"]}", MIB // 2), 400),
    "stop tokens": ("/generate", filled(b'{"prompt":"x","stop_token_ids":[', b"1", b"]}", MIB // 2), 400),
    "biases": ("/generate", numbered(b'{"prompt":"x","logit_bias":{', b'"%d":1', b"}}"), 400),
    "fewer biases": ("/generate", numbered(b'{"prompt":"x","logit_bias":{', b'"%d":1', b"}}", 2**18), 400),
    "unknown fields": ("/generate", numbered(b"{", b'"a%d":1', b"}", 2**18), 400),
    "unknown fields of a branch": ("/v1/branches", numbered(b'{"branches":[{', b'"a%d":1', b"}]}", 2**18), 400),
    "a long unknown field": ("/generate", b'{"' + b"a" * 4 * MIB + b'":1}', 400),
    "a long wrong value": ("/generate", b'{"prompt":"x","temperature":"' + b"a" * 4 * MIB + b'"}', 400),
    "a long model name": ("/v1/completions", b'{"prompt":"x","model":"' + b"a" * 4 * MIB + b'"}', 400),
    "depth": ("/v1/branches", b"[" * 4 * MIB, 400),
    "depth in an object": ("/v1/branches", b'{"a":' * MIB, 400),
    "a long number": ("/generate", b'{"prompt":"x","seed":' + b"1" * 4 * MIB + b"}", 400),
    "a long text": ("/generate", b'{"prompt":"' + b"The hat costs. " * (MIB // 2) + b'"}', 400),
    "a long main": ("/v1/branches", b'{"main":"' + b"a " * 3 * MIB + b'",' + BRANCH + b"}", 400),
    "a long branch": ("/v1/branches", b'{"main":"a","branches":[{"prompt":"' + b"a " * 3 * MIB + b'"}]}', 400),
    "a long message": (
        "/v1/chat/completions",
        b'{"messages":[{"role":"user","content":"' + b"a " * 3 * MIB + b'"}]}',
        400,
    ),
    "a long grid": ("/v1/grid", b'{"main":"' + b"a " * 3 * MIB + b'"}', 400),
    "escapes": ("/generate", b'{"prompt":"' + b"\\u0041" * MIB + b'"}', 400),
    "quotation marks": ("/generate", b'"' * 4 * MIB, 400),
    "open text": ("/generate", b'{"prompt":"' + b'\\"' * 3 * MIB, 400),
    "blanks": ("/generate", b" " * 7 * MIB, 400),
    "UTF-16": ("/v1/branches", ('{"branches":[' + "{}," * MIB).encode("utf-16-le"), 400),
}


class Watched:
    """How a server does while it is attacked: its slowest answer to /health, and the memory it took."""

    def __init__(self, server: Running):
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.slowest = 0.0
        self.grown = 0

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            begun = time.perf_counter()
            assert self._server.get("/health").status == 200
            self.slowest = max(self.slowest, time.perf_counter() - begun)
            self.grown = max(self.grown, self._process.memory_info().rss - self._before)


@pytest.fixture(scope="module")
def attacked() -> Iterator[Running]:
    with running(tiny_engine) as found:
        found.post("/generate", ASK)
        yield found


def sent(server: Running, path: str, body: bytes, **headers: str) -> Answer | None:
    """The answer, unless the server hung up before it took the whole body."""
    try:
        return server.post(path, body, **headers)
    except (BrokenPipeError, ConnectionResetError):
        return None


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_no_request_needs_is_refused_at_once(attacked: Running, name: str) -> None:
    path, body, status = BODIES[name]
    with Watched(attacked) as watched:
        begun = time.perf_counter()
        answer = sent(attacked, path, body)
        seconds = time.perf_counter() - begun
    if answer is not None:
        assert answer.status == status, answer.body[:500]
        assert len(answer.body) < 10_000
        assert answer.error["message"]
    assert seconds < SLOW
    assert watched.slowest < SLOW / 5
    # The body is here several times, since client and server are one process.
    assert watched.grown < 6 * len(body) + 100 * MIB
    attacked.wait_until(lambda: attacked.service.unfinished_branches == 0, "its place is free again")


def test_bodies_that_come_at_once_are_counted_one_after_the_other(
    attacked: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BodyShape.feed

    def slow(shape: BodyShape, piece: bytes) -> None:
        time.sleep(0.02)
        real(shape, piece)

    monkeypatch.setattr(BodyShape, "feed", slow)
    body = json.dumps({"prompt": ["a"] * 50_000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", attacked.port), timeout=60)) for _ in range(40)
        ]
        with Watched(attacked) as watched:
            for client in clients:
                client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            for client in clients:
                assert b" 400 " in client.recv(1000)
    assert watched.slowest < SLOW / 5


def test_a_compressed_body_is_refused_unread(attacked: Running) -> None:
    answer = attacked.post("/generate", b"\x1f\x8b" + b"\x00" * 1000, **{"Content-Encoding": "gzip"})
    assert (answer.status, answer.error["code"]) == (415, "compressed")


def test_a_request_for_more_log_probabilities_than_fit_is_refused(attacked: Running) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "n": 128, "logprobs": True, "top_logprobs": 20}
    answer = attacked.post("/v1/chat/completions", chat | {"max_tokens": 300})
    assert answer.status == 400
    assert answer.error["param"] == "logprobs"
    assert "806400 log-probabilities" in answer.error["message"]
    branches = {"branches": [{"prompt": "x", "max_tokens": 4000}] * 10} | chat | {"n": 1}
    assert attacked.post("/v1/chat/completions", branches).error["code"] == "too_many_logprobs"
    assert attacked.post("/v1/chat/completions", chat | {"max_tokens": 1}).status == 200


def test_a_large_answer_holds_up_nobody(attacked: Running) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "n": 64, "logprobs": True, "top_logprobs": 20}
    chat |= {"max_tokens": 60, "ignore_eos": True, "temperature": 0}
    with Watched(attacked) as watched:
        answer = attacked.post("/v1/chat/completions", chat)
    assert answer.status == 200
    assert int(answer.headers["content-length"]) == len(answer.body) > MIB
    choices = answer.json["choices"]
    assert [choice["index"] for choice in choices] == list(range(64))
    assert {len(choice["logprobs"]["content"]) for choice in choices} == {60}
    assert json.dumps(answer.json, ensure_ascii=False, separators=(",", ":")).encode() == answer.body
    assert watched.slowest < SLOW / 2


def test_prompts_are_repeated_in_answers_up_to_a_size() -> None:
    body = {"prompt": "é" * 700, "n": 100, "echo": True, "max_tokens": 1, "temperature": 0}
    with running(tiny_engine, max_request_bytes=65536) as server:
        refused = server.post("/v1/completions", body)
        assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "too_long_echo", "echo")
        assert "70000 characters" in refused.error["message"]
        beside, in_lane = [], server.service.in_lane
        server.service.in_lane = lambda http, size, work: beside.append(size) or in_lane(http, size, work)  # type: ignore[assignment, method-assign]
        answer = server.post("/v1/completions", body | {"n": 90})
    assert len(answer.json["choices"]) == 90
    assert all(choice["text"].startswith("é" * 700) for choice in answer.json["choices"])
    assert beside[-1] == 63000, "so long an answer is written beside the event loop"


@contextlib.contextmanager
def slow_tokenizer(server: Running) -> Iterator[tuple[list[int], threading.Event]]:
    """No bound is known, and long texts wait in the tokenizer; the lengths of those that came to it."""
    prompts, come, go_on = server.service.served.prompts, list[int](), threading.Event()
    real, bound = prompts.texts, prompts._bound

    def texts(main: str, *rest: Any, **named: Any) -> PromptIds:
        if len(main) > 100_000:
            come.append(len(main))
            assert go_on.wait(60)
            main = "x"
        return real(main, *rest, **named)

    prompts.texts, prompts._bound = texts, None  # type: ignore[method-assign]
    try:
        yield come, go_on
    finally:
        go_on.set()
        prompts.texts, prompts._bound = real, bound  # type: ignore[method-assign]


def test_texts_of_clients_that_are_gone_are_not_tokenized(attacked: Running) -> None:
    """Long texts, of a tokenizer of which no bound is known, wait beside the requests of others."""
    body = json.dumps({"main": "The hat. " * 300_000, "branches": [{"prompt": "x"}]}).encode()
    head = b"POST /v1/branches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    with slow_tokenizer(attacked) as (come, go_on):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", attacked.port)) as client:
                client.sendall(head + body)
                attacked.wait_until(lambda: attacked.service.unfinished_branches > 0, "the text has come")
                attacked.wait_until(lambda: bool(come), "the first is tokenized")
        with Watched(attacked) as watched:
            assert attacked.post("/generate", ASK).json == {"response": ANSWERS[0]}
        assert watched.slowest < SLOW
        attacked.wait_until(lambda: attacked.service.unfinished_branches == 0, "those that are gone have no place")
        go_on.set()
        answer = attacked.post("/v1/branches", body)
        assert answer.status == 200
        assert len(come) <= 3, "the last one, and at most two that were begun before their clients were gone"


def test_a_queue_full_of_one_clients_branches_is_open_to_another(attacked: Running) -> None:
    """The other one is on another address of this machine."""

    async def crowd() -> None:
        body = json.dumps({"main": STORY, "branches": [{"prompt": "a"}] * 64, "max_tokens": 1500, "ignore_eos": True})
        writers = []
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
            head = "POST /v1/branches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            writers.append(writer)
        full = attacked.service.options.max_unfinished_branches
        await asyncio.to_thread(
            attacked.wait_until, lambda: attacked.service.unfinished_branches >= full, "the queue is full"
        )
        assert (await asyncio.to_thread(attacked.post, "/generate", ASK)).status == 429
        reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port, local_addr=("127.0.0.2", 0))
        asked = json.dumps(ASK | {"max_new_tokens": 2})
        head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(asked)}\r\n\r\n{asked}".encode())
        answer = await asyncio.wait_for(reader.read(), 300)
        assert b" 200 OK" in answer
        assert attacked.service.unfinished_branches >= full - 64, "the others are not done yet"
        for writer in writers:
            writer.transport.abort()

    asyncio.run(crowd())
    attacked.wait_until(attacked.idle, "all is forgotten")


def test_a_request_of_many_objects_has_python_not_go_through_the_whole_process_for_garbage() -> None:
    gc.unfreeze()  # what conftest.py passes over, in order to be fast
    load_served(ServeOptions(base_model="tiny", dtype="float32", kv_cache_gb=0.1))
    assert len(gc.get_objects()) < gc.get_freeze_count() / 10


def test_the_description_of_the_api_is_made_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    real, go_on = applications.get_openapi, threading.Event()

    def slow(**settings: Any) -> Any:
        assert go_on.wait(20)
        return real(**settings)

    monkeypatch.setattr(applications, "get_openapi", slow)
    with running(tiny_engine) as server:
        found: list[Answer] = []
        threads = [
            threading.Thread(target=lambda path=path: found.append(server.get(path)))
            for path in ("/openapi.json", "/docs")
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert server.get("/health").status == 200
        assert not found, "it is not made yet"
        go_on.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status for answer in found] == [200, 200]


def test_clients_take_turns() -> None:
    turns, order = Turns(), list[str]()

    async def take(client: str) -> None:
        async with turns.turn(client):
            order.append(client)

    async def rounds() -> None:
        tasks = [asyncio.create_task(take(client)) for client in ("a", "a", "a", "a", "b")]
        tasks[1].cancel()
        while not all(task.done() for task in tasks):
            order.append("|")
            await asyncio.sleep(0)

    asyncio.run(rounds())
    assert "".join(order).replace("|", "") == "abaa"
    assert not any(one.isalpha() and other.isalpha() for one, other in itertools.pairwise(order))
