"""One packed row as HTML: its tokens over time, and who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from parallelmind.settings.visibility import RULES
from parallelmind.training.report_charts import mask_png
from parallelmind.visuals.grid import Cell, Column, RowGrid, branch_colour

_MOST_MAIN = 240
_MOST_BRANCHES = 16
_MOST_TIMES = 40
_BESIDE = 8
"""As many branches stand side by side; the next ones stand below them, so that none is cut off."""


def row_section(grid: RowGrid) -> str:
    """The tokens and the mask of one row."""
    legend = ""
    if any(cell.supervised for cell in (*grid.main, *(cell for c in grid.columns for cell in c.cells))):
        legend = '<p class="note"><span class="token supervised">outlined</span> tokens are supervised.</p>'
    return (
        f'<p class="note">{escape(grid.summary)}. A token stands at (branch position, time); branch position = '
        f"branch id × {grid.stride}.</p>"
        f'<div class="row"><div class="tokens">{_main(grid)}{legend}</div>{_mask(grid)}</div>{_branches(grid)}'
    )


def _main(grid: RowGrid) -> str:
    if not grid.main:
        return '<p class="note">No main: every branch begins at time 0.</p>'
    half = _MOST_MAIN // 2
    shown = [_token(cell) for cell in grid.main]
    if (hidden := len(shown) - _MOST_MAIN) > 0:
        shown = [*shown[:half], f'<span class="more">… {hidden} more tokens …</span>', *shown[-half:]]
    return (
        f'<div class="main" style="--c:{branch_colour(0)}"><h3>main <small>branch id 0 · branch position 0 · time '
        f"0–{len(grid.main) - 1}</small></h3>{''.join(shown)}</div>"
    )


def _branches(grid: RowGrid) -> str:
    columns = grid.columns[:_MOST_BRANCHES]
    if not columns:
        return ""
    tables = [_table(columns[start : start + _BESIDE]) for start in range(0, len(columns), _BESIDE)]
    more = len(grid.columns) - len(columns)
    note = f'<p class="more">… and {more} more branches</p>' if more > 0 else ""
    return "".join(tables) + note


def _table(columns: Sequence[Column]) -> str:
    first = min(column.cells[0].time for column in columns)
    last = max(column.cells[-1].time for column in columns)
    heads = "".join(
        f'<th style="--c:{branch_colour(column.number)}"><b>branch {column.number}</b>'
        f"<small>position {column.position}</small></th>"
        for column in columns
    )
    lines = []
    for time in range(first, min(last, first + _MOST_TIMES - 1) + 1):
        cells = "".join(f"<td>{_at(column, time)}</td>" for column in columns)
        lines.append(f"<tr><th>{time}</th>{cells}</tr>")
    if (hidden := last - first + 1 - _MOST_TIMES) > 0:
        lines.append(f'<tr><th>…</th><td class="more" colspan="{len(columns)}">{hidden} more times</td></tr>')
    return (
        f'<div class="scroll branches"><table style="--n:{len(columns)}"><thead><tr><th>time</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _at(column: Column, time: int) -> str:
    place = time - column.cells[0].time
    return _token(column.cells[place]) if 0 <= place < len(column.cells) else ""


def _token(cell: Cell) -> str:
    kind = "token supervised" if cell.supervised else "token"
    return f'<span class="{kind}" style="--c:{branch_colour(cell.branch)}">{escape(cell.text)}</span>'


def _mask(grid: RowGrid) -> str:
    runs = [(branch, len(list(run))) for branch, run in groupby(grid.branch_of)]
    strip = "".join(
        f'<i style="flex:{length};--c:{branch_colour(branch)}" title="{"main" if branch == 0 else f"branch {branch}"}">'
        f"{_strip_label(branch, length, len(grid))}</i>"
        for branch, length in runs
    )
    name = escape(grid.visibility)
    return (
        f'<figure class="mask"><h3>{name} <small>{escape(RULES[grid.visibility].explained)}</small></h3>'
        f'<div class="maskgrid"><span></span><div class="across">{strip}</div><div class="down">{strip}</div>'
        f'<img src="{mask_png(grid)}" alt="Mask of visibility {name}: which token sees which"></div>'
        "<figcaption>line: the token that looks; column: the token it sees</figcaption></figure>"
    )


def _strip_label(branch: int, length: int, size: int) -> str:
    wide_enough = length / size > (0.12 if branch == 0 else 0.045)
    return ("main" if branch == 0 else str(branch)) if wide_enough else ""
