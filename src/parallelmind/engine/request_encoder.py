"""The token ids of a request's prompts, whatever their form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from parallelmind.engine.forms import Conversation, prompt_of
from parallelmind.errors import RequestError, first_line
from parallelmind.prompts.conversation import Message, user
from parallelmind.prompts.encode import PromptIds, encode_branch, encode_main
from parallelmind.prompts.prompt_encoder import PromptEncoder

T = TypeVar("T")
Result = TypeVar("Result")
Encoded = tuple[list[int], list[list[int] | RequestError]]
"""Token ids of main, and of each branch's prompt or why it has none."""


class NamedPrompt(NamedTuple):
    """The prompt of a branch."""

    name: str
    """What messages call it."""
    prompt: Any
    is_alone: bool
    """Whether the branch does not see main."""


class RequestEncoder:
    """Encodes the prompts of requests by one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, main: Any, prompts: Sequence[NamedPrompt]) -> Encoded:
        """A main, and the prompts of branches under it. What is wrong with one of these leaves the others.

        Raises:
            RequestError: main has a wrong form, or cannot be encoded.
        """
        given = [] if main is None else prompt_of(main, "main")
        if isinstance(given, tuple):
            return self._encode_conversation(given, prompts)
        main_ids = self.main_ids(given)

        def encode(one: NamedPrompt) -> list[int]:
            return self.prompt_ids(one.prompt, has_main=bool(main_ids) and not one.is_alone, name=one.name)

        return main_ids, [_tried(encode, one) for one in prompts]

    def main_ids(self, main: Any) -> list[int]:
        """Token ids of a main, or of a conversation up to where its answer begins."""
        prompt = [] if main is None else prompt_of(main, "main")
        if isinstance(prompt, tuple):
            return self._conversation(prompt).main
        if isinstance(prompt, list):
            return prompt
        return self._tokenised("main", lambda: encode_main(self.tokenizer, prompt))

    def prompt_ids(self, given: Any, *, has_main: bool, name: str = "the prompt") -> list[int]:
        """Token ids of a branch's prompt; a conversation is whole, and so has no main before it."""
        prompt = prompt_of(given, name)
        if isinstance(prompt, str):
            return self._tokenised(name, lambda: encode_branch(self.tokenizer, prompt, has_main=has_main))
        if isinstance(prompt, list):
            return prompt
        if has_main:
            raise RequestError(
                f"{name} is a conversation under a main that is none; give main as a conversation too, or leave it out."
            )
        return self.main_ids(prompt)

    def _encode_conversation(self, main: Conversation, prompts: Sequence[NamedPrompt]) -> Encoded:
        """Under a conversation a prompt is the user's next message, or turns, or nothing more is said."""
        added = [_tried(turns_of, one) for one in prompts]
        try:
            return self._under(main, prompts, added)
        except RequestError:
            # The template does not say which branch is to blame; those are that it refuses alone, too.
            tried = [one if isinstance(one, RequestError) else _tried(self._accepted, (main, one)) for one in added]
            return self._under(main, prompts, tried)

    def _under(
        self, main: Conversation, prompts: Sequence[NamedPrompt], added: Sequence[tuple[Message, ...] | RequestError]
    ) -> Encoded:
        several = [one for one in added if not isinstance(one, RequestError)]
        if not several:
            raise next(one for one in added if isinstance(one, RequestError))
        encoded = {
            is_alone: self._conversation(main, several, is_alone=is_alone)
            for is_alone in {one.is_alone for one in prompts}
        }
        places = iter(range(len(several)))
        ids = [
            turns if isinstance(turns, RequestError) else encoded[one.is_alone].branches[next(places)]
            for one, turns in zip(prompts, added, strict=True)
        ]
        return next(iter(encoded.values())).main, ids

    def _accepted(self, conversation: tuple[Conversation, tuple[Message, ...]]) -> tuple[Message, ...]:
        """The turns under a conversation, if the template takes them."""
        main, turns = conversation
        self._conversation(main, [turns])
        return turns

    def _conversation(
        self, main: Conversation, added: Sequence[tuple[Message, ...]] = ((),), *, is_alone: bool = False
    ) -> PromptIds:
        return self._tokenised(
            "the conversation",
            lambda: self._prompts.conversation(main, added, visibility="strict" if is_alone else "isolated"),
        )

    @cached_property
    def _prompts(self) -> PromptEncoder:
        return PromptEncoder(self.tokenizer)

    def _tokenised(self, name: str, encode: Callable[[], T]) -> T:
        """What a tokenizer makes of a text; it may raise anything, and one text must not stop the others."""
        try:
            return encode()
        except RequestError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise RequestError(f"{name} cannot be tokenised ({reason}); look for characters that are none.") from error


def turns_of(one: NamedPrompt) -> tuple[Message, ...]:
    """What a branch's prompt adds to the conversation that it is under: the user's next message, turns, or nothing.

    Raises:
        RequestError: it has another form.
    """
    prompt = prompt_of(one.prompt, one.name)
    if not prompt:
        return ()
    if isinstance(prompt, list):
        raise RequestError(f"{one.name} is token ids under a conversation; give the user's next message as text.")
    return (user(prompt),) if isinstance(prompt, str) else prompt


def _tried(encode: Callable[[T], Result], one: T) -> Result | RequestError:
    """The result, or the error that makes this branch alone one that cannot run."""
    try:
        return encode(one)
    except RequestError as error:
        return error
