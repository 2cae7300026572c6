"""One conversation, or one prompt, on the engine."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from parallelmind.data.encode import encode_main
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import BranchResult, Request, SamplingParams
from parallelmind.errors import RequestError

__all__ = ["ChatSession", "stream_text"]


def stream_text(engine: Engine, main: str | list[int], sampling: SamplingParams) -> Generator[str]:
    """The continuation of a text, piece by piece; closing the iterator stops it.

    Raises:
        RequestError: the text is empty or too long for the model.
    """
    for event in engine.stream([Request(main=main)], sampling):
        if event.text:
            yield event.text
        if event.result is not None:
            _check(event.result)


class ChatSession:
    """Turns of a user and the model. The keys and values of earlier turns stay in the engine's prefix cache."""

    def __init__(self, engine: Engine, sampling: SamplingParams):
        self._engine = engine
        self._sampling = sampling
        self._turns: list[dict[str, str]] = []

    def reply(self, text: str) -> Generator[str]:
        """Stream the answer to a user's message; what was generated is kept, also when closed early."""
        self._turns.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            for piece in stream_text(self._engine, self._prompt_ids(), self._sampling):
                pieces.append(piece)
                yield piece
        except RequestError:
            self._turns.pop()
            raise
        finally:
            if self._turns and self._turns[-1]["role"] == "user":
                self._turns.append({"role": "assistant", "content": "".join(pieces).strip()})

    def _prompt_ids(self) -> list[int]:
        tokenizer: Any = self._engine.tokenizer
        if getattr(tokenizer, "chat_template", None):
            ids: list[int] = tokenizer.apply_chat_template(
                self._turns, add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
            return ids
        # A base model has no template: the dialogue is written out.
        names = {"user": "User", "assistant": "Assistant"}
        lines = [f"{names[turn['role']]}: {turn['content']}" for turn in self._turns]
        return encode_main(tokenizer, "\n".join([*lines, "Assistant:"]))


def _check(result: BranchResult) -> None:
    if result.finish_reason == "error":
        raise RequestError(str(result.error))
