"""What one forward of the engine computes, and which keys each of its tokens reads.

The tokens of a forward lie flat in one sequence, those of one text (`Span`) together, and texts that share pages side
by side. What a token sees falls into stretches of pages that a range of tokens sees as a whole, each read once for all
of them, and single pages of which every token sees its own part, read together in few calls.

Shapes: T tokens of the forward, P tokens of a page, n pages read together, R tokens that read a page, K keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from parallelmind.columnar import Reach, Visibility, additive_mask, sees_branches, visible
from parallelmind.engine.pages import PageStore
from parallelmind.engine.readings import Company, Fresh, PageBatch, PagePart, Span, Stretch

_SHORT = 128
"""A text with more new tokens than this attends to them in a call of its own."""
_LONE_CALLS = 8
"""Stretches of pages read by calls of their own; further ones are read page by page, all in a few calls."""
_FEW_CALLS = 2
_WORTH_A_CALL = 4096
"""Keys × readers of a stretch that has a call of its own where there are more than a few."""
_KEY_STEP = 16
_CPU = torch.device("cpu")


class Step:
    """The plan of one forward over some spans.

    Args:
        spans: in any order; see `spans` for the order in which their tokens lie.
    """

    def __init__(self, store: PageStore, spans: Sequence[Span]):
        self.store = store
        ordered = sorted(
            (span.run.place.adapter, _full_pages(span, store.page_tokens), index) for index, span in enumerate(spans)
        )
        self.spans = [spans[index] for _, _, index in ordered]
        """In the order of their tokens."""
        self._full = [pages for _, pages, _ in ordered]
        ends = list(itertools.accumulate(len(span.token_ids) for span in self.spans))
        self.ranges = [(end - len(span.token_ids), end) for span, end in zip(self.spans, ends, strict=True)]
        """The range of flat tokens of each span."""
        self.num_tokens = ends[-1] if ends else 0
        self._tensors: dict[Hashable, Tensor] = {}
        self._batches: dict[Hashable, list[PageBatch]] = {}

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

    def places(self, device: torch.device) -> Tensor:
        """Where the keys and values of the tokens go, LongTensor [T], see `PageStore.write`."""

        def build() -> Tensor:
            size = self.store.page_tokens
            found: list[int] = []
            for span in self.spans:
                pages = span.run.pages
                found += [pages[i // size].number * size + i % size for i in range(span.past, span.end)]
            return torch.tensor(found)

        return self._cached("places", device, build)

    @cached_property
    def fresh(self) -> list[Fresh]:
        return [
            Fresh(start, end, span.first_time)
            for span, (start, end) in zip(self.spans, self.ranges, strict=True)
            if _is_long(span)
        ]

    def fresh_mask(self, one: Fresh, reach: Reach, like: Tensor) -> Tensor | None:
        """Mask of new tokens over themselves, additive [T, T]; None where causal order says it all."""
        count = one.end - one.start
        if reach.earliest_at(one.first_time + count - 1) <= one.first_time:
            return None
        return self.causal_mask(one, reach, like)

    def causal_mask(self, one: Fresh, reach: Reach, like: Tensor) -> Tensor:
        """Mask of tokens that follow one another over themselves, additive [T, T]."""

        def build() -> Tensor:
            time = torch.arange(one.first_time, one.first_time + one.end - one.start)
            return additive_mask(_in_reach(time, time, reach), like.dtype)

        return self._cached((one, reach, like.dtype), like.device, build)

    def stretches(self, reach: Reach) -> list[Stretch]:
        """The stretches that are read by calls of their own, in layers of this reach."""
        return self._divided[0] if reach.is_full else [one for one in self._divided[0] if self._is_seen(one, reach)]

    def stretch_mask(self, one: Stretch, reach: Reach, like: Tensor) -> Tensor | None:
        """Mask of the tokens that read a stretch over its keys, [T, K]; None: they see all of it."""
        times = self.time_ids[one.start : one.end]
        if reach.is_full or reach.earliest_at(int(times.max())) <= one.first_time:
            return None

        def build() -> Tensor:
            keys = torch.arange(one.first_time, one.first_time + one.count)
            return additive_mask(_in_reach(times, keys, reach), like.dtype)

        return self._cached((one, reach, like.dtype), like.device, build)

    def page_batches(self, reach: Reach, like: Tensor) -> list[PageBatch]:
        """The pages that are read page by page, in layers of this reach."""
        key = ("batches", reach, like.dtype, like.device)
        if key not in self._batches:
            alike: dict[int, list[PagePart]] = {}
            for part in itertools.chain(self._divided[1], self._own_parts):
                count = part.tokens[1] - part.tokens[0]
                alike.setdefault((count - 1).bit_length(), []).append(part)
            batches = (self._page_batch(parts, reach, like) for parts in alike.values())
            self._batches[key] = [batch for batch in batches if batch is not None]
        return self._batches[key]

    @cached_property
    def _divided(self) -> tuple[list[Stretch], list[PagePart]]:
        """What is seen as a whole, divided into stretches for calls of their own, and pages for joint ones."""
        found = list(self._shared_stretches())
        found.sort(key=lambda one: one.count * (one.end - one.start), reverse=True)
        count = min(len(found), _LONE_CALLS)
        if len(found) > _FEW_CALLS:
            count = min(count, sum(one.count * (one.end - one.start) >= _WORTH_A_CALL for one in found))
        alone, together = found[:count], found[count:]
        parts: list[PagePart] = []
        size = self.store.page_tokens
        for one in together:
            for index in range(0, one.count, size):
                for start in range(one.start, one.end, _SHORT):
                    parts.append(
                        PagePart(
                            page=one.page + index // size,
                            count=min(size, one.count - index),
                            first_time=one.first_time + index,
                            branch_id=-1,
                            tokens=(start, min(start + _SHORT, one.end)),
                        )
                    )
        return alone, parts

    def _shared_stretches(self) -> Iterator[Stretch]:
        """Every page that is seen as a whole, once, with the tokens of all spans that see it."""
        size = self.store.page_tokens
        ends = [
            index
            for index in range(1, len(self.spans) + 1)
            if index == len(self.spans)
            or self.spans[index].run.place.adapter != self.spans[index - 1].run.place.adapter
        ]
        waiting = [(first, last, 0) for first, last in zip([0, *ends], ends, strict=False)]
        while waiting:
            first, last, depth = waiting.pop()
            while first < last and len(self._full[first]) <= depth:
                first += 1
            if first == last:
                continue
            one, other = self._full[first], self._full[last - 1]
            if one[depth] != other[depth]:
                split = next(i for i in range(first, last) if self._full[i][depth] != one[depth])
                waiting += [(split, last, depth), (first, split, depth)]
                continue
            end = depth + 1
            while end < len(one) and end < len(other) and one[end] == other[end]:
                end += 1
            start_token, end_token = self.ranges[first][0], self.ranges[last - 1][1]
            time = self._time_of_page(self.spans[first], depth)
            begun = depth
            for index in range(depth, end):
                number, count = one[index]
                if index + 1 == end or count < size or one[index + 1][0] != number + 1:
                    keys = (index - begun) * size + count
                    yield Stretch(one[begun][0], keys, time, start_token, end_token)
                    time += keys
                    begun = index + 1
            waiting.append((first, last, end))

    def _time_of_page(self, span: Span, index: int) -> int:
        """Time of the first token of a page on the way to a span."""
        base = 0 if span.run.base is None else len(span.run.base.pages)
        if index < base:
            assert span.run.base is not None
            return span.run.base.place.first_time + index * self.store.page_tokens
        return span.run.place.first_time + (index - base) * self.store.page_tokens

    @cached_property
    def _own_parts(self) -> list[PagePart]:
        """The pages with new tokens, and those of branches that see each other."""
        size = self.store.page_tokens
        parts: list[PagePart] = []
        of_company: dict[Company, list[int]] = {}
        for span, (start, end) in zip(self.spans, self.ranges, strict=True):
            if span.company is not None:
                of_company.setdefault(span.company, []).extend(range(start, end))
            elif not _is_long(span):
                for index in range(span.past // size, -(-span.end // size)):
                    first = max(0, index * size - span.past)
                    parts.append(
                        PagePart(
                            page=span.run.pages[index].number,
                            count=min(size, span.end - index * size),
                            first_time=span.run.place.first_time + index * size,
                            branch_id=span.branch_id,
                            tokens=(start + first, end),
                        )
                    )
        for company, tokens in of_company.items():
            low, high = min(tokens), max(tokens) + 1
            assert high - low == len(tokens), "the branches of a request lie side by side"
            for run, branch_id, length in company.members:
                for index in range(-(-length // size)):
                    for start in range(low, high, _SHORT):
                        parts.append(
                            PagePart(
                                page=run.pages[index].number,
                                count=min(size, length - index * size),
                                first_time=run.place.first_time + index * size,
                                branch_id=branch_id,
                                tokens=(start, min(start + _SHORT, high)),
                                company=company,
                            )
                        )
        return parts

    def _page_batch(self, parts: Sequence[PagePart], reach: Reach, like: Tensor) -> PageBatch | None:
        most = max(part.tokens[1] - part.tokens[0] for part in parts)
        keys = min(self.store.page_tokens, -(-max(part.count for part in parts) // _KEY_STEP) * _KEY_STEP)
        seen = self._seen(parts, most, keys, reach)
        if not reach.is_full:
            kept = seen.flatten(1).any(1)
            if not kept.all():
                parts = list(itertools.compress(parts, kept.tolist()))
                if not parts:
                    return None
                seen = seen[kept]
        numbers = [part.page for part in parts]
        low, high = min(numbers), max(numbers) + 1
        pages: Tensor | None = torch.tensor(numbers)
        if high - low <= 2 * len(parts) and len(set(numbers)) == len(numbers):
            # Read as they lie, with what lies between; nobody takes what comes of that.
            place = torch.tensor(numbers) - low
            starts = torch.zeros(high - low, dtype=torch.long)
            lengths = torch.ones(high - low, dtype=torch.long)
            starts[place] = torch.tensor([part.tokens[0] for part in parts])
            lengths[place] = torch.tensor([part.tokens[1] - part.tokens[0] for part in parts])
            spread = torch.ones(high - low, most, keys, dtype=torch.bool)
            spread[place] = seen
            seen, pages = spread, None
        else:
            place = torch.arange(len(parts))
            starts = torch.tensor([part.tokens[0] for part in parts])
            lengths = torch.tensor([part.tokens[1] - part.tokens[0] for part in parts])
        count = len(starts)
        tokens = starts[:, None] + torch.minimum(torch.arange(most), lengths[:, None] - 1)
        readers, sources = _sources(parts, place.tolist(), most, count * most)
        everything = len(readers) == self.num_tokens

        def on(tensor: Tensor) -> Tensor:
            return tensor.to(like.device)

        return PageBatch(
            first=low,
            pages=None if pages is None else on(pages),
            num_pages=count,
            num_keys=keys,
            tokens=on(tokens),
            mask=None if bool(seen.all()) else on(additive_mask(seen, like.dtype)[:, None]),
            sources=on(sources),
            readers=None if everything else on(torch.tensor(readers)),
        )

    def _seen(self, parts: Sequence[PagePart], most: int, keys: int, reach: Reach) -> Tensor:
        """Which keys of its page each token sees, bool [n, R, K]; padding tokens see what the last token sees."""
        starts = torch.tensor([part.tokens[0] for part in parts])
        lengths = torch.tensor([part.tokens[1] - part.tokens[0] for part in parts])
        tokens = starts[:, None] + torch.minimum(torch.arange(most), lengths[:, None] - 1)
        query_time = self.time_ids[tokens]
        key = torch.arange(keys)
        key_time = torch.tensor([part.first_time for part in parts])[:, None] + key
        there = key < torch.tensor([part.count for part in parts])[:, None]
        seen = there[:, None] & _in_reach(query_time, key_time, reach)
        for company in dict.fromkeys(part.company for part in parts):
            if company is None:
                continue
            mine = torch.tensor([part.company is company for part in parts])
            key_branch = torch.tensor([part.branch_id for part in parts])[mine, None].expand(-1, keys)
            seen[mine] &= visible(
                self.branch_ids[tokens[mine]], query_time[mine], key_branch, key_time[mine], company.visibility
            )
        return seen

    def _is_seen(self, one: Stretch, reach: Reach) -> bool:
        return one.first_time + one.count > reach.earliest_at(int(self.time_ids[one.start : one.end].min()))

    def _cached(self, key: Hashable, device: torch.device, build: Callable[[], Tensor]) -> Tensor:
        """A tensor of the plan on a layer's device, built once per forward."""
        place = (key, device)
        if place not in self._tensors:
            self._tensors[place] = build().to(device)
        return self._tensors[place]


