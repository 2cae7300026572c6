"""What a forward computes and reads: spans of texts, and the runs of pages that their tokens see.

Shapes: T tokens of the forward, n runs read in a call, R tokens that read a run, J parts of a token, K keys, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from parallelmind.columnar import Visibility
from parallelmind.engine.texts import Run


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Pages that follow one another in a text, and the range of tokens that read them."""

    pages: tuple[int, ...]
    """Their numbers."""
    count: int
    """Keys that are there."""
    first_time: int
    """Time of the first key; the others follow."""
    start: int
    end: int
    is_whole: bool
    """Whether all of these tokens see all of the keys, but for windows and chunks."""
    order: int
    """The parts of a token's attention are merged in this order."""
    branch_id: int = -1
    company: Company | None = None

    def of(self, start: int, end: int) -> Reading:
        """The same pages, read by another range of tokens."""
        return self._like(self.count, start, end)

    def with_count(self, count: int) -> Reading:
        """The same pages with more or fewer keys."""
        return self._like(count, self.start, self.end)

    def _like(self, count: int, start: int, end: int) -> Reading:
        return Reading(
            pages=self.pages,
            count=count,
            first_time=self.first_time,
            start=start,
            end=end,
            is_whole=self.is_whole,
            order=self.order,
            branch_id=self.branch_id,
            company=self.company,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ReadCall:
    """Runs of pages that are read in one call, by up to R tokens each.

    Shapes: `entries` [n'], the rows of the call that its n' readings are; `pages` [n, width], `tokens` [n, R] (padded
    by repeating the last), `mask` additive [n, 1, R, K] or None.
    """

    readings: Sequence[Reading]
    entries: Tensor
    pages: Tensor | None
    view: tuple[int, int, int] | None
    """Where they lie evenly, instead of `pages`: (first page, pages from one run to the next, n)."""
    width: int
    num_keys: int
    """K."""
    tokens: Tensor
    mask: Tensor | None
    first_slot: int
    """Where its output begins among those of all calls, each [n × R]."""
    wide: tuple[int, int] | None
    """Of a call with a single run that many tokens read: their range."""

    def read(self, array_HNPD: Tensor) -> Tensor:
        """The keys, or the values, of the runs, [n, H, K, D]; not copied where they lie evenly."""
        if self.pages is not None:
            return array_HNPD[:, self.pages].flatten(2, 3)[:, :, : self.num_keys].transpose(0, 1)
        assert self.view is not None
        first, stride, count = self.view
        of_head, of_page, of_token, of_dim = array_HNPD.stride()
        return array_HNPD.as_strided(
            (count, array_HNPD.shape[0], self.num_keys, array_HNPD.shape[-1]),
            (stride * of_page, of_head, of_token, of_dim),
            array_HNPD.storage_offset() + first * of_page,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """All calls of a layer, and which parts of their output belong to each token.

    Shapes: `sources` [J, T]: where in the output of all calls the parts of each token are, in the order in which they
    are merged; `num_slots` where there are fewer.
    """

    calls: list[ReadCall]
    num_slots: int
    sources: Tensor
    readers: list[Tensor | None]
    """For each of the J parts the tokens that have one; None: all."""

    @property
    def has_gaps(self) -> bool:
        """Whether some tokens have fewer parts than others."""
        return any(readers is not None for readers in self.readers)
