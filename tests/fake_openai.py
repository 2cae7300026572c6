"""A server of the OpenAI protocol on 127.0.0.1 that misbehaves as it is told, request by request.

    with FakeOpenAI({"the question": [too_many_requests(2), broken_json()]}) as server:
        ...  # point a client at server.base_url

The replies of a question (the last message of a conversation, or the prompt) are given one after the other; when there
are none left, and to all other questions, it answers "answer to <question>".
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

KEY = "sk-test-7d41a0c2e9b84f5f"
"""A key for tests to send, and to look for in what they get."""


@dataclass(frozen=True)
class Reply:
    """What is done with one request."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    """Close the connection after so many bytes of the body."""
    silent: bool = False
    """Say nothing until the client goes away."""
    trickle: bool = False
    """Send the beginning of the body, then nothing."""
    endless: bool = False
    """Send the body again and again, until the client goes away."""
    echo: bool = False
    """Put what the client sent as Authorization into the body, at the word AUTHORIZATION."""


def completion(text: str | None, *, finish_reason: str = "stop", **message: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    return _json({"id": "c1", "object": "chat.completion", "model": "fake", "choices": [choice], "usage": _usage(text)})


def text_completion(text: str) -> Reply:
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return _json({"id": "c1", "object": "text_completion", "model": "fake", "choices": [choice], "usage": _usage(text)})


def error(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()
    return Reply(status=status, body=body, headers=names)


def too_many_requests(retry_after: float | str = 0) -> Reply:
    return error(429, "slow down", retry_after=str(retry_after))


def broken_json() -> Reply:
    return Reply(body=b'{"choices": [{"message": {"content": "half a')


def empty_choices() -> Reply:
    return _json({"id": "c1", "choices": []})


def null_content() -> Reply:
    return completion(None)


def dropped() -> Reply:
    """Closed in the middle of the body."""
    return Reply(body=completion("never arrives").body, cut_at=40)


def hung_up() -> Reply:
    """Closed before the first byte of the response."""
    return Reply(cut_at=-1)


def silent() -> Reply:
    return Reply(silent=True)


def trickle() -> Reply:
    return Reply(body=completion("never complete").body, trickle=True)


def huge(size: int) -> Reply:
    return Reply(body=b'{"choices": "' + b"x" * size + b'"}')


def echoed_key(status: int = 500) -> Reply:
    return Reply(status=status, body=b'{"error": {"message": "you sent AUTHORIZATION, what is it?"}}', echo=True)


def echoed_key_as_answer() -> Reply:
    return Reply(body=completion("you sent AUTHORIZATION").body, echo=True)


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def question(self) -> str:
        messages = self.body.get("messages")
        return str(messages[-1]["content"] if messages else self.body.get("prompt"))


class FakeOpenAI:
    """Runs while it is entered; `requests` holds what came, in order of arrival."""

    def __init__(
        self,
        scripts: Mapping[str, Iterable[Reply]] | None = None,
        *,
        always: Reply | None = None,
        wait_for: int = 1,
    ) -> None:
        self.requests: list[Received] = []
        self.running = self.most_at_once = 0
        """Requests being answered now, and at most."""
        self.sent_without_end = 0
        """Bytes of endless replies."""
        self._scripts = {question: list(replies) for question, replies in (scripts or {}).items()}
        self._always = always
        self._wait_for = wait_for
        """Nothing is answered before so many requests were there at once."""
        self._lock = threading.Condition()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeOpenAI:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, received: Received) -> Reply:
        with self._lock:
            self.requests.append(received)
            self.running += 1
            self.most_at_once = max(self.most_at_once, self.running)
            self._lock.notify_all()
            self._lock.wait_for(lambda: self.most_at_once >= self._wait_for, timeout=30)
            if self._always:
                return self._always
            if script := self._scripts.get(received.question):
                return script.pop(0)
        text = f"answer to {received.question}"
        return completion(text) if received.path.endswith("/chat/completions") else text_completion(text)

    def wait_until_received(self, count: int) -> None:
        """Return when so many requests have come."""
        with self._lock:
            assert self._lock.wait_for(lambda: len(self.requests) >= count, timeout=60), self.requests

    def answered(self) -> None:
        with self._lock:
            self.running -= 1

    def wait_for_client_to_leave(self, connection: socket.socket) -> None:
        connection.settimeout(0.02)
        while not self._closing.is_set():
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are the point."""


def _handler(fake: FakeOpenAI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = fake.take(Received(self.path, headers, body))
            # Before the last byte is out: the client's next request may come at once.
            answered = False
            try:
                if reply.silent:
                    fake.wait_for_client_to_leave(self.connection)
                    return
                content = reply.body
                if reply.echo:
                    content = content.replace(b"AUTHORIZATION", headers["authorization"].encode())
                head = self._head(reply, len(content))
                cut = len(content) // 2 if reply.trickle else reply.cut_at
                if cut is not None and cut < 0:
                    return
                if cut is None and not reply.endless:
                    fake.answered()
                    answered = True
                self.wfile.write(head + content[:cut])
                while reply.endless:
                    self.wfile.write(content)
                    fake.sent_without_end += len(content)
                if reply.trickle:
                    fake.wait_for_client_to_leave(self.connection)
            finally:
                if not answered:
                    fake.answered()
                    self.close_connection = True

        def _head(self, reply: Reply, size: int) -> bytes:
            length = {} if reply.endless else {"Content-Length": str(size)}
            fields = {"Content-Type": "application/json", **length, **reply.headers}
            lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in fields.items())]
            return "\r\n".join([*lines, "", ""]).encode()

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    return Handler


def _json(value: Mapping[str, Any]) -> Reply:
    return Reply(body=json.dumps(value).encode())


def _usage(text: str | None) -> dict[str, int]:
    words = len((text or "").split())
    return {"prompt_tokens": 7, "completion_tokens": words, "total_tokens": 7 + words}
