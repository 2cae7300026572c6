"""`parallelmind serve` as a process: starting, signals, exit codes."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind.cli.main import main
from parallelmind.models.lora import apply_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from tests.exact import ON_CPU
from tests.server.serving import ANSWERS, LONG, QUESTIONS, STORY, stream

SERVE = [sys.executable, "-m", "parallelmind", "serve", "--base_model", "tiny", "--port", "0", *ON_CPU]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


class Process:
    """A started server; its log is read as it comes."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT | environment)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        with self._changed:
            self._changed.wait_for(lambda: re.search(pattern, self.log) or self.process.poll() is not None, 300)
            found = re.search(pattern, self.log)
        assert found is not None, self.log
        return found

    @property
    def port(self) -> int:
        return int(self.wait_for(r"listening on http://[\d.]+:(\d+)")[1])

    def end(self) -> int:
        code = self.process.wait(300)
        self._reader.join(300)
        return code


@contextmanager
def started(*flags: str, command: list[str] = SERVE, **environment: str) -> Iterator[Process]:
    process = Process([*command, *flags], environment)
    try:
        yield process
    finally:
        process.process.kill()
        process.end()


def post(port: int, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def terminate(server: Process) -> None:
    """It finishes what runs and refuses the rest."""
    body = {"main": STORY, "branches": [{"prompt": QUESTIONS[0]}] * 4, "stream": True}
    body |= LONG | {"max_tokens": 300}
    port = server.port

    async def watch() -> bytes:
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        kept.connect()
        async with stream(port, "/v1/branches", body) as reader:
            begin = await reader.readuntil(b'"token"')
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait_for, "shutting down: 1 requests have 300 seconds")
            kept.request("POST", "/generate", '{"prompt": "x"}', {"Content-Type": "application/json"})
            refused = kept.getresponse()
            assert refused.status == 503
            assert b"shutting down" in refused.read()
            kept.request("GET", "/health")
            assert kept.getresponse().status == 503
            kept.close()
            return begin + await reader.readuntil(b"[DONE]")

    events = asyncio.run(watch()).decode()
    assert events.count('"finish_reason":"length"') == 4
    assert server.end() == 0
    assert "cut off" not in server.log


def test_the_key_is_never_shown_and_what_does_not_finish_in_time_is_told_so() -> None:
    key = {"Authorization": "Bearer top-secret"}
    with started("--debug", "--shutdown_timeout", "0", PARALLELMIND_API_KEY="top-secret") as server:
        server.wait_for("ready: tiny")
        body = {"prompt": STORY + QUESTIONS[0], "temperature": 0}
        assert post(server.port, "/generate", body)[0] == 401
        assert post(server.port, "/generate", body, Authorization="Bearer wrong-secret")[0] == 401
        assert post(server.port, "/generate", body, **key) == (200, {"response": body["prompt"] + ANSWERS[0]})

        async def watch() -> bytes:
            long = {"main": STORY, "branches": [{"prompt": "a"}, {"prompt": "b"}], "stream": True} | LONG
            async with stream(server.port, "/v1/branches", long, **key) as reader:
                begin = await reader.readuntil(b'"token"')
                server.process.send_signal(signal.SIGINT)
                return begin + await reader.readuntil(b"[DONE]")

        assert asyncio.run(watch()).decode().count('"finish_reason":"cancelled"') == 2
        assert server.end() == 1
        assert "1 of 1 requests did not finish in time and were cut off" in server.log
        assert "secret" not in server.log


def test_adapters_are_chosen_by_request_and_a_terminated_server_finishes_what_runs(tmp_path: Path) -> None:
    from parallelmind import load_model_with_lora

    paths = {}
    for seed, name in enumerate(("red", "green")):
        model = load_model_with_lora("tiny", device="cpu", dtype="float32").model
        apply_lora(model, rank=4, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora.B.weight, std=4.0, generator=generator)
        paths[name] = save_lora(model, tmp_path / f"{name}.pth")
    flags = [flag for name, path in paths.items() for flag in ("--lora_path", f"{name}={path}")]
    with started(*flags, "--no-patch-rope", "--host", "0.0.0.0", "--shutdown_timeout", "300") as server:
        server.wait_for("ready: tiny, red, green")
        assert "WARNING listening on 0.0.0.0 without an API key" in server.log
        branches = [{"prompt": QUESTIONS[0], "adapter": name} for name in ("", "red", "green")]
        body = {"main": STORY, "branches": branches, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
        _, together = post(server.port, "/v1/branches", body)
        texts = [branch["text"] for branch in together["branches"]]
        assert texts[0].startswith(ANSWERS[0])
        assert len(set(texts)) == 3
        for name, text in zip(("tiny", "red", "tiny:green"), texts, strict=True):
            alone = {"model": name, "prompt": STORY + QUESTIONS[0], "temperature": 0, "max_tokens": 8}
            status, answer = post(server.port, "/v1/completions", alone | {"ignore_eos": True})
            assert status == 200
            assert answer["choices"][0]["text"] == text
            assert answer["model"] == (name if ":" in name or name == "tiny" else f"tiny:{name}")
        status, error = post(server.port, "/v1/completions", {"model": "blue", "prompt": "x"})
        assert status == 404
        assert "this server has: tiny, red, green" in error["error"]["message"]
        terminate(server)


def ends_with(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["serve", "--base_model", "tiny", *ON_CPU, "--port", "0", *flags]) == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "Traceback" not in said
    return said


def test_what_cannot_start_says_why_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot be listened on" in ends_with(capsys, "--port", str(port))
    assert "error: --base_model /nowhere/at-all" in ends_with(capsys, "--base_model", "/nowhere/at-all")
    both = ("--lora_path", "/nowhere/a.pth", "--lora_path", "b=/nowhere/b.pth")
    assert "needs a name" in ends_with(capsys, *both)
    assert "no such file" in ends_with(capsys, *both[2:])
    assert "--max_queue is -1; it must be 0 or more" in ends_with(capsys, "--max_queue", "-1")
