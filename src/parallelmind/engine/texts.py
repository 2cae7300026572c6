"""Texts in use, the pages that they lie in, and what tells texts of the same tokens apart."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parallelmind.engine.request import JoinedBranch

NOWHERE = -1
"""The number of a page whose keys and values are not held any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the keys and values of a text's tokens depend on besides the tokens before them."""

    adapter: str = ""
    branch_position: int = 0
    first_time: int = 0
    """Time of the text's first token."""
    is_long: bool = False
    """Whether the text has the rotary frequencies of long ones, see `parallelmind.models.rope_lengths`."""
    weights: int = 0
    """The number of the weights that they were computed with, see `parallelmind.models.weights_version`."""
    joined: tuple[JoinedBranch, ...] = ()
    """Tokens of the text that have turned keys, in order."""

    def before(self, end: int) -> Place:
        """The same for a text that ends before this token."""
        return replace(self, joined=joined_before(self.joined, end)) if self.joined else self


def joined_before(joined: tuple[JoinedBranch, ...], end: int) -> tuple[JoinedBranch, ...]:
    """Those that begin before a token."""
    return tuple(one for one in joined if one.start < end)


def joined_alike(joined: tuple[JoinedBranch, ...], others: tuple[JoinedBranch, ...]) -> int:
    """Up to which token two texts have the same joined branches."""
    for one, other in itertools.zip_longest(joined, others):
        if one != other:
            return min(found.start for found in (one, other) if found is not None)
    return sys.maxsize


class Page:
    """Up to P tokens of a text."""

    __slots__ = (
        "children", "computed", "filler", "is_listed", "joined", "key", "last_use", "number", "parent", "serial",
        "tokens", "users",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        serial: int,
        parent: Page | None,
        place: Place,
        tokens: list[int],
        joined: tuple[JoinedBranch, ...],
    ):
        self.number = number
        """Where it is in the store, or `NOWHERE`."""
        self.serial = serial
        """No other page of the tree ever has the same."""
        self.parent = parent
        self.key = (place, tokens[0] if tokens else -1)
        """Under which the parent has it among its children."""
        self.joined = joined
        """What of the text up to the page's end has turned keys, or follows from such."""
        self.tokens = tokens
        self.computed = 0
        """Tokens whose keys and values are there."""
        self.users = 0
        """Texts in use that hold it."""
        self.filler: Run | None = None
        """The text whose tokens are computed into it; it alone may grow there."""
        self.children: dict[tuple[Place, int], list[Page]] = {}
        self.is_listed = False
        """Whether others may find it."""
        self.last_use = 0


class Run:
    """A text in use, in its pages; made by `PageTree.open`."""

    def __init__(
        self, base: Run | None, place: Place, tokens: list[int], *, is_private: bool, kept_from: int | None = None
    ):
        self.base = base
        """The text that it continues at another branch position."""
        self.place = place
        self.plain_place = replace(place, joined=()) if place.joined else place
        self.tokens = tokens
        """May grow at the end."""
        self.is_private = is_private
        """Its keys and values depend on more than its tokens, so that nothing of it is shared."""
        self.kept_from = kept_from
        """Index of the first token whose keys are needed besides what the tokens to come see; None: there is none."""
        self.pages: list[Page] = []
        """By position. Pages come to the end only, until the text is closed."""
        self.first_page = 0
        """Index of the first page that the text holds: those before are not seen any more, and must not be read."""
        self._page_numbers = np.zeros(0, np.int32)
        self._page_serials = np.zeros(0, np.int64)
        self._read_from = 0
        self.num_cached = 0
        """Tokens whose keys and values are there."""
        self.is_spoilt = False
        """The keys and values that were computed for it may be no numbers: nobody is to find them."""
        self.first_own: int | None = None
        """Index of the first token that was computed for this text."""
        self.num_reused = 0
        """Of these, those that were there when it was opened."""
        self.logits: Tensor | None = None
        """Logits [V] behind the last token, where a branch needs them to begin."""
        self.source: tuple[Page, int] | None = None
        """A page of another text that has the first tokens of the next page, and how many."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def page_numbers(self) -> NDArray[np.int32]:
        """Those of its pages, by position.

        The first page that the text holds stands for those before it, too: where pages are read in blocks, what is
        masked is then at least its own.
        """
        if len(self._page_numbers) != len(self.pages) or self._read_from != self.first_page:
            self._page_numbers = np.array([page.number for page in self.pages], np.int32)
            self._page_numbers[: self.first_page] = self._page_numbers[self.first_page : self.first_page + 1]
            self._read_from = self.first_page
        return self._page_numbers

    @property
    def page_serials(self) -> NDArray[np.int64]:
        """Two texts have the same one at a position if they share the page there, whether they still hold it or not."""
        if len(self._page_serials) != len(self.pages):
            self._page_serials = np.array([page.serial for page in self.pages], np.int64)
        return self._page_serials

    @property
    def complete(self) -> bool:
        return self.num_cached == len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Tokens still to be computed."""
        return len(self.tokens) - self.num_cached
