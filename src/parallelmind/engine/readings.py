"""What a forward computes and reads: spans of texts, and the sets of keys that their tokens see.

Shapes: n pages read together, R tokens that read a page, t tokens that read any, J parts of a token, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from parallelmind.columnar import Visibility
from parallelmind.engine.tree import Run


@dataclass(frozen=True, kw_only=True)
class Span:
    """The next tokens of a text: a chunk of a main, a branch's prompt, or the token just sampled."""

    run: Run
    past: int
    """Tokens of the run before these."""
    token_ids: Sequence[int]
    branch_id: int = 0
    company: Company | None = None
    """Where branches see each other: those of its request."""

    @property
    def end(self) -> int:
        return self.past + len(self.token_ids)

    @property
    def first_time(self) -> int:
        """Time of its first token."""
        return self.run.place.first_time + self.past


@dataclass(eq=False, kw_only=True)
class Company:
    """The branches of a request that see each other, with what each of them has computed before or in this forward."""

    visibility: Visibility
    members: list[tuple[Run, int, int]] = field(default_factory=list)
    """(run, branch id, tokens of it that are computed after this forward) of each branch."""


@dataclass(frozen=True)
class Stretch:
    """Pages that follow each other, all of whose first `count` tokens are read by a range of tokens of the forward."""

    page: int
    """Number of the first."""
    count: int
    """Keys."""
    first_time: int
    """Time of the first key; the others follow."""
    start: int
    end: int
    """The tokens that read it."""


@dataclass(frozen=True)
class Fresh:
    """The new tokens of a long span over themselves, in causal order."""

    start: int
    end: int
    first_time: int


@dataclass(frozen=True)
class PagePart:
    """A page that some tokens read, each as far as it may."""

    page: int
    count: int
    """Keys that are there."""
    first_time: int
    branch_id: int
    tokens: tuple[int, int]
    """The range of tokens that read it."""
    company: Company | None = None


@dataclass(frozen=True, eq=False)
class PageBatch:
    """Pages read in one call, by up to R tokens each.

    Shapes: `pages` [n], `tokens` [n, R] (padded by repeating the last), `mask` additive [n, 1, R, K] or None,
    `sources` [J, t]: where in the flat output [n × R] the parts of each reading token are, n × R where there are fewer,
    `readers` [t]: the tokens that read, or None if all tokens of the forward do, in order.
    """

    first: int
    """The pages are those from here on, if `pages` is None."""
    pages: Tensor | None
    num_pages: int
    num_keys: int
    tokens: Tensor
    mask: Tensor | None
    sources: Tensor
    readers: Tensor | None
