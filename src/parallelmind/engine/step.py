"""What one forward of the engine computes, and which keys each of its tokens reads.

The tokens of a forward lie flat in one sequence, those of one text (`Span`) together, and texts that share pages side
by side. What a token reads is divided by its place in its text alone: blocks of 8 pages, then runs of 4, 2 and 1, then
its own page. So texts that begin alike read the same runs together, however they go on, and what a token computes is
the same, to the last bit, whoever reads beside it. The runs are read in few calls, whose number does not grow with the
number of texts.

Shapes: T tokens of the forward, P tokens of a page, n runs read in a call, R tokens that read a run, K keys of a run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallelmind.columnar import FULL, Reach, Visibility, additive_mask, sees_branches, visible
from parallelmind.engine.division import WIDE, Readings
from parallelmind.engine.pages import PageStore
from parallelmind.engine.readings import Company, Plan, ReadCall, Reading, Span
from parallelmind.engine.texts import Run

_MAX_CALL = 2**23
"""Keys × readers of one call."""
_WORTH_A_CALL = 512
"""Keys × readers that may be wasted by padding runs to have a call less."""
KEY_STEP = 32
"""Keys of a call are filled up to a multiple of this: with AMX the last ones are summed in tiles of so many."""
_MAX_PADDED = 256
"""Up to so many keys a run has the same bits at any padded length (measured: up to 384 in float32)."""


Way = tuple[tuple[Run, int, int], ...]
"""Of each text: what it is, the page that its token lies in, and the length of the text that it continues."""


class Step:
    """The plan of one forward over some spans.

    Args:
        spans: in any order; see `spans` for the order in which their tokens lie.
        known: plans of former steps, and where those of this one are kept.
    """

    def __init__(self, store: PageStore, spans: Sequence[Span], known: KnownPlans | None = None):
        self.store = store
        self._known = known
        numbers = [_sorting_key(span) for span in spans]
        ordered = sorted(range(len(spans)), key=lambda index: (spans[index].run.place.adapter, numbers[index], index))
        self.spans = [spans[index] for index in ordered]
        """In the order of their tokens."""
        ends = list(itertools.accumulate(len(span.token_ids) for span in self.spans))
        self.ranges = [(end - len(span.token_ids), end) for span, end in zip(self.spans, ends, strict=True)]
        """The range of flat tokens of each span."""
        self.num_tokens = ends[-1] if ends else 0
        self._tensors: dict[Hashable, Tensor] = {}
        self._plans: dict[Hashable, Plan] = {}

    def input_ids(self) -> list[int]:
        return [token for span in self.spans for token in span.token_ids]

    def adapter_ranges(self) -> list[tuple[str, int, int]]:
        """(adapter, first flat token, the one behind the last) of stretches of the forward."""
        found: list[tuple[str, int, int]] = []
        for span, (start, end) in zip(self.spans, self.ranges, strict=True):
            adapter = span.run.place.adapter
            if found and found[-1][0] == adapter:
                found[-1] = (adapter, found[-1][1], end)
            else:
                found.append((adapter, start, end))
        return found

    @cached_property
    def branch_ids(self) -> Tensor:
        """LongTensor [T]."""
        return torch.tensor([span.branch_id for span in self.spans for _ in span.token_ids])

    @cached_property
    def time_ids(self) -> Tensor:
        """LongTensor [T]."""
        times: list[int] = []
        for span in self.spans:
            times += range(span.first_time, span.first_time + len(span.token_ids))
        return torch.tensor(times)

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """`time_ids` for NumPy."""
        return self.time_ids.numpy()

    def places(self, device: torch.device) -> Tensor:
        """Where the keys and values of the tokens go, LongTensor [T], see `PageStore.write`."""

        return self._cached("places", device, lambda: torch.tensor(self.place_list()))

    def place_list(self) -> list[int]:
        """`places` as a list."""
        size = self.store.page_tokens
        found: list[int] = []
        for span in self.spans:
            pages = span.run.pages
            found += [pages[i // size].number * size + i % size for i in range(span.past, span.end)]
        return found

    def plan(self, reach: Reach, like: Tensor) -> Plan:
        """The calls that read all that the tokens see, in layers of this reach."""
        key = (reach, like.dtype, like.device)
        if key not in self._plans:
            former = None if self._known is None else self._known.find(self._way, key)
            self._plans[key] = self._planned(reach, like) if former is None else self._continued(former, like)
            if self._known is not None and reach.is_full and self._way is not None:
                self._known.keep(self._way, key, self._plans[key])
        return self._plans[key]

    @cached_property
    def _way(self) -> Way | None:
        """What the whole runs of pages that tokens read depend on, if each text has one token here: steps of decoding
        go the same way until one of the texts comes to another page."""
        if self.num_tokens != len(self.spans) or any(span.company is not None for span in self.spans):
            return None
        size = self.store.page_tokens
        return tuple((s.run, s.past // size, 0 if s.run.base is None else len(s.run.base)) for s in self.spans)

    def _continued(self, former: Plan, like: Tensor) -> Plan:
        """The plan of a step that goes the same way: nothing but the keys in the own pages has become more."""
        size, calls = self.store.page_tokens, []
        in_page = [span.past % size + 1 for span in self.spans]
        for call in former.calls:
            if all(one.is_whole for one in call.readings):
                calls.append(call)
                continue
            readings = [one if one.is_whole else one.with_count(in_page[one.start]) for one in call.readings]
            calls.append(self._masked(replace(call, readings=readings), FULL, like))
        return replace(former, calls=calls)

    @cached_property
    def _readings(self) -> list[Reading]:
        """Who reads what, but for windows and chunks."""
        found = Readings(self.store.page_tokens)
        companies: dict[Company, list[tuple[int, int]]] = {}
        for span, (start, end) in zip(self.spans, self.ranges, strict=True):
            if span.run.base is not None:
                found.add_base(span, start, end)
            if span.company is None:
                found.add_own(span, start)
            else:
                companies.setdefault(span.company, []).append((start, end))
        for company, ranges in companies.items():
            start, end = ranges[0][0], ranges[-1][1]
            assert end - start == sum(b - a for a, b in ranges), "the branches of a request lie side by side"
            found.add_company(company, start, end)
        return list(found.tiles())

    def _planned(self, reach: Reach, like: Tensor) -> Plan:
        calls: list[ReadCall] = []
        slots: list[tuple[Reading, int]] = []
        num_slots = 0
        for readings in self._calls(reach):
            call, places = self._read_call(readings, reach, like, num_slots)
            slots += zip(readings, places, strict=True)
            num_slots += call.tokens.numel()
            calls.append(call)
        sources, readers = _sources(slots, self.num_tokens, num_slots)
        return Plan(
            calls=calls,
            num_slots=num_slots,
            sources=sources.to(like.device),
            readers=[None if one is None else one.to(like.device) for one in readers],
        )

    def _calls(self, reach: Reach) -> Iterator[list[Reading]]:
        """The readings of each call: alike in the number of readers and of pages, and whether they need a mask."""
        alike: dict[int, dict[tuple[int, bool], list[Reading]]] = {}
        for one in self._readings:
            is_masked = not one.is_whole
            if not reach.is_full:
                times = self._time_list[one.start : one.end]
                if one.first_time + one.count <= reach.earliest_at(min(times)):
                    continue
                is_masked |= reach.earliest_at(max(times)) > one.first_time
            if one.end - one.start > WIDE:
                yield [one]
                continue
            of_count = alike.setdefault((one.end - one.start - 1).bit_length(), {})
            of_count.setdefault((len(one.pages), is_masked), []).append(one)
        for bits, kinds in alike.items():
            for readings in _merged(kinds, self.store.page_tokens, 2**bits):
                step = max(1, _MAX_CALL // (max(len(one.pages) for one in readings) * self.store.page_tokens << bits))
                for index in range(0, len(readings), step):
                    yield readings[index : index + step]

    @cached_property
    def _time_list(self) -> list[int]:
        return self.time_ids.tolist()

    def _read_call(
        self, readings: Sequence[Reading], reach: Reach, like: Tensor, first_slot: int
    ) -> tuple[ReadCall, list[int]]:
        """A call, and for each reading where in the call's output the part of its first token is."""
        width = max(len(one.pages) for one in readings)
        most = max(one.end - one.start for one in readings)
        view = _view(readings, width)
        if view is None:
            pages = torch.tensor([[*one.pages, *one.pages[-1:] * (width - len(one.pages))] for one in readings])
            entries, count = list(range(len(readings))), len(readings)
        else:
            pages, (first, stride, count) = None, view
            entries = [(one.pages[0] - first) // stride for one in readings]
        starts = torch.zeros(count, dtype=torch.long)
        lengths = torch.ones(count, dtype=torch.long)
        place = torch.tensor(entries)
        starts[place] = torch.tensor([one.start for one in readings])
        lengths[place] = torch.tensor([one.end - one.start for one in readings])
        tokens = starts[:, None] + torch.minimum(torch.arange(most), lengths[:, None] - 1)
        call = ReadCall(
            readings=readings,
            entries=place,
            pages=None if pages is None else pages.to(like.device),
            view=view,
            width=width,
            num_keys=0,
            tokens=tokens.to(like.device),
            mask=None,
            first_slot=first_slot,
            wide=(readings[0].start, readings[0].end) if most > WIDE else None,
        )
        return self._masked(call, reach, like), [first_slot + entry * most for entry in entries]

    def _masked(self, call: ReadCall, reach: Reach, like: Tensor) -> ReadCall:
        """A call with as many keys as its readings have, and a mask where not all tokens see all of them."""
        readings = call.readings
        most = max(one.count for one in readings)
        keys = min(call.width * self.store.page_tokens, -(-most // KEY_STEP) * KEY_STEP)
        mask = None
        if any(not one.is_whole or one.count < keys for one in readings) or not reach.is_full:
            tokens = call.tokens.cpu()
            seen = torch.ones(*tokens.shape, keys, dtype=torch.bool)
            seen[call.entries] = self._seen(readings, tokens[call.entries], keys, reach)
            if not bool(seen.all()):
                mask = additive_mask(seen, like.dtype)[:, None].to(like.device)
        return replace(call, num_keys=keys, mask=mask)

    def _seen(self, readings: Sequence[Reading], tokens: Tensor, keys: int, reach: Reach) -> Tensor:
        """Which keys of its run each token sees, bool [n, R, K]; padding tokens see what the last token sees."""
        query_time = self.time_ids[tokens]
        key = torch.arange(keys)
        key_time = torch.tensor([one.first_time for one in readings])[:, None] + key
        there = key < torch.tensor([one.count for one in readings])[:, None]
        seen = there[:, None] & (key_time[:, None] <= query_time[..., None])
        if not reach.is_full:
            seen &= key_time[:, None] >= reach.earliest(query_time)[..., None]
        for company in dict.fromkeys(one.company for one in readings):
            if company is None:
                continue
            mine = torch.tensor([one.company is company for one in readings])
            key_branch = torch.tensor([one.branch_id for one in readings])[mine, None].expand(-1, keys)
            seen[mine] &= visible(
                self.branch_ids[tokens[mine]], query_time[mine], key_branch, key_time[mine], company.visibility
            )
        return seen

    def _cached(self, key: Hashable, device: torch.device, build: Callable[[], Tensor]) -> Tensor:
        """A tensor of the plan on a layer's device, built once per forward."""
        place = (key, device)
        if place not in self._tensors:
            self._tensors[place] = build().to(device)
        return self._tensors[place]


class KnownPlans:
    """The plans of the last step, for steps that go the same way."""

    def __init__(self) -> None:
        self._way: Way | None = None
        self._plans: dict[Hashable, Plan] = {}

    def find(self, way: Way | None, kind: Hashable) -> Plan | None:
        """The plan of one kind of layer, if the last step went this way."""
        return self._plans.get(kind) if way is not None and way == self._way else None

    def keep(self, way: Way, kind: Hashable, plan: Plan) -> None:
        """Remember a plan, and forget those of another way."""
        if way != self._way:
            self._way = way
            self._plans.clear()
        self._plans[kind] = plan


def company_of(visibility: Visibility) -> Company | None:
    """A company to be filled with members, where branches see each other."""
    return Company(visibility=visibility) if sees_branches(visibility) else None


def _sorting_key(span: Span) -> bytes:
    """The pages on the way to a span's tokens, as bytes that sort as their serial numbers do."""
    run, base = span.run, span.run.base
    key = b"" if base is None else base.page_serials.astype(">u8").tobytes()
    return key if span.company is not None else key + run.page_serials.astype(">u8").tobytes()


def _merged(kinds: dict[tuple[int, bool], list[Reading]], size: int, most: int) -> Iterable[list[Reading]]:
    """Readings of the same call: small lots go with those of more pages of `size`; each has `most` readers."""
    cost = size * most
    lots = sorted(kinds.items())
    merged: list[list[Reading]] = []
    waiting: list[Reading] = []
    for index, (_, readings) in enumerate(lots):
        waiting = [*waiting, *readings]
        if index + 1 < len(lots):
            wider = lots[index + 1][0][0]
            if wider * size <= _MAX_PADDED and sum(wider - len(one.pages) for one in waiting) * cost <= _WORTH_A_CALL:
                continue
        merged.append(waiting)
        waiting = []
    return merged


def _view(readings: Sequence[Reading], width: int) -> tuple[int, int, int] | None:
    """(first page, pages from one run to the next, runs) if the runs lie evenly, with few others between them."""
    firsts = [one.pages[0] for one in readings]
    for one in readings:
        if len(one.pages) != width or one.pages[-1] - one.pages[0] != width - 1:
            return None
        if width > 2 and any(b - a != 1 for a, b in itertools.pairwise(one.pages)):
            return None
    if len(set(firsts)) != len(firsts):
        return None
    low, high = min(firsts), max(firsts)
    stride = width if low == high else math.gcd(*(first - low for first in firsts))
    count = (high - low) // stride + 1
    return (low, stride, count) if stride >= width and count <= 2 * len(firsts) else None


def _sources(slots: Sequence[tuple[Reading, int]], num_tokens: int, nowhere: int) -> tuple[Tensor, list[Tensor | None]]:
    """Where the parts of each token are, [J, T], in the order of the keys; and who has a first, a second … part."""
    starts = torch.tensor([one.start for one, _ in slots])
    lengths = torch.tensor([one.end - one.start for one, _ in slots])
    index = torch.repeat_interleave(torch.arange(len(slots)), lengths)
    within = torch.arange(len(index)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    token = starts[index] + within
    slot = torch.tensor([place for _, place in slots])[index] + within
    order = torch.tensor([one.order for one, _ in slots])[index]
    by_order = torch.argsort(order, stable=True)
    by_token = by_order[torch.argsort(token[by_order], stable=True)]
    token, slot = token[by_token], slot[by_token]
    counts = torch.bincount(token, minlength=num_tokens)
    number = torch.arange(len(token)) - (counts.cumsum(0) - counts)[token]
    most = int(counts.max())
    sources = torch.full((most, num_tokens), nowhere)
    sources[number, token] = slot
    readers = [None if bool((counts > part).all()) else (counts > part).nonzero()[:, 0] for part in range(most)]
    return sources, readers
