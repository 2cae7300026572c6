"""Which tokens run in the next forward: continuous batching over the branches of many requests."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

from parallelmind.engine.forward_context import BranchSpan, ForwardContext, GroupSpan, MainSpan
from parallelmind.engine.kv_cache import BranchSlots, PrefixCache
from parallelmind.engine.sequence import BranchSequence, RequestGroup


@dataclass
class EngineStats:
    """Counters since the engine was made."""

    prompt_tokens: int = 0
    """Tokens of mains and prompts run through the model."""
    cached_main_tokens: int = 0
    """Tokens of mains that were in the prefix cache instead."""
    generated_tokens: int = 0
    forwards: int = 0


@dataclass
class Schedule:
    """One step: the forward's plan, and which branches it feeds."""

    context: ForwardContext
    fed: list[tuple[BranchSequence, int]]
    """Branches in the plan's order with the number of tokens they feed."""
    rejected: list[tuple[BranchSequence, str]]
    """Branches that can never run, and why."""

    @cached_property
    def branch_in(self) -> dict[int, BranchSequence]:
        """The branches it feeds, by their slot at the time."""
        return {branch.slot: branch for branch, _ in self.fed}


@dataclass
class _Plan:
    budget: int
    mains: dict[int, MainSpan] = field(default_factory=dict)
    """By identity of the main."""
    feeds: dict[RequestGroup, list[tuple[BranchSequence, int]]] = field(default_factory=dict)
    rejected: list[tuple[BranchSequence, str]] = field(default_factory=list)

    def feed(self, branch: BranchSequence, count: int) -> None:
        self.feeds.setdefault(branch.group, []).append((branch, count))
        self.budget -= count


