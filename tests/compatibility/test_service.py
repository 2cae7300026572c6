"""The service: `POST /generate`, and the ways to start it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.server.options import ServeOptions
from tests.compatibility.command_lines import parsed
from tests.compatibility.contract import proves
from tests.compatibility.inference_runs import ANSWERS, QUESTIONS, STORY
from tests.exact import ON_CPU, ON_CPU_VARIABLES
from tests.server.serving import Running, running

BODY = {"prompt": STORY + QUESTIONS[0], "max_new_tokens": 512, "temperature": 0}


class Recording(Engine):
    """Keeps what it is asked for."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.asked: list[SamplingParams] = []

    def add_request(self, request: Request, sampling: SamplingParams | None = None) -> int:
        self.asked += [branch.sampling for branch in request.branches if isinstance(branch, Branch) and branch.sampling]
        return super().add_request(request, sampling)


@pytest.fixture(scope="module")
def engine() -> Recording:
    found = Recording.from_pretrained("tiny", device="cpu", dtype="float32", patch_rope=False)
    assert isinstance(found, Recording)
    return found


@pytest.fixture(scope="module")
def server(engine: Recording) -> Iterator[Running]:
    with running(engine) as found:
        yield found


@proves("service", "POST /generate", "prompt", "max_new_tokens", "temperature")
def test_generate(server: Running) -> None:
    """The documented body gets the prompt and its continuation, and nothing else; without a prompt it is refused."""
    answer = server.post("/generate", BODY)
    assert (answer.status, answer.json) == (200, {"response": BODY["prompt"] + ANSWERS[0]})
    refused = server.post("/generate", {"max_new_tokens": 3})
    assert refused.status == 400
    assert refused.error["param"] == "prompt"


@proves("service", "max_new_tokens", "temperature")
def test_defaults(server: Running, engine: Recording) -> None:
    """Left out, the engine is asked for the documented defaults; given, for what was given."""
    before = len(engine.asked)
    assert server.post("/generate", {"prompt": STORY + QUESTIONS[1], "seed": 0}).status == 200
    assert server.post("/generate", {"prompt": STORY, "max_new_tokens": 7, "temperature": 0.25}).status == 200
    assert [(one.max_new_tokens, one.temperature) for one in engine.asked[before:]] == [(512, 0.7), (7, 0.25)]


@proves("service", "return_full_text")
def test_the_continuation_alone(server: Running) -> None:
    """With false the response is what follows the prompt."""
    alone = server.post("/generate", BODY | {"return_full_text": False}).json
    assert alone == {"response": ANSWERS[0]}
    assert server.post("/generate", BODY | {"return_full_text": True}).json == server.post("/generate", BODY).json


@proves("service", "max_new_tokens", "temperature")
def test_effects(server: Running) -> None:
    """A small number of tokens cuts the answer off; a high temperature changes it."""
    continuation = BODY | {"return_full_text": False}
    cut = server.post("/generate", continuation | {"max_new_tokens": 1}).json["response"]
    assert cut != ANSWERS[0]
    assert ANSWERS[0].startswith(cut)
    hot = server.post("/generate", continuation | {"max_new_tokens": 8, "temperature": 50, "top_p": 1, "seed": 0})
    assert hot.json["response"] != ANSWERS[0]


@proves("service", "--port", "parallelmind serve")
def test_default_port() -> None:
    """The port is 8000 unless a flag says otherwise."""
    assert parsed("serve", "--base_model", "m")["port"] == 8000
    assert ServeOptions(base_model="m").port == 8000


@proves("service", "parallelmind serve", "uvicorn", "--port")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(  # tests/server/test_process.py starts it often
            ["parallelmind", "serve", "--base_model", "tiny", *ON_CPU, "--port", "0"], marks=pytest.mark.slow
        ),
        ["uvicorn", "parallelmind.server.app:app", "--port", "0"],
    ],
    ids=["parallelmind serve", "uvicorn"],
)
def test_started(command: list[str]) -> None:
    """The process answers on its port until it is terminated; uvicorn's has its settings from the environment."""
    variables = ON_CPU_VARIABLES | {"OMP_NUM_THREADS": "1", "PARALLELMIND_BASE_MODEL": "tiny"}
    variables |= {"PARALLELMIND_MAX_BRANCHES": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, env=os.environ | variables
    )
    assert process.stderr is not None
    try:
        port = 0
        for line in process.stderr:
            if found := re.search(r"(?:listening|running) on http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
            if port and ("ready: tiny" in line or command[0] == "uvicorn"):
                break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        typed = {"Content-Type": "application/json"}
        connection.request("POST", "/generate", json.dumps(BODY), typed)
        assert json.loads(connection.getresponse().read()) == {"response": BODY["prompt"] + ANSWERS[0]}
        connection.request("POST", "/v1/branches", json.dumps({"main": STORY, "branches": [{}] * 3}), typed)
        refused = connection.getresponse()
        assert refused.status == 400
        assert "takes 2" in json.loads(refused.read())["error"]["message"]
        connection.close()
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(300) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
