"""The one thread that owns the engine: it takes commands and hands out events."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from parallelmind.engine.engine import Engine
from parallelmind.engine.request import BranchResult, Event, Request
from parallelmind.errors import RequestError
from parallelmind.server.output_collector import OutputCollector

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLoad:
    """How much the engine has to do, as of its last step."""

    running_branches: int = 0
    waiting_branches: int = 0
    kv_cache_bytes: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_main_tokens: int = 0
    forwards: int = 0


class EngineThread:
    """Runs an engine for many event loops at once.

    Args:
        on_event: called in the engine's thread with the collector and event of everything the engine deltas.
    """

    def __init__(self, engine: Engine, on_event: Callable[[OutputCollector, Event], None]):
        engine.isolate_failures = True
        self.load = EngineLoad()
        self.error: BaseException | None = None
        """The exception that ended the thread."""
        self._engine = engine
        self._on_event = on_event
        self._commands: deque[Callable[[], None]] = deque()
        self._has_commands = threading.Condition()
        self._stopping = False
        self._ended = False
        self._collectors: dict[int, OutputCollector] = {}
        self._request_ids: dict[OutputCollector, int] = {}
        self._touched: set[OutputCollector] = set()
        self._thread = threading.Thread(target=self._run, name="parallelmind-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request, collector: OutputCollector) -> None:
        """Queue a request whose events go to the collector."""
        if not self._command(lambda: self._add(request, collector)):
            collector.fail(BranchResult(finish_reason="error", error="the engine has stopped", error_kind="engine"))
            collector.wake()

    def cancel(self, collector: OutputCollector, branch_index: int | None = None) -> None:
        """End a request, or one of its branches; what it has so far is its result."""
        self._command(lambda: self._cancel(collector, branch_index))

    def run(self, function: Callable[[Engine], None]) -> None:
        """Call a function with the engine between two steps."""
        self._command(lambda: function(self._engine))

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after its present step; what still runs is reported as cancelled."""
        with self._has_commands:
            self._stopping = True
            self._has_commands.notify()
        self._thread.join(timeout)

    def _command(self, command: Callable[[], None]) -> bool:
        with self._has_commands:
            if self._ended:
                return False
            self._commands.append(command)
            self._has_commands.notify()
        return True

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._engine.has_unfinished():
                    self._step()
                self._observe()
                self._wake_readers()
            self._end("cancelled", "the server was shut down before this request was done")
        except BaseException as error:
            _LOGGER.exception("the engine's thread ended")
            self.error = error
            self._end("error", "the engine stopped; the server must be restarted")

    def _take_commands(self) -> bool:
        """Carry out what was asked for, waiting for it if there is nothing else to do; False when it is time to end."""
        with self._has_commands:
            while not self._commands and not self._stopping and not self._engine.has_unfinished():
                self._has_commands.wait()
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        return not self._stopping

    def _add(self, request: Request, collector: OutputCollector) -> None:
        try:
            request_id = self._engine.add_request(request)
        except RequestError as error:
            self._fail(collector, BranchResult(finish_reason="error", error=str(error), error_kind="invalid"))
        except Exception as error:
            _LOGGER.exception("a request could not be queued")
            self._fail(collector, _broken(error))
        else:
            self._collectors[request_id] = collector
            self._request_ids[collector] = request_id

    def _cancel(self, collector: OutputCollector, branch_index: int | None) -> None:
        request_id = self._request_ids.get(collector)
        if request_id is not None:
            self._engine.cancel(request_id, branch_index)

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:
            # This was no forward, whose errors the engine isolates; the engine is empty now, and usable.
            _LOGGER.exception("a step of the engine failed; all requests in flight are lost")
            for collector in list(self._collectors.values()):
                self._fail(collector, _broken(error))
            return
        for event in events:
            reader = self._collectors.get(event.request_index)
            if reader is not None:
                self._hand_out(reader, event)

    def _hand_out(self, collector: OutputCollector, event: Event) -> None:
        if collector.put(event):
            self._touched.add(collector)
        self._on_event(collector, event)
        if collector.finished:
            self._forget(collector)
        elif collector.overflowed:
            self._cancel(collector, None)

    def _fail(self, collector: OutputCollector, result: BranchResult) -> None:
        for index in range(collector.branches):
            if index not in collector.results:
                event = Event(request_index=-1, branch_index=index, finish_reason=result.finish_reason, result=result)
                self._hand_out(collector, event)
        self._forget(collector)

    def _end(self, finish_reason: Literal["cancelled", "error"], reason: str) -> None:
        with self._has_commands:
            self._ended = True
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        for collector in list(self._collectors.values()):
            self._fail(collector, BranchResult(finish_reason=finish_reason, error=reason, error_kind="engine"))
        self._wake_readers()

    def _forget(self, collector: OutputCollector) -> None:
        request_id = self._request_ids.pop(collector, None)
        if request_id is not None:
            del self._collectors[request_id]

    def _observe(self) -> None:
        engine = self._engine
        self.load = EngineLoad(
            running_branches=engine.num_running_branches,
            waiting_branches=engine.num_waiting_branches,
            kv_cache_bytes=engine.kv_cache_bytes_allotted,
            generated_tokens=engine.stats.generated_tokens,
            prompt_tokens=engine.stats.prompt_tokens,
            cached_main_tokens=engine.stats.cached_main_tokens,
            forwards=engine.stats.forwards,
        )

    def _wake_readers(self) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[OutputCollector]] = {}
        for collector in self._touched:
            loops.setdefault(collector.loop, []).append(collector)
        self._touched.clear()
        for loop, collectors in loops.items():
            try:
                loop.call_soon_threadsafe(_wake, collectors)
            except RuntimeError:  # the loop is closed, and its readers gone
                for collector in collectors:
                    self._cancel(collector, None)


def _wake(collectors: list[OutputCollector]) -> None:
    for collector in collectors:
        collector.wake()


def _broken(error: Exception) -> BranchResult:
    reason = f"the engine failed ({type(error).__name__}); the server's log has the details"
    return BranchResult(finish_reason="error", error=reason, error_kind="engine")
