"""Which tokens run in the next forward: continuous batching over the branches of many requests."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from parallelmind.engine.joining import Joins, Move
from parallelmind.engine.readings import Company, Span
from parallelmind.engine.sequence import BranchSequence, RequestGroup
from parallelmind.engine.shares import Shares
from parallelmind.engine.step import company_of
from parallelmind.engine.texts import Place, Run
from parallelmind.engine.tree import PageTree

_SPARE = 16
"""One page is kept free for so many running branches when another one is let in: it should not be put back at once."""
_LARGEST_CHUNK = 4
"""Where texts let pages go, this part of all pages is what a chunk of one of them fills at most."""
_BESIDE_OTHERS = 4
"""Where several clients wait for a forward, its chunks are this part of what they are for one."""


@dataclass
class EngineStats:
    """Counters since the engine was made."""

    prompt_tokens: int = 0
    """Tokens of mains and prompts run through the model."""
    cached_main_tokens: int = 0
    """Tokens of mains that were in the prefix cache instead."""
    generated_tokens: int = 0
    forwards: int = 0
    turned_tokens: int = 0
    """Tokens of joined branches whose keys were turned to their place in main instead."""
    preemptions: int = 0
    """Branches that were put back for want of memory, and computed again later."""


@dataclass
class Schedule:
    """One step: what it computes, and for whom."""

    spans: list[Span] = field(default_factory=list)
    branches: dict[Run, BranchSequence] = field(default_factory=dict)
    """The branches that spans belong to; a span whose run is not here belongs to a main."""
    rejected: list[tuple[BranchSequence, str]] = field(default_factory=list)
    """Branches that can never run, and why."""
    budget: int = 0
    """Tokens that may still be added."""
    _companies: dict[RequestGroup, Company | None] = field(default_factory=dict)

    def add_main(self, run: Run, count: int, branch_id: int = 0) -> None:
        past = run.num_cached
        self.spans.append(Span(run=run, past=past, token_ids=run.tokens[past : past + count], branch_id=branch_id))
        self.budget -= count

    def add_branch(self, branch: BranchSequence, count: int) -> None:
        run, group = branch.run, branch.group
        assert run is not None
        if group not in self._companies:
            self._companies[group] = company_of(group.visibility)
        self.spans.append(
            Span(
                run=run,
                past=run.num_cached,
                token_ids=run.tokens[run.num_cached : run.num_cached + count],
                branch_id=branch.branch_id,
                company=self._companies[group],
            )
        )
        self.branches[run] = branch
        self.budget -= count

    def has(self, run: Run) -> bool:
        return any(span.run is run for span in self.spans)

    def gather_companies(self) -> None:
        """Tell branches that see each other what there is to see."""
        fed = {span.run: len(span.token_ids) for span in self.spans}
        for group, company in self._companies.items():
            if company is not None:
                for branch in group.branches:
                    if branch.run is not None:
                        length = branch.run.num_cached + fed.get(branch.run, 0)
                        company.members.append((branch.run, branch.branch_id, length))


class Scheduler:
    """Keeps waiting and running branches.

    A finished branch gives its place to the next waiting one at once. Requests start in the order they came, those of
    several shares by turns. A branch
    starts when there is memory for what it has to read; when what the branches write fills the memory, the one that
    started last is put back, and computed again later. Branches that see each other advance together and are given
    their whole memory at the start.

    Args:
        position_of: the branch position of a branch id, with an adapter.
        is_long: whether a text of so many tokens is a long one.
        weights: the number of the model's present weights; it is asked when nothing runs.
        move: copies keys and values of joined branches, turning the keys, for an adapter.
    """

    def __init__(
        self,
        tree: PageTree,
        *,
        position_of: Callable[[str, int], int],
        is_long: Callable[[int], bool],
        weights: Callable[[], int],
        move: Callable[[str, Sequence[Move]], None],
        max_running_branches: int | None,
        max_running_requests: int | None,
        max_batched_tokens: int,
    ):
        self.stats = EngineStats()
        self.tree = tree
        self.max_running_branches = max_running_branches
        self.max_running_requests = max_running_requests
        self.max_batched_tokens = max_batched_tokens
        self._chunk = max_batched_tokens
        """So many tokens of a text are computed in one forward at most."""
        if tree.lets_go:
            tokens = tree.store.max_pages * tree.store.page_tokens
            self._chunk = min(max_batched_tokens, max(1, tokens // _LARGEST_CHUNK))
        self._chunk_beside = max(1, self._chunk // _BESIDE_OTHERS)
        """So many tokens of texts that have begun, and as many of those that begin, where several clients wait."""
        self.running: list[BranchSequence] = []
        """In the order in which they started."""
        self.waiting: deque[RequestGroup] = deque()
        self._shares = Shares()
        self._position_of = position_of
        self._is_long = is_long
        self._weights_now = weights
        self._weights = 0
        self.joins = Joins(tree, position_of=position_of, move=move)
        self._mains: dict[tuple[Place, tuple[int, ...], bool], tuple[Run, list[RequestGroup]]] = {}
        """The mains in use, with the requests that use them."""

    @property
    def num_waiting_branches(self) -> int:
        return sum(len(group.waiting) for group in self.waiting)

    def add(self, group: RequestGroup) -> None:
        if group.waiting:
            running = (branch.group for branch in self.running)
            self._shares.enter(group.share, (other.share for other in (*self.waiting, *running)))
            self.waiting.append(group)

    def schedule(self) -> Schedule | None:
        """Plan the next forward; None when there is nothing to do."""
        self.tree.store.begin()
        if self.waiting and not self.running:
            self._weights = self._weights_now()
        for branch in self._shares.to_put_back(self.waiting, self.running, self.max_running_branches):
            self._put_back(branch)
        plan = Schedule(budget=self.max_batched_tokens)
        self._continue_running(plan)
        for span in plan.spans:  # all of them of branches so far
            self._shares.use(plan.branches[span.run].group.share, len(span.token_ids))
        if self._shares.are_several:
            plan.budget = min(plan.budget, self._chunk_beside)
        self._admit(plan)
        if not plan.spans and not plan.rejected:
            self._let_unfinished_mains_go()
            if not self.running:
                return None
        plan.gather_companies()
        return plan

    def add_forks(self, parent: BranchSequence, forks: list[BranchSequence]) -> None:
        """Queue forks of a branch. Where it is going to run its last token, they start when it has."""
        if parent.run is None or parent.starts_from_main:
            self._queue(forks)
        else:
            parent.forks += forks

    def start_forks(self, parent: BranchSequence) -> None:
        """A branch has run its last token: its forks start, before its pages are given up."""
        forks = self._queue_forks(parent)
        for fork in forks:
            if fork.group is not parent.group:
                continue  # it is a long text, whose main is another one
            if not self._has_places(1):
                return
            run = self._open(fork)
            if not self.tree.claim(run, len(run), self._chunk):
                self.tree.close(run)
                return
            self._start(fork, run)
            if not fork.group.waiting:
                self.waiting.remove(fork.group)

    def release(self, branch: BranchSequence, *, is_spoilt: bool = False) -> None:
        """Take a finished or cancelled branch out; the others of an in-step group keep seeing it until all are done.

        Args:
            is_spoilt: its keys and values may be no numbers.
        """
        group = branch.group
        if is_spoilt and branch.run is not None:
            branch.run.is_spoilt = True
        if is_spoilt and group.main is not None and not branch.output_ids:
            group.main.is_spoilt = True  # it may have come from there
        if branch in group.waiting:
            group.waiting.remove(branch)
            if not group.waiting and group in self.waiting:
                self.waiting.remove(group)
        if not group.in_step:
            self._stop(branch)
        elif all(other.finished for other in group.branches):
            for other in group.branches:
                self._stop(other)
        if group.finished:
            self._let_main_go(group)

    def _queue(self, branches: list[BranchSequence]) -> None:
        """Let branches of a request that has begun wait, before requests that have not."""
        for branch in branches:
            group = branch.group
            if not (group.is_long or group.in_step) and self._is_long(group.length_of(branch)):
                # Its text has become a long one, all of whose keys are others.
                group.branches.remove(branch)
                if group.finished:
                    self._let_main_go(group)
                group = branch.group = group.long_sibling()
                group.branches.append(branch)
            bisect.insort(group.waiting, branch, key=lambda one: one.index)
            if group not in self.waiting:
                self.waiting.appendleft(group)

    def _queue_forks(self, parent: BranchSequence) -> list[BranchSequence]:
        forks = [fork for fork in parent.forks if not fork.finished]
        parent.forks.clear()
        self._queue(forks)
        return forks

    def _stop(self, branch: BranchSequence) -> None:
        self._queue_forks(branch)
        if branch.run is None:
            return
        self.tree.close(branch.run)
        branch.run = None
        self.running.remove(branch)

    def _let_main_go(self, group: RequestGroup) -> None:
        if group.main is None:
            return
        group.main = None
        run, users = self._mains[group.main_key]
        users.remove(group)
        if not users:
            del self._mains[group.main_key]
            self._close_main(run)

    def _close_main(self, run: Run) -> None:
        self.joins.close(run)
        self.tree.close(run)

    def _let_unfinished_mains_go(self) -> None:
        """Nothing can go on: what does may wait for a main whose request waits behind it."""
        for group in self.waiting:
            if group.main is not None and not group.main.complete and all(b.run is None for b in group.branches):
                self._let_main_go(group)

    def _continue_running(self, plan: Schedule) -> None:
        for branch in list(self.running):
            group = branch.group
            if not (group.is_long or group.in_step) and self._is_long(group.length_of(branch)):
                self._stop(branch)
                self._queue([branch])
        for group in dict.fromkeys(branch.group for branch in self.running):
            if group.in_step:
                self._feed_columns(group, plan)
        rest = [branch for branch in self.running if not branch.group.in_step]
        ready = [branch for branch in rest if branch.run is not None and self.tree.advance(branch.run)]
        # Decoding before prefilling: a long prompt must not hold up the branches that already stream.
        room = self._chunk_beside if self._shares.are_several else plan.budget
        for branch in sorted(ready, key=lambda branch: branch.num_pending > 1):
            pending = branch.num_pending
            count = 1 if pending == 1 else min(pending, self._chunk, room, max(0, plan.budget))
            if branch.run is not None and count and self._reserve(branch, count, plan):
                plan.add_branch(branch, count)
                room -= count if pending > 1 else 0

    def _reserve(self, branch: BranchSequence, count: int, plan: Schedule) -> bool:
        """Have pages for its next tokens, at the cost of branches that started later, else of its own place."""
        run = branch.run
        assert run is not None
        while not self.tree.reserve(run, run.num_cached + count):
            later = (
                other
                for other in reversed(self.running)
                if not other.group.in_step and other.run is not None and other.run not in plan.branches
            )
            victim = next(later, branch)
            self._put_back(victim)
            if victim is branch:
                return False
        return True

    def _put_back(self, branch: BranchSequence) -> None:
        self.stats.preemptions += 1
        self._stop(branch)
        self._queue([branch])

    def _feed_columns(self, group: RequestGroup, plan: Schedule) -> None:
        """Feed whole columns: as many as every unfinished branch has tokens for."""
        active = [branch for branch in group.branches if not branch.finished]
        if not active or any(branch.starts_from_main for branch in active):
            return
        columns = min(branch.num_pending for branch in active)
        columns = max(1, min(columns, self._chunk, plan.budget // len(active)))
        counts = dict.fromkeys(active, columns)
        for branch in group.branches:
            if branch.finished and branch.run is not None and branch.num_pending:
                # The last token of a finished branch was not run yet; later columns see it.
                counts |= {branch: 1} if branch.finish_reason != "cancelled" else {}
        runs = {branch.run: count for branch, count in counts.items() if branch.run is not None}
        if all(self.tree.reserve(run, run.num_cached + count) for run, count in runs.items()):
            for branch in group.branches:
                if branch in counts:
                    plan.add_branch(branch, counts[branch])

    def _admit(self, plan: Schedule) -> None:
        while self.waiting:
            group = self._shares.first(self.waiting)
            if group.weights is None:
                group.weights = self._weights
            if self._reject_what_never_fits(group, plan) or not self._admit_main(group, plan):
                return
            self._admit_branches(group, plan)
            if not group.waiting:
                if group in self.waiting:
                    self.waiting.remove(group)
            elif self._shares.first(self.waiting) is group:
                return

    def _admit_main(self, group: RequestGroup, plan: Schedule) -> bool:
        """Get the group's main into the cache; False while it is not there or may not start yet."""
        if self.max_running_requests is not None:
            requests = {branch.group.request_id for branch in self.running}
            if group.request_id not in requests and len(requests) >= self.max_running_requests:
                return False
        if not group.reads_main:
            return True
        if group.main is None and not self._open_main(group):
            return self._wait(group, plan)
        run = group.main
        assert run is not None
        if run.complete:
            return True
        if plan.has(run):
            return _covers(plan, run)
        # What it waits for may be a joined branch of its own, which begins as it does and waits for it.
        if not self.tree.advance(run) and not (self.joins.give_way(run, plan) and self.tree.advance(run)):
            return False
        count = min(self._joins_allow(run, plan), self._chunk, plan.budget)
        if run.num_pending and (count <= 0 or not self.tree.reserve(run, run.num_cached + count)):
            return self._wait(group, plan)
        if count:
            plan.add_main(run, count)
            self._shares.use(group.share, count)
        return count == run.num_pending

    def _open_main(self, group: RequestGroup) -> bool:
        if group.main_key in self._mains:
            run, users = self._mains[group.main_key]
            group.cached_main_tokens = len(run)
        else:
            tokens = list(group.main_ids)
            at_most = len(tokens) - 1 if group.needs_main_logits else None
            run = self.joins.open(group.place(), tokens, at_most)
            if not self._reserve_main(run):
                self._close_main(run)
                return False
            group.cached_main_tokens = run.num_reused
            run, users = self._mains.setdefault(group.main_key, (run, []))
        users.append(group)
        group.main = run
        self.stats.cached_main_tokens += group.cached_main_tokens
        return True

    def _joins_allow(self, run: Run, plan: Schedule) -> int:
        """How many of a main's next tokens the model may run now."""
        count = self.joins.allowed(run, plan)
        self.stats.turned_tokens = self.joins.num_turned
        if not count and not plan.spans and self.joins.holds(run):
            self.joins.close(run)  # for want of memory, so that what comes first gets it
            count = self.joins.allowed(run, plan)
        return count

    def _reserve_main(self, run: Run) -> bool:
        if self.tree.claim(run, len(run), self._chunk):
            return True
        self.joins.close(run)
        return self.tree.claim(run, len(run), self._chunk)

    def _admit_branches(self, group: RequestGroup, plan: Schedule) -> None:
        if group.in_step:
            if not self._has_places(len(group.waiting)):
                return
            runs = [self._open(branch) for branch in group.waiting]
            if not all(
                self.tree.claim(run, branch.max_tokens, self._chunk)
                for run, branch in zip(runs, group.waiting, strict=True)
            ):
                for run in runs:
                    self.tree.close(run)
                self._wait(group, plan)
                return
            for run, branch in zip(runs, list(group.waiting), strict=True):
                self._start(branch, run)
            if plan.budget > 0:
                self._feed_columns(group, plan)
            return
        while group.waiting and plan.budget > 0 and self._shares.first(self.waiting) is group:
            branch = group.waiting[0]
            if not self._has_places(1):
                return
            run = self._open(branch)
            spare = len(self.running) // _SPARE
            if not self.tree.claim(run, len(run), self._chunk) or self.tree.num_available < spare:
                self.tree.close(run)
                self._wait(group, plan)
                return
            self._start(branch, run)
            if self.tree.advance(run, coming=group.main) and run.num_pending:
                count = min(run.num_pending, self._chunk, plan.budget)
                if self.tree.reserve(run, run.num_cached + count):
                    plan.add_branch(branch, count)
                    self._shares.use(group.share, count)

    def _open(self, branch: BranchSequence) -> Run:
        group = branch.group
        tokens = [*branch.prompt_ids, *branch.output_ids]
        if self._goes_on_as_main(branch):
            base, place, tokens = None, group.place(), [*group.main_ids, *tokens]
        else:
            position = self._position_of(group.adapter, branch.branch_id)
            base, place = group.main, group.place(position, group.first_time)
        # The last token is computed in any case, for the logits behind it.
        at_most = len(tokens) - (not branch.starts_from_main)
        return self.tree.open(base, place, tokens, is_private=group.in_step, at_most=at_most)

    def _has_places(self, count: int) -> bool:
        if self.max_running_branches is None or not self.running:
            return True
        return len(self.running) + count <= self.max_running_branches

    def _start(self, branch: BranchSequence, run: Run) -> None:
        branch.group.waiting.remove(branch)
        branch.run = run
        self.running.append(branch)
        self._shares.use(branch.group.share, 1)

    def _goes_on_as_main(self, branch: BranchSequence) -> bool:
        """Whether it stands where main's next tokens would, so that it is one text with main."""
        group = branch.group
        position = self._position_of(group.adapter, branch.branch_id)
        return position == 0 and group.reads_main and not group.in_step

    def _reject_what_never_fits(self, group: RequestGroup, plan: Schedule) -> bool:
        """Whether there was something that does not fit even alone, as long as it may become."""
        together = [list(group.waiting)] if group.in_step else [[branch] for branch in group.waiting]
        found = False
        for branches in together:
            needed = self._pages_of(branches)
            if needed > self.tree.store.max_pages:
                self._reject(branches, needed, plan)
                found = True
        return found

    def _pages_of(self, branches: list[BranchSequence]) -> int:
        """Pages of a main and branches of it, as long as they may become: as many as they hold at one time."""
        size, group = self.tree.store.page_tokens, branches[0].group
        main = len(group.main_ids) if group.reads_main else 0
        tails = (main % size * self._goes_on_as_main(branch) for branch in branches)  # what a branch copies of main
        own = sum(
            # One that is put back computes all that it has written again, in chunks.
            self.tree.most_pages(
                tail + one.max_tokens,
                min(self._chunk, max(1, len(one.prompt_ids)) if group.in_step else one.max_tokens),
            )
            for tail, one in zip(tails, branches, strict=True)
        )
        if not group.joined:
            return max(self.tree.most_pages(main, self._chunk), self.tree.most_pages(main, 0) + own)
        # While main comes together, each joined branch is computed in a text of its own, behind a copy of main's end.
        joined = max((2 + -(-(one.end - one.start) // size) for one in group.joined), default=0)
        return -(-main // size) + max(own, joined)

    def _reject(self, branches: list[BranchSequence], needed: int, plan: Schedule) -> None:
        size = self.tree.store.page_tokens
        reason = (
            f"needs {needed * size} tokens of key/value cache ({len(branches[0].group.main_ids)} of main, "
            f"{len(branches)} × {branches[0].max_tokens} of branches, in pages of {size}), the limit is "
            f"{self.tree.store.max_pages * size}; raise kv_cache_bytes (--kv_cache_gb), or lower max_new_tokens or the "
            "number of branches"
        )
        plan.rejected += [(branch, reason) for branch in branches]

    def _wait(self, group: RequestGroup, plan: Schedule) -> bool:
        """Until others are done, which may be those whose mains wait for the memory that this group holds; False."""
        if not self.running and not plan.spans:
            for other in self.waiting:
                if other is not group:
                    self._let_main_go(other)
        return False


def _covers(plan: Schedule, run: Run) -> bool:
    """Whether a main is complete after the forward."""
    return any(span.run is run and span.end == len(run) for span in plan.spans)
