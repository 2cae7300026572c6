"""Whose turn it is where several clients share an engine: of those that wait, the one that was given least so far.

Where all places are taken by branches of others, it need not wait for their ends: those that have more than an equal
part of the places put some branches back, which are computed again later.

What counts is tokens run, as in the virtual token counter of "Fairness in Serving Large Language Models" (Sheng et al.,
2024). A client that comes begins where the one that was given least stands, so that nobody saves up for later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from parallelmind.engine.sequence import BranchSequence, RequestGroup


class Shares:
    """What each share has used of the engine, while it has something to do."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def enter(self, share: str, active: Iterable[str]) -> None:
        """A request comes in; `active` are the shares of those that wait and run."""
        if self._used.keys() == {share}:
            return
        self._used = {one: self._used.get(one, 0) for one in active}
        if share not in self._used:
            self._used[share] = min(self._used.values(), default=0)

    def use(self, share: str, tokens: int) -> None:
        """Tokens are run for a share."""
        self._used[share] = self._used.get(share, 0) + tokens

    @property
    def are_several(self) -> bool:
        """More than one client has something to do."""
        return len(self._used) > 1

    def used(self, group: RequestGroup) -> int:
        """What the share of a request has used."""
        return self._used.get(group.share, 0)

    def first(self, waiting: Sequence[RequestGroup]) -> RequestGroup:
        """The request whose turn it is: that of the share with the least use, and of its requests the first."""
        return min(waiting, key=self.used) if self.are_several else waiting[0]

    def to_put_back(
        self, waiting: Sequence[RequestGroup], running: Sequence[BranchSequence], places: int | None
    ) -> list[BranchSequence]:
        """Branches that give their places to the request whose turn it is, the ones that started last."""
        if not self.are_several or not waiting or places is None:
            return []
        group = self.first(waiting)
        needed = len(group.waiting) if group.in_step else 1
        held = Counter(branch.group.share for branch in running)
        part = max(1, places // len(held.keys() | {one.share for one in waiting}))
        lacking = needed - (places - len(running))
        if lacking <= 0 or held[group.share] + needed > part:
            return []
        found: list[BranchSequence] = []
        for branch in reversed(running):
            share = branch.group.share
            if len(found) < lacking and held[share] > part and not branch.group.in_step:
                held[share] -= 1
                found.append(branch)
        return found if len(found) == lacking else []
