"""Where in a conversation the assistant speaks: what training supervises.

The spans of the assistant's turns are computed here, from what the chat template renders for the first turns of the
conversation: few templates carry the `{% generation %}` markers that would give them, and without these markers
transformers' own mask is all zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from parallelmind.errors import RequestError
from parallelmind.prompts.conversation import Message, Tool, called, is_learned, thought_and_answer
from parallelmind.prompts.encode import closed, encode_branch, shared_length
from parallelmind.prompts.template import PROBE, ChatTemplate

Span = tuple[int, int]
_OPENING, _CLOSING = "<think>", "</think>"
_PROBED: Message = {"role": "assistant", "content": PROBE}


@dataclass(frozen=True, slots=True)
class NotLearned:
    """What of a conversation is not learned, in numbers."""

    weighted: int = 0
    """Turns of the assistant with `"weight": 0`."""
    behind: int = 0
    """Turns behind the last one that is learned."""
    turns: int = 0
    """Turns of the assistant that the chat template does not write, or not as they are."""
    calls: int = 0
    """Turns of the assistant whose calls the chat template does not write."""
    shortened: int = 0
    """Turns of the assistant whose thoughts, or words beside a call, the chat template leaves out."""
    tools: int = 0
    """Tools that the chat template does not write."""


class MarkedText(NamedTuple):
    """The text of a conversation, and the spans of the assistant's turns in it, end marks included."""

    text: str
    spans: list[Span]
    is_open: bool = False
    """The template writes no end mark behind the last answer."""
    lost: NotLearned = NotLearned()


class SupervisedIds(NamedTuple):
    """Token ids, and for each whether it is supervised."""

    ids: list[int]
    loss_mask: list[bool]
    lost: NotLearned = NotLearned()


