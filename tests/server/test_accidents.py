"""Accidents: clients that go, models and steps that break, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

from parallelmind import Engine, load_model_with_lora
from tests.broken_models import changed_logits, failing
from tests.server.serving import ANSWERS, LONG, QUESTIONS, STORY, Running, running, stream, tiny_engine

ASK = {"main": STORY, "branches": [{"prompt": QUESTIONS[0]}], "temperature": 0}


def tiny_model() -> tuple[Any, Any]:
    model, tokenizer, _ = load_model_with_lora("tiny", device="cpu", dtype="float32")
    return model, tokenizer


def test_a_client_that_is_gone_costs_nothing(server: Running) -> None:
    before, generated = server.kv_bytes_without_prefixes(), server.engine.stats.generated_tokens

    async def leave(body: dict[str, Any], read_until: bytes | None) -> None:
        async with stream(server.port, "/v1/branches", body) as reader:
            if read_until is not None:
                await reader.readuntil(read_until)
            else:
                await asyncio.to_thread(server.wait_until, lambda: server.service.load.running_branches == 3, "it runs")

    body = {"main": STORY, "branches": [{"prompt": q} for q in QUESTIONS]} | LONG
    asyncio.run(leave(body | {"stream": True}, b'"token"'))
    server.wait_until(server.idle, "a stream whose reader left has ended")
    asyncio.run(leave(body, None))
    server.wait_until(server.idle, "a request whose client left has ended")
    assert server.kv_bytes_without_prefixes() == before
    assert server.engine.stats.generated_tokens - generated < 2 * 3 * 1900


def test_two_hundred_clients_that_come_and_go(server: Running) -> None:
    """Each checks what it gets; half of them leave at a random moment. Nothing is left behind."""
    before = server.kv_bytes_without_prefixes()
    rng = random.Random(0)
    plans = [(rng.randrange(3), rng.choice([None, rng.randrange(1, 2000)])) for _ in range(200)]
    complete = 0

    async def one(question: int, leave_after: int | None) -> None:
        nonlocal complete
        body: dict[str, Any] = {"main": STORY, "branches": [{"prompt": QUESTIONS[question]}] * 2, "stream": True}
        body |= {"temperature": 0, "max_tokens": 4} if leave_after is None else LONG
        async with stream(server.port, "/v1/branches", body) as reader:
            if leave_after is not None:
                await reader.read(leave_after)
                return
            raw = await reader.readuntil(b"[DONE]")
        if b"429 Too Many Requests" in raw:
            return
        lines = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]
        texts = ["".join(e["text"] for e in lines if e["type"] == "token" and e["index"] == i) for i in (0, 1)]
        assert texts == [ANSWERS[question]] * 2
        complete += 1

    async def crowd() -> None:
        await asyncio.gather(*(one(*plan) for plan in plans))

    server.service.admission.places += 1000
    try:
        asyncio.run(crowd())
    finally:
        server.service.admission.places -= 1000
    assert complete == sum(leave is None for _, leave in plans)
    server.wait_until(server.idle, "all requests have ended")
    assert server.kv_bytes_without_prefixes() == before


def test_a_client_that_does_not_read_is_dropped() -> None:
    """Its branches are cancelled long before they are done, so that its unread text is bounded; others go on."""
    with running(tiny_engine, send_buffer=4096) as server:
        body = {"prompt": STORY, "n": 8, "logprobs": 20, "stream": True} | LONG
        raw = json.dumps(body).encode()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            deaf.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
            server.wait_until(lambda: server.engine.stats.generated_tokens > 0, "it has begun")
            assert server.post("/v1/branches", ASK).json["branches"][0]["text"] == ANSWERS[0]
            server.wait_until(lambda: server.service.unfinished_branches == 0, "the branches are cancelled")
            assert server.engine.stats.generated_tokens < 8 * 200
        server.wait_until(server.idle, "the request is forgotten")
        assert 'cancelled_requests_total{reason="overflow"} 1.0' in server.get("/metrics").body.decode()


def test_a_request_that_breaks_the_model_takes_no_other_with_it() -> None:
    model, tokenizer = tiny_model()
    [poison] = tokenizer("Ω", add_special_tokens=False)["input_ids"][:1]
    broken = failing(model, RuntimeError("device-side assert"), token=poison)
    with running(Engine(model, tokenizer)) as server, broken:

        async def crowd() -> list[Any]:
            bad, good = {"prompt": "Ω", "max_new_tokens": 5}, {"prompt": STORY + QUESTIONS[0], "temperature": 0}
            good |= {"return_full_text": False}
            tasks = [asyncio.to_thread(server.post, "/generate", bad if n % 4 == 0 else good) for n in range(16)]
            return await asyncio.gather(*tasks)

        for number, answer in enumerate(asyncio.run(crowd())):
            if number % 4 == 0:
                assert answer.status == 500
                assert answer.error["code"] == "engine_error"
                assert "device-side" not in answer.error["message"]
            else:
                assert answer.json == {"response": ANSWERS[0]}
        server.wait_until(server.idle, "all is forgotten")
        text = server.get("/metrics").body.decode()
        assert 'parallelmind_branch_errors_total{kind="engine"} 4.0' in text


def test_a_step_that_breaks_is_survived() -> None:
    """Here behind the forward, where nothing tells which request it is due to."""
    model, tokenizer = tiny_model()
    with running(Engine(model, tokenizer)) as server:
        with changed_logits(model, lambda tokens, logits: logits[:, :0]):
            answer = server.post("/generate", {"prompt": "x"})
            assert answer.status == 500
        assert server.post("/v1/branches", ASK).json["branches"][0]["text"] == ANSWERS[0]
        server.wait_until(server.idle, "nothing is left")


def test_while_the_model_loads_and_after_it_failed() -> None:
    import threading

    from fastapi.testclient import TestClient

    from parallelmind.errors import SettingsError
    from parallelmind.server.app import create_app
    from parallelmind.server.loading import Served
    from parallelmind.server.options import ServeOptions

    go_on, ended = threading.Event(), threading.Event()

    def load(_: ServeOptions) -> Served:
        go_on.wait(60)
        raise SettingsError("no such model")

    app = create_app(ServeOptions(base_model="tiny"), load=load, on_failure=ended.set)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/health").json() == {"status": "loading"}
        answer = client.post("/v1/branches", json=ASK)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert client.get("/v1/info").status_code == 503
        go_on.set()
        assert ended.wait(60)
        assert client.get("/health").status_code == 503
        assert client.get("/health").json() == {"status": "failed"}
