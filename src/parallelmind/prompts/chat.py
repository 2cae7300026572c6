"""Conversations to token ids, with the assistant's turns marked.

The spans of the assistant's turns are computed here, from what the chat template renders for the first turns of the
conversation: few templates carry the `{% generation %}` markers that would give them, and without these markers
transformers' own mask is all zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallelmind.errors import DataError, first_line
from parallelmind.prompts.encode import encode_main

Message = dict[str, Any]
"""One turn of a conversation: `role` and `content`."""

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': 'User', 'assistant': 'Assistant'}.get(message['role'], message['role'] | capitalize) }}: "
    "{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For tokenizers without a chat template of their own (base models): the dialogue as `parallelmind chat` writes it."""


def render_chat(tokenizer: Any, messages: Sequence[Message], *, reply: bool = False) -> str:
    """The text of a conversation; with `reply`, up to where the assistant's next turn begins."""
    own = getattr(tokenizer, "chat_template", None)
    text: str = tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=reply,
        chat_template=None if own else PLAIN_CHAT_TEMPLATE,
    )
    return text


def encode_chat(
    tokenizer: Any, messages: Sequence[Message], *, has_main: bool, where: str
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and for each whether it is part of an assistant's turn (its end mark included).

    Raises:
        DataError: the chat template refuses the conversation, or the assistant's turns are not found in it.
    """
    try:
        text = render_chat(tokenizer, messages)
        spans = _assistant_spans(tokenizer, messages, text)
    except Exception as error:  # a template raises jinja's own errors, and whatever its expressions do
        raise DataError(
            f"{where}: the tokenizer's chat template refuses the conversation: {first_line(error)}"
        ) from error
    bos = getattr(tokenizer, "bos_token", None)
    if has_main and bos and text.startswith(bos):  # main has it already
        text = text[len(bos) :]
        spans = [(start - len(bos), end - len(bos)) for start, end in spans]
    ids, learned = _encode_spans(tokenizer, text, spans)
    if not has_main and not getattr(tokenizer, "chat_template", None):
        start = encode_main(tokenizer, text)[: -len(ids)]  # BOS, which the plain form does not write
        ids, learned = start + ids, [False] * len(start) + learned
    if not any(learned):
        raise DataError(
            f"{where}: the assistant's turns are not found in what the tokenizer's chat template renders; give a "
            'tokenizer with another template (--tokenizer_path), or the form {"prompt", "completion"}.'
        )
    return ids, learned


def _assistant_spans(tokenizer: Any, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render_chat(tokenizer, messages[:place], reply=True) if place else ""
        after = render_chat(tokenizer, messages[: place + 1])
        content = message["content"].strip()
        if text.startswith(after) and after.startswith(before):
            start = len(before)
            if not place and content and content in after:
                # What a template writes before a first turn (BOS, a system message of its own) is not the assistant's.
                start = _with_space(after, after.rindex(content))
            spans.append((start, len(after.rstrip())))
            continue
        # Templates may render a turn otherwise when it is the last (Qwen3 adds an empty block of thoughts).
        known = before if text.startswith(before) else ""
        start = text.find(content, max(len(known), spans[-1][1] if spans else 0))
        if content and start >= 0:
            end = _end_of_turn(tokenizer, text, start + len(content))
            spans.append((len(known) or _with_space(text, start), end))
    return spans


def _with_space(text: str, start: int) -> int:
    """The place of the space before a word: many tokenizers make both one token."""
    return len(text[:start].rstrip(" "))


def _end_of_turn(tokenizer: Any, text: str, end: int) -> int:
    """Take the special token that closes the turn along."""
    rest = text[end:]
    for token in tokenizer.all_special_tokens:
        if rest.startswith(token):
            return end + len(token)
    return end


def _encode_spans(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in encoded["offset_mapping"]]
        return encoded["input_ids"], [any(a <= start < b for a, b in spans) for start in starts]
    ids: list[int] = []
    learned: list[bool] = []
    position = 0
    for start, end in [*spans, (len(text), len(text))]:
        for part, is_learned in ((text[position:start], False), (text[start:end], True)):
            piece = tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            ids += piece
            learned += [is_learned] * len(piece)
        position = end
    return ids, learned
