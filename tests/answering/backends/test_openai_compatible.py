"""The real SDK against a local server that misbehaves: one result per row, and no key anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parallelmind.answering.backends.base import AnswerResult, Prompt
from parallelmind.answering.backends.retry import RetryPolicy
from parallelmind.errors import DataError, SettingsError
from tests import fake_openai as fake
from tests.answering.backends.asking import answer, make_backend, prompt_of
from tests.answering.backends.clocks import FakeClock
from tests.fake_openai import KEY, FakeOpenAI, Reply


def test_answers_with_what_is_known_of_them() -> None:
    with FakeOpenAI() as server:
        results = answer(server, ["one", "二つ 😀"], seed=3, stop=("\n",), extra_body={"top_k": 5})
        assert results["二つ 😀"].text == "answer to 二つ 😀"
        assert (results["one"].tokens_in, results["one"].tokens_out) == (7, 3)
        assert (results["one"].retries, results["one"].finish_reason) == (0, "stop")
        sent = next(request for request in server.requests if request.question == "one")
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.body == {
        "model": "fake",
        "messages": [{"role": "user", "content": "one"}],
        "max_tokens": 512,
        "temperature": 0.2,
        "top_p": 0.95,
        "stop": ["\n"],
        "seed": 3,
        "top_k": 5,
    }


RETRIED = {
    "http_429": fake.too_many_requests(),
    "http_408": fake.error(408),
    "http_409": fake.error(409),
    "http_425": fake.error(425),
    "http_500": fake.error(500),
    "http_503": fake.error(503),
    "broken_json": fake.broken_json(),
    "no_choices": fake.empty_choices(),
    "no_text": fake.null_content(),
    "connection": fake.dropped(),
    "connection ": fake.hung_up(),
}


@pytest.mark.parametrize("kind", RETRIED)
def test_passing_failures_are_retried_until_they_pass(kind: str) -> None:
    with FakeOpenAI({"q": [RETRIED[kind]] * 2}) as server:
        result = answer(server, ["q", "other"])["q"]
        assert len(server.requests) == 4
    assert (result.text, result.retries, result.error) == ("answer to q", 2, None)


@pytest.mark.parametrize("kind", [kind for kind in RETRIED if kind != "http_429"])
def test_lasting_failures_end_with_an_error(kind: str) -> None:
    with FakeOpenAI({"q": [RETRIED[kind]] * 9}) as server:
        results = answer(server, ["q", "other"], retry=RetryPolicy(max_attempts=3))
        assert len(server.requests) == 4
    assert (results["q"].error_class, results["q"].retries, results["q"].text) == (kind.strip(), 2, None)
    assert results["other"].text == "answer to other"


@pytest.mark.parametrize("reply", [fake.silent(), fake.trickle()], ids=["silent", "trickle"])
def test_a_server_that_is_too_slow(reply: Reply) -> None:
    with FakeOpenAI({"q": [reply, reply]}) as server:
        # On a busy machine a quick answer may come too late, too.
        result = answer(server, ["q"], timeout=0.2, retry=RetryPolicy(max_attempts=100))["q"]
        assert len(server.requests) == result.retries + 1
    assert result.text == "answer to q"
    assert result.retries >= 2


NOT_RETRIED = {
    "http_400": fake.error(400, "context too long"),
    "http_413": fake.error(413),
    "http_422": fake.error(422),
    "refusal": fake.completion(None, refusal="I would rather not"),
    "content_filter": fake.completion(None, finish_reason="content_filter"),
    "no_text": fake.completion(None, finish_reason="length"),
}


@pytest.mark.parametrize("kind", NOT_RETRIED)
def test_what_cannot_pass_is_asked_once(kind: str) -> None:
    with FakeOpenAI({"q": [NOT_RETRIED[kind]]}) as server:
        results = answer(server, ["q", "other"])
        assert len(server.requests) == 2
    assert (results["q"].error_class, results["q"].retries, results["q"].text) == (kind, 0, None)
    assert results["other"].text


def test_the_servers_own_words_are_in_the_error() -> None:
    with FakeOpenAI({"q": [fake.error(400, "context too long")]}) as server:
        result = answer(server, ["q"])["q"]
        assert result.error == f"{server.base_url} answered 400: context too long"


def test_a_response_without_end_is_cut_off() -> None:
    with FakeOpenAI({"q": [fake.huge(500_000)]}) as server:
        result = answer(server, ["q"], max_response_bytes=100_000)["q"]
    assert (result.error_class, result.retries) == ("response_too_large", 0)


def test_a_cut_answer_is_noted() -> None:
    with FakeOpenAI({"q": [fake.completion("half of", finish_reason="length")]}) as server:
        result = answer(server, ["q"])["q"]
    assert (result.text, result.finish_reason) == ("half of", "length")


FATAL = {
    401: "answered 401: no Check the key in TEST_KEY",
    402: "no credit left",
    403: "TEST_KEY may not use the model 'fake'",
    404: "Check the model name 'fake' and the address",
}


@pytest.mark.parametrize("status", FATAL)
def test_what_no_row_can_pass_stops_the_job(status: int) -> None:
    with FakeOpenAI(always=fake.error(status)) as server:
        backend = make_backend(server)
        results: list[AnswerResult] = []
        with pytest.raises(SettingsError, match=FATAL[status]):
            backend.run([f"q{n}" for n in range(100)], prompt_of, lambda row, result: results.append(result))
        assert len(server.requests) <= 4
    assert results == []


def test_used_up_credit_stops_the_job() -> None:
    with (
        FakeOpenAI(always=fake.error(429, "quota", code="insufficient_quota")) as server,
        pytest.raises(SettingsError, match=r"quota .*no credit left"),
    ):
        answer(server, ["q"])


def test_what_was_answered_before_the_job_stops_is_kept() -> None:
    results: dict[str, AnswerResult] = {}
    with FakeOpenAI({"q3": [fake.error(401)]}) as server, pytest.raises(SettingsError):
        make_backend(server, concurrency=1).run(
            [f"q{n}" for n in range(10)], prompt_of, lambda row, result: results.update({row: result})
        )
    assert list(results) == ["q0", "q1", "q2"]


def test_no_server_at_all_stops_the_job() -> None:
    with FakeOpenAI() as server:
        url = server.base_url
    with pytest.raises(SettingsError, match=rf"{url} cannot be reached .*check --base_url"):
        answer(url, ["q"], retry=RetryPolicy(max_attempts=2))


def test_a_429_pauses_all_requests_for_as_long_as_it_says() -> None:
    clock = FakeClock()
    with FakeOpenAI({"q0": [fake.too_many_requests(30)]}) as server:
        results = answer(server, [f"q{n}" for n in range(3)], clock=clock, concurrency=1)
        assert [request.question for request in server.requests] == ["q0", "q0", "q1", "q2"]
    assert results["q0"].retries == 1
    assert clock.now() >= 1030
    assert results["q0"].seconds >= 30


def test_a_date_in_retry_after() -> None:
    from email.utils import formatdate

    clock = FakeClock()
    with FakeOpenAI({"q": [fake.too_many_requests(formatdate(clock.wall() + 50, usegmt=True))]}) as server:
        assert answer(server, ["q"], clock=clock)["q"].retries == 1
    assert clock.now() >= 1050


def test_a_full_server_in_the_end_answers_everyone() -> None:
    """Far more refusals than attempts: they are not the requests' fault."""
    questions = [f"q{n}" for n in range(12)]
    with FakeOpenAI({question: [fake.too_many_requests(1)] * 12 for question in questions}) as server:
        results = answer(server, questions, retry=RetryPolicy(max_attempts=2, max_retry_seconds=1e6))
        assert len(server.requests) == 12 * 13
    assert all(result.text and result.retries == 12 for result in results.values())


