"""The requests of the OpenAI protocol as the engine understands them: messages, prompt, sampling.

Fields without an equal in the engine are refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.records import quoted, shorten, show_value, text_field
from parallelmind.prompts.conversation import content_text, role_of
from parallelmind.settings.sampling import SamplingSettings
from parallelmind.settings.setting import described

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ENDPOINTS = {CHAT: "messages", COMPLETIONS: "prompt"}
"""The field each is about."""

_SAMPLING = {one.setting.http or one.name: one for one in described(SamplingSettings)}
_SAMPLING["max_completion_tokens"] = _SAMPLING["max_tokens"]
"""Fields with an equal in the engine."""
_WITHOUT_EFFECT = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that do not change the answer of a model of one's own."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields the engine has no equal for, with the values that ask for nothing."""
_ROLES = ("system", "developer", "user", "assistant")


def engine_sampling(body: Mapping[str, Any], where: str = "the request") -> dict[str, Any]:
    """The parameters of `SamplingParams` that a body sets.

    Raises:
        DataError: names a field that the engine has no equal for, or a value that is wrong.
    """
    sampling: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in _WITHOUT_EFFECT or name in ENDPOINTS.values():
            continue
        if name in _SAMPLING:
            try:
                sampling[_SAMPLING[name].name] = _SAMPLING[name].check(value)
            except ValueError as error:
                raise DataError(f'{where}."{name}" {error}') from None
        elif not any(_same(value, neutral) for neutral in _NEUTRAL.get(name, ())):
            raise DataError(
                f'{where}."{shorten(name)}" is {show_value(value)}; the engine has no such option, so leave it out '
                "or use a server that has it (--inference_type openai)."
            )
    return sampling


def chat_messages(body: Mapping[str, Any], where: str = "the request") -> list[dict[str, str]]:
    """The conversation as plain texts, ending with the user's turn.

    Raises:
        DataError: a message is no text of a system, user or assistant.
    """
    messages = []
    for place, message in enumerate(body["messages"]):
        name = f'{where}."messages"[{place}]'
        role = message.get("role")
        if role not in _ROLES:
            raise DataError(f'{name}."role" is {show_value(role)}; expected one of {quoted(_ROLES)}.')
        if extra := [key for key in message if key not in ("role", "content", "name") and message[key] is not None]:
            raise DataError(f"{name} has {quoted(extra)}; the engine takes texts only.")
        messages.append({"role": role_of(role), "content": content_text(message.get("content"), f'{name}."content"')})
    if messages[-1]["role"] != "user":
        raise DataError(f"{where}: the last message is of the {messages[-1]['role']}; expected the user's.")
    return messages


def completion_prompt(body: Mapping[str, Any], where: str = "the request") -> str:
    """The prompt of a completion.

    Raises:
        DataError: it is not a single text.
    """
    prompt = body["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return text_field(prompt, f'{where}."prompt"')


def _same(value: Any, neutral: Any) -> bool:
    """Equal, where 0 and 0.0 are the same number, but false is none."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
