"""What is refused, and how: keys, origins, hostile and oversized requests, a full queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.serving import ANSWERS, LONG, QUESTIONS, STORY, Running, running, tiny_engine

ASK = {"main": STORY, "branches": [{"prompt": QUESTIONS[0]}], "temperature": 0}


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server with little room, a key, and one web origin."""
    engine = tiny_engine(max_running_branches=2)
    options: dict[str, Any] = {"max_running_branches": 2, "max_queue": 2, "max_request_bytes": 20_000}
    with running(
        engine, api_key="geheim-ключ", max_main_tokens=100, cors_origin=("https://a.example",), **options
    ) as found:
        found.api_key = None
        yield found


def key(value: str = "geheim-ключ") -> dict[str, str]:
    return {"Authorization": f"Bearer {value}".encode().decode("latin-1")}


def test_the_key_is_asked_for(small: Running) -> None:
    for given in ({}, key("geheim"), key("geheim-ключ1"), {"Authorization": "Basic abc"}, {"Authorization": "Bearer"}):
        for path, body in (("/v1/branches", ASK), ("/generate", {"prompt": "x"}), ("/v1/nothing", {})):
            answer = small.post(path, body, **given)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.error["code"] == "invalid_api_key"
            assert "geheim" not in answer.body.decode()
    for path in ("/metrics", "/v1/models", "/v1/info"):
        assert small.get(path).status == 401
        assert small.get(path, **key()).status == 200
    for path in ("/health", "/docs", "/openapi.json"):
        assert small.get(path).status == 200
    assert small.post("/v1/branches", ASK, **key()).json["branches"][0]["text"] == ANSWERS[0]


def test_paths_cannot_climb_out_of_the_static_folder(small: Running) -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "//etc/passwd",
        "/static//etc/passwd",
    ):
        answer = small.get(path)
        assert answer.status in (401, 404), path
        assert b"import" not in answer.body


def test_every_answer_has_the_security_headers(small: Running) -> None:
    for answer in (
        small.get("/health"),
        small.get("/docs"),
        small.get("/v1/info"),
        small.post("/v1/branches", b"x" * 30_000),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]


