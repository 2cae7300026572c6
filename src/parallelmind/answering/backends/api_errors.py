"""What the exceptions and answers of an OpenAI-compatible server mean: try again, give the row up, or stop.

Keys are kept out of everything that is written: errors, logs, answers (`Redactor`).
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from parallelmind.answering.backends.base import Answer
from parallelmind.answering.backends.retry import AttemptError, retry_after_seconds
from parallelmind.io.endpoint import Endpoint
from parallelmind.io.records import shorten

_SHOWN = 300
_RETRIED = (408, 409, 425, 429)
_UNREACHABLE = ("ConnectError", "ConnectTimeout")
_NO_CREDIT = "insufficient_quota"
_TOO_LONG = (400, 413, 422)
_TOO_LONG_CODE = "context_length_exceeded"
_TOO_LONG_WORDS = re.compile(
    r"context.(length|window|size)|maximum model length|max_new_tokens\W+must be|exceed_context_size", re.IGNORECASE
)
"""Of OpenAI, Together AI and ours; vLLM, SGLang, llama.cpp and TGI say it in words."""
_MASK = "[key removed]"


class ErrorReader:
    """Turns what the SDK raises into an `AttemptError`, without keys."""

    def __init__(self, endpoint: Endpoint, model: str, redactor: Redactor, wall: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._model = model
        self._redactor = redactor
        self._wall = wall
        self._url = endpoint.shown_url
        self.reached = False
        """The server has answered something in this run."""

    def read(self, error: Exception, timeout: float, *, own_model: bool) -> AttemptError:
        """The failure; with `own_model` the row itself names its model, so that other rows may fare better."""
        import openai

        if isinstance(error, openai.APIStatusError):
            self.reached = True
            return self._of_status(error, own_model=own_model)
        if isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ not in _UNREACHABLE:
            return AttemptError(kind="timeout", message=f"{self._url} did not answer in {timeout:g} s.", retry=True)
        if isinstance(error, openai.APIConnectionError):
            return self._of_connection(error)
        message = self._shown(f"{type(error).__name__}: {error}")
        return AttemptError(kind=type(error).__name__, message=f"the request cannot be sent ({message}).")

    def dropped(self, error: Exception) -> AttemptError:
        """The connection broke while the answer was read."""
        return AttemptError(
            kind="connection",
            message=f"{self._url} broke off in the middle of the answer ({self._shown(type(error).__name__)}).",
            retry=True,
        )

    def _of_connection(self, error: Exception) -> AttemptError:
        cause = error.__cause__
        unreachable = type(cause).__name__ in _UNREACHABLE
        reason = self._shown(f"{type(cause).__name__}: {cause}" if cause else str(error))
        if unreachable and not self.reached:
            # Not one answer so far: the address is wrong or nothing runs there.
            return AttemptError(
                kind="connection",
                message=f"{self._url} cannot be reached ({reason}); check --base_url and that the server runs.",
                retry=True,
                fatal=True,
            )
        return AttemptError(kind="connection", message=f"the connection to {self._url} failed ({reason}).", retry=True)

    def _of_status(self, error: Any, *, own_model: bool) -> AttemptError:
        status, said = error.status_code, self._said(error)
        kind, answered = f"http_{status}", f"{self._url} answered {status}"
        after = retry_after_seconds(error.response.headers, self._wall())
        if status == 401:
            return AttemptError(
                kind=kind, message=f"{answered}: {said} Check the key in {self._endpoint.key_name}.", fatal=True
            )
        if status == 402 or error.code == _NO_CREDIT:
            message = f"{answered}: {said} The account of the key in {self._endpoint.key_name} has no credit left."
            return AttemptError(kind=kind, message=message, fatal=True)
        if status == 403:
            message = f"{answered}: {said} The key in {self._endpoint.key_name} may not use the model {self._model!r}."
            return AttemptError(kind=kind, message=message, fatal=not own_model)
        if status == 404:
            message = f"{answered}: {said} Check the model name {self._model!r} and the address (--base_url)."
            return AttemptError(kind=kind, message=message, fatal=not own_model)
        if error.code == _TOO_LONG_CODE or (status in _TOO_LONG and _TOO_LONG_WORDS.search(said)):
            message = (
                f"{answered}: {said} Make shorter contexts (parallelmind contexts --max_tokens N), or lower "
                "--max_new_tokens."
            )
            return AttemptError(kind="too_long", message=message, final=True)
        retry = status in _RETRIED or status >= 500
        pause = status == 429 or (status == 503 and after is not None)
        return AttemptError(kind=kind, message=f"{answered}: {said}", retry=retry, pause=pause, retry_after=after)

    def _said(self, error: Any) -> str:
        """The server's own words, from the forms of error bodies there are."""
        body = error.body
        if isinstance(body, Mapping):
            body = body.get("message") or body.get("detail") or body.get("error") or body
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str) if body else ""
        return self._shown(text or "(no explanation)")

    def _shown(self, text: str) -> str:
        """One short line; the key is removed first, lest half of it survives the cut."""
        return shorten(" ".join(self._redactor.text(text).split()), _SHOWN)


