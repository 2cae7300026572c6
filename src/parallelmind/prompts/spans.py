"""Where in a conversation the assistant speaks: what training supervises.

The spans of the assistant's turns are computed here, from what the chat template renders for the first turns of the
conversation: few templates carry the `{% generation %}` markers that would give them, and without these markers
transformers' own mask is all zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from parallelmind.prompts.conversation import Message, Tool
from parallelmind.prompts.encode import encode_branch, shared_length
from parallelmind.prompts.template import PROBE, ChatTemplate

Span = tuple[int, int]


class MarkedText(NamedTuple):
    """The text of a conversation, and the spans of the assistant's turns in it, end marks included."""

    text: str
    spans: list[Span]


class SupervisedIds(NamedTuple):
    """Token ids, and for each whether it is supervised."""

    ids: list[int]
    loss_mask: list[bool]


def mark_answers(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> MarkedText:
    """What is trained of a conversation. Up to the assistant's last turn it is the prompt that asks for that turn.

    Raises:
        RequestError: the chat template refuses the conversation.
    """
    last = max((place for place, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    turns, prompt = template.accept(messages[:last], tools) if last else ([], "")
    last, turns = len(turns), [*turns, *messages[last:]]
    text = template.render(turns, tools=tools)
    if not text.startswith(prompt) and last == len(turns) - 1:
        # Some templates write the turns before another way when the assistant has answered (mistral moves the system
        # turn); what is supervised must follow from the prompt that will ask for it.
        start = _start_of_text(template, turns, tools)
        text = text if start is None else prompt + text[start:]
    spans: list[Span] = []
    position = 0  # where what was said so far ends at the earliest
    for place, message in enumerate(turns):
        if message["role"] == "assistant":
            span = _find_span(tokenizer, template, turns[: place + 1], tools, text, position)
            if span is not None:
                spans.append(span)
                position = span[1]
        elif message["role"] != "system":  # which some templates write elsewhere
            content = message["content"].strip()
            position = max(position, text.find(content, position) + len(content))
    return MarkedText(text, spans)


def _find_span(
    tokenizer: Any, template: ChatTemplate, turns: Sequence[Message], tools: Sequence[Tool], text: str, position: int
) -> Span | None:
    """The last of these turns in the text of all turns, at `position` or behind."""
    content = turns[-1]["content"].strip()
    before = template.render(turns[:-1], reply=True, tools=tools) if len(turns) > 1 else ""
    after = template.render(turns, tools=tools)
    if text.startswith(after) and after.startswith(before):
        # What a template writes before a first turn (BOS, a system message of its own) is not the assistant's.
        own = None if before or not content else _start_of_text(template, turns, tools)
        return own or len(before), len(after.rstrip())
    # Templates may render a turn otherwise when it is the last (Qwen3 adds an empty block of thoughts).
    known = before if text.startswith(before) else ""
    start = text.find(content, max(len(known), position))
    if not content or start < 0:
        return None
    return len(known) or _with_space(text, start), _end_of_turn(tokenizer, text, start + len(content))


def _start_of_text(template: ChatTemplate, turns: Sequence[Message], tools: Sequence[Tool]) -> int | None:
    """Where the template writes what the last turn says."""
    probed = [*turns[:-1], {**turns[-1], "content": PROBE}]
    before, found, _ = template.render(probed, tools=tools).partition(PROBE)
    return _with_space(before, len(before)) if found else None


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


def encode_spans(tokenizer: Any, marked: MarkedText) -> SupervisedIds:
    """Ids of the text as a whole; supervised are the tokens that begin in a span.

    Where a token would hold the end of the last prompt and the beginning of its answer, the answer is encoded apart:
    the model is asked with the ids of the prompt alone.
    """
    text, spans = marked
    if not tokenizer.is_fast:
        return _encode_by_prefixes(tokenizer, text, spans)
    ids, loss_mask, crosses = _encode_by_offsets(tokenizer, text, spans)
    if not crosses:
        return SupervisedIds(ids, loss_mask)
    cut, end = spans[-1]
    prompt = _encode_by_offsets(tokenizer, text[:cut], spans[:-1])
    answer = _encode_by_offsets(tokenizer, text[cut:], [(0, end - cut)])
    return SupervisedIds(prompt[0] + answer[0], prompt[1] + answer[1])


def _encode_by_offsets(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool], bool]:
    """The ids, which of them are supervised, and whether one crosses the beginning of the last span."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    loss_mask = [any(first <= start < last for first, last in spans) for start, _ in offsets]
    crosses = any(start < spans[-1][0] < stop for start, stop in offsets) if spans else False
    return encoded["input_ids"], loss_mask, crosses


def _encode_by_prefixes(tokenizer: Any, text: str, spans: Sequence[Span]) -> SupervisedIds:
    """Tokenizers that are not of the tokenizers library cannot tell where a token begins."""
    ids = encode_branch(tokenizer, text, has_main=True)
    loss_mask = [False] * len(ids)
    for span in spans:
        first, stop = (shared_length([ids, encode_branch(tokenizer, text[:end], has_main=True)]) for end in span)
        loss_mask[first:stop] = [True] * (stop - first)
    return SupervisedIds(ids, loss_mask)
