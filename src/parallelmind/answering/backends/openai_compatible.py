"""Answers from OpenAI, Together AI, or any server that speaks their protocol."""

from __future__ import annotations

import functools
import json
import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from annotated_types import MinLen

from parallelmind.answering.backends.api_errors import ErrorReader, Redactor, read_answer
from parallelmind.answering.backends.base import Answer, AnswerResult, Prompt, try_prompt
from parallelmind.answering.backends.bounded import bound_error
from parallelmind.answering.backends.clock import Clock, Sleep
from parallelmind.answering.backends.limits import RateLimits, estimate_tokens
from parallelmind.answering.backends.retry import AttemptError, GaveUpError, Pause, Retrying, RetryPolicy
from parallelmind.answering.backends.threads import run_bounded
from parallelmind.errors import SettingsError
from parallelmind.io.endpoint import Endpoint
from parallelmind.io.urls import credentials_of
from parallelmind.settings.http import Concurrency, ExtraBody, Rpm, Timeout, Tpm
from parallelmind.settings.sampling import SamplingSettings, Temperature, TopP
from parallelmind.settings.setting import Setting, described

_LOGGER = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_RESPONSE_BYTES = 32 * 2**20
_MAX_CONNECT_SECONDS = 10.0
_CHAT = "/v1/chat/completions"
_ALWAYS_SENT = ("max_new_tokens", "temperature", "top_p")