def read_answer(content: bytes, endpoint: Endpoint, redactor: Redactor) -> tuple[Answer, dict[str, Any]]:
    """The answer in the body of a response with status 200, and the body, both without keys.

    Raises:
        AttemptError: it is no answer: broken JSON, no choices, no text.
    """
    url = endpoint.shown_url
    try:
        body = redactor.value(json.loads(content))
        # Half a surrogate pair could not be written to the output.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        found = shorten(" ".join(redactor.text(content[:2000].decode("utf-8", "replace")).split()))
        raise AttemptError(kind="broken_json", message=f"{url} answered no valid JSON: {found}", retry=True) from None
    if not isinstance(body, dict) or not isinstance(choices := body.get("choices"), list) or not choices:
        found = shorten(json.dumps(body.get("error", body) if isinstance(body, dict) else body, ensure_ascii=False))
        raise AttemptError(kind="no_choices", message=f"{url} answered without choices: {found}", retry=True)
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    choice = choices[0] if isinstance(choices[0], dict) else {}
    finish = choice.get("finish_reason")
    return (
        Answer(
            text=_text(choice, url),
            tokens_in=_count(usage.get("prompt_tokens")),
            tokens_out=_count(usage.get("completion_tokens")),
            finish_reason=finish if isinstance(finish, str) else None,
        ),
        body,
    )


def _text(choice: Mapping[str, Any], url: str) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    if isinstance(text, str):
        return text
    if isinstance(message, Mapping) and message.get("tool_calls"):  # of a batch request that has tools; see its body
        return ""
    refusal = message.get("refusal") if isinstance(message, Mapping) else None
    if isinstance(refusal, str) and refusal:
        raise AttemptError(kind="refusal", message=f"the model refused: {shorten(refusal, _SHOWN)}")
    match choice.get("finish_reason"):
        case "content_filter":
            raise AttemptError(kind="content_filter", message=f"{url} withheld the answer (content filter).")
        case "length":
            raise AttemptError(
                kind="no_text",
                message=f"{url} answered without text: all tokens went into reasoning; raise --max_new_tokens.",
            )
        case _:
            raise AttemptError(kind="no_text", message=f"{url} answered without text.", retry=True)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class Redactor:
    """Replaces secrets in texts, as they are and as servers echo them (in JSON, in URLs, in base64)."""

    def __init__(self, *secrets: str) -> None:
        forms: set[str] = set()
        for secret in filter(None, secrets):
            forms |= {
                secret,
                json.dumps(secret)[1:-1],
                urllib.parse.quote(secret, safe=""),
                base64.b64encode(secret.encode()).decode(),
            }
        self._forms = sorted(forms, key=len, reverse=True)

    def text(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, _MASK)
        return text

    def value(self, value: Any) -> Any:
        """The same for every text in a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(item) for name, item in value.items()}
        return value

    def __repr__(self) -> str:
        return f"Redactor({len(self._forms)} forms)"
