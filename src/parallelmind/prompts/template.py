"""The chat template of a tokenizer: the one place where a conversation becomes text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from parallelmind.errors import RequestError, first_line
from parallelmind.prompts.conversation import Message, Tool, user, without_system

_PLAIN = (
    "{% for message in messages %}"
    "{{ {'user': 'User', 'assistant': 'Assistant'}.get(message['role'], message['role'] | capitalize) }}: "
    "{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For tokenizers without a chat template of their own (base models): the dialogue written out, a turn a line."""
PLAIN_STOP = "\nUser:"
"""Where an answer ends that is written out: a model without a template goes on with the user's next turn."""
PROBE = "PMPROBEQ"
"""A text that no template writes by itself: where it stands, the template writes what a turn says."""


class Accepted(NamedTuple):
    """A conversation in turns that the template takes, and what it writes up to where the next answer begins."""

    messages: list[Message]
    prompt: str


class ChatTemplate:
    """Renders conversations; `options` are passed on to the template (`enable_thinking`, say)."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self._tokenizer = tokenizer
        self._options = options

    @property
    def is_own(self) -> bool:
        """The tokenizer has a template, which writes the special tokens in front of a conversation too."""
        return bool(self.source)

    @property
    def source(self) -> str:
        """The template's own text."""
        return str(getattr(self._tokenizer, "chat_template", None) or "")

    @cached_property
    def end_marks(self) -> re.Pattern[str]:
        """The special tokens that may stand behind an answer."""
        added = self._tokenizer.added_tokens_decoder.values()
        tokens = {token.content for token in added if token.special} | set(self._tokenizer.all_special_tokens)
        if self._tokenizer.bos_token != self._tokenizer.eos_token:
            tokens.discard(self._tokenizer.bos_token)
        marks = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def render(self, messages: Sequence[Message], *, reply: bool = False, tools: Sequence[Tool] = ()) -> str:
        """The text of a conversation; with `reply`, up to where the assistant's next turn begins.

        Raises:
            RequestError: the template refuses the conversation.
        """
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=reply,
                chat_template=None if self.is_own else _PLAIN,
                **self._options,
            )
        except Exception as error:  # a template raises jinja's own errors, and whatever its expressions do
            raise RequestError(f"the model's chat template refuses the conversation: {first_line(error)}") from error
        return text

    def accept(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Accepted:
        """The prompt for an answer. Where the template takes no system turn, its text begins the user's first turn.

        Raises:
            RequestError: the template refuses the conversation with a system turn and without.
        """
        given = list(messages)
        has_system = bool(given) and given[0]["role"] == "system"
        if not (has_system and self._drops_system):
            try:
                return Accepted(given, self.render(given, reply=True, tools=tools))
            except RequestError:
                if not has_system:
                    raise
        given = without_system(given)
        return Accepted(given, self.render(given, reply=True, tools=tools))

    @cached_property
    def _drops_system(self) -> bool:
        """Some templates neither write a system turn nor refuse it."""
        try:
            return PROBE not in self.render([{"role": "system", "content": PROBE}, user("a")], reply=True)
        except RequestError:
            return False
