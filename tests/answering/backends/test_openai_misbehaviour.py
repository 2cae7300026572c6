"""The real SDK against a local server that misbehaves: no key anywhere, nothing lost, an interrupt that ends it."""

from __future__ import annotations

import base64
import logging
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.answering.backends.base import AnswerResult
from parallelmind.answering.backends.openai_compatible import HttpSettings, OpenAICompatibleBackend
from parallelmind.answering.backends.retry import RetryPolicy
from parallelmind.errors import SettingsError
from parallelmind.io.endpoint import Endpoint, find_endpoint
from tests import fake_openai as fake
from tests.answering.backends.asking import answer, make_backend, prompt_of
from tests.fake_openai import KEY, FakeOpenAI, Reply

ECHOES = [fake.echoed_key(500), fake.echoed_key(400), fake.echoed_key_as_answer()]


@pytest.mark.parametrize("reply", ECHOES, ids=["500", "400", "answer"])
def test_an_echoed_key_is_in_no_output(reply: Reply, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeOpenAI({"q": [reply] * 9}) as server:
        backend = make_backend(server)
        results: list[AnswerResult] = []
        backend.run(["q"], prompt_of, lambda row, result: results.append(result))
    shown = repr((results, backend, vars(backend), Endpoint(server.base_url, "TEST_KEY", KEY)))
    assert "[key removed]" in shown
    assert KEY not in shown + caplog.text


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_echoed_key_is_in_no_traceback(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeOpenAI(always=fake.echoed_key(status)) as server:
        try:
            answer(server, ["q"])
        except SettingsError as error:
            shown = "".join(traceback.format_exception(error)) + caplog.text
            chain = [error.__cause__, error.__context__]
    assert "[key removed]" in shown
    assert KEY not in shown
    assert chain == [None, None]


@pytest.mark.parametrize("status", [401, 500])
def test_a_password_in_the_address_is_in_no_output(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """The address sends it as base64, and servers repeat what they were sent."""
    caplog.set_level(logging.DEBUG)
    with FakeOpenAI({"q": [fake.echoed_key(status)] * 9}) as server:
        address = server.base_url.replace("://", "://anna:very%20secret@")
        environ = {"OPENAI_API_KEY": KEY}
        endpoint = find_endpoint("openai", base_url=address, environ=environ)
        settings = HttpSettings(model="m", retry=RetryPolicy(max_attempts=1))
        backend = OpenAICompatibleBackend(endpoint, settings)
        results: list[object] = []
        try:
            backend.run(["q"], prompt_of, lambda row, result: results.append(result))
        except SettingsError as error:
            results.append("".join(traceback.format_exception(error)))
        [request] = server.requests
        assert request.headers["authorization"]
    shown = repr((results, endpoint, backend, vars(backend))) + caplog.text
    assert server.base_url in shown
    for secret in ("very%20secret", "very secret", base64.b64encode(b"anna:very secret").decode(), KEY):
        assert secret not in shown


@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_a_response_without_end_is_cut(status: int) -> None:
    with FakeOpenAI(always=Reply(status=status, body=b"x" * 2**16, endless=True)) as server:
        try:
            result = answer(server, ["q"])["q"]
            said = result.error
        except SettingsError as error:
            said = str(error)
        time.sleep(0.3)
        sent = server.sent_without_end
    assert said is not None
    assert len(said) < 600
    assert sent < (100 if status == 200 else 50) * 2**20  # most of it in the buffers of the system


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (400, "no", "context_length_exceeded"),
        (400, "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens.", None),
        (400, "The decoder prompt (length 9000) is longer than the maximum model length of 4096.", None),
        (400, "The input (9000 tokens) is longer than the model's context length (4096 tokens).", None),
        (400, "the request exceeds the available context size", None),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193.", None),
    ],
)
def test_a_prompt_beyond_the_window_is_not_asked_again(status: int, said: str, code: str | None) -> None:
    with FakeOpenAI(
        {"q": [fake.error(status, said, code=code)] * 3, "other": [fake.error(400, "a tool is missing")]}
    ) as s:
        results = answer(s, ["q", "other"])
        assert Counter(request.question for request in s.requests) == {"q": 1, "other": 1}
    assert (results["q"].final, results["q"].error_class) == (True, "too_long")
    assert "parallelmind contexts --max_tokens" in str(results["q"].error)
    assert (results["other"].final, results["other"].error_class) == (False, "http_400")


MISBEHAVIOUR = {  # but for silence: a time limit short enough to wait for it would cut off answers on a busy machine
    "429": fake.too_many_requests(1),
    "500": fake.error(500),
    "400": fake.error(400),
    "json": fake.broken_json(),
    "dropped": fake.dropped(),
    "hung up": fake.hung_up(),
    "choices": fake.empty_choices(),
    "null": fake.null_content(),
    "refusal": fake.completion(None, refusal="no"),
    "echo": fake.echoed_key(502),
}
LASTING = {"400", "refusal"}
scripts = st.lists(st.lists(st.sampled_from(sorted(MISBEHAVIOUR)), max_size=5), min_size=1, max_size=8)


@settings(max_examples=15)
@given(script=scripts, concurrency=st.integers(1, 6))
def test_any_misbehaviour_ends_with_one_outcome_per_row_and_the_right_number_of_requests(
    script: list[list[str]], concurrency: int
) -> None:
    attempts = 3
    replies = {f"q{n}": [MISBEHAVIOUR[kind] for kind in kinds] for n, kinds in enumerate(script)}
    with FakeOpenAI(replies) as server:
        policy = RetryPolicy(max_attempts=attempts, max_retry_seconds=1e9)
        results = answer(server, list(replies), concurrency=concurrency, retry=policy)
        asked = Counter(request.question for request in server.requests)
    for number, kinds in enumerate(script):
        requests, failed = 0, 0
        for kind in kinds:
            requests += 1
            failed += kind != "429"
            if kind in LASTING or failed == attempts:
                break
        else:
            requests, failed = requests + 1, -1
        result = results[f"q{number}"]
        assert asked[f"q{number}"] == requests
        assert result.retries == requests - 1
        assert result.text == (f"answer to q{number}" if failed < 0 else None)
    assert KEY not in repr(results)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may ignore it
from parallelmind.answering.backends.base import Prompt
from parallelmind.answering.backends.openai_compatible import HttpSettings, OpenAICompatibleBackend
from parallelmind.io.endpoint import Endpoint
done = []
backend = OpenAICompatibleBackend(Endpoint(sys.argv[1], "K", "secret-key"), HttpSettings(model="m", concurrency=4))
prompt = lambda row: Prompt(messages=({"role": "user", "content": row},))
rows = ["quick 0", "quick 1", *(f"slow {n}" for n in range(50))]
try:
    backend.run(rows, prompt, lambda row, result: done.append(row))
except KeyboardInterrupt:
    print("interrupted", sorted(done))
"""


def test_an_interrupt_abandons_what_runs_and_the_program_ends() -> None:
    with FakeOpenAI({f"slow {n}": [fake.silent()] for n in range(50)}) as server:
        command = [sys.executable, "-c", INTERRUPTED, server.base_url]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        server.wait_until_received(6)  # 2 that are answered at once, and as many as may wait
        child.send_signal(signal.SIGINT)
        said, errors = child.communicate(timeout=60)  # the timeout of the requests is 120 s
        assert len(server.requests) == 6
    assert (said, child.returncode) == ("interrupted ['quick 0', 'quick 1']\n", 0), errors


def test_settings_are_checked() -> None:
    for name, value in {"concurrency": 0, "timeout": 0, "max_new_tokens": 0, "temperature": -1, "top_p": 0}.items():
        with pytest.raises(SettingsError, match=f"--{name} is {value}"):
            HttpSettings(**{"model": "m", name: value})  # type: ignore[arg-type]


def test_openai_itself_is_asked_with_its_own_name_for_the_limit() -> None:
    endpoint = find_endpoint("openai", environ={"OPENAI_API_KEY": KEY})
    backend = OpenAICompatibleBackend(endpoint, HttpSettings(model="m"))
    body = backend._body(prompt_of("q"))
    assert body["max_completion_tokens"] == 512
    assert "max_tokens" not in body
