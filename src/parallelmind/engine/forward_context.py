"""What one forward of the engine holds: which tokens belong to which main or branch, and what they may see.

The tokens of a forward lie flat in one sequence: the chunks of mains first, then the branches, grouped by request.
Attention reads this plan; nothing else in the model sees it.

Shapes: T tokens of the forward, n branches, Q tokens of a branch at most, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parallelmind.columnar import PAD_BRANCH, Visibility, additive_mask, sees_branches, visible
from parallelmind.columnar.layout import MAIN_BRANCH
from parallelmind.engine.kv_cache import BranchSlots, MainCache


@dataclass(frozen=True, kw_only=True)
class MainSpan:
    """A chunk of a main that is being prefilled."""

    main: MainCache
    past: int
    """Tokens of the main already cached."""
    token_ids: Sequence[int]

    @property
    def adapter(self) -> str:
        return self.main.adapter


@dataclass(frozen=True, kw_only=True)
class BranchSpan:
    """The next tokens of one branch: its prompt, or the token just sampled."""

    slot: int
    past: int
    """Tokens of the branch already cached."""
    token_ids: Sequence[int]
    branch_id: int
    first_time: int
    """Time of the branch's first token."""


@dataclass(frozen=True, kw_only=True)
class GroupSpan:
    """The branches of one request in this forward; they read the same main."""

    main: MainCache | None
    branches: Sequence[BranchSpan]
    finished: Sequence[BranchSpan] = ()
    """Where branches see each other: the branches without new tokens whose cached tokens the others still see."""
    visibility: Visibility = "isolated"
    adapter: str = ""

    @property
    def sees_branches(self) -> bool:
        return sees_branches(self.visibility)


@dataclass(frozen=True)
class OwnBatch:
    """Branches of one visibility with about equally many new tokens, attended to in one padded call."""

    visibility: Visibility
    spans: tuple[BranchSpan, ...]
    starts: tuple[int, ...]
    """Flat index of each branch's first token."""
    longest: int
    """Q."""
    num_keys: int
    """K: cached and new tokens of the longest branch."""

    @property
    def slots(self) -> list[int]:
        return [span.slot for span in self.spans]

    @property
    def covers_all_slots_in_order(self) -> bool:
        return self.slots == list(range(len(self.spans)))


