"""What OpenAI's endpoints take: their fields as far as they are supported, and ours on top.

A field of theirs that is not supported is accepted with the value that changes nothing, and refused with any other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from parallelmind.columnar import Visibility
from parallelmind.server.schemas import BranchInput, ChatMessage, Sampling, Strict, Text, TokenId, incompatible
from parallelmind.settings.sampling import MaxNewTokens

_WITHOUT_EFFECT: dict[str, list[Any]] = {
    "response_format": [{"type": "text"}],
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "modalities": [["text"]],
    "store": [False],
    "metadata": [{}],
    "service_tier": ["auto", "default"],
    "suffix": [""],
    "user": [],
    "safety_identifier": [],
    "prompt_cache_key": [],
    "reasoning_effort": [],
    "verbosity": [],
    "prediction": [],
    "audio": [],
    "web_search_options": [],
}


_Item = TypeVar("_Item")
_Several = Annotated[list[_Item], Field(min_length=1, fail_fast=True)]


class StreamOptions(Strict):
    """What a stream carries besides tokens."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class OpenAiInput(Sampling):
    """What both endpoints take; the sampling settings that OpenAI lacks and `adapter` are ours."""

    model: Text | None = Field(
        default=None, max_length=500, description="The served model, an adapter, or model:adapter."
    )
    n: int | None = Field(
        default=None, ge=1, le=1024, description="Choices (1); with a seed, choice i draws with seed + i."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_has_no_effect(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if name not in _WITHOUT_EFFECT or not (value is None or _is_one_of(value, _WITHOUT_EFFECT[name]))
        }

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> OpenAiInput:
        if self.stream_options is not None and not self.stream:
            raise incompatible("stream_options", "stream_options needs stream")
        return self


class CompletionInput(OpenAiInput):
    """A prompt, or several; several run as branches of what they begin with in common."""

    prompt: Text | _Several[Text] | _Several[TokenId] | _Several[_Several[TokenId]]
    echo: bool | None = None
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Report this many of the likeliest tokens at each place."
    )
    best_of: int | None = Field(default=None, ge=1, description="Must equal n.")

    @model_validator(mode="after")
    def _what_goes_together(self) -> CompletionInput:
        if self.echo and self.logprobs is not None:
            raise incompatible("echo", "echo together with logprobs is not supported; leave one of them out")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise incompatible("best_of", f"best_of is {self.best_of}; it must equal n, {self.n or 1}, or be left out")
        return self


class ChatInput(OpenAiInput):
    """A conversation; its choices, or the branches given, are answered in parallel under it."""

    has_branches = True

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: MaxNewTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    branches: Annotated[list[BranchInput], Field(fail_fast=True)] | None = Field(
        default=None, min_length=1, description="Ours: each is a choice, its prompt the user's next message."
    )
    visibility: Visibility | None = Field(default=None, description="Ours: what a branch sees; with branches only.")

    @model_validator(mode="after")
    def _what_goes_together(self) -> ChatInput:
        fields: Any = self
        if self.max_completion_tokens is not None:
            if fields.max_tokens is not None:
                raise incompatible("max_tokens", "max_tokens and max_completion_tokens mean the same; give one of them")
            fields.max_tokens = self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise incompatible("top_logprobs", "top_logprobs needs logprobs")
        if self.branches is not None and (self.n or 1) > 1:
            raise incompatible("n", "n and branches exclude each other: every branch is a choice")
        if self.visibility is not None and self.branches is None:
            raise incompatible("visibility", "visibility is for branches; without them every choice stands alone")
        return self


def _is_one_of(value: Any, allowed: list[Any]) -> bool:
    return any(type(value) is type(one) and value == one for one in allowed) or (
        isinstance(value, float) and value in [one for one in allowed if type(one) is int]
    )
