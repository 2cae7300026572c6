"""What a branch may see: each visibility by what it says of main and of the other branches.

A new one is an entry here, and where it needs more than these words its line in `columnar/visibility.py`: choices and
help, the masks of training and of the pictures, and the engine follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Visibility = Literal["isolated", "columnar", "strict"]
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)


@dataclass(frozen=True, kw_only=True)
class VisibilityRule:
    """What the tokens of a branch see besides their own branch up to themselves."""

    sees_main: bool
    sees_branches: bool
    """The tokens of every other branch of the row of strictly earlier time. Its branches run in step."""
    help: str
    """What a branch sees, for the help of flags."""
    explained: str
    """The same as a sentence, for pictures."""


RULES: dict[Visibility, VisibilityRule] = {
    "isolated": VisibilityRule(
        sees_main=True, sees_branches=False, help="main and itself", explained="a branch sees main and itself"
    ),
    "columnar": VisibilityRule(
        sees_main=True,
        sees_branches=True,
        help="also what the other branches wrote before",
        explained="a branch sees main, itself, and what the others wrote before",
    ),
    "strict": VisibilityRule(
        sees_main=False, sees_branches=False, help="only itself", explained="a branch sees itself only"
    ),
}


def sees_main(visibility: Visibility) -> bool:
    """Whether the tokens of a branch see main."""
    return RULES[visibility].sees_main


def sees_branches(visibility: Visibility) -> bool:
    """Whether the tokens of a branch see those of the other branches, so that all must be computed together."""
    return RULES[visibility].sees_branches
