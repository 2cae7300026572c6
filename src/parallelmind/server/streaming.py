"""Answers that take a while: server-sent events, and waiting that ends when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from parallelmind.engine.request import BranchResult
from parallelmind.server.clients import ClientGoneError, gone
from parallelmind.server.output_collector import Delta, OutputCollector
from parallelmind.server.service import RunningRequest, Service
from parallelmind.server.written import written

KEEP_ALIVE_SECONDS = 15.0
SEND_TIMEOUT = 60.0
"""Seconds a client may leave its connection full."""
DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": still here\n\n"


class StreamFormat(Protocol):
    """How one API writes a stream."""

    def opening(self) -> bytes:
        """The events before the first token."""

    def deltas(self, deltas: Mapping[int, Delta]) -> bytes:
        """The events for new text of the branches."""

    def closing(self, results: Mapping[int, BranchResult]) -> bytes:
        """The events after the last token."""


def data(content: Any) -> bytes:
    """One event."""
    return b"data: " + written(content) + b"\n\n"


async def results_of(service: Service, running: RunningRequest, http: HttpRequest) -> list[BranchResult]:
    """Wait for all branches of a request, then close it.

    Raises:
        ClientGoneError: the client hung up; the request is cancelled.
    """
    watch = asyncio.create_task(_abandon_when_gone(http.receive, running.collector))
    try:
        results = await running.collector.all_results()
    finally:
        watch.cancel()
        service.close(running)
    if not results:
        raise ClientGoneError
    return results


class EventStream(Response):
    """Streams a request's deltas; the request is closed with the connection, whichever side ends it."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, running: RunningRequest, form: StreamFormat):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service = service
        self._running = running
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        collector = self._running.collector
        watch = asyncio.create_task(_abandon_when_gone(receive, collector))
        try:
            # A client that neither reads nor hangs up ends here.
            with suppress(TimeoutError):
                await self._stream(collector, send)
        finally:
            watch.cancel()
            self._service.close(self._running)

    async def _stream(self, collector: OutputCollector, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await _send(send, start)
        await _send(send, _body(self._form.opening()))
        told = 0
        while told < collector.branches:
            deltas = await collector.deltas(KEEP_ALIVE_SECONDS)
            if collector.abandoned:
                return
            told += sum(delta.result is not None for delta in deltas.values())
            await _send(send, _body(self._form.deltas(deltas) if deltas else _KEEP_ALIVE))
        last = self._form.closing(collector.results)
        await _send(send, {"type": "http.response.body", "body": last, "more_body": False})


def _body(content: bytes) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": True}


async def _send(send: Callable[[Message], Awaitable[None]], message: Message) -> None:
    async with asyncio.timeout(SEND_TIMEOUT):
        await send(message)


async def _abandon_when_gone(receive: Receive, collector: OutputCollector) -> None:
    await gone(receive)
    collector.abandon()