def test_only_the_given_web_origin_may_call(small: Running, server: Running) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    allowed = small.request("OPTIONS", "/v1/branches", None, **headers)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = small.request("OPTIONS", "/v1/branches", None, **headers | {"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    for origin in ("https://a.example", "null"):
        answer = server.post("/v1/branches", ASK, Origin=origin)
        assert "access-control-allow-origin" not in answer.headers


def test_another_name_for_this_machine_is_refused(server: Running, small: Running) -> None:
    """A page elsewhere may have its name resolve to this machine."""
    for name in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "[::2]", "[::", "127.evil.example"):
        answer = server.post("/v1/branches", ASK, Host=name)
        assert (answer.status, answer.error["code"]) == (403, "wrong_host"), name
        assert server.get("/", Host=name).status == 403
        assert server.get("/health", Host=name).status == 200
    for name in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80"):
        assert server.post("/v1/branches", ASK, Host=name).status == 200
    assert small.post("/v1/branches", ASK, Host="models.example", **key()).status == 200, "a key is proof enough"


def test_a_page_elsewhere_cannot_post_without_asking_first(server: Running) -> None:
    """The content types a form may send need no permission, so they must not be understood."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = server.post("/v1/branches", ASK, **{"Content-Type": kind})
        assert answer.status == 400
        assert "Content-Type: application/json" in answer.error["message"]


def test_a_full_queue_says_when_to_come_back(small: Running) -> None:
    async def crowd() -> None:
        body = {"main": STORY, "branches": [{"prompt": "a"}] * 4, "stream": True} | LONG
        raw = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
        authorization = b"Authorization: Bearer " + "geheim-ключ".encode()
        head = b"POST /v1/branches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + authorization
        writer.write(head + b"\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
        await reader.readuntil(b'"start"')
        answer = await asyncio.to_thread(small.post, "/v1/branches", ASK, **key())
        assert answer.status == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.error["code"] == "queue_full"
        writer.transport.abort()

    asyncio.run(crowd())
    small.wait_until(small.idle, "the queue is empty again")
    assert small.post("/v1/branches", ASK, **key()).status == 200


def test_a_body_is_refused_when_it_is_too_large(small: Running) -> None:
    large = json.dumps({"prompt": "x" * 30_000}).encode()
    assert small.post("/generate", large, **key()).status == 413

    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(200):
            yield b"x" * 1000
        yield b'"}'

    headers = {"Content-Type": "application/json"} | key()
    try:
        answer = small.request("POST", "/generate", pieces(), **headers)
    except (BrokenPipeError, ConnectionResetError):
        return  # it hung up before all of it was sent
    assert answer.status == 413
    assert "20000 bytes" in answer.error["message"]


def test_a_shared_text_is_refused_when_it_is_too_long(small: Running) -> None:
    answer = small.post("/v1/branches", ASK | {"main": STORY * 4}, **key())
    assert answer.status == 400
    assert answer.error["code"] == "context_length_exceeded"
    assert "takes 100" in answer.error["message"]
    small.wait_until(small.idle, "nothing was begun")


HOSTILE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"{}" * 3,
    b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "x", "\\udfff": 1}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "temperature": -0.1}',
    b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
    b'{"prompt": "x", "seed": 18446744073709551616}',
    b'{"prompt": "x", "top_k": 1e300}',
    b'{"prompt": "x", "max_tokens": 0}',
    b'{"prompt": "x", "max_tokens": true}',
    b'{"prompt": {"$gt": ""}}',
    b'{"prompt": ["x"]}',
    b'{"prompt": "x", "stop": [""]}',
    b'{"prompt": "x", "stop": [1]}',
    b'{"prompt": "x", "__proto__": {}}',
    b'{"prompt": "x", "adapter": "../../etc"}',
    b"--boundary\r\n\r\n",
    b"\x00\x01\x02",
    "\ufeff{}".encode("utf-16"),
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:40]))
def test_hostile_bodies_get_an_answer_that_says_what_is_wrong(server: Running, body: bytes) -> None:
    for path in ("/generate", "/v1/branches", "/v1/chat/completions", "/v1/completions", "/v1/grid"):
        answer = server.post(path, body)
        if path == "/v1/completions" and answer.status == 200:
            continue  # a list of prompts is fine there
        assert 400 <= answer.status < 500, (path, answer.body)
        assert answer.error["message"]
        assert answer.error["type"]


@pytest.mark.parametrize(
    "text",
    [
        "\x00",
        "a\x00b",
        "\u202e\u2066rtl",
        "👩‍👩‍👧‍👦" * 20,
        "\U0010ffff",
        "ａ́" * 50,
        "<|endoftext|>",
        "{% for x in y %}",
        "\r\n\x1b[31m",
    ],
)
def test_any_text_is_answered(server: Running, text: str) -> None:
    body = {"main": text, "branches": [{"prompt": text}, {"prompt": ""}], "max_tokens": 4, "temperature": 3, "seed": 1}
    answer = server.post("/v1/branches", body)
    assert answer.status == 200
    assert [branch["finish_reason"] != "error" for branch in answer.json["branches"]] == [True, True]
    assert (
        "".join(
            event["text"]
            for event in server.post("/v1/branches", body | {"stream": True}).events
            if event["type"] == "token" and event["index"] == 0
        )
        == answer.json["branches"][0]["text"]
    )
    assert (
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 2}).status
        == 200
    )


def test_extreme_sampling_settings_are_survived(server: Running) -> None:
    for settings in (
        {"temperature": 1e-320},
        {"temperature": 100},
        {"temperature": 1, "top_p": 1e-300},
        {"top_k": 2**31, "temperature": 1},
        {"min_p": 1, "temperature": 1},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1, "temperature": 1},
    ):
        body = {"main": STORY, "branches": [{"prompt": "a"}, {"prompt": "b"}], "max_tokens": 3} | settings
        reasons = [branch["finish_reason"] for branch in server.post("/v1/branches", body).json["branches"]]
        assert set(reasons) <= {"stop", "length"}, settings
