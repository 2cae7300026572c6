"""Branches side by side while they are answered."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from parallelmind.cli.terminal import NO_ANSWER, printable

if TYPE_CHECKING:
    from parallelmind.engine.request import BranchResult, Event


_MIN_WIDTH = 24
_MAX_COLUMNS = 6
_MIN_HEIGHT = 3
_SECONDS_A_FRAME = 0.05
_FRAME = 4  # border and padding of a panel, in cells


@dataclass
class BranchTexts:
    """The text that the branches have written so far."""

    questions: Sequence[str]
    texts: list[str] = field(init=False)
    results: list[BranchResult | None] = field(init=False)
    ended: bool = False
    """No more will come; a branch without a result was stopped."""

    def __post_init__(self) -> None:
        self.texts = [""] * len(self.questions)
        self.results = [None] * len(self.questions)

    def add(self, event: Event) -> None:
        self.texts[event.branch_index] += event.text
        if event.result is not None:
            self.results[event.branch_index] = event.result


def show_branches(console: Console, questions: Sequence[str], events: Iterable[Event]) -> BranchTexts:
    """Show the branches as they grow: columns on a terminal that is wide enough, else one below the other, in order."""
    branches = BranchTexts(questions)
    if not console.is_terminal or console.width < 2 * _MIN_WIDTH:
        shown = 0
        for event in events:
            branches.add(event)
            while shown < len(questions) and branches.results[shown] is not None:
                _print_plain(console, branches, shown)
                shown += 1
        branches.ended = True
        for index in range(shown, len(questions)):
            _print_plain(console, branches, index)
        return branches
    drawn = 0.0
    with Live(console=console, auto_refresh=False, vertical_overflow="crop", transient=True) as live:
        for event in events:
            branches.add(event)
            if time.monotonic() - drawn >= _SECONDS_A_FRAME:
                live.update(_columns(console, branches, height=console.height - 2), refresh=True)
                drawn = time.monotonic()
    branches.ended = True
    console.print(_columns(console, branches, height=None))
    return branches


def _print_plain(console: Console, branches: BranchTexts, index: int) -> None:
    console.print(Text(f"[{index + 1}] {printable(branches.questions[index]).strip()}", style="bold"), soft_wrap=True)
    text = _answer(branches, index)
    console.print(text, soft_wrap=True)


def _answer(branches: BranchTexts, index: int) -> Text:
    result = branches.results[index]
    text = Text(printable(branches.texts[index]).strip(), overflow="fold")
    if result is None:
        text.append(" [stopped]" if branches.ended else "▌", style="dim" if branches.ended else "")
    elif result.finish_reason == "error":
        text.append(f"error: {result.error}", style="red")
    elif not text and result.finish_reason != "cancelled":
        text.append(NO_ANSWER, style="dim")
    if result is None or result.finish_reason == "error":
        return text
    if result.finish_reason == "length":
        text.append(" [cut: max_new_tokens]", style="dim")
    elif result.finish_reason == "cancelled":
        text.append(" [stopped]", style="dim")
    return text


def _columns(console: Console, branches: BranchTexts, *, height: int | None) -> Columns:
    count = len(branches.questions)
    across = max(1, min(_MAX_COLUMNS, count, console.width // _MIN_WIDTH))
    width = console.width // across
    rows = -(-count // across)
    room = None if height is None else max(_MIN_HEIGHT, height // rows) - 2  # the border
    panels = [_panel(console, branches, index, width, room) for index in range(count)]
    return Columns(panels, padding=0)


def _panel(console: Console, branches: BranchTexts, index: int, width: int, room: int | None) -> Panel:
    question = Text(printable(branches.questions[index]).strip(), style="dim", overflow="fold")
    answer = _answer(branches, index)
    title = f"branch {index + 1}"
    if room is None:
        return Panel(Group(question, answer), title=title, title_align="left", width=width)
    # While an answer grows, its end is what a reader wants to see.
    asked = question.wrap(console, width - _FRAME)[: max(0, room // 2)]
    lines = answer.wrap(console, width - _FRAME)
    kept = lines[-max(1, room - len(asked)) :]
    return Panel(Group(*asked, *kept), title=title, title_align="left", width=width)
