"""A picture that grows downwards while it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from parallelmind.io.atomic import replacing
from parallelmind.visuals.fonts import Fonts

INK = "#1e293b"
MUTED = "#64748b"
LINE = "#e2e8f0"
_BACKGROUND = "#ffffff"


def tint(colour: str, strength: float) -> str:
    """The colour on white paper; strength 1 is the colour itself."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * strength):02x}" for part in parts)


class Canvas:
    """Records what to draw and paints it in `save`, when the height is known.

    Lengths are in points of which `scale` pixels make one; x and y are those of the upper left corner.
    """

    def __init__(self, width: int, fonts: Fonts, *, scale: int = 2, margin: int = 28) -> None:
        self.width = width
        self.fonts = fonts
        self.scale = scale
        self.margin = margin
        self.height = 0.0
        self._steps: list[Callable[[Image.Image, Any], None]] = []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, *, radius: float = 0, edge: str = ""
    ) -> None:
        s = self.scale
        self.height = max(self.height, y + height)
        # At least a pixel: Pillow refuses less, as the mark of a short branch in a long row may be.
        corners = (x * s, y * s, max(x, x + width - 1 / s) * s, max(y, y + height - 1 / s) * s)
        outline = edge or None

        def paint(image: Image.Image, draw: Any) -> None:
            draw.rounded_rectangle(corners, radius=radius * s, fill=fill, outline=outline, width=s)

        self._steps.append(paint)

    def text(
        self, x: float, y: float, text: str, size: float = 13, colour: str = INK, *, bold: bool = False,
        anchor: str = "left",
    ) -> None:  # fmt: skip
        """Write one line; y is the middle of its height, x its left, middle or right, as `anchor` says."""
        self.height = max(self.height, y + size * 0.7)
        pixels = round(size * self.scale)
        width = self.fonts.width(text, pixels, bold=bold)
        start = x * self.scale - {"left": 0.0, "middle": width / 2, "right": width}[anchor]

        def paint(image: Image.Image, draw: Any) -> None:
            at = start
            for piece, font in self.fonts.runs(text, pixels, bold=bold):
                # "ls": on the baseline, which fonts share; their heights differ.
                draw.text((at, (y + size * 0.36) * self.scale), piece, fill=colour, font=font, anchor="ls")
                at += font.getlength(piece)

        self._steps.append(paint)

    def text_width(self, text: str, size: float = 13, *, bold: bool = False) -> float:
        return self.fonts.width(text, round(size * self.scale), bold=bold) / self.scale

    def fitted(self, text: str, size: float, width: float, *, bold: bool = False) -> str:
        return self.fonts.fit(text, round(size * self.scale), width * self.scale, bold=bold)

    def paragraph(self, x: float, y: float, text: str, width: float, size: float, colour: str) -> float:
        """Write words in lines of this width and return the y below them."""
        line = ""
        for word in text.split():
            if line and self.text_width(f"{line} {word}", size) > width:
                self.text(x, y, line, size, colour)
                line, y = "", y + size * 1.45
            line = f"{line} {word}".strip()
        self.text(x, y, line, size, colour)
        return y + size * 1.45

    def paste(self, x: float, y: float, image: Image.Image) -> None:
        """Put an image, pixel for pixel."""
        self.height = max(self.height, y + image.height / self.scale)

        def paint(whole: Image.Image, draw: Any) -> None:
            whole.paste(image, (round(x * self.scale), round(y * self.scale)))

        self._steps.append(paint)

    def save(self, path: Path) -> None:
        """Write the PNG, complete or not at all. Raises SettingsError if it cannot be written."""
        size = (self.width * self.scale, round((self.height + self.margin) * self.scale))
        image = Image.new("RGB", size, _BACKGROUND)
        draw = ImageDraw.Draw(image)
        for paint in self._steps:
            paint(image, draw)
        with replacing(path) as temporary:
            image.save(temporary, format="PNG")