class Scheduler:
    """Keeps waiting and running branches, their slots, and the mains.

    A finished branch gives its slot to the next waiting one at once. Requests start in the order they came. Memory is
    counted in tokens: mains, and as many slots as branches run, each as long as the longest may become.
    """

    def __init__(
        self,
        *,
        max_running_branches: int | None,
        max_running_requests: int | None,
        max_batched_tokens: int,
        max_cached_tokens: int,
        max_prefix_tokens: int,
    ):
        self.stats = EngineStats()
        self.max_running_branches = max_running_branches
        self.max_running_requests = max_running_requests
        self.max_batched_tokens = max_batched_tokens
        self.max_cached_tokens = max_cached_tokens
        self.slots = BranchSlots()
        self.mains = PrefixCache(max_prefix_tokens)
        self.running: list[BranchSequence] = []
        """In the order of their slots."""
        self.waiting: deque[RequestGroup] = deque()

    @property
    def num_waiting_branches(self) -> int:
        return sum(len(group.waiting) for group in self.waiting)

    def add(self, group: RequestGroup) -> None:
        if group.waiting:
            self.waiting.append(group)

    def schedule(self) -> Schedule | None:
        """Plan the next forward; None when there is nothing to do."""
        plan = _Plan(budget=self.max_batched_tokens)
        self._continue_running(plan)
        self._admit(plan)
        groups: list[GroupSpan] = []
        fed: list[tuple[BranchSequence, int]] = []
        for group, feeds in plan.feeds.items():
            feeding = {branch: count for branch, count in feeds if count}
            if not feeding:
                continue
            fed += feeding.items()
            still = [b for b in group.branches if b.slot >= 0 and b not in feeding] if group.in_step else []
            groups.append(
                GroupSpan(
                    main=group.main,
                    branches=[_span(branch, count) for branch, count in feeding.items()],
                    finished=[_span(branch, 0) for branch in still],
                    visibility=group.visibility,
                    adapter=group.adapter,
                )
            )
        if not self.running and not plan.mains and not plan.rejected:
            return None
        if self.running:
            longest = max(b.num_cached_tokens for b in self.running)
            longest = max([longest, *(branch.num_cached_tokens + count for branch, count in fed)])
            self.slots.reserve(len(self.running), max(1, longest))
        context = ForwardContext(slots=self.slots, main_spans=list(plan.mains.values()), groups=groups)
        return Schedule(context=context, fed=fed, rejected=plan.rejected)

    def release(self, branch: BranchSequence) -> None:
        """Take a finished or cancelled branch out; the others of an in-step group keep seeing it until all are done."""
        group = branch.group
        if branch in group.waiting:
            group.waiting.remove(branch)
            if not group.waiting and group in self.waiting:
                self.waiting.remove(group)
        if not group.in_step:
            self._free_slot(branch)
        elif all(other.finished for other in group.branches):
            for other in group.branches:
                self._free_slot(other)
        if group.finished and group.main is not None:
            self._drop_main(group)
        if not self.running:
            self.slots.clear()

    def _drop_main(self, group: RequestGroup) -> None:
        main, group.main = group.main, None
        assert main is not None
        self.mains.release(main)

    def _free_slot(self, branch: BranchSequence) -> None:
        if branch.slot < 0:
            return
        last = self.running.pop()
        if last is not branch:
            self.slots.move(last.slot, branch.slot, last.num_cached_tokens)
            last.slot = branch.slot
            self.running[last.slot] = last
        branch.slot = -1

    def _continue_running(self, plan: _Plan) -> None:
        groups = list(dict.fromkeys(branch.group for branch in self.running))
        for group in groups:
            if group.in_step:
                self._feed_columns(group, plan)
        rest = [branch for branch in self.running if not branch.group.in_step and branch.pending]
        # Decoding before prefilling: a long prompt must not hold up the branches that already stream.
        for branch in sorted(rest, key=lambda branch: len(branch.pending) > 1):
            count = min(len(branch.pending), max(1 if len(branch.pending) == 1 else 0, plan.budget))
            plan.feed(branch, count)

    def _feed_columns(self, group: RequestGroup, plan: _Plan) -> None:
        """Feed whole columns: as many as every unfinished branch has tokens for."""
        active = [branch for branch in group.branches if not branch.finished]
        if not active or any(branch.starts_from_main for branch in active):
            return
        columns = min(len(branch.pending) for branch in active)
        columns = max(1, min(columns, plan.budget // len(active)))
        for branch in group.branches:
            if not branch.finished:
                plan.feed(branch, columns)
            elif branch.slot >= 0 and branch.pending and branch.finish_reason != "cancelled":
                # The last token of a finished branch was not run yet; later columns see it.
                plan.feed(branch, 1)

    def _admit(self, plan: _Plan) -> None:
        while self.waiting:
            group = self.waiting[0]
            if not self._admit_main(group, plan):
                return
            self._admit_branches(group, plan)
            if group.waiting:
                return
            if self.waiting and self.waiting[0] is group:
                self.waiting.popleft()

    def _admit_main(self, group: RequestGroup, plan: _Plan) -> bool:
        """Get the group's main into the cache; False while it is not there or may not start yet."""
        if self.max_running_requests is not None:
            requests = {branch.group.request_id for branch in self.running}
            if group.request_id not in requests and len(requests) >= self.max_running_requests:
                return False
        if not group.reads_main:
            return True
        if group.main is None:
            main = self.mains.find(group.main_ids, group.adapter)
            if main is not None:
                group.cached_main_tokens = len(main)
            else:
                if not self._make_room(len(group.main_ids), group.waiting[0].max_tokens):
                    return self._wait_or_reject(group, plan)
                prefix = self.mains.find_prefix(group.main_ids, group.adapter)
                main = self.mains.add(group.main_ids, group.adapter)
                if prefix is not None:
                    main.copy_prefix(prefix)
                group.cached_main_tokens = main.num_cached_tokens
            self.mains.acquire(main)
            group.main = main
            self.stats.cached_main_tokens += group.cached_main_tokens
        main = group.main
        if main.complete:
            return True
        if id(main) in plan.mains:
            span = plan.mains[id(main)]
            return span.past + len(span.token_ids) == len(main)
        count = min(len(main) - main.num_cached_tokens, plan.budget)
        if count <= 0:
            return False
        past = main.num_cached_tokens
        plan.mains[id(main)] = MainSpan(main=main, past=past, token_ids=main.token_ids[past : past + count])
        plan.budget -= count
        return past + count == len(main)

    def _admit_branches(self, group: RequestGroup, plan: _Plan) -> None:
        if group.in_step:
            longest = max(branch.max_tokens for branch in group.waiting)
            if not self._has_slots(len(group.waiting)):
                return
            if not self._make_room(0, longest, len(group.waiting)):
                self._wait_or_reject(group, plan)
                return
            for branch in list(group.waiting):
                self._start(branch)
            if plan.budget > 0:
                self._feed_columns(group, plan)
            return
        while group.waiting and plan.budget > 0:
            branch = group.waiting[0]
            if not self._has_slots(1):
                return
            if not self._make_room(0, branch.max_tokens):
                self._wait_or_reject(group, plan)
                return
            self._start(branch)
            if branch.pending:
                plan.feed(branch, min(len(branch.pending), plan.budget))

    def _has_slots(self, count: int) -> bool:
        if self.max_running_branches is None or not self.running:
            return True
        return len(self.running) + count <= self.max_running_branches

    def _start(self, branch: BranchSequence) -> None:
        branch.group.waiting.remove(branch)
        branch.slot = len(self.running)
        self.running.append(branch)

    def _make_room(self, main_tokens: int, branch_tokens: int, branches: int = 1) -> bool:
        """Whether a main and branches of this size fit, after dropping mains that nobody uses."""
        longest = max([branch_tokens, *(branch.max_tokens for branch in self.running)])
        needed = main_tokens + (len(self.running) + branches) * longest
        room = self.max_cached_tokens - self.mains.num_used_tokens
        if needed > room:
            return False
        self.mains.evict(room - needed)
        return True

    def _wait_or_reject(self, group: RequestGroup, plan: _Plan) -> bool:
        """Waiting helps while others run; a group that does not fit alone never will."""
        if self.running or plan.mains:
            return False
        branch = group.waiting[0]
        branches = len(group.waiting) if group.in_step else 1
        needed = len(group.main_ids) + branches * max(b.max_tokens for b in group.waiting[:branches])
        reason = (
            f"needs {needed} tokens of key/value cache ({len(group.main_ids)} of main, {branches} × "
            f"{branch.max_tokens} of branches), the limit is {self.max_cached_tokens}; raise kv_cache_bytes "
            "(--kv_cache_gb), or lower max_new_tokens or the number of branches"
        )
        for rejected in group.waiting[:branches]:
            plan.rejected.append((rejected, reason))
        return False


def _span(branch: BranchSequence, count: int) -> BranchSpan:
    return BranchSpan(
        slot=branch.slot,
        past=branch.num_cached_tokens,
        token_ids=branch.pending[:count],
        branch_id=branch.branch_id,
        first_time=branch.group.first_time,
    )
