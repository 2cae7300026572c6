"""The kinds of change between two versions, apart from what finds them, which takes a while to import."""

from typing import Literal, get_args

Kind = Literal["removed", "moved", "renamed", "deprecated", "signature", "added", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)
