"""The process of a server: listening, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from parallelmind.errors import ParallelMindError, SettingsError
from parallelmind.server.app import create_app
from parallelmind.server.connections import ServerConfig
from parallelmind.server.loading import split_adapters
from parallelmind.server.options import ServeOptions
from parallelmind.server.service import Service

_LOGGER = logging.getLogger(__name__)
_CLOSE_SECONDS = 5


def serve(options: ServeOptions) -> int:
    """Listen until SIGINT or SIGTERM; returns 0 if all requests were answered by then, else 1.

    The port is open while the model loads; /health says when it is ready.

    Raises:
        ParallelMindError: the model cannot be loaded, or the address cannot be listened on.
    """
    split_adapters(options)
    if options.api_key is None and not options.loopback:
        _LOGGER.warning(
            "listening on %s without an API key: everyone who reaches this address can use the model; "
            "--api_key KEY (or PARALLELMIND_API_KEY) asks for one",
            options.host,
        )
    listener = _listen(options)
    server = _Server(options)
    asyncio.run(server.serve(sockets=[listener]))
    error = server.service.error
    if error is not None:
        raise (
            error if isinstance(error, ParallelMindError) else RuntimeError("the model could not be loaded")
        ) from error
    return 1 if server.unanswered else 0


class _Server(uvicorn.Server):
    """Ends in order: no new requests, the running ones finish or are told, then the connections close."""

    def __init__(self, options: ServeOptions):
        self.options = options
        self.unanswered = 0
        app = create_app(options, on_failure=self._end)
        self.service: Service = app.state.service
        config = ServerConfig(app, options, timeout_graceful_shutdown=_CLOSE_SECONDS)
        super().__init__(config)

    def _end(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _LOGGER.info("listening on http://%s:%d (the page; the API is described at /docs)", shown, port)
        asyncio.get_running_loop().create_task(self._announce())

    async def _announce(self) -> None:
        while self.service.health == "loading" and not self.should_exit:
            await asyncio.sleep(0.05)
        if self.service.health == "ready":
            served = self.service.served
            _LOGGER.info("ready: %s", ", ".join([served.model, *served.adapters]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.begin_draining()
        running = self.service.num_running
        if running:
            _LOGGER.info(
                "shutting down: %d requests have %g seconds to finish (again to end at once)",
                running,
                self.options.shutdown_timeout,
            )
        self.unanswered = await self.service.drain(self.options.shutdown_timeout, lambda: self.force_exit)
        if self.unanswered:
            _LOGGER.warning("%d of %d requests did not finish in time and were cut off", self.unanswered, running)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # As uvicorn's, but an orderly end is not followed by the signal: the exit code says how it went.
        handlers = {sig: signal.signal(sig, self._on_signal) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)

    def _on_signal(self, sig: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"--host {options.host} --port {options.port}: cannot be listened on ({error.strerror or error}); choose "
            "another port, or --port 0 for any free one."
        ) from error
    listener.listen(2048)
    listener.setblocking(False)
    return listener