def company_of(visibility: Visibility) -> Company | None:
    """A company to be filled with members, where branches see each other."""
    return Company(visibility=visibility) if sees_branches(visibility) else None


def _is_long(span: Span) -> bool:
    return len(span.token_ids) > _SHORT and span.company is None


def _full_pages(span: Span, size: int) -> list[tuple[int, int]]:
    """(number, keys) of the pages that all tokens of a span see as a whole, but for windows and chunks."""
    base = span.run.base
    pages: list[tuple[int, int]] = []
    if base is not None:
        pages = [(page.number, size) for page in base.pages]
        if len(base) % size:
            pages[-1] = (pages[-1][0], len(base) % size)
    if span.company is not None:
        return pages
    whole, part = divmod(span.past, size)
    pages += [(page.number, size) for page in span.run.pages[:whole]]
    if part and _is_long(span):
        pages.append((span.run.pages[whole].number, part))
    return pages


def _in_reach(query_time: Tensor, key_time: Tensor, reach: Reach) -> Tensor:
    """Whether a token sees a key of its own text: not later, and in reach. [..., Q], [..., K] → [..., Q, K]."""
    seen = key_time[..., None, :] <= query_time[..., :, None]
    if not reach.is_full:
        seen &= key_time[..., None, :] >= reach.earliest(query_time)[..., :, None]
    return seen


def _sources(parts: Sequence[PagePart], places: Sequence[int], most: int, nowhere: int) -> tuple[list[int], Tensor]:
    """The tokens that read, in order, and where in the flat output of a batch the parts of each are, [J, t]."""
    found: dict[int, list[int]] = {}
    for part, place in zip(parts, places, strict=True):
        first, last = part.tokens
        for token in range(first, last):
            found.setdefault(token, []).append(place * most + token - first)
    readers = sorted(found)
    longest = max(map(len, found.values()))
    rows = [found[token] + [nowhere] * (longest - len(found[token])) for token in readers]
    return readers, torch.tensor(rows).T
