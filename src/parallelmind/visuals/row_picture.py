"""A row as a PNG: the tokens over time, and who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image

from parallelmind.settings.visibility import RULES
from parallelmind.visuals.canvas import INK, LINE, MUTED, Canvas, tint
from parallelmind.visuals.fonts import Fonts
from parallelmind.visuals.grid import Cell, Column, RowGrid, branch_colour

_WIDTH = 900
_GUTTER = 36
_MASK = 316
_LINE_HEIGHT = 25
_COLUMNS = 4
_MOST_BANDS = 3
_MOST_MAIN = 200
_MOST_TIMES = 32
_HIDDEN = (243, 246, 250)
_STRIP = 7
_LABELS = 42
_LINES = 256
"""Of the mask, painted at once."""


def draw_row(grid: RowGrid, path: Path, *, title: str, font: str | None = None) -> str | None:
    """Draw one row to `path`; returns what the user should know, such as characters without a font.

    Raises:
        SettingsError: the file cannot be written, or `font` is not a font file.
    """
    canvas = Canvas(_WIDTH, Fonts(font))
    left = canvas.margin
    right = _WIDTH - canvas.margin - _MASK
    canvas.text(left, 36, canvas.fitted(title, 19, _WIDTH - 2 * left, bold=True), 19, bold=True)
    facts = f"{grid.summary}   ·   each token's position: (branch position, time)   ·   stride {grid.stride}"
    canvas.text(left, 62, facts, 12.5, MUTED)
    _draw_tokens(canvas, grid, left, 92, right - left - 34)
    _draw_mask(canvas, grid, right, 92, _MASK)
    canvas.save(path)
    return canvas.fonts.note()


def draw_masks(grids: Sequence[RowGrid], path: Path, *, title: str, font: str | None = None) -> str | None:
    """Draw the masks of several visibilities side by side; returns and raises as `draw_row`."""
    canvas = Canvas(_WIDTH, Fonts(font))
    gap = 26
    width = (_WIDTH - 2 * canvas.margin - gap * (len(grids) - 1)) / len(grids)
    canvas.text(canvas.margin, 36, canvas.fitted(title, 19, _WIDTH - 2 * canvas.margin, bold=True), 19, bold=True)
    canvas.text(
        canvas.margin,
        62,
        "A coloured cell: the token of this line sees the token of this column.",
        12.5,
        MUTED,
    )
    for place, grid in enumerate(grids):
        _draw_mask(canvas, grid, canvas.margin + place * (width + gap), 92, width, lines=2, legend=place == 0)
    canvas.save(path)
    return canvas.fonts.note()


def _draw_tokens(canvas: Canvas, grid: RowGrid, x: float, y: float, width: float) -> None:
    canvas.text(x + _GUTTER - 8, y + 8, "time", 11, MUTED, anchor="right")
    y = _draw_main(canvas, grid, x + _GUTTER, y, width - _GUTTER)
    bands = [grid.columns[at : at + _COLUMNS] for at in range(0, len(grid.columns), _COLUMNS)]
    for band in bands[:_MOST_BANDS]:
        y = _draw_band(canvas, band, x + _GUTTER, y + 14, width - _GUTTER)
    if hidden := sum(map(len, bands[_MOST_BANDS:])):
        canvas.text(x + _GUTTER, y + 16, f"… and {hidden} more branches", 12.5, MUTED)
        y += 24
    if any(cell.supervised for column in grid.columns for cell in column.cells):
        canvas.box(x + _GUTTER, y + 12, 22, 15, "#ffffff", radius=4, edge=MUTED)
        canvas.text(x + _GUTTER + 30, y + 20, "outlined: supervised in training", 11.5, MUTED)


def _draw_main(canvas: Canvas, grid: RowGrid, x: float, y: float, width: float) -> float:
    colour = branch_colour(0)
    if not grid.main:
        canvas.text(x, y + 8, "no main: every branch begins at time 0", 12.5, MUTED)
        return y + 18
    canvas.text(x, y + 8, "main", 13, colour, bold=True)
    canvas.text(x + 42, y + 8, f"branch id 0  ·  branch position 0  ·  time 0–{len(grid.main) - 1}", 12, MUTED)
    y += 22
    at, line_start = x, True
    hidden = len(grid.main) - _MOST_MAIN
    for place, cell in enumerate(grid.main):
        if hidden > 0 and 0 <= place - _MOST_MAIN // 2 < hidden:
            if place == _MOST_MAIN // 2:
                y += _LINE_HEIGHT if not line_start else 0
                canvas.text(x, y + 10, f"… {hidden} more tokens …", 12.5, MUTED)
                at, y, line_start = x, y + _LINE_HEIGHT, True
            continue
        text = canvas.fitted(cell.text, 12.5, width - 12)
        chip = canvas.text_width(text, 12.5) + 11
        if at + chip > x + width:
            at, y, line_start = x, y + _LINE_HEIGHT, True
        if line_start:
            canvas.text(x - 8, y + 10, str(cell.time), 11, MUTED, anchor="right")
            line_start = False
        _draw_chip(canvas, cell, at, y, chip, text)
        at += chip + 4
    return y + _LINE_HEIGHT


def _draw_band(canvas: Canvas, columns: Sequence[Column], x: float, y: float, width: float) -> float:
    gap = 8
    each = (width - gap * (_COLUMNS - 1)) / _COLUMNS
    first = min(column.cells[0].time for column in columns)
    last = max(column.cells[-1].time for column in columns)
    for place, column in enumerate(columns):
        left, colour = x + place * (each + gap), branch_colour(column.number)
        canvas.box(left, y, each, 38, colour, radius=6)
        canvas.text(left + each / 2, y + 12, f"branch {column.number}", 12.5, "#ffffff", bold=True, anchor="middle")
        canvas.text(left + each / 2, y + 27, f"position {column.position}", 11, "#ffffff", anchor="middle")
    y += 44
    for time in range(first, min(last, first + _MOST_TIMES - 1) + 1):
        canvas.text(x - 8, y + 10, str(time), 11, MUTED, anchor="right")
        canvas.box(x, y + 22, width, 0.5, LINE)
        for place, column in enumerate(columns):
            index = time - column.cells[0].time
            if 0 <= index < len(column.cells):
                cell = column.cells[index]
                left = x + place * (each + gap)
                _draw_chip(canvas, cell, left, y, each, canvas.fitted(cell.text, 12.5, each - 10), middle=True)
        y += _LINE_HEIGHT
    if last >= first + _MOST_TIMES:
        for place, column in enumerate(columns):
            if more := max(0, column.cells[-1].time - first - _MOST_TIMES + 1):
                middle = x + place * (each + gap) + each / 2
                canvas.text(middle, y + 10, f"… {more} more", 11.5, MUTED, anchor="middle")
        y += _LINE_HEIGHT
    return y


def _draw_chip(
    canvas: Canvas, cell: Cell, x: float, y: float, width: float, text: str, *, middle: bool = False
) -> None:
    colour = branch_colour(cell.branch)
    edge = colour if cell.supervised else ""
    canvas.box(x, y, width, 20, tint(colour, 0.24 if cell.supervised else 0.13), radius=5, edge=edge)
    if middle:
        canvas.text(x + width / 2, y + 10, text, 12.5, anchor="middle")
    else:
        canvas.text(x + 5.5, y + 10, text, 12.5)


def _draw_mask(
    canvas: Canvas, grid: RowGrid, x: float, y: float, width: float, *, lines: int = 1, legend: bool = True
) -> None:
    canvas.text(x, y + 8, grid.visibility, 14, INK, bold=True)
    below = canvas.paragraph(x, y + 28, RULES[grid.visibility].explained, width, 12, MUTED)
    top = max(below, y + 28 + lines * 12 * 1.45) + 4
    pixels = round((width - _LABELS) * canvas.scale)
    image = _mask_image(grid, pixels)
    left, top = x + _LABELS, top + 16
    side = image.width / canvas.scale
    start = 0
    for branch, run in groupby(grid.branch_of):
        length = len(list(run))
        colour = branch_colour(branch)
        begin, extent = side * start / len(grid), side * length / len(grid)
        canvas.box(left + begin, top - _STRIP - 2, extent, _STRIP, colour)
        canvas.box(left - _STRIP - 2, top + begin, _STRIP, extent, colour)
        name = "main" if branch == 0 else str(branch)
        if extent >= canvas.text_width(name, 11) + 2:
            canvas.text(left + begin + extent / 2, top - _STRIP - 9, name, 11, colour, anchor="middle")
        if extent >= 11:
            canvas.text(left - _STRIP - 5, top + begin + extent / 2, name, 11, colour, anchor="right")
        start += length
    canvas.paste(left, top, image)
    if legend:
        canvas.text(left, top + side + 14, "line: the token that looks", 11.5, MUTED)
        canvas.text(left, top + side + 30, "column: the token it sees", 11.5, MUTED)


def _mask_image(grid: RowGrid, pixels: int) -> Image.Image:
    """One square a pair of tokens, in the colour of the token seen; of whole pixels, where they fit."""
    size = len(grid)
    # Main is a large area: lighter, so that the branches stand out.
    rgb = {branch: _rgb(tint(branch_colour(branch), 0.9 if branch else 0.7)) for branch in set(grid.branch_of)}
    colours = torch.tensor([rgb[branch] for branch in grid.branch_of], dtype=torch.uint8)
    hidden = torch.tensor(_HIDDEN, dtype=torch.uint8)
    image = Image.new("RGB", (size, size))
    for top in range(0, size, _LINES):
        lines = torch.where(grid.seen(top, top + _LINES)[:, :, None], colours, hidden)
        image.paste(Image.frombytes("RGB", (size, len(lines)), lines.numpy().tobytes()), (0, top))
    cell = max(1, pixels // size)
    if size * cell <= pixels:
        return _with_lines(image.resize((size * cell, size * cell), Image.Resampling.NEAREST), grid, cell)
    return image.resize((pixels, pixels), Image.Resampling.BOX)


def _with_lines(image: Image.Image, grid: RowGrid, cell: int) -> Image.Image:
    """White lines between the squares, where they are large enough."""
    if cell < 5:
        return image
    white = Image.new("RGB", (image.width, 1), "#ffffff")
    for place in range(1, len(grid)):
        image.paste(white, (0, place * cell))
        image.paste(white.resize((1, image.height)), (place * cell, 0))
    return image


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
