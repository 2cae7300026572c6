"""What the model is shown of a conversation, as token ids.

| model | form |
|---|---|
| with a chat template | its template; the shared text goes into the system message |
| without one | the dialogue written out: `User: …`, `Assistant: …`, a turn a line |
| without one, under a shared text | the shared text, messages and answers as they are, as `parallelmind batch` does |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from parallelmind.errors import RequestError
from parallelmind.prompts.chat import Message, render_chat
from parallelmind.prompts.encode import encode_branch, encode_main

PLAIN_STOP = "\nUser:"
"""Where an answer ends that is written out: a model without a template goes on with the user's next turn."""


@dataclass(frozen=True)
class Turn:
    """A message and its answer; None: the answer is yet to be written."""

    message: str
    answer: str | None = None


@dataclass
class Conversation:
    """What has been said, and under what."""

    system: str = ""
    main: str = ""
    """The shared text."""
    turns: list[Turn] = field(default_factory=list)

    def asked(self, message: str) -> Conversation:
        """This conversation with one more message, to be answered."""
        return Conversation(self.system, self.main, [*self.turns, Turn(message)])


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Token ids of a conversation up to where the next answer begins.

    Raises:
        RequestError: the model's chat template refuses the conversation.
    """
    if has_template(tokenizer):
        return _templated(tokenizer, conversation)
    if conversation.main:
        main = encode_main(tokenizer, "\n".join(part for part in (conversation.system, conversation.main) if part))
        return main + encode_branch(tokenizer, _bare(conversation.turns), has_main=bool(main))
    messages = _messages(conversation.turns, conversation.system)
    return encode_main(tokenizer, render_chat(tokenizer, messages, reply=True))


def _bare(turns: Sequence[Turn]) -> str:
    return "".join(turn.message if turn.answer is None else f"{turn.message}{turn.answer.rstrip()}\n" for turn in turns)


def _messages(turns: Sequence[Turn], system: str) -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.message})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": turn.answer.strip()})
    return messages


def _templated(tokenizer: Any, conversation: Conversation) -> list[int]:
    shared = "\n\n".join(part for part in (conversation.system, conversation.main.rstrip()) if part)
    try:
        text = render_chat(tokenizer, _messages(conversation.turns, shared), reply=True)
    except Exception as error:  # a template raises jinja's own errors, and whatever its expressions do
        if not shared:
            raise RequestError(f"the model's chat template refuses the conversation: {error}") from error
        # Some templates know no system message (gemma): say it with the first message instead.
        first, *rest = conversation.turns
        turns = [Turn(f"{shared}\n\n{first.message}", first.answer), *rest]
        return _templated(tokenizer, Conversation(turns=turns))
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
