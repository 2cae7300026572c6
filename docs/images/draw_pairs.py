"""Draw docs/images/pairs.png: which frequency pairs of a rotary embedding turn by branch position, which by time."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from parallelmind.columnar import PairChoice, choose_pairs
from parallelmind.visuals.canvas import MUTED, Canvas, tint
from parallelmind.visuals.fonts import Fonts
from parallelmind.visuals.grid import branch_colour

PAIRS, THETA = 32, 10_000.0
"""A head of 64 numbers."""
CHOICES: tuple[tuple[PairChoice, float], ...] = (("low", 0.5), ("low", 0.25), ("interleaved", 0.5))
STRIDES = (1, 32, 128, 512)
LABELS, CELL, HEIGHT = 160, 21, 26


def main() -> None:
    """Draw one line of cells for each choice, and the turn of each pair from branch to branch below them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    canvas = Canvas(900, Fonts())
    left, y = canvas.margin, 36.0
    canvas.text(left, y, f"Which of {PAIRS} frequency pairs turn by what", 19, bold=True)
    legend = (("time", tint(MUTED, 0.55)), ("branch position (additive: time + branch position)", branch_colour(1)))
    for x, (name, colour) in zip((left, left + 70), legend, strict=True):
        canvas.box(x, y + 26, 12, 12, colour, radius=3)
        canvas.text(x + 18, y + 32, name, 12.5, MUTED)
    y += 66
    for pairs, ratio in CHOICES:
        chosen = set(choose_pairs(PAIRS, ratio, pairs))
        canvas.text(left, y + HEIGHT / 2, f"{pairs}, ratio {ratio}", 13)
        for pair in range(PAIRS):
            colour = branch_colour(1) if pair in chosen else tint(MUTED, 0.55)
            canvas.box(left + LABELS + pair * CELL, y, CELL - 2, HEIGHT, colour, radius=3)
        y += HEIGHT + 10
    _scale(canvas, left, y)
    canvas.save(args.out_dir / "pairs.png")


def _scale(canvas: Canvas, left: float, y: float) -> None:
    """Pair numbers, and how far each pair turns from one branch to the next, by stride."""
    for pair in range(0, PAIRS, 4):
        x = left + LABELS + pair * CELL
        canvas.text(x + 2, y + 6, f"pair {pair}", 11, MUTED)
        for line, stride in enumerate(STRIDES):
            turn = stride * THETA ** (-pair / PAIRS) / (2 * math.pi)
            canvas.text(x + 2, y + 40 + 20 * line, f"{turn:.2g}", 12)
    for line, stride in enumerate(STRIDES):
        canvas.text(left, y + 40 + 20 * line, f"turns, stride {stride}", 12.5, MUTED)
    canvas.text(left, y + 6, "fastest first", 11, MUTED)


if __name__ == "__main__":
    main()
