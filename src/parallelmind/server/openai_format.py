"""How OpenAI writes answers: completions and chat completions, whole and as streams."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallelmind.engine.request import BranchResult, TokenLogprob
from parallelmind.server.branches_api import usage_of
from parallelmind.server.output_collector import Delta
from parallelmind.server.problems import error_of_result
from parallelmind.server.streaming import DONE, data
from parallelmind.server.written import pieces, written
from parallelmind.visuals.tokens import token_bytes


@dataclass(kw_only=True)
class _Format:
    """The fields that all chunks of an answer share."""

    id: str
    model: str
    tokenizer: Any
    choices: int
    with_logprobs: bool
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    kind = ""
    chunk_kind = ""

    @property
    def repeated(self) -> int:
        """Characters of prompts in the answer."""
        return 0

    def _choice(self, index: int, result: BranchResult) -> dict[str, Any]:
        raise NotImplementedError

    def _first(self, index: int) -> dict[str, Any] | None:
        """The piece of a choice that comes before its first token."""
        raise NotImplementedError

    def _piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, results: Sequence[BranchResult]) -> Iterator[bytes]:
        """The answer without streaming, in pieces, so that writing a long one holds up nobody for long.

        Raises:
            ApiError: every choice failed.
        """
        if all(result.finish_reason in ("error", "cancelled") for result in results):
            raise error_of_result(results[0])
        envelope = self._envelope(self.kind, [])
        del envelope["choices"]
        yield b'%b,"choices":[' % written(envelope)[:-1]
        for index, result in enumerate(results):
            choice = self._choice(index, result)
            if result.error is not None:
                choice["error"] = result.error
            yield b"," if index else b""
            yield from pieces(choice)
        yield b'],"usage":%b}' % written(_usage(dict(enumerate(results))))

    def opening(self) -> bytes:
        pieces = [piece for index in range(self.choices) if (piece := self._first(index)) is not None]
        return b"".join(self._chunk([piece]) for piece in pieces)

    def deltas(self, deltas: Mapping[int, Delta]) -> bytes:
        chunks = []
        for index, delta in deltas.items():
            if delta.text or delta.logprobs:
                chunks.append(self._chunk([self._piece(index, delta.text, delta.logprobs, None)]))
            if delta.result is not None and (self.choices > 1 or delta.result.error is None):
                piece = self._piece(index, "", (), delta.result.finish_reason)
                if delta.result.error is not None:
                    piece["error"] = delta.result.error
                chunks.append(self._chunk([piece]))
        return b"".join(chunks)

    def closing(self, results: Mapping[int, BranchResult]) -> bytes:
        if all(result.error is not None for result in results.values()):
            return data(error_of_result(results[0]).content()) + DONE
        usage = b""
        if self.include_usage:
            usage = data(self._envelope(self.chunk_kind, []) | {"usage": _usage(results)})
        return usage + DONE

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        chunk = self._envelope(self.chunk_kind, choices)
        return data(chunk | {"usage": None} if self.include_usage else chunk)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


@dataclass(kw_only=True)
class Chat(_Format):
    """chat.completion and chat.completion.chunk."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _choice(self, index: int, result: BranchResult) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": self._logprobs(result.logprobs),
            "finish_reason": result.finish_reason,
        }

    def _first(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def _piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None) -> dict[str, Any]:
        delta = {} if finish is not None else {"content": text}
        found = None if finish is not None else self._logprobs(logprobs)
        return {"index": index, "delta": delta, "logprobs": found, "finish_reason": finish}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            self._token(found.token_id, found.logprob)
            | {"top_logprobs": [self._token(token, logprob) for token, logprob in found.top]}
            for found in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        content = token_bytes(self.tokenizer, token_id)
        return {"token": content.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(content)}


@dataclass(kw_only=True)
class Completion(_Format):
    """text_completion, whole or in pieces.

    Args:
        echoes: the prompt of each choice, to be repeated in front of its answer.
    """

    echoes: Sequence[str] | None = None
    _offsets: dict[int, int] = field(default_factory=dict)

    kind = "text_completion"
    chunk_kind = "text_completion"

    @property
    def repeated(self) -> int:
        return sum(map(len, self.echoes or ()))

    def _choice(self, index: int, result: BranchResult) -> dict[str, Any]:
        text = result.text if self.echoes is None else self.echoes[index] + result.text
        return self._piece(index, text, result.logprobs, str(result.finish_reason))

    def _first(self, index: int) -> dict[str, Any] | None:
        return None if self.echoes is None else self._piece(index, self.echoes[index], (), None)

    def _piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None) -> dict[str, Any]:
        found = self._logprobs(index, logprobs) if self.with_logprobs and logprobs else None
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish}

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        tokens, offsets = [], []
        offset = self._offsets.get(index, 0)
        for found in logprobs:
            text = self._text(found.token_id)
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(found.logprob) for found in logprobs],
            "top_logprobs": [
                {self._text(token): _finite(logprob) for token, logprob in reversed(found.top)} for found in logprobs
            ],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return token_bytes(self.tokenizer, token_id).decode("utf-8", "replace")


def _usage(results: Mapping[int, BranchResult]) -> dict[str, Any]:
    cached = next(iter(results.values())).cached_main_tokens
    return usage_of(results).model_dump() | {"prompt_tokens_details": {"cached_tokens": cached}}


def _finite(logprob: float) -> float:
    """JSON has no infinity and no NaN; OpenAI's own number for "impossible" is this one."""
    return max(-9999.0, logprob)
