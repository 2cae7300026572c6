"""Between the API and the engine: state, admission, requests in flight, and counters."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from starlette.requests import Request as HttpRequest

from parallelmind.columnar import Visibility
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import BASE_MODEL, Event, Request, num_answers
from parallelmind.prompts.length import TextTooLongError
from parallelmind.server.admission import Admission, Ticket
from parallelmind.server.body_shape import ShapeLimits
from parallelmind.server.clients import client_of, unless_gone
from parallelmind.server.engine_thread import EngineLoad, EngineThread
from parallelmind.server.lanes import Lanes, Turns
from parallelmind.server.loading import Served, load_served
from parallelmind.server.metrics import Metrics
from parallelmind.server.options import ServeOptions
from parallelmind.server.output_collector import OutputCollector
from parallelmind.server.problems import ApiError

_LOGGER = logging.getLogger(__name__)
_MAX_UNREAD = 2**18
"""Characters a client may be behind."""
State = Literal["loading", "ready", "draining", "failed"]
T = TypeVar("T")


@dataclass(eq=False)
class RunningRequest:
    """A request in flight."""

    id: str
    request: Request
    collector: OutputCollector
    arrived: float


class Service:
    """One engine for all clients.

    Args:
        load: makes the engine; called in a thread.
    """

    def __init__(self, options: ServeOptions, load: Callable[[ServeOptions], Served] = load_served):
        self.options = options
        self.state: State = "loading"
        self.error: Exception | None = None
        """Why loading failed."""
        self.loaded_at = 0
        """Seconds since 1970."""
        self.metrics = Metrics(lambda: (self.load, len(self._running)))
        self._load = load
        self._served: Served | None = None
        self._thread: EngineThread | None = None
        self.admission = Admission(options.max_unfinished_branches, options.max_request_bytes)
        self.shape_limits = ShapeLimits()
        self._lanes = Lanes()
        self.turns = Turns()
        self._running: dict[str, RunningRequest] = {}

    def start(self) -> None:
        """Load the model; blocks until it is there.

        Raises:
            Exception: whatever loading raises; the state is then "failed".
        """
        try:
            self._served = self._load(self.options)
            self.shape_limits = ShapeLimits().for_context(self._served.engine.max_model_len)
            self._thread = EngineThread(self._served.engine, self._on_event)
        except Exception as error:
            self.state, self.error = "failed", error
            raise
        self.loaded_at = int(time.time())
        if self.state == "loading":
            self.state = "ready"

    def begin_draining(self) -> None:
        """Take no more requests."""
        if self.state != "failed":
            self.state = "draining"

    async def drain(self, timeout: float, give_up: Callable[[], bool] = lambda: False) -> int:
        """Wait for the requests in flight, then end those that remain; returns how many these were."""
        deadline = time.monotonic() + timeout
        while self._running and time.monotonic() < deadline and not give_up():
            await asyncio.sleep(0.05)
        left = len(self._running)
        for running in list(self._running.values()):
            self.cancel(running, "shutdown")
        return left

    def stop(self) -> None:
        """End the engine's thread."""
        self.begin_draining()
        if self._thread is not None:
            self._thread.stop(timeout=10)
        self._lanes.stop()

    @property
    def num_running(self) -> int:
        """Requests in flight."""
        return len(self._running)

    @property
    def unfinished_branches(self) -> int:
        """Branches that have a place, from the arrival of their request to their end."""
        return self.admission.branches

    def in_engine(self, function: Callable[[Engine], None]) -> None:
        """Have the engine's thread call a function between two steps."""
        if self._thread is not None:
            self._thread.run(function)

    @property
    def served(self) -> Served:
        """The model. Raises ApiError (503) while there is none."""
        if self._served is None:
            raise self._unavailable()
        return self._served

    @property
    def max_main_tokens(self) -> int | None:
        """Tokens of a shared text; None: what the model takes."""
        return self.options.max_main_tokens

    @property
    def load(self) -> EngineLoad:
        return self._thread.load if self._thread is not None else EngineLoad()

    @property
    def health(self) -> State:
        if self._thread is not None and self._thread.error is not None:
            return "failed"
        return self.state

    def choose(self, model: str | None, adapter: str | None = None) -> tuple[str, str]:
        """(name to answer with, adapter) for the `model` and `adapter` of a request.

        Raises:
            ApiError: 404, there is no such model or adapter.
        """
        served = self.served
        if model is None or model == served.model:
            chosen = BASE_MODEL
        else:
            chosen = model.removeprefix(f"{served.model}:")
            if chosen not in served.adapters:
                raise self._unknown("model", model)
        if adapter is not None:
            if adapter and adapter not in served.adapters:
                raise self._unknown("adapter", adapter)
            chosen = adapter
        return (f"{served.model}:{chosen}" if chosen else served.model), chosen

    def visibility(self, asked: Visibility | None, adapter: str) -> Visibility:
        """What the branches of a request see."""
        return self.served.engine.visibility_of(Request(visibility=asked), adapter)

    async def in_lane(self, http: HttpRequest, size: int, function: Callable[[], T]) -> T:
        """Run a function in a thread for work of so many characters, so that it holds up neither loop nor engine.

        Raises:
            ClientGoneError: the client has hung up, and the function is not begun if it was not.
        """
        future = self._lanes.submit(client_of(http.scope), size, function)
        return await unless_gone(http.receive, asyncio.wrap_future(future))

    def ticket(self, http: HttpRequest) -> Ticket:
        """Let a request in, before anything of it is read.

        Raises:
            ApiError: the server takes none now.
        """
        if self.health != "ready":
            raise self._unavailable()
        return self.admission.ticket(client_of(http.scope))

    def take_places(self, ticket: Ticket, branches: int) -> None:
        """Have places for all branches of a request, before any more work is done.

        Raises:
            ApiError: the server takes no request of so many branches, or none now.
        """
        if self.health != "ready":
            raise self._unavailable()
        if branches > self.options.max_branches:
            raise ApiError(
                400,
                f"the request has {branches} branches, this server takes {self.options.max_branches}; "
                "send them in several requests (main is computed once all the same)",
                param="branches",
                code="too_many_branches",
            )
        ticket.ask(branches)

    def check_length(self, param: str, text: str, max_tokens: int | None = None) -> None:
        """Raises ApiError if a text is certain not to fit, before it is tokenized."""
        try:
            self.served.prompts.check_length(text, max_tokens)
        except TextTooLongError as error:
            raise ApiError(400, f"{param}: {error}", param=param, code="context_length_exceeded") from error

    def submit(self, request: Request, ticket: Ticket, *, streamed: bool, kind: str, arrived: float) -> RunningRequest:
        """Start a request; its branches carry their sampling parameters.

        Raises:
            ApiError: it is refused, see `take_places`, or too large.
        """
        request = replace(request, share=ticket.client)
        branches = num_answers(request)
        self.take_places(ticket, branches)
        most = self.max_main_tokens
        main_tokens = len(request.main or ())
        if most is not None and main_tokens > most:
            raise ApiError(
                400,
                f"the shared text has {main_tokens} tokens, this server takes {most}; shorten it",
                param="main",
                code="context_length_exceeded",
            )
        assert self._thread is not None
        loop = asyncio.get_running_loop()
        collector = OutputCollector(loop, branches, streamed=streamed, max_unread=_MAX_UNREAD, ticket=ticket)
        running = RunningRequest(f"{kind}-{uuid.uuid4().hex}", request, collector, arrived)
        ticket.is_running = True
        self._running[running.id] = running
        self._thread.submit(request, collector)
        return running

    def find(self, request_id: str) -> RunningRequest:
        """The request in flight. Raises ApiError (404)."""
        if request_id not in self._running:
            raise ApiError(404, f"no request {request_id!r} is running; it may have ended", param="id")
        return self._running[request_id]

    def cancel(self, running: RunningRequest, reason: str, branch_index: int | None = None) -> None:
        """End a request or one of its branches early; it goes on to its regular, shorter end."""
        if running.collector.finished or self._thread is None:
            return
        if branch_index is None:
            self.metrics.cancelled_requests.labels(reason).inc()
        self._thread.cancel(running.collector, branch_index)

    def close(self, running: RunningRequest) -> None:
        """The client has its answer, or is gone: forget the request, and end it if it still runs."""
        collector = running.collector
        if self._running.pop(running.id, None) is None:
            return
        if collector.overflowed:
            self.metrics.cancelled_requests.labels("overflow").inc()
        elif not collector.finished:
            self.cancel(running, "disconnect")
        elif collector.finished_at is not None:
            self.metrics.request_seconds.observe(collector.finished_at - running.arrived)
        if collector.first_token_at is not None:
            self.metrics.time_to_first_token.observe(collector.first_token_at - running.arrived)
        first = collector.results.get(0)
        if first is not None and first.main_tokens:
            self.metrics.prefix_queries.inc()
            if first.cached_main_tokens:
                self.metrics.prefix_hits.inc()

    def _on_event(self, collector: OutputCollector, event: Event) -> None:
        result = event.result
        if result is None:
            return
        if collector.ticket is not None:
            self.admission.branch_ended(collector.ticket)
        self.metrics.branches.labels(result.finish_reason or "error").inc()
        if result.error_kind is not None:
            self.metrics.errors.labels(result.error_kind).inc()

    def _unavailable(self) -> ApiError:
        said = {
            "loading": ("the model is being loaded; try again soon", "5"),
            "draining": ("the server is shutting down", "10"),
            "failed": ("the server cannot answer: its model did not load, or its engine stopped; see its log", "60"),
            "ready": ("the model is being loaded; try again soon", "5"),
        }
        message, retry = said[self.health]
        return ApiError(503, message, code=self.health, headers={"Retry-After": retry})

    def _unknown(self, what: str, name: str) -> ApiError:
        served = self.served
        known = ", ".join([served.model, *served.adapters] if what == "model" else served.adapters) or "none"
        return ApiError(
            404, f"there is no {what} {name!r}; this server has: {known}", param=what, code=f"{what}_not_found"
        )
