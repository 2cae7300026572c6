"""The page on an API that follows a script: what it answers, when it waits, when it is gone."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import parallelmind.server
from parallelmind.server.guards import SecurityHeaders
from parallelmind.server.schemas import SAMPLING_DEFAULTS
from parallelmind.settings.sampling import PRESETS

STATIC = Path(parallelmind.server.__file__).parent / "static"
HOLD = "\0hold"
"""A piece of an answer at which the branch waits until it is released or cancelled."""
INFO = {
    "model": "scripted",
    "adapters": ["medical", "legal"],
    "visibility": "isolated",
    "visibilities": ["isolated", "columnar", "strict"],
    "sampling": SAMPLING_DEFAULTS,
    "max_model_len": 2048,
    "chat_template": False,
    "version": "0",
}


@dataclass(eq=False)
class Running:
    """A request in flight."""

    cancelled: set[int] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class FakeServer:
    """Answers a branch with the pieces that `script` gives for its prompt."""

    def __init__(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self.reset()

    def reset(self) -> None:
        self.script: Callable[[str], list[str]] = lambda prompt: ["answer to ", prompt]
        self.refuse: Response | None = None
        """The answer to POST /v1/branches, instead of a stream."""
        self.breaks_off = False
        """Whether the connection of a stream is cut at the first piece after a hold."""
        self.key: str | None = None
        self.health = "ready"
        self.info: dict[str, Any] = dict(INFO)
        self.bodies: list[dict[str, Any]] = []
        self.cancellations: list[str] = []
        self.clients_gone = 0
        self.running: dict[str, Running] = {}
        self.released = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=self.port, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()

    def stop(self) -> None:
        """Drop every connection, as a crash does."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def release(self) -> None:
        """Let every branch go on."""
        self.released = True
        for running in self.running.values():
            self._loop.call_soon_threadsafe(running.wake.set)

    def _app(self) -> Starlette:
        routes = [
            Route("/", lambda request: FileResponse(STATIC / "index.html")),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route(
                "/health", lambda request: JSONResponse({"status": self.health}, 200 if self.health == "ready" else 503)
            ),
            Route("/v1/info", self._keyed(lambda request: JSONResponse(self.info))),
            Route("/v1/presets", self._keyed(lambda request: JSONResponse(PRESETS))),
            Route("/v1/grid", self._grid, methods=["POST"]),
            Route("/v1/branches", self._branches, methods=["POST"]),
            Route("/v1/branches/{id}", self._cancel, methods=["DELETE"]),
            Route("/v1/branches/{id}/{index:int}", self._cancel, methods=["DELETE"]),
        ]
        return Starlette(routes=routes, middleware=[Middleware(SecurityHeaders)])

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": {"message": "wrong API key"}}, 401)

    def _keyed(self, answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        return lambda request: self._refused(request) or answer(request)

    async def _branches(self, request: Request) -> Response:
        if refused := self._refused(request) or self.refuse:
            return refused
        self._loop = asyncio.get_running_loop()
        body = await request.json()
        self.bodies.append(body)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        name, running = f"request-{len(self.bodies)}", Running()
        self.running[name] = running
        try:
            async for event in self._events(name, body, running):
                if self.breaks_off and self.released:
                    raise ConnectionAbortedError
                yield ": still here\n\n" + f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.clients_gone += 1
            raise

    async def _events(self, name: str, body: dict[str, Any], running: Running) -> AsyncIterator[dict[str, Any]]:
        prompts = [branch["prompt"] for branch in body["branches"]]
        pieces = [list(self.script(prompt)) for prompt in prompts]
        told = [{"index": index, "prompt_tokens": 3} for index in range(len(prompts))]
        yield {"type": "start", "id": name, "main_tokens": 12, "branches": told}
        written, left = [0] * len(prompts), set(range(len(prompts)))
        while left:
            for index in sorted(left):
                if index in running.cancelled or not pieces[index]:
                    left.remove(index)
                    reason = "cancelled" if index in running.cancelled else "stop"
                    usage = {"prompt_tokens": 3, "completion_tokens": written[index]}
                    yield {"type": "finish", "index": index, "finish_reason": reason, "error": None, "usage": usage}
                elif pieces[index][0] != HOLD:
                    written[index] += 1
                    yield {"type": "token", "index": index, "text": pieces[index].pop(0)}
                elif self.released:
                    pieces[index].pop(0)
            if left and all(pieces[index][:1] == [HOLD] for index in left) and not self.released:
                await running.wake.wait()
                running.wake.clear()
            await asyncio.sleep(0)
        usage = {"prompt_tokens": 12, "completion_tokens": sum(written), "total_tokens": 12 + sum(written)}
        yield {"type": "done", "cached_main_tokens": 7, "usage": usage, "timings": {}}

    async def _cancel(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        name, index = request.path_params["id"], request.path_params.get("index")
        self.cancellations.append(name if index is None else f"{name}/{index}")
        running = self.running[name]
        running.cancelled |= set(range(100)) if index is None else {index}
        running.wake.set()
        return JSONResponse({"id": name, "cancelled": []})

    async def _grid(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        texts = [body["main"], *body["branches"]]
        if len("".join(texts)) > 4000:
            return JSONResponse({"error": {"message": "the row has too many tokens"}}, 400)
        tokens, start = [], len(body["main"].split())
        for branch, text in enumerate(texts):
            for time, word in enumerate(text.split(), start=0 if branch == 0 else start):
                tokens.append({"text": word, "branch": branch, "time": time, "position": [128 * branch, time]})
        seen = [
            [int(key["time"] <= query["time"] and key["branch"] in (0, query["branch"])) for key in tokens]
            for query in tokens
        ]
        return JSONResponse({"tokens": tokens, "visible": seen, "visibility": "isolated", "stride": 128})
