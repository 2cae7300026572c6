"""From the texts of a request to token ids: one main, and what each branch adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from parallelmind.columnar import Visibility, sees_main
from parallelmind.prompts.chat import Message, render_chat
from parallelmind.prompts.chat_format import has_template
from parallelmind.prompts.encode import encode_branch, encode_main
from parallelmind.server.problems import ApiError
from parallelmind.server.schemas import ChatMessage


class PromptIds(NamedTuple):
    """Token ids of a request."""

    main: list[int]
    branches: list[list[int]]


def text_ids(tokenizer: Any, main: str, prompts: Sequence[str], visibility: Visibility) -> PromptIds:
    """A main and prompts that continue it."""
    ids = encode_main(tokenizer, main)
    has_main = bool(ids) and sees_main(visibility)
    return PromptIds(ids, [encode_branch(tokenizer, prompt, has_main=has_main) for prompt in prompts])


def chat_ids(
    tokenizer: Any, messages: Sequence[ChatMessage], prompts: Sequence[str], visibility: Visibility
) -> PromptIds:
    """A conversation as main, and for each branch the user's next message and where the answer begins.

    An empty prompt adds no message: the branch answers the conversation as it is. A template that refuses a system
    message gets its text at the beginning of the first one of the user, as in `parallelmind chat`.

    Raises:
        ApiError: the model's chat template refuses the conversation.
    """
    said: list[Message] = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text}
        for message in messages
    ]
    try:
        shared = "" if not any(prompts) else _rendered(tokenizer, said)
        whole = [
            _rendered(tokenizer, [*said, {"role": "user", "content": prompt}] if prompt else said, reply=True)
            for prompt in prompts
        ]
    except Exception as error:  # a template raises jinja's own errors, and whatever its expressions do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ApiError(
            400, f"the model's chat template refuses the conversation: {reason}", param="messages"
        ) from error
    # Some templates render the turns before the last otherwise, so main is what all of them truly begin with.
    texts = [shared, *whole] if shared else whole
    main = texts[0][: _shared_length(texts)]
    add_start = not has_template(tokenizer)
    if not sees_main(visibility):
        return PromptIds(_ids(tokenizer, main, add_start), [_ids(tokenizer, text, add_start) for text in whole])
    rests = [_ids(tokenizer, text[len(main) :], not main and add_start) for text in whole]
    return PromptIds(_ids(tokenizer, main, add_start), rests)


def completion_ids(tokenizer: Any, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> PromptIds:
    """One prompt or several: what they begin with in common as main, the rest as branches."""
    if isinstance(prompt, str):
        several = [encode_main(tokenizer, prompt)]
    elif prompt and isinstance(prompt[0], int):
        several = [list(prompt)]  # type: ignore[arg-type]
    else:
        several = [encode_main(tokenizer, one) if isinstance(one, str) else list(one) for one in prompt]  # type: ignore[arg-type]
    length = _shared_length(several)
    return PromptIds(several[0][:length], [one[length:] for one in several])


def _rendered(tokenizer: Any, messages: Sequence[Message], *, reply: bool = False) -> str:
    try:
        return render_chat(tokenizer, messages, reply=reply)
    except Exception:  # as above; gemma's template refuses system messages
        first, *rest = messages
        if first["role"] != "system":
            raise
        text = first["content"]
        if rest and rest[0]["role"] == "user":
            text, rest = f"{text}\n\n{rest[0]['content']}", rest[1:]
        return render_chat(tokenizer, [{"role": "user", "content": text}, *rest], reply=reply)


def _shared_length(several: Sequence[str] | Sequence[list[int]]) -> int:
    """How much all of them begin with in common."""
    # What the first and the last in sorted order share, all between them share; comparing all, item by item, took
    # minutes for a long main under many branches.
    first, last = min(several), max(several)
    for length, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return length
    return len(first)


def _ids(tokenizer: Any, text: str, add_start: bool) -> list[int]:
    """A chat template writes its own special tokens; the plain form of a dialogue does not."""
    if not text:
        return []
    return encode_main(tokenizer, text) if add_start else encode_branch(tokenizer, text, has_main=True)
