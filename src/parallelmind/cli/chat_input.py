"""Reading messages: one line, or several."""

from __future__ import annotations

import sys

_BLOCK = '"""'
_CONTINUED = "... "


class MessageReader:
    r"""Reads a message of one line or more.

    A line that ends with \ goes on in the next one; a block between two lines that hold \"\"\" is taken as it is, after
    a command too (`/main \"\"\"`). On a terminal, text of many lines can be pasted, and the arrow keys edit and recall.
    """

    def __init__(self) -> None:
        if sys.stdin.isatty() and sys.stdout.isatty():
            _enable_editing()

    def read(self, prompt: str) -> str:
        """The next message.

        Raises:
            EOFError: the input has ended, and nothing was read.
        """
        line = input(prompt)
        lines = [line]
        try:
            if line.count(_BLOCK) == 1:
                while line.count(_BLOCK) != 1 or len(lines) == 1:
                    line = input(_CONTINUED)
                    lines.append(line)
                return _without_marks("\n".join(lines))
            while line.endswith("\\"):
                lines[-1] = line[:-1]
                line = input(_CONTINUED)
                lines.append(line)
        except EOFError:
            print()
            return _without_marks("\n".join(lines))
        return "\n".join(lines)


def _without_marks(text: str) -> str:
    before, _, rest = text.partition(_BLOCK)
    inside, _, after = rest.partition(_BLOCK)
    return before + inside.removeprefix("\n").removesuffix("\n") + after


def _enable_editing() -> None:
    try:
        import readline
    except ImportError:  # Windows: the console edits by itself
        return
    # Python switches it off; with it a text of several lines is pasted as one message.
    readline.parse_and_bind("set enable-bracketed-paste on")
