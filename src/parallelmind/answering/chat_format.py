"""Split what a chat template renders between the context and the question.

The template is rendered with slots in place of the texts, once for each sequence of roles, and the texts are put in
afterwards. So the template never sees what stands in a text, and what it wrote itself is known from what was put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallelmind.answering.prompt_pieces import Piece, SplitPrompt, strip
from parallelmind.errors import SettingsError
from parallelmind.prompts.chat import PLAIN_CHAT_TEMPLATE


@dataclass(frozen=True, slots=True)
class Turn:
    """What one role says."""

    role: str
    pieces: tuple[Piece, ...]


class ChatFormat:
    """The chat template of a tokenizer; `options` are passed on to it (`enable_thinking`, say)."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._skeletons: dict[tuple[str, ...], list[str]] = {}
        self.has_template = bool(getattr(tokenizer, "chat_template", None))

    def split(self, turns: Sequence[Turn], question: Sequence[Piece]) -> SplitPrompt:
        """Render turns, of which the last is the user's and goes on with `question`: that begins the branch.

        main + branch is exactly what the template renders for these turns, stripped of white space around the whole
        text of each turn, with the prompt for the answer behind. A template that refuses a system turn gets its text at
        the beginning of the next turn.

        Raises:
            SettingsError: the template refuses the turns, or does not write each text once and in order.
        """
        fillings = [strip(turn.pieces) for turn in turns[:-1]]
        head, tail = strip(turns[-1].pieces, right=False), strip(question, left=False)
        fillings += [head, tail if head else strip(tail)]
        skeleton = self._skeleton(tuple(turn.role for turn in turns))
        pieces: list[Piece] = []
        branch_from = 0
        for number, own in enumerate(skeleton):
            pieces += [Piece(own, is_data=False)] if own else []
            if number < len(fillings):
                branch_from = len(pieces)
                pieces += fillings[number]
        return SplitPrompt(tuple(pieces[:branch_from]), tuple(pieces[branch_from:]), self.has_template)

    def _skeleton(self, roles: tuple[str, ...]) -> list[str]:
        """The template's own text before, between and after the slots, of which the last turn has two."""
        if roles not in self._skeletons:
            self._skeletons[roles] = self._render_skeleton(roles)
        return self._skeletons[roles]

    def _render_skeleton(self, roles: tuple[str, ...]) -> list[str]:
        slots = [f"PMSLOT{number}Q" for number in range(len(roles) + 1)]
        contents = [*slots[: len(roles) - 1], slots[-2] + slots[-1]]
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        attempts = [messages]
        if len(roles) > 1 and roles[:2] == ("system", "user"):
            merged = {"role": "user", "content": f"{contents[0]}\n\n{contents[1]}"}
            attempts.append([merged, *messages[2:]])
        reason = ""
        for attempt in attempts:
            try:
                rendered = self._render(attempt)
            except Exception as error:  # a template raises jinja's own errors, and whatever its expressions do
                reason = str(error).strip() or type(error).__name__
                continue
            parts = _divide(rendered, slots)
            if parts is not None:
                return parts
            reason = "it does not write the text of every turn once and in order"
        raise SettingsError(
            f"the model's chat template cannot render a conversation of {' and '.join(roles)}: {reason.splitlines()[0]}"
        )

    def _render(self, messages: list[dict[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            chat_template=None if self.has_template else PLAIN_CHAT_TEMPLATE,
            **self._options,
        )
        return text


def _divide(text: str, slots: Sequence[str]) -> list[str] | None:
    parts: list[str] = []
    for slot in slots:
        before, found, text = text.partition(slot)
        if not found or slot in text:
            return None
        parts.append(before)
    return [*parts, text]