def test_requests_are_bounded_and_rows_are_not_read_ahead() -> None:
    pulled = finished = 0
    ahead = 0

    def rows() -> Iterator[str]:
        nonlocal pulled, ahead
        for number in range(40):
            pulled += 1
            ahead = max(ahead, pulled - finished)
            yield f"q{number}"

    def done(row: str, result: AnswerResult) -> None:
        nonlocal finished
        finished += 1

    with FakeOpenAI(wait_for=5) as server:
        make_backend(server, concurrency=5).run(rows(), prompt_of, done)
        assert server.most_at_once == 5
    assert (finished, ahead) == (40, 5)


def test_rate_limits_hold_between_requests() -> None:
    clock = FakeClock()
    with FakeOpenAI() as server:
        answer(server, [f"q{n}" for n in range(4)], clock=clock, concurrency=1, rpm=6)
    assert clock.now() == pytest.approx(1030)
    clock = FakeClock()
    with FakeOpenAI() as server:  # 7 tokens in, 3 out, whatever the estimate was
        answer(server, [f"q{n}" for n in range(4)], clock=clock, concurrency=1, tpm=60)
    assert clock.now() == pytest.approx(1030)


def test_a_row_without_a_prompt_is_one_error() -> None:
    def refuse(question: str) -> Prompt:
        if question == "bad":
            raise DataError("line 3: no such thing")
        return prompt_of(question)

    results: dict[str, AnswerResult] = {}
    with FakeOpenAI() as server:
        make_backend(server).run(["bad", "good"], refuse, lambda row, result: results.update({row: result}))
    assert (results["bad"].error, results["bad"].error_class) == ("line 3: no such thing", "DataError")
    assert results["good"].text


def test_errors_of_the_caller_are_raised_and_nothing_more_is_asked() -> None:
    def rows() -> Iterator[str]:
        yield "q0"
        yield "q1"
        raise DataError("edited")

    results: list[str] = []
    with FakeOpenAI() as server:
        with pytest.raises(DataError, match="edited"):
            make_backend(server, concurrency=1).run(rows(), prompt_of, lambda row, result: results.append(row))
        assert results == ["q0", "q1"]

        def full(row: str, result: AnswerResult) -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            make_backend(server).run([f"r{n}" for n in range(100)], prompt_of, full)
        assert len(server.requests) <= 2 + 4


def test_a_whole_request_is_sent_as_it_is() -> None:
    chat = {"model": "theirs", "messages": [{"role": "user", "content": "q"}], "n": 2, "logit_bias": {"5": 1}}
    text = {"model": "theirs", "prompt": "p", "max_tokens": 3}
    prompts = [Prompt(body=chat), Prompt(body=text, endpoint="/v1/completions")]
    results: list[AnswerResult] = []
    with FakeOpenAI() as server:
        backend = make_backend(server, concurrency=1)
        backend.run(prompts, lambda prompt: prompt, lambda row, result: results.append(result))
        assert [(request.path, request.body) for request in server.requests] == [
            ("/v1/chat/completions", chat),
            ("/v1/completions", text),
        ]
    assert [result.text for result in results] == ["answer to q", "answer to p"]
    assert results[0].body
    assert results[0].body["object"] == "chat.completion"


def test_a_whole_request_with_an_unknown_model_is_one_error() -> None:
    body = {"model": "theirs", "messages": [{"role": "user", "content": "q"}]}
    results: list[AnswerResult] = []
    with FakeOpenAI({"q": [fake.error(404)]}) as server:
        make_backend(server).run([Prompt(body=body)], lambda prompt: prompt, lambda row, out: results.append(out))
    assert results[0].error_class == "http_404"
