"""Models that break in the middle of their work, and tokenizers: as a driver, a bad weight or a plug-in would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def failing(model: nn.Module, error: Exception, *, token: int | None = None) -> Iterator[None]:
    """In this block the model raises this in each forward, or in those that are given the token."""

    def fail(_: nn.Module, args: Any, given: dict[str, Any]) -> None:
        if token is None or token in given["input_ids"]:
            raise error

    handle = model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changed_logits(model: nn.Module, change: Callable[[list[int], Tensor], Tensor]) -> Iterator[None]:
    """In this block the model gives what `change` makes of its logits [T, V], behind T tokens."""

    def replace(_: nn.Module, args: Any, given: dict[str, Any], output: Any) -> Any:
        tokens = given["input_ids"][0, given["logits_to_keep"]].tolist()
        output.logits = change(tokens, output.logits[0])[None]
        return output

    handle = model.register_forward_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class SpeechlessTokenizer:
    """A tokenizer that is not of the tokenizers library, and has no text for one token."""

    backend_tokenizer = None

    def __init__(self, tokenizer: Any, token: int) -> None:
        self._tokenizer = tokenizer
        self._token = token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._tokenizer(*args, **settings)

    def decode(self, token_ids: list[int], **settings: Any) -> str:
        if self._token in token_ids:
            raise ValueError("Invalid prefix encountered")
        text: str = self._tokenizer.decode(token_ids, **settings)
        return text
