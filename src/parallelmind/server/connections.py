"""Connections under the protocol: how many there may be, and how long each may keep its place without getting on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from parallelmind.server.clients import client_of
from parallelmind.server.open_files import room_for
from parallelmind.server.options import ServeOptions
from parallelmind.server.problems import ApiError
from parallelmind.server.written import written

HEAD_SECONDS = 20.0
"""Time to send the head of a request, from the opening of a connection or the head's first byte."""
IDLE_SECONDS = 75
"""Time until the next request on a connection."""
READ_SECONDS = 30.0
"""In so much time a client must take _LEAST_READ bytes of an answer that waits for it."""
_LEAST_READ = 2**14
_MOST_UNREAD = 2**27
"""Bytes of answers that wait for clients to take them, all together; a client may have half of them."""
_MAX_HEAD = 2**14
"""Bytes of a request's first line and headers."""
_LENGTHS = {b"content-length", b"transfer-encoding"}
_FREE_CHUNKS, _LEAST_CHUNK = 1024, 256
"""Beyond so many chunks of a body, they must have so many bytes on average."""
_BACKLOG = 256
"""Connections that wait to be accepted, and that are accepted in one go."""
Doing = Literal["idle", "receiving", "busy"]


class ServerConfig(Config):
    """uvicorn's configuration for one service."""

    def __init__(self, app: Any, options: ServeOptions, **settings: Any):
        self.places = ConnectionPlaces(room_for(options.max_connections, _BACKLOG))
        super().__init__(
            app,
            http=GuardedProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
            h11_max_incomplete_event_size=_MAX_HEAD,
            **settings,
        )


class ConnectionPlaces:
    """The connections of a server.

    Where all places are taken, or half of them by one client, a new connection takes the place of the one that has been
    idle longest, of the client that has most; if none is idle, of one whose body is still coming. Only if the engine
    has work of all of them is the new one refused.

    Args:
        most: connections at a time.
    """

    def __init__(self, most: int):
        self.most = most
        self._count: Counter[str] = Counter()
        self._doing: dict[Doing, dict[str, dict[GuardedProtocol, None]]] = {"idle": {}, "receiving": {}, "busy": {}}
        self._unread: dict[GuardedProtocol, None] = {}

    def __len__(self) -> int:
        return self._count.total()

    def take(self, connection: GuardedProtocol) -> bool:
        """Whether there is a place for a new connection."""
        client = connection.address
        if self._count[client] >= max(1, self.most // 2):
            found = self._give_up((client,))
        elif len(self) >= self.most:
            found = self._give_up(client for client, _ in self._count.most_common())
        else:
            found = True
        if found:
            self._count[client] += 1
        return found

    def now(self, connection: GuardedProtocol, doing: Doing | None) -> None:
        """What a connection does from now on; None: it is closed."""
        client = connection.address
        if connection.doing is not None:
            peers = self._doing[connection.doing][client]
            del peers[connection]
            if not peers:
                del self._doing[connection.doing][client]
            if doing is None:
                self._unread.pop(connection, None)
                self._count[client] -= 1
                if not self._count[client]:
                    del self._count[client]
        connection.doing = doing
        if doing is not None:
            self._doing[doing].setdefault(client, {})[connection] = None

    def waits_for_reader(self, connection: GuardedProtocol) -> None:
        """An answer is larger than what the system takes of it.

        Readers may be slow, but where too many bytes wait for several, the client for whom most do is cut off where it
        has waited longest.
        """
        self._unread[connection] = None
        while len(self._unread) > 1:
            answers = Counter(one.address for one in self._unread)
            waiting = Counter[str]()
            for one in self._unread:
                waiting[one.address] += one.transport.get_write_buffer_size()
            [(client, most)] = waiting.most_common(1)
            if waiting.total() <= _MOST_UNREAD and (most <= _MOST_UNREAD // 2 or answers[client] == 1):
                break
            next(one for one in self._unread if one.address == client).drop()

    def goes_on_reading(self, connection: GuardedProtocol) -> None:
        """The system takes what is written again."""
        self._unread.pop(connection, None)

    def _give_up(self, clients: Iterable[str]) -> bool:
        order = list(clients)
        for connections in (self._doing["idle"], self._doing["receiving"]):
            for client in order:
                if peers := connections.get(client):
                    next(iter(peers)).drop()
                    return True
        return False


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol, with limits on what a client may take and how long."""

    config: ServerConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.conn = _CountedConnection(h11.SERVER, _MAX_HEAD)
        self.address = ""
        self.doing: Doing | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = client_of({"client": self.client})
        if not self.config.places.take(self):
            transport.write(_refusal())
            transport.close()
            return
        self.config.places.now(self, "idle")
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        if self.doing is not None:
            self.config.places.now(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.doing is None:
            return
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()  # of an answer that the system could not take

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.doing is not None:
            self.config.places.waits_for_reader(self)
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.config.places.goes_on_reading(self)
        if self._read_timer is not None and not self.transport.is_closing():
            self._read_timer.cancel()
            self._read_timer = None

    def send_400_response(self, msg: str) -> None:
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer has begun
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:  # its answer has no place any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def drop(self) -> None:
        """Close the connection now."""
        self._cancel_timers()
        self.config.places.now(self, None)
        self.transport.abort()

    def _look(self) -> None:
        """See what the connection does now."""
        if self.doing is None:
            return
        if self.transport.is_closing():
            self._await_reader()
        cycle = self.cycle
        answered = cycle is None or cycle.response_complete
        doing: Doing = "idle" if answered else "receiving" if cycle.more_body else "busy"
        if doing != self.doing:
            self.config.places.now(self, doing)
        if doing != "idle":
            self._stop_awaiting_head()
        elif self.timeout_keep_alive_task is None and self._head_timer is None:
            self._await_head()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.drop)

    def _stop_awaiting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _await_reader(self) -> None:
        if self._read_timer is None and self.doing is not None:
            waiting = self.transport.get_write_buffer_size()
            if waiting:
                self._read_timer = self.loop.call_later(READ_SECONDS, self._check_reader, waiting)

    def _check_reader(self, before: int) -> None:
        self._read_timer = None
        if self.doing is not None:
            if before - self.transport.get_write_buffer_size() < min(before, _LEAST_READ):
                self.drop()
            else:
                self._await_reader()

    def _cancel_timers(self) -> None:
        self._stop_awaiting_head()
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


class _CountedConnection(h11.Connection):
    """Refuses heads that are too large before they are taken apart, and bodies in crumbs."""

    _chunks = _body = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            head = self.trailing_data[0]
            if len(head) > _MAX_HEAD and not any(end in head[:_MAX_HEAD] for end in (b"\n\r\n", b"\n\n")):
                raise h11.RemoteProtocolError("the head of the request is too large", error_status_hint=431)
            self._chunks = self._body = 0
        event = super().next_event()
        if isinstance(event, h11.Request) and {name for name, _ in event.headers} >= _LENGTHS:
            # One of them is a lie, by which what stands in front of the server may find another end of the body.
            raise h11.RemoteProtocolError("the request has Content-Length and Transfer-Encoding; send one of them")
        if isinstance(event, h11.Data):
            self._chunks += 1
            self._body += len(event.data)
            if self._chunks > _FREE_CHUNKS and self._body < self._chunks * _LEAST_CHUNK:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


def _refusal() -> bytes:
    error = ApiError(
        503, "all connections are busy; try again later, or use fewer at a time", code="too_many_connections"
    )
    body = written(error.content())
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
