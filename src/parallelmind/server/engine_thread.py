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
from parallelmind.server.mailbox import Mailbox

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLoad:
    """What the engine does at present, as of its last step."""

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
        on_event: called in the engine's thread with the mailbox and event of everything the engine gains.
    """

    def __init__(self, engine: Engine, on_event: Callable[[Mailbox, Event], None]):
        engine.isolate_failures = True
        self.load = EngineLoad()
        self.error: BaseException | None = None
        """What ended the thread."""
        self._engine = engine
        self._on_event = on_event
        self._commands: deque[Callable[[], None]] = deque()
        self._has_commands = threading.Condition()
        self._stopping = False
        self._ended = False
        self._mailboxes: dict[int, Mailbox] = {}
        self._request_ids: dict[Mailbox, int] = {}
        self._touched: set[Mailbox] = set()
        self._thread = threading.Thread(target=self._run, name="parallelmind-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request, mailbox: Mailbox) -> None:
        """Queue a request whose events go to the mailbox."""
        if not self._command(lambda: self._add(request, mailbox)):
            mailbox.fail(BranchResult(finish_reason="error", error="the engine has stopped", error_kind="engine"))
            mailbox.wake()

    def cancel(self, mailbox: Mailbox, branch_index: int | None = None) -> None:
        """End a request, or one of its branches; what it has so far is its result."""
        self._command(lambda: self._cancel(mailbox, branch_index))

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

    def _add(self, request: Request, mailbox: Mailbox) -> None:
        try:
            request_id = self._engine.add_request(request)
        except RequestError as error:
            self._fail(mailbox, BranchResult(finish_reason="error", error=str(error), error_kind="empty"))
        except Exception as error:
            _LOGGER.exception("a request could not be queued")
            self._fail(mailbox, _broken(error))
        else:
            self._mailboxes[request_id] = mailbox
            self._request_ids[mailbox] = request_id

    def _cancel(self, mailbox: Mailbox, branch_index: int | None) -> None:
        request_id = self._request_ids.get(mailbox)
        if request_id is not None:
            self._engine.cancel(request_id, branch_index)

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:
            # Not a forward, which the engine isolates: the engine is empty now, and whole.
            _LOGGER.exception("a step of the engine failed; all requests in flight are lost")
            for mailbox in list(self._mailboxes.values()):
                self._fail(mailbox, _broken(error))
            return
        for event in events:
            reader = self._mailboxes.get(event.request_index)
            if reader is not None:
                self._hand_out(reader, event)

    def _hand_out(self, mailbox: Mailbox, event: Event) -> None:
        if mailbox.put(event):
            self._touched.add(mailbox)
        self._on_event(mailbox, event)
        if mailbox.finished:
            self._forget(mailbox)
        elif mailbox.overflowed:
            self._cancel(mailbox, None)

    def _fail(self, mailbox: Mailbox, result: BranchResult) -> None:
        for index in range(mailbox.branches):
            if index not in mailbox.results:
                event = Event(request_index=-1, branch_index=index, finish_reason=result.finish_reason, result=result)
                self._hand_out(mailbox, event)
        self._forget(mailbox)

    def _end(self, finish_reason: Literal["cancelled", "error"], reason: str) -> None:
        with self._has_commands:
            self._ended = True
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        for mailbox in list(self._mailboxes.values()):
            self._fail(mailbox, BranchResult(finish_reason=finish_reason, error=reason, error_kind="engine"))
        self._wake_readers()

    def _forget(self, mailbox: Mailbox) -> None:
        request_id = self._request_ids.pop(mailbox, None)
        if request_id is not None:
            del self._mailboxes[request_id]

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
        loops: dict[asyncio.AbstractEventLoop, list[Mailbox]] = {}
        for mailbox in self._touched:
            loops.setdefault(mailbox.loop, []).append(mailbox)
        self._touched.clear()
        for loop, mailboxes in loops.items():
            try:
                loop.call_soon_threadsafe(_wake, mailboxes)
            except RuntimeError:  # the loop is closed, and its readers gone
                for mailbox in mailboxes:
                    self._cancel(mailbox, None)


def _wake(mailboxes: list[Mailbox]) -> None:
    for mailbox in mailboxes:
        mailbox.wake()


def _broken(error: Exception) -> BranchResult:
    reason = f"the engine failed ({type(error).__name__}); the server's log has the details"
    return BranchResult(finish_reason="error", error=reason, error_kind="engine")
