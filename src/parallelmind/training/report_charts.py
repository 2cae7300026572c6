"""Line charts as SVG and masks as PNG, written out by hand so that a report needs nothing from outside."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import torch

from parallelmind.visuals.grid import RowGrid, branch_colour

_WIDTH, _HEIGHT = 480, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 34
_NAMED = 14
_MOST_POINTS = 300
_MOST_PIXELS = 1024
_TICKS = 4
_NEAR_ZERO = 0.4


@dataclass(frozen=True)
class Series:
    """One line of a chart; `kind` is its CSS class."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    """(step, value); values that are not finite are gaps."""


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    show: Callable[[float], str],
    limits: tuple[float, float] | None = None,
) -> str:
    """The lines over the steps, as an SVG element that scales with the page; "" if there is nothing to draw.

    Args:
        label: what the chart shows, for people who do not see it.
        show: a value as text.
        limits: the least and the largest value of the axis; None: from the data.
    """
    drawn = [Series(line.name, line.kind, _thinned(_finite(line.points))) for line in series]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    steps = [step for line in drawn for step, _ in line.points]
    values = [value for line in drawn for _, value in line.points]
    low, high = limits or _range(min(values), max(values))
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return _LEFT + (step - first) / ((last - first) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in _ticks(low, high):
        height = y(tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{escape(show(tick))}</text>')
    for tick in _ticks(first, last):
        if tick == int(tick):
            parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{int(tick):,}</text>')
    for line in drawn:
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line.points)
        parts.append(f'<polyline class="{line.kind}" points="{path}"/>')
        for step, value in line.points:
            title = escape(f"{line.name}, step {step:,.0f}: {show(value)}")
            dot = "dot" if line.kind == "held" or len(line.points) == 1 else "hover"
            parts.append(
                f'<circle class="{line.kind} {dot}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="4">'
                f"<title>{title}</title></circle>"
            )
    parts.append("</svg>")
    return "".join(parts)


def bar_chart(bars: Sequence[tuple[str, float]], *, label: str, show: Callable[[float], str]) -> str:
    """Shares from 0 to 1 by name, as an SVG element that scales with the page; "" if there are none.

    Args:
        label: what the chart shows, for people who do not see it.
        show: a value as text.
    """
    if not bars:
        return ""
    each = (_WIDTH - _LEFT - _RIGHT) / len(bars)
    floor, height = _HEIGHT - _BOTTOM, _HEIGHT - _TOP - _BOTTOM - _NAMED
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    for share in (0.0, 0.5, 1.0):
        y = floor - share * height
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(show(share))}</text>')
    for place, (name, value) in enumerate(bars):
        left, top = _LEFT + (place + 0.15) * each, floor - value * height
        middle = left + 0.35 * each
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{0.7 * each:.1f}" height="{value * height:.1f}"/>'
            f'<text x="{middle:.1f}" y="{top - 5:.1f}" text-anchor="middle">{escape(show(value))}</text>'
            f'<text x="{middle:.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(name)}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def mask_png(grid: RowGrid) -> str:
    """The mask as the address of an inline PNG: a pixel a pair of tokens, transparent where nothing is seen.

    Where a row is too long for that, a pixel stands for two tokens, or three, and so on.
    """
    each = -(-len(grid) // _MOST_PIXELS)
    branch_of = grid.branch_of[::each]
    size = len(branch_of)
    branches = sorted(set(branch_of))[:255]
    index = {branch: place + 1 for place, branch in enumerate(branches)}
    keys = torch.tensor([index.get(branch, len(branches)) for branch in branch_of], dtype=torch.uint8)
    pixels = torch.zeros(size, size + 1, dtype=torch.uint8)  # the first of a line says how it is filtered: not
    pixels[:, 1:] = grid.seen(step=each) * keys
    lines = pixels.numpy().tobytes()
    palette = bytes(3) + b"".join(bytes.fromhex(branch_colour(branch)[1:]) for branch in branches)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, where there are more points than a chart can show."""
    each = -(-len(points) // _MOST_POINTS)
    groups = [points[at : at + each] for at in range(0, len(points), each)] if each > 1 else []
    if not groups:
        return points
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _range(low: float, high: float) -> tuple[float, float]:
    """The limits of an axis: from 0 where that is near enough, else a little beyond the values."""
    if 0 <= low <= high * _NEAR_ZERO:
        low = 0.0
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - room), high + room


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers within the range."""
    if high <= low:
        return [low]
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + place) * step, 12) for place in range(count)]
