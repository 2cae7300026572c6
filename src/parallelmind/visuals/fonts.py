"""Text in pictures: every character from the first font that has it, so that Chinese does not become a row of boxes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from PIL import ImageFont

from parallelmind.errors import SettingsError

_LATIN = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "Helvetica.ttc",
)
_LATIN_BOLD = (
    "DejaVuSans-Bold.ttf",
    "NotoSans-Bold.ttf",
    "LiberationSans-Bold.ttf",
    "Arial Bold.ttf",
    "arialbd.ttf",
)
_WIDE = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.otf",
    "NotoSansSC-Regular.ttf",
    "SourceHanSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "simsun.ttc",
)
_NO_CHARACTER = "\U0010fffd"


class Fonts:
    """The fonts of this machine at any size.

    Args:
        font: a font file to look in first.
    Raises:
        SettingsError: that file is not a font.
    """

    def __init__(self, font: str | None = None) -> None:
        if font is not None and _load(font, 10) is None:
            raise SettingsError(f"--font {font}: not a font file; give a .ttf, .otf or .ttc file.")
        first = (font,) if font is not None else ()
        self._files = {
            False: [*first, *_found(_LATIN), *_found(_WIDE)],
            True: [*first, *_found(_LATIN_BOLD), *_found(_LATIN), *_found(_WIDE)],
        }
        self.missing: dict[str, None] = {}
        """Characters that no font has; they are written as U+5C0F."""

    def runs(self, text: str, size: int, *, bold: bool = False) -> list[tuple[str, Any]]:
        """The text in pieces of one font each."""
        runs: list[tuple[str, Any]] = []
        for character in text:
            font = self._font_of(character, size, bold)
            if font is None:
                self.missing[character] = None
                character, font = f"U+{ord(character):04X}", self._any(size, bold)
            if runs and runs[-1][1] is font:
                runs[-1] = (runs[-1][0] + character, font)
            else:
                runs.append((character, font))
        return runs

    def width(self, text: str, size: int, *, bold: bool = False) -> float:
        return float(sum(font.getlength(piece) for piece, font in self.runs(text, size, bold=bold)))

    def fit(self, text: str, size: int, width: float, *, bold: bool = False) -> str:
        """The text, or its beginning and … where it is wider."""
        if self.width(text, size, bold=bold) <= width:
            return text
        while text and self.width(text + "…", size, bold=bold) > width:
            text = text[:-1]
        return text + "…"

    def note(self) -> str | None:
        """What to tell the user of characters that could not be drawn."""
        if not self.missing:
            return None
        return (
            f"no font on this machine has {''.join(list(self.missing)[:12])}: drawn as numbers (U+…). "
            "Install one that does (on Debian and Ubuntu: apt install fonts-noto-cjk), or give it with --font FILE."
        )

    def _font_of(self, character: str, size: int, bold: bool) -> Any:
        for file in self._files[bold]:
            if _has(file, character):
                return _load(file, size)
        return None if self._files[bold] else self._any(size, bold)

    def _any(self, size: int, bold: bool) -> Any:
        files = self._files[bold]
        return _load(files[0], size) if files else ImageFont.load_default(size)


@functools.cache
def _load(file: str, size: int) -> Any:
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        return None


def _found(names: Sequence[str]) -> list[str]:
    """The first of these fonts that is installed; Pillow looks in the system's folders."""
    return [name for name in names if _load(name, 10) is not None][:1]


@functools.cache
def _has(file: str, character: str) -> bool:
    """Pillow cannot look characters up, but it draws every missing one like one that is certainly missing."""
    font = _load(file, 20)
    if character.isspace():
        return True
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))