def mark_answers(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> MarkedText:
    """What is trained of a conversation. Up to the last turn that is learned it is the prompt that asks for that turn.

    Raises:
        RequestError: the chat template refuses the conversation.
    """
    learned = [place for place, message in enumerate(messages) if is_learned(message)]
    weighted = sum(message["role"] == "assistant" for message in messages) - len(learned)
    if not learned:
        return MarkedText("", [], lost=NotLearned(weighted=weighted, behind=len(messages)))
    last = learned[-1]
    turns, prompt = template.accept(messages[:last], tools) if last else ([], "")
    marking = _Marking(template, [*turns, messages[last]], tools, prompt)
    spans, unwritten, shortened = marking.spans()
    calls = sum(bool(turn.get("tool_calls")) for turn in unwritten)
    lost = NotLearned(
        weighted=weighted,
        behind=len(messages) - last - 1,
        turns=len(unwritten) - calls,
        calls=calls,
        shortened=shortened,
        tools=0 if not tools or marking.writes_tools() else len(tools),
    )
    return MarkedText(marking.text, spans, marking.is_open, lost)


class _Marking:
    """The text of a conversation that ends with an answer to `prompt`, and where its answers are in it."""

    def __init__(self, template: ChatTemplate, turns: list[Message], tools: Sequence[Tool], prompt: str) -> None:
        self._template = template
        self._turns = turns
        self._tools = tools
        self._prompt = prompt
        self.text = self._written(turns, prompt)
        self.is_open = False

    def spans(self) -> tuple[list[Span], list[Message], int]:
        """The spans, which of the turns to learn are not written, and how many not as a whole."""
        spans: list[Span] = []
        unwritten: list[Message] = []
        shortened = position = 0
        for place, turn in enumerate(self._turns):
            if turn["role"] != "assistant":
                continue
            found = self._find(place, position)
            if found is None:
                unwritten += [turn] if is_learned(turn) else []
                continue
            position = found[1]
            if is_learned(turn):
                spans.append(found)
                shortened += not all(said in self.text[slice(*found)] for said in thought_and_answer(turn))
        return spans, unwritten, shortened

    def writes_tools(self) -> bool:
        """Whether the template takes notice of the tools."""
        return self._template.render(self._turns) != self._template.render(self._turns, tools=self._tools)

    def _written(self, turns: list[Message], prompt: str) -> str:
        """What the template writes, behind the prompt that asks for the last turn.

        Some templates write the turns before another way when the assistant has answered (mistral moves the system
        turn, deepseek begins a thought); what is supervised must follow from the prompt that will ask for it.
        """
        text = self._template.render(turns, tools=self._tools)
        if text.startswith(prompt):
            return text
        before, probe, end = self._render([*turns[:-1], _PROBED]).partition(PROBE)
        start = _with_space(text, shared_length([before, text]))
        if not probe or start < len(before.rstrip()):
            return text
        if not prompt.rstrip().endswith(_OPENING) or before.rstrip().endswith(_OPENING):
            return prompt + text[start:]
        thought, answer = thought_and_answer(turns[-1])
        if turns[-1].get("tool_calls"):
            answer, end = text[start:].lstrip(), ""
        return f"{prompt}{thought}\n{_CLOSING}\n\n{answer}{end}"

    def _probed(self, place: int) -> tuple[str, str, str]:
        """What the template writes before and behind a turn that says nothing but PROBE; "" if that is not found."""
        turns = [*self._turns[:place], _PROBED, *self._turns[place + 1 :]]
        if place == len(turns) - 1:
            return self._render(turns).partition(PROBE)
        prompt = self._render(turns[:-1], reply=True)
        return self._written(turns, prompt).partition(PROBE) if prompt else ("", "", "")

    def _render(self, turns: Sequence[Message], *, reply: bool = False) -> str:
        """A conversation that was not given so; "" if the template refuses it (the result of a tool without a call)."""
        try:
            return self._template.render(turns, reply=reply, tools=self._tools)
        except RequestError:
            return ""

    def _find(self, place: int, position: int) -> Span | None:
        """The turn of the assistant at this place, at `position` or behind."""
        start = self._start(place, position)
        stop = None if start is None else self._stop(place, start)
        if start is None or stop is None:
            return None
        if not self._says(self._turns[place], self.text[start:stop]):
            return None
        return start, stop

    def _says(self, turn: Message, written: str) -> bool:
        """Whether what the template wrote is what the turn does: its calls, or else its answer."""
        if names := called(turn):
            plain = self._template.end_marks.sub("", written)
            return all(name in plain for name in names)
        return thought_and_answer(turn)[1] in written

    def _start(self, place: int, position: int) -> int | None:
        """Where the answer begins: behind the prompt that asks for it."""
        if place:
            is_last = place == len(self._turns) - 1
            prompt = self._prompt if is_last else self._render(self._turns[:place], reply=True)
            if prompt and self.text.startswith(prompt):
                return len(prompt)
            if (found := self._behind_prompt(place, position)) is not None:
                return found
        before, probe, _ = self._probed(place)
        # What a template writes before a first turn (BOS, a system message of its own) is not the assistant's.
        if probe and self.text.startswith(before) and len(before) >= position:
            return _with_space(before, len(before))
        return None

    def _behind_prompt(self, place: int, position: int) -> int | None:
        """Where the answer begins by what the prompt has between the turn before it and the answer."""
        asked = self._turns[place - 1]
        prompt = self._render([*self._turns[: place - 1], {**asked, "content": PROBE}], reply=True)
        _, probe, behind = prompt.partition(PROBE)
        if not probe or not (said := asked["content"].strip()):
            return None
        mark = said + behind.rstrip().removesuffix(_OPENING) if behind.rstrip().endswith(_OPENING) else said + behind
        found = self.text.find(mark, position)
        if found < 0:
            return None
        return found + len(said + behind if self.text.startswith(said + behind, found) else mark)

    def _stop(self, place: int, start: int) -> int | None:
        """Where the answer ends, end mark included."""
        is_last, has_calls = place == len(self._turns) - 1, bool(self._turns[place].get("tool_calls"))
        ending = (self.text if is_last else self._render(self._turns[: place + 1])).rstrip()
        marks = self._template.end_marks
        if self.text.startswith(ending) and len(ending) > start:
            found = list(marks.finditer(ending, start))
            if found and found[-1].end() == len(ending) and (has_calls or len(found) == 1):
                return len(ending)
        stop = self._end_of_words(place, start)
        if stop is None:
            last = [mark[0] for mark in marks.finditer(ending)][-1:]
            at = self.text.find(last[0], start) if has_calls and last else -1
            return None if at < 0 else at + len(last[0])
        behind = self.text[stop:]
        if mark := marks.match(self.text, stop + len(behind) - len(behind.lstrip())):
            return mark.end()
        if is_last:
            self.is_open = not behind.strip()
            return stop + len(behind.rstrip())
        return stop + len(self._closing) if behind.startswith(self._closing) else stop

    @cached_property
    def _closing(self) -> str:
        """What the template writes behind a last answer."""
        return self._probed(len(self._turns) - 1)[2].rstrip()

    def _end_of_words(self, place: int, start: int) -> int | None:
        """Where what an answer says ends, and its end mark begins."""
        _, probe, behind = self._probed(place)
        if not probe:  # the template does not write what this turn says
            return None
        if self.text.endswith(behind) and len(self.text) - len(behind) >= start:
            return len(self.text) - len(behind)
        _, answer = thought_and_answer(self._turns[place])
        at = -1 if self._turns[place].get("tool_calls") else self.text.find(answer, start)
        return at + len(answer) if answer and at >= 0 else None


def _with_space(text: str, start: int) -> int:
    """The place of the space before a word: many tokenizers make both one token."""
    return len(text[:start].rstrip(" "))


def encode_spans(tokenizer: Any, marked: MarkedText) -> SupervisedIds:
    """Ids of the text as a whole; supervised are the tokens that begin in a span.

    Where a token would hold the end of the last prompt and the beginning of its answer, the answer is encoded apart:
    the model is asked with the ids of the prompt alone. An answer without an end mark is closed with the end-of-text
    token.
    """
    text, spans = marked.text, marked.spans
    if not spans:
        return SupervisedIds([], [], marked.lost)
    if not tokenizer.is_fast:
        ids, loss_mask = _encode_by_prefixes(tokenizer, text, spans)
    else:
        ids, loss_mask, crosses = _encode_by_offsets(tokenizer, text, spans)
        if crosses:
            cut, end = spans[-1]
            prompt = _encode_by_offsets(tokenizer, text[:cut], spans[:-1])
            answer = _encode_by_offsets(tokenizer, text[cut:], [(0, end - cut)])
            ids, loss_mask = prompt[0] + answer[0], prompt[1] + answer[1]
    if marked.is_open:
        ids = closed(tokenizer, ids)
        loss_mask += [True] * (len(ids) - len(loss_mask))
    return SupervisedIds(ids, loss_mask, marked.lost)


def _encode_by_offsets(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool], bool]:
    """The ids, which of them are supervised, and whether one crosses the beginning of the last span."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    loss_mask = [any(first <= start < last for first, last in spans) for start, _ in offsets]
    crosses = any(start < spans[-1][0] < stop for start, stop in offsets) if spans else False
    return encoded["input_ids"], loss_mask, crosses


def _encode_by_prefixes(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """Tokenizers that are not of the tokenizers library cannot tell where a token begins."""
    ids = encode_branch(tokenizer, text, has_main=True)
    loss_mask = [False] * len(ids)
    for span in spans:
        first, stop = (shared_length([ids, encode_branch(tokenizer, text[:end], has_main=True)]) for end in span)
        loss_mask[first:stop] = [True] * (stop - first)
    return ids, loss_mask
