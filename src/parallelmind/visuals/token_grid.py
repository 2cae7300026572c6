"""A row in the terminal, with rich: readable with and without colours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from parallelmind.settings.visibility import RULES
from parallelmind.visuals.grid import Cell, Column, RowGrid, branch_colour

_MOST_MAIN = 160
_MOST_CONTEXT = 40
_MOST_LEARNED = 400
_MOST_TIMES = 48
_COLUMN_WIDTH = 16
_TIME_WIDTH = 6
_LABEL_WIDTH = 6
_DOT_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def terminal_picture(grid: RowGrid, *, width: int = 100) -> RenderableType:
    """Main, the branches in columns below it, and who sees whom."""
    parts: list[RenderableType] = []
    if grid.main:
        parts.append(_main_panel(grid))
    per_table = max(1, (width - _TIME_WIDTH - 4) // (_COLUMN_WIDTH + 3))
    for start in range(0, len(grid.columns), per_table):
        parts.append(_branch_table(grid.columns[start : start + per_table]))
    if any(cell.supervised for column in grid.columns for cell in column.cells):
        parts.append(Text("underlined and *: supervised in training; the same in «»:", style="dim"))
        parts += [_learned_text(column) for column in grid.columns]
    parts.append(mask_text(grid, width=width))
    return Group(*parts)


def mask_text(grid: RowGrid, *, width: int = 100) -> RenderableType:
    """The mask: blocks of one key and two queries a character, or dots of 2 x 4 where that is too wide."""
    size, room = len(grid), max(8, width - _LABEL_WIDTH - 1)
    glyph, keys, queries = (_block, 1, 2) if size <= room else (_dots, 2, 4)
    step = -(-size // (room * keys))  # tokens a dot
    across, down = keys * step, queries * step
    head = Text(f"\nvisibility {grid.visibility}", style="bold")
    head.append(f": {RULES[grid.visibility].explained}\n", style="not bold")
    scale = f", {step} tokens a dot" if step > 1 else ""
    head.append(f"lines: the token that looks; columns: the token it sees{scale}", style="not bold dim")
    text = Text(" " * (_LABEL_WIDTH + 1), no_wrap=True)
    for branch in grid.branch_of[::across]:
        text.append("m" if branch == 0 else str(branch % 10), style=branch_colour(branch))
    seen = grid.pooled(step).tolist()
    before = -1
    for top in range(0, size, down):
        branch = grid.branch_of[top]
        label = "" if branch == before else ("main" if branch == 0 else f"br. {branch}")
        before = branch
        text.append(f"\n{label:>{_LABEL_WIDTH}} ", style=branch_colour(branch))
        for left in range(0, size, across):
            lines = [line[left // step : left // step + keys] for line in seen[top // step :][:queries]]
            text.append(glyph(lines), style=branch_colour(grid.branch_of[left]))
    return Group(head, text)


def _block(lines: list[list[bool]]) -> str:
    return " ▀▄█"[sum(any(line) << place for place, line in enumerate(lines))]


def _dots(lines: list[list[bool]]) -> str:
    """A character of U+2800…U+28FF (braille), whose bits are its dots."""
    bits = sum(_DOT_BITS[place][column] for place, line in enumerate(lines) for column, on in enumerate(line) if on)
    return chr(0x2800 + bits) if bits else " "


def _main_panel(grid: RowGrid) -> Panel:
    text = Text()
    for cell in _shortened(grid.main, _MOST_MAIN):
        if isinstance(cell, int):
            text.append(f" … {cell} more tokens … ", style="italic dim")
        else:
            text.append(cell.text, style=_style(cell, cell.time))
            text.append("│" if cell is not grid.main[-1] else "", style="dim")
    last = len(grid.main) - 1
    title = f"[bold]main[/bold]  branch id 0, branch position 0, time 0…{last}"
    return Panel(text, title=title, title_align="left", border_style=branch_colour(0), box=box.ROUNDED)


def _learned_text(column: Column) -> Text:
    """A branch in a line, its supervised tokens in guillemets; long stretches are shortened."""
    text = Text(f"branch {column.number}: ", style=branch_colour(column.number))
    for supervised, run in groupby(column.cells, key=lambda cell: cell.supervised):
        cells = tuple(run)
        text.append("«" if supervised else "")
        for cell in _shortened(cells, _MOST_LEARNED if supervised else _MOST_CONTEXT):
            if isinstance(cell, int):
                text.append(f" … {cell} more tokens … ", style="italic dim")
            else:
                text.append(cell.text, style="underline" if supervised else "dim")
        text.append("»" if supervised else "")
    return text


def _style(cell: Cell, shade: int) -> str:
    # Main in the terminal's own colour: grey would be hard to read on one of light and dark.
    parts = [branch_colour(cell.branch)] if cell.branch else []
    parts += ["bold"] if shade % 2 == 0 else []
    return " ".join([*parts, *(["underline"] if cell.supervised else [])])


def _branch_table(columns: tuple[Column, ...]) -> Table:
    table = Table(box=box.ROUNDED, show_lines=False, border_style="dim")
    table.add_column("time", justify="right", style="dim", width=_TIME_WIDTH - 1)
    for column in columns:
        colour = branch_colour(column.number)
        header = Text(f"branch {column.number}\n", style=f"bold {colour}")
        header.append(f"position {column.position}", style=f"not bold {colour}")
        table.add_column(header, width=_COLUMN_WIDTH, no_wrap=True, overflow="ellipsis")
    first = min(column.cells[0].time for column in columns)
    last = max(column.cells[-1].time for column in columns)
    for time in range(first, min(last, first + _MOST_TIMES - 1) + 1):
        cells = []
        for column in columns:
            place = time - column.cells[0].time
            cell = column.cells[place] if 0 <= place < len(column.cells) else None
            cells.append(_cell_text(cell) if cell else Text(""))
        table.add_row(str(time), *cells)
    if last >= first + _MOST_TIMES:
        rest = [max(0, column.cells[-1].time - first - _MOST_TIMES + 1) for column in columns]
        table.add_row("…", *[Text(f"… {count} more" if count else "", style="italic dim") for count in rest])
    return table


def _cell_text(cell: Cell) -> Text:
    text = Text(cell.text, style=_style(cell, 0))
    return text.append(" *", style="not underline") if cell.supervised else text


def _shortened(cells: tuple[Cell, ...], most: int) -> Iterator[Cell | int]:
    """The cells; if there are too many, the first and last ones, and between them how many are left out."""
    if len(cells) <= most:
        yield from cells
        return
    head = most * 3 // 4
    yield from cells[:head]
    yield len(cells) - most
    yield from cells[head - most :]
