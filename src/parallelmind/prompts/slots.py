"""Conversations of pieces: what a chat template renders, with what came from outside known in it.

The template is rendered with slots in place of the texts, once for each sequence of roles, and the texts are put in
afterwards. So the template never sees what stands in a text, and what it wrote itself is known from what was put in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parallelmind.errors import RequestError
from parallelmind.prompts.pieces import Piece, SplitPrompt, strip
from parallelmind.prompts.template import ChatTemplate

_SLOT = re.compile(r"PMSLOT(\d+)Q")
_SPACE = "\t"
"""Around a slot: whether it is there in what is rendered tells whether the template strips a text there."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one role says."""

    role: str
    pieces: tuple[Piece, ...]


class _Slot(NamedTuple):
    """Where the template writes the text of a turn."""

    before: str
    """What it writes before."""
    turn: int
    strips_left: bool
    strips_right: bool


class Slots:
    """Puts texts into what a chat template renders for their roles."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._skeletons: dict[tuple[tuple[str, ...], tuple[bool, ...]], tuple[list[_Slot], str]] = {}

    def split(self, turns: Sequence[Turn], question: Sequence[Piece]) -> SplitPrompt:
        """Render turns, of which the last is the user's and goes on with `question`: that begins the branch.

        main + branch is exactly what the template renders for these turns, with the prompt for the answer behind, as
        long as the template does not look into the texts.

        Raises:
            RequestError: the template refuses the turns, or does not write each text once and the last one last.
        """
        slots, end = self._skeleton(tuple(turn.role for turn in turns), tuple(bool(turn.pieces) for turn in turns[:-1]))
        main: list[Piece] = []
        for slot in slots[:-1]:
            main.append(Piece(slot.before, is_data=False))
            main += strip(turns[slot.turn].pieces, left=slot.strips_left, right=slot.strips_right)
        last = slots[-1]
        head = strip(turns[-1].pieces, left=last.strips_left, right=False)
        tail = strip(question, left=last.strips_left and not head, right=last.strips_right)
        head = head if tail else strip(head, left=False, right=last.strips_right)
        main += [Piece(last.before, is_data=False), *head]
        branch = (*tail, Piece(end, is_data=False))
        return SplitPrompt(_filled(main), _filled(branch), "template" if self.template.is_own else "dialogue")

    def _skeleton(self, roles: tuple[str, ...], has_text: tuple[bool, ...]) -> tuple[list[_Slot], str]:
        """The slots in the order in which the template writes them, and its own text behind the last.

        `has_text` tells of each turn but the last whether it has a slot.
        """
        key = roles, has_text
        if key not in self._skeletons:
            self._skeletons[key] = self._render_skeleton(roles, (*has_text, True))
        return self._skeletons[key]

    def _render_skeleton(self, roles: tuple[str, ...], has_text: tuple[bool, ...]) -> tuple[list[_Slot], str]:
        turns = enumerate(zip(roles, has_text, strict=True))
        messages = [
            {"role": role, "content": f"{_SPACE}PMSLOT{number}Q{_SPACE}" if filled else ""}
            for number, (role, filled) in turns
        ]
        *texts, end = _SLOT.split(self.template.accept(messages).prompt)
        found = [int(number) for number in texts[1::2]]
        last = len(roles) - 1
        if sorted(found) != [number for number, filled in enumerate(has_text) if filled] or found[-1] != last:
            raise RequestError(
                "the model's chat template refuses the conversation: it does not write the text of every turn "
                f"({' and '.join(roles)}) once, and that of the last one last"
            )
        slots: list[_Slot] = []
        following = [*texts[2::2], end]
        for before, number, after in zip([texts[0], *following], found, following, strict=False):
            own = before.removeprefix(_SPACE) if slots else before
            slots.append(
                _Slot(
                    before=own.removesuffix(_SPACE),
                    turn=number,
                    strips_left=not own.endswith(_SPACE),
                    strips_right=not after.startswith(_SPACE),
                )
            )
        return slots, end.removeprefix(_SPACE)


def _filled(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    return tuple(piece for piece in pieces if piece.text)