@dataclass
class ForwardContext:
    """The plan of one forward."""

    slots: BranchSlots
    main_spans: Sequence[MainSpan]
    groups: Sequence[GroupSpan]
    main_ranges: list[tuple[int, int]] = field(init=False)
    """The range of flat tokens of each main span."""
    group_ranges: list[tuple[int, int]] = field(init=False)
    own_batches: list[OwnBatch] = field(init=False)
    """Branches that see no other branch."""
    num_tokens: int = field(init=False)
    _tensors: dict[Hashable, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        position = 0
        self.main_ranges, self.group_ranges = [], []
        for span in self.main_spans:
            self.main_ranges.append((position, position + len(span.token_ids)))
            position += len(span.token_ids)
        starts: list[tuple[Visibility, BranchSpan, int]] = []
        for group in self.groups:
            start = position
            for branch in group.branches:
                if not group.sees_branches:
                    starts.append((group.visibility, branch, position))
                position += len(branch.token_ids)
            self.group_ranges.append((start, position))
        self.num_tokens = position
        # Branches are grouped by length, within a factor of two, so that none is padded to a much longer prompt.
        alike: dict[tuple[Visibility, int], list[tuple[BranchSpan, int]]] = {}
        for visibility, branch, start in sorted(starts, key=lambda one: one[1].slot):
            alike.setdefault((visibility, len(branch.token_ids).bit_length()), []).append((branch, start))
        self.own_batches = [_own_batch(visibility, pairs) for (visibility, _), pairs in alike.items()]

    @property
    def first_branch_token(self) -> int:
        return self.main_ranges[-1][1] if self.main_ranges else 0

    def input_ids(self) -> list[int]:
        ids: list[int] = []
        for span in self.main_spans:
            ids += span.token_ids
        for branch in self._branches():
            ids += branch.token_ids
        return ids

    def adapter_ranges(self) -> list[tuple[str, int, int]]:
        """(adapter, first flat token, the one behind the last) of each main span and group."""
        mains = [(span.adapter, *place) for span, place in zip(self.main_spans, self.main_ranges, strict=True)]
        return mains + [(g.adapter, *place) for g, place in zip(self.groups, self.group_ranges, strict=True)]

    def branch_ids(self) -> Tensor:
        """LongTensor [T]."""
        ids = [0] * self.first_branch_token
        for branch in self._branches():
            ids += [branch.branch_id] * len(branch.token_ids)
        return torch.tensor(ids)

    def time_ids(self) -> Tensor:
        """LongTensor [T]."""
        times: list[int] = []
        for span in self.main_spans:
            times += range(span.past, span.past + len(span.token_ids))
        for branch in self._branches():
            first = branch.first_time + branch.past
            times += range(first, first + len(branch.token_ids))
        return torch.tensor(times)

    def cached(self, key: Hashable, device: torch.device, build: Callable[[], Tensor]) -> Tensor:
        """A tensor of the plan on a layer's device, built once per forward."""
        place = (key, device)
        if place not in self._tensors:
            self._tensors[place] = build().to(device)
        return self._tensors[place]

    def write_slots(self, device: torch.device) -> Tensor:
        """Slot of each branch token, LongTensor [T of branches]."""
        return self.cached(
            "write_slots",
            device,
            lambda: torch.tensor([b.slot for b in self._branches() for _ in b.token_ids]),
        )

    def write_places(self, device: torch.device) -> Tensor:
        """Place of each branch token within its slot, LongTensor [T of branches]."""
        return self.cached(
            "write_places",
            device,
            lambda: torch.tensor([b.past + i for b in self._branches() for i in range(len(b.token_ids))]),
        )

    def chunk_mask(self, index: int, window: int | None, like: Tensor) -> Tensor | None:
        """Mask of a main chunk over itself, [T, T], or None where plain causal order says it all."""
        count = len(self.main_spans[index].token_ids)
        if window is None or count <= window:
            return None
        return self.cached(
            ("chunk", index, window, like.dtype),
            like.device,
            lambda: additive_mask(_seen_in_time(torch.arange(count), torch.arange(count), window), like.dtype),
        )

    def causal_mask(self, index: int, like: Tensor) -> Tensor:
        """Plain causal order of a main chunk over itself, [T, T]."""
        place = torch.arange(len(self.main_spans[index].token_ids))
        return self.cached(
            ("causal", index, like.dtype),
            like.device,
            lambda: additive_mask(_seen_in_time(place, place, None), like.dtype),
        )

    def past_mask(self, index: int, window: int | None, like: Tensor) -> Tensor | None:
        """Mask of a main chunk over the cached part of its main, [T, K]; None: it sees all of it."""
        span = self.main_spans[index]
        end = span.past + len(span.token_ids)
        if window is None or end <= window:
            return None
        query, key = torch.arange(span.past, end), torch.arange(span.past)
        return self.cached(
            ("past", index, window, like.dtype),
            like.device,
            lambda: additive_mask(_seen_in_time(query, key, window), like.dtype),
        )

    def shared_mask(self, index: int, window: int | None, like: Tensor) -> Tensor | None:
        """Mask of a group's tokens over their main, [T, L]; None: they see all of it."""
        main = self.groups[index].main
        assert main is not None
        start, end = self.group_ranges[index]
        if window is None or int(self._times()[start:end].max()) < window:
            return None

        def build() -> Tensor:
            seen = torch.arange(len(main))[None] > self._times()[start:end, None] - window
            return additive_mask(seen, like.dtype)

        return self.cached(("shared", index, window, like.dtype), like.device, build)

    def own_mask(self, index: int, window: int | None, like: Tensor) -> Tensor | None:
        """Mask of branches over their own tokens, [n, 1, Q, K]; None: they see all of them."""
        batch = self.own_batches[index]
        lengths = [span.past + len(span.token_ids) for span in batch.spans]
        if batch.longest == 1 and min(lengths) == batch.num_keys and self._sees_first(index, window):
            return None

        def build() -> Tensor:
            past = torch.tensor([span.past for span in batch.spans])
            last = torch.tensor([len(span.token_ids) - 1 for span in batch.spans])
            # Padding queries repeat the last token (see own_tokens) and must see what it sees.
            query = past[:, None] + torch.minimum(torch.arange(batch.longest)[None], last[:, None])
            key = torch.arange(batch.num_keys).expand(len(past), -1)
            return additive_mask(_seen_in_time(query, key, window, batch.visibility), like.dtype)[:, None]

        return self.cached(("own", index, window, like.dtype), like.device, build)

    def _sees_first(self, index: int, window: int | None) -> bool:
        """Whether the newest token of the longest branch sees the first of its branch, and so all between."""
        batch = self.own_batches[index]

        def build() -> Tensor:
            return _seen_in_time(torch.tensor([batch.num_keys - 1]), torch.tensor([0]), window, batch.visibility)

        return bool(self.cached(("sees_first", index, window), torch.device("cpu"), build))

    def own_tokens(self, index: int, device: torch.device) -> Tensor:
        """Flat index of each branch's tokens, padded by repeating the last, LongTensor [n, Q]."""
        batch = self.own_batches[index]

        def build() -> Tensor:
            starts = torch.tensor(batch.starts)[:, None]
            counts = torch.tensor([len(span.token_ids) for span in batch.spans])[:, None]
            return starts + torch.minimum(torch.arange(batch.longest)[None], counts - 1)

        return self.cached(("own_tokens", index), device, build)

    def column_slots(self, index: int, device: torch.device) -> Tensor:
        """Where branches see each other: slots of a group's branches, finished ones included, LongTensor [n]."""
        group = self.groups[index]
        return self.cached(
            ("column_slots", index),
            device,
            lambda: torch.tensor([span.slot for span in (*group.branches, *group.finished)]),
        )

    def column_keys(self, index: int) -> int:
        """Where branches see each other: tokens of the longest branch of a group, K."""
        group = self.groups[index]
        return max(span.past + len(span.token_ids) for span in (*group.branches, *group.finished))

    def column_mask(self, index: int, window: int | None, like: Tensor) -> Tensor:
        """Where branches see each other: mask of a group's tokens over all tokens of its branches, [T, n × K]."""
        group = self.groups[index]
        start, end = self.group_ranges[index]

        def build() -> Tensor:
            spans = (*group.branches, *group.finished)
            place = torch.arange(self.column_keys(index))
            length = torch.tensor([span.past + len(span.token_ids) for span in spans])
            number = torch.tensor([span.branch_id for span in spans])
            first = torch.tensor([span.first_time for span in spans])
            key_branch = torch.where(place[None] < length[:, None], number[:, None], PAD_BRANCH).flatten()
            key_time = (first[:, None] + place[None]).flatten()
            query_branch = self.branch_ids()[start:end]
            seen = visible(query_branch, self._times()[start:end], key_branch, key_time, group.visibility, window)
            return additive_mask(seen, like.dtype)

        return self.cached(("column", index, window, like.dtype), like.device, build)

    def _branches(self) -> list[BranchSpan]:
        return [branch for group in self.groups for branch in group.branches]

    def _times(self) -> Tensor:
        return self.cached("times", torch.device("cpu"), self.time_ids)


def _seen_in_time(
    query_time: Tensor, key_time: Tensor, window: int | None, visibility: Visibility | None = None
) -> Tensor:
    """Visibility within one branch; None: within main."""
    number = MAIN_BRANCH if visibility is None else MAIN_BRANCH + 1
    query, key = (torch.full_like(time, number) for time in (query_time, key_time))
    return visible(query, query_time, key, key_time, visibility or "isolated", window)


def _own_batch(visibility: Visibility, pairs: Sequence[tuple[BranchSpan, int]]) -> OwnBatch:
    spans, starts = zip(*pairs, strict=True)
    return OwnBatch(
        visibility=visibility,
        spans=spans,
        starts=starts,
        longest=max(len(span.token_ids) for span in spans),
        num_keys=max(span.past + len(span.token_ids) for span in spans),
    )
