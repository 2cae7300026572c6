"""A conversation, or one prompt, on the engine.

| model | what it is shown of a conversation |
|---|---|
| with a chat template | its template; the shared text goes into the system message |
| without one | the dialogue written out: `User: …`, `Assistant: …`, a turn a line |
| without one, under a shared text | the shared text, messages and answers as they are, as `parallelmind batch` does |
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

from parallelmind.engine.engine import Engine
from parallelmind.engine.request import BranchResult, Event, Request
from parallelmind.errors import RequestError
from parallelmind.prompts.conversation import Message, user
from parallelmind.prompts.encode import PromptIds
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.prompts.template import PLAIN_STOP
from parallelmind.settings.sampling import SamplingParams

_LOGGER = logging.getLogger(__name__)
_ROOM_SHARE = 4


@dataclass(frozen=True)
class Exchange:
    """A message and its answer."""

    message: str
    answer: str


@dataclass
class Conversation:
    """The turns so far, and the texts above them."""

    system: str = ""
    main: str = ""
    """The shared text."""
    exchanges: list[Exchange] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """As a chat template takes it."""
        shared = "\n\n".join(part for part in (self.system, self.main.rstrip()) if part)
        messages: list[Message] = [{"role": "system", "content": shared}] if shared else []
        for exchange in self.exchanges:
            messages += [user(exchange.message), {"role": "assistant", "content": exchange.answer.strip()}]
        return messages


@dataclass(frozen=True)
class AnswerStats:
    """The speed of the last answer, or group of branches."""

    tokens: int
    seconds: float
    seconds_to_first: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def stream_text(engine: Engine, main: str | list[int], sampling: SamplingParams) -> Generator[str]:
    """The continuation of a text, piece by piece; closing the iterator stops it.

    Raises:
        RequestError: the text is empty or too long for the model.
    """
    for event in engine.stream([Request(main=main)], sampling):
        if event.text:
            yield event.text
        if event.result is not None and event.result.finish_reason == "error":
            raise RequestError(str(event.result.error))


class ChatSession:
    """Turns of a user and the model. The keys and values of earlier turns stay in the engine's prefix cache.

    Where the conversation outgrows the model, the oldest turns are dropped, and `notify` is told so.
    """

    def __init__(
        self, engine: Engine, sampling: SamplingParams, *, notify: Callable[[str], None] = _LOGGER.warning
    ) -> None:
        self.engine = engine
        self.prompts = PromptEncoder(engine.tokenizer)
        self.sampling = sampling
        self.conversation = Conversation()
        self.last_stats: AnswerStats | None = None
        self._notify = notify
        self._group: list[Exchange] = []

    def set_main(self, text: str) -> None:
        """Put a shared text above the conversation, a line of its own; "" takes it away."""
        self.conversation.main = text if not text or text.endswith("\n") else text + "\n"

    def clear(self) -> None:
        """Forget the turns; the system message and the shared text stay."""
        self.conversation.exchanges.clear()
        self._group = []

    def num_tokens(self) -> int:
        """Length of what the model is shown of the conversation so far."""
        return _longest(self._encode(self.conversation, [""]))

    def reply(self, text: str) -> Generator[str]:
        """Stream the answer to a user's message; what was generated is kept, also when closed early.

        Raises:
            RequestError: the message is too long for the model, or its chat template refuses it.
        """
        prompt = self._fitting([text])
        pieces: list[str] = []
        failed = False
        try:
            for event in self._timed([Request(main=prompt.main + prompt.branches[0])]):
                if event.text:
                    pieces.append(event.text)
                    yield event.text
                if event.result is not None and event.result.finish_reason == "error":
                    failed = True
                    raise RequestError(str(event.result.error))
        finally:
            if not failed:
                self.conversation.exchanges.append(Exchange(text, "".join(pieces)))

    def branch(self, questions: Sequence[str]) -> Generator[Event]:
        """Ask several questions at once, each as if it alone came next; their events, numbered by `branch_index`.

        The conversation does not change until `join`.

        Raises:
            RequestError: there is no question, or the conversation does not fit with one of them.
        """
        if not questions:
            raise RequestError("no question was given; type one a line.")
        prompts = self._fitting(questions)
        request = Request(main=prompts.main, branches=prompts.branches)
        answers: dict[int, BranchResult] = {}
        self._group = []
        texts = [""] * len(questions)
        try:
            for event in self._timed([request]):
                texts[event.branch_index] += event.text
                if event.result is not None:
                    answers[event.branch_index] = event.result
                yield event
        finally:
            self._group = [
                Exchange(question, text)
                for index, (question, text) in enumerate(zip(questions, texts, strict=True))
                if index not in answers or answers[index].finish_reason != "error"
            ]

    def join(self) -> int:
        """Make the last branches turns of the conversation, in order; returns how many."""
        self.conversation.exchanges += self._group
        joined, self._group = len(self._group), []
        return joined

    def _sampling(self) -> SamplingParams:
        written_out = not self.prompts.template.is_own and not self.conversation.main
        if not written_out or PLAIN_STOP in self.sampling.stop_texts:
            return self.sampling
        return replace(self.sampling, stop=(*self.sampling.stop_texts, PLAIN_STOP))

    def _encode(self, conversation: Conversation, messages: Sequence[str]) -> PromptIds:
        """The conversation with each message, to be answered; what all of them begin with is main."""
        if self.prompts.template.is_own or not conversation.main:
            return self.prompts.conversation(conversation.messages(), [[user(message)] for message in messages])
        shared = "\n".join(part for part in (conversation.system, conversation.main) if part)
        said = "".join(f"{exchange.message}{exchange.answer.rstrip()}\n" for exchange in conversation.exchanges)
        return self.prompts.continued(shared, said, messages)

    def _fitting(self, messages: Sequence[str]) -> PromptIds:
        """The conversation with each message; drops the oldest turns until there is room for an answer."""
        longest = self.engine.max_model_len
        room = max(1, min(self.sampling.max_new_tokens, longest // _ROOM_SHARE))
        kept = replace(self.conversation)
        while True:
            prompts = self._encode(kept, messages)
            if _longest(prompts) + room <= longest or not kept.exchanges:
                break
            kept = replace(kept, exchanges=kept.exchanges[1:])
        if (tokens := _longest(prompts)) >= longest:
            raise RequestError(
                f"the message is too long for the model: with the shared text it has {tokens} tokens, the model takes "
                f"{longest} with at least one new token; shorten it or the shared text."
            )
        if dropped := len(self.conversation.exchanges) - len(kept.exchanges):
            self.conversation = kept
            turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            self._notify(f"{turns} dropped: the conversation is longer than the {longest} tokens the model takes")
        return prompts

    def _timed(self, requests: list[Request]) -> Generator[Event]:
        started = time.perf_counter()
        first, tokens = 0.0, 0
        stream = self.engine.stream(requests, self._sampling())
        try:
            for event in stream:
                tokens += len(event.token_ids)
                first = first or time.perf_counter() - started
                yield event
        finally:
            self.last_stats = AnswerStats(tokens, time.perf_counter() - started, first)


def _longest(prompts: PromptIds) -> int:
    return len(prompts.main) + max(map(len, prompts.branches))
