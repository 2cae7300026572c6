"""Connections that do not get on are closed, and those that are needed have places."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator

import pytest

from parallelmind.server import connections, guards
from tests.server.serving import ANSWERS, LONG, QUESTIONS, STORY, Running, running, tiny_engine

ASK = {"prompt": STORY + QUESTIONS[0], "temperature": 0, "return_full_text": False}
POST = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server with few places, which waits for nobody long."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "IDLE_SECONDS", 1)
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    monkeypatch.setattr(guards, "_BODY_SECONDS", 0.5)
    with running(tiny_engine, max_connections=40, send_buffer=4096) as found:
        yield found


@pytest.fixture(scope="module")
def roomy() -> Iterator[Running]:
    with running(tiny_engine, max_connections=40) as found:
        yield found


@contextlib.contextmanager
def connected(server: Running, sent: bytes = b"", count: int = 1) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            client.sendall(sent)
            clients.append(client)
        yield clients


def rest(client: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
        f"{POST}Content-Length: 100\r\n\r\n{{".encode(),
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx",
    ],
    ids=["nothing", "half a head", "one request", "half a second head", "half a body", "half an unread body"],
)
def test_a_connection_that_does_not_get_on_is_closed(hasty: Running, sent: bytes) -> None:
    with connected(hasty, sent) as [client]:
        rest(client)  # it comes to an end
    hasty.wait_until(lambda: hasty.service.unfinished_branches == 0, "it has no place")


def test_a_head_in_crumbs_does_not_live_longer(hasty: Running) -> None:
    begun = time.monotonic()
    with connected(hasty, b"GET /health HTTP/1.1\r\n") as [client], contextlib.suppress(OSError):
        while time.monotonic() < begun + 60:
            client.sendall(b"a: b\r\n")
            time.sleep(0.05)
    assert time.monotonic() < begun + 30


def test_a_thousand_idle_connections_do_not_stop_the_next_client(roomy: Running) -> None:
    with (
        connected(roomy, count=500),
        connected(roomy, b"GET /health HTTP/1.1\r\nHost: loc", count=250),
        connected(roomy, f"{POST}Content-Length: 100\r\n\r\n{{".encode(), count=250),
    ):
        assert roomy.post("/generate", ASK).json == {"response": ANSWERS[0]}
        assert roomy.get("/health").status == 200


def test_connections_that_are_busy_keep_their_places(roomy: Running) -> None:
    body = json.dumps({"prompt": STORY, "stream": True} | LONG)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    asked = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    with connected(roomy, asked, count=20) as streams:
        for client in streams:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        refused = roomy.get("/health")
        assert refused.status == 503
        assert refused.error["code"] == "too_many_connections"
        other = socket.create_connection(("127.0.0.1", roomy.port), timeout=60, source_address=("127.0.0.2", 0))
        with other:
            other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b" 200 " in rest(other), "half of the places are for others"
        assert all(client.recv(100) for client in streams)
    roomy.wait_until(roomy.idle, "they are forgotten")
    assert roomy.get("/health").status == 200


def test_a_reader_that_takes_nothing_of_a_whole_answer_is_cut_off(hasty: Running) -> None:
    body = json.dumps({"prompt": "x", "n": 16, "logprobs": 20, "max_tokens": 100, "ignore_eos": True})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as deaf:
        deaf.settimeout(60)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", hasty.port))
        deaf.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        hasty.wait_until(lambda: hasty.service.num_running > 0, "it runs")
        hasty.wait_until(hasty.idle, "it is answered")
        time.sleep(2)
        answer = rest(deaf)
    assert b"[DONE]" not in answer
    assert len(answer) < 500_000, "the rest was thrown away"


@contextlib.contextmanager
def unread_answer(server: Running, address: str) -> Iterator[socket.socket]:
    """A connection on which an answer of 300 KB is there, of which the client has taken nothing."""
    raw = json.dumps({"prompt": "\x01" * 800, "n": 64, "max_tokens": 1, "echo": True, "temperature": 0}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    before = server.service.metrics.requests.labels("/v1/completions", "200")._value.get()
    with socket.socket() as client:
        client.settimeout(60)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.bind((address, 0))
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        answered = server.service.metrics.requests.labels("/v1/completions", "200")._value
        server.wait_until(lambda: answered.get() > before, "it is answered")
        yield client


def test_answers_that_nobody_reads_are_not_kept_in_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MOST_UNREAD", 2**20)
    with running(tiny_engine, send_buffer=4096) as server, contextlib.ExitStack() as stack:
        other = stack.enter_context(unread_answer(server, "127.0.0.2"))
        deaf = [stack.enter_context(unread_answer(server, "127.0.0.1")) for _ in range(4)]
        assert len(rest(other)) > 300_000, "it has less than its half of the bytes that wait"
        lengths = [len(rest(client)) for client in deaf]
        assert lengths[-1] > 300_000
        assert max(lengths[:-1]) < 100_000, "they are cut off for the last one"


def test_a_request_with_two_lengths_is_refused(roomy: Running) -> None:
    head = f"{POST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(roomy, f"{head}0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) as [client]:
        answer = rest(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_head_that_is_too_large_is_refused_before_it_is_taken_apart(roomy: Running) -> None:
    for sent in (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 40_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 40_000,
    ):
        with connected(roomy) as [client]:
            with contextlib.suppress(OSError):
                client.sendall(sent)
            last = rest(client).rpartition(b"HTTP/1.1 ")[2]
            assert not last or last.startswith(b"400")


def test_a_body_in_crumbs_is_refused_and_one_in_chunks_is_not(roomy: Running) -> None:
    head = f"{POST}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    with connected(roomy, head) as [client]:
        with contextlib.suppress(OSError):
            client.sendall(b"1\r\n \r\n" * 200_000)
        answer = rest(client)
        assert not answer or b" 400 " in answer
    body = json.dumps(ASK).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connected(roomy, head + chunks) as [client]:
        assert b" 200 OK" in rest(client)
    roomy.wait_until(roomy.idle, "nothing is left")


def test_a_request_that_goes_wrong_after_its_head_is_answered_once(
    roomy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that was on its way has no place behind the refusal, and is no error of ours."""
    errors: list[str] = []
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda message, *_, **__: errors.append(message))
    head = b"GET / HTTP/1.1\r\nHost: elsewhere.example\r\nTransfer-Encoding: chunked\r\n\r\n"  # refused at once
    with connected(roomy, head + b"no length\r\n") as [client]:
        answer = rest(client)
    with connected(roomy, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as [client]:
        assert rest(client).startswith(b"HTTP/1.1 200")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    assert errors == []


def test_requests_one_behind_the_other_are_all_answered(roomy: Running) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(roomy, one * 2000 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as [client]:
        assert roomy.get("/health").status == 200
        assert rest(client).count(b"HTTP/1.1 200 OK") == 2001