@dataclass(frozen=True, kw_only=True)
class HttpSettings(SamplingSettings):
    """How requests are made.

    Raises:
        SettingsError: a value is out of range.
    """

    model: Annotated[
        str, MinLen(1), Setting("the model as the server names it", expected="a name, given with --model_path")
    ]
    temperature: Temperature = 0.2
    top_p: TopP = 0.95
    extra_body: ExtraBody = field(default_factory=dict)
    concurrency: Concurrency = 16
    timeout: Timeout = 120.0
    rpm: Rpm = None
    """Of this process."""
    tpm: Tpm = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class OpenAICompatibleBackend:
    """An `AnswerBackend` over HTTP, through the official SDK with its own retries off.

    `clock` and `rng` can be replaced, so that a test needs no real waiting.

    Raises:
        SettingsError: the package `openai` is not installed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: HttpSettings,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        max_response_bytes: int = _MAX_RESPONSE_BYTES,
    ) -> None:
        self._settings = settings
        self._max_response_bytes = max_response_bytes
        self._endpoint = endpoint
        self._clock = clock or Clock()
        rng = rng or random.Random()
        self._redactor = Redactor(*endpoint.secrets)
        self._errors = ErrorReader(endpoint, settings.model, self._redactor, self._clock.wall)
        self._limits = RateLimits(rpm=settings.rpm, tpm=settings.tpm, clock=self._clock)
        self._retrying = Retrying(settings.retry, Pause(self._clock, rng), self._clock, rng)
        self._client = _connect(endpoint, settings.timeout)

    def run(self, rows: Iterable[T], prompt_of: Callable[[T], Prompt], done: Callable[[T, AnswerResult], None]) -> None:
        """See `AnswerBackend.run`."""
        stop = threading.Event()
        sleep = functools.partial(self._clock.sleep, stop=stop)

        def call(work: tuple[T, Prompt | AnswerResult]) -> AnswerResult:
            return work[1] if isinstance(work[1], AnswerResult) else self._answer(work[1], sleep)

        run_bounded(
            ((row, try_prompt(prompt_of, row)) for row in rows),
            call,
            lambda work, result: done(work[0], result),
            concurrency=self._settings.concurrency,
            stop=stop,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _answer(self, prompt: Prompt, sleep: Sleep) -> AnswerResult:
        endpoint, body = (
            (prompt.endpoint, dict(prompt.body)) if prompt.body is not None else (_CHAT, self._body(prompt))
        )
        estimated = self._estimate(body)
        try:
            tried = self._retrying(
                lambda: self._attempt(endpoint, body, estimated, own_model=prompt.body is not None),
                ready=lambda: self._limits.acquire(estimated, sleep),
                sleep=sleep,
            )
        except GaveUpError as given_up:
            failure, retries, seconds = given_up.failure, given_up.retries, given_up.seconds
        else:
            answer, response = tried.result
            return AnswerResult(
                text=answer.text,
                retries=tried.retries,
                seconds=tried.seconds,
                tokens_in=answer.tokens_in,
                tokens_out=answer.tokens_out,
                finish_reason=answer.finish_reason,
                body=response if prompt.body is not None else None,
            )
        # Outside of the handler: a chained exception of the SDK would carry what the server said, keys included.
        if failure.fatal:
            raise SettingsError(failure.message)
        return AnswerResult(
            error=failure.message, error_class=failure.kind, final=failure.final, retries=retries, seconds=seconds
        )

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        settings = self._settings
        # OpenAI's newer models refuse max_tokens; the servers that follow the protocol often know nothing else.
        longest = "max_completion_tokens" if self._endpoint.is_openai else "max_tokens"
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": list(prompt.messages),
            longest: settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        # The others, some of which are beside OpenAI's protocol, only where they ask for something.
        for one in described(SamplingSettings):
            value = getattr(settings, one.name)
            if one.name not in _ALWAYS_SENT and value != one.default:
                body[one.setting.http or one.name] = list(value) if one.kind is tuple else value
        return body | dict(settings.extra_body)

    def _estimate(self, body: Mapping[str, Any]) -> int:
        if self._settings.tpm is None:
            return 0
        asked = json.dumps(body.get("messages", body.get("prompt", "")), ensure_ascii=False)
        longest = body.get("max_completion_tokens") or body.get("max_tokens") or self._settings.max_new_tokens
        longest = longest if isinstance(longest, int) else self._settings.max_new_tokens
        return estimate_tokens(len(asked.encode("utf-8", "replace")), longest)

    def _attempt(
        self, endpoint: str, body: Mapping[str, Any], estimated: int, *, own_model: bool
    ) -> tuple[Answer, dict[str, Any]]:
        used = 0
        try:
            content = self._send(endpoint, body, own_model=own_model)
            answer, response = read_answer(content, self._endpoint, self._redactor)
            known = answer.tokens_in is not None and answer.tokens_out is not None
            used = (answer.tokens_in or 0) + (answer.tokens_out or 0) if known else estimated
            return answer, response
        except AttemptError as failure:
            _LOGGER.debug("%s", failure.message)
            raise
        finally:
            self._limits.settle(estimated, used)

    def _send(self, endpoint: str, body: Mapping[str, Any], *, own_model: bool) -> bytes:
        """One request; the whole body of its response."""
        rest = dict(body)
        model = rest.pop("model", self._settings.model)
        try:
            if endpoint == _CHAT:
                request = self._client.chat.completions.with_streaming_response.create(
                    model=model, messages=rest.pop("messages", []), extra_body=rest
                )
            else:
                request = self._client.completions.with_streaming_response.create(
                    model=model, prompt=rest.pop("prompt", ""), extra_body=rest
                )
            response = request.__enter__()
        except Exception as error:
            failure = self._errors.read(error, self._settings.timeout, own_model=own_model)
        else:
            self._errors.reached = True
            try:
                return self._read(response)
            finally:
                request.__exit__(None, None, None)
        raise failure  # not in the handler: no chain to what the SDK raised

    def _read(self, response: Any) -> bytes:
        """Read within bounds: a server may send without end, or one byte a minute."""
        deadline = self._clock.now() + self._settings.timeout
        content = bytearray()
        url = self._endpoint.shown_url
        try:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > self._max_response_bytes:
                    failure = AttemptError(
                        kind="response_too_large",
                        message=f"{url} answered more than {self._max_response_bytes:,} bytes.",
                    )
                    break
                if self._clock.now() > deadline:
                    message = f"{url} did not finish its answer in {self._settings.timeout:g} s."
                    failure = AttemptError(kind="timeout", message=message, retry=True)
                    break
            else:
                return bytes(content)
        except Exception as error:  # of the HTTP library under the SDK, which the SDK does not translate here
            failure = self._errors.dropped(error)
        raise failure


def _connect(endpoint: Endpoint, timeout: float) -> Any:
    try:
        import openai
    except ImportError as error:
        raise SettingsError(
            "answering over HTTP needs the package openai; install it with: pip install 'parallelmind[api]'"
        ) from error
    limits = openai.Timeout(timeout, connect=min(timeout, _MAX_CONNECT_SECONDS))
    return openai.OpenAI(
        api_key=endpoint.key,
        base_url=endpoint.shown_url,
        max_retries=0,
        timeout=limits,
        http_client=openai.DefaultHttpxClient(
            base_url=endpoint.shown_url,
            auth=credentials_of(endpoint.base_url),  # in the address it would stand in the library's log
            timeout=limits,
            event_hooks={"response": [lambda response: bound_error(response, seconds=timeout)]},
        ),
    )
