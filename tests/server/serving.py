"""A server on a free port, and a plain client for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from parallelmind import Engine
from parallelmind.server.app import create_app
from parallelmind.server.connections import ServerConfig
from parallelmind.server.loading import Served
from parallelmind.server.options import ServeOptions
from parallelmind.server.service import Service
from tests.server.texts import ANSWERS as ANSWERS
from tests.server.texts import LONG as LONG
from tests.server.texts import QUESTIONS as QUESTIONS
from tests.server.texts import STORY as STORY


def tiny_engine(*, patch_rope: bool = False, **settings: Any) -> Engine:
    """An engine on the bundled model."""
    return Engine.from_pretrained("tiny", device="cpu", dtype="float32", patch_rope=patch_rope, **settings)


@dataclass
class Answer:
    """A response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def events(self) -> list[Any]:
        """Of a stream, without the closing mark."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


@dataclass
class Running:
    """A server under test."""

    port: int
    service: Service
    api_key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> Engine:
        return self.service.served.engine

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """A body that is not bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, raw, **{"Content-Type": "application/json"} | headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, **headers)

    def request(self, method: str, path: str, body: Any, **headers: str) -> Answer:
        if self.api_key is not None:
            headers.setdefault("Authorization", f"Bearer {self.api_key}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait for something that the server does by itself."""
        deadline = time.monotonic() + 300
        while not reached():
            assert time.monotonic() < deadline, f"never came true: {what}"
            time.sleep(0.01)

    def idle(self) -> bool:
        """Whether nothing runs, waits or is remembered."""
        load = self.service.load
        return not (
            self.service.num_running
            or load.running_branches
            or load.waiting_branches
            or self.service.unfinished_branches
            or self.engine.has_unfinished()
        )

    def kv_bytes_without_prefixes(self) -> int:
        """Memory of keys and values once the mains that nobody uses are dropped."""
        sizes: list[int] = []

        def measure(engine: Engine) -> None:
            engine.reset_prefix_cache()
            sizes.append(engine.kv_cache_bytes)

        self.service.in_engine(measure)
        self.wait_until(lambda: bool(sizes), "the engine answers")
        return sizes[0]


@contextlib.contextmanager
def running(
    engine: Engine | Callable[[], Engine],
    adapters: tuple[str, ...] = (),
    send_buffer: int | None = None,
    **options: Any,
) -> Iterator[Running]:
    """Serve an engine, or what a function makes of it, on a free port of this machine.

    Args:
        send_buffer: bytes that the system keeps of what a client has not read.
    """
    settings = ServeOptions(base_model="tiny", **options)

    def load(_: ServeOptions) -> Served:
        return Served(engine() if callable(engine) else engine, "tiny", adapters)

    app = create_app(settings, load=load)
    config = ServerConfig(app, settings, port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 300
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        listener = server.servers[0].sockets[0]
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        port = listener.getsockname()[1]
        yield Running(port, app.state.service, settings.api_key)
    finally:
        server.should_exit = True
        thread.join(300)
        assert not thread.is_alive()


@contextlib.asynccontextmanager
async def stream(port: int, path: str, body: Any, **headers: str) -> AsyncIterator[asyncio.StreamReader]:
    """A connection on which the answer of a request comes in; closed at the end of the block."""
    raw = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    headers = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(raw))} | headers
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    try:
        writer.write(head.encode() + b"\r\n" + raw)
        await writer.drain()
        yield reader
    finally:
        writer.transport.abort()
