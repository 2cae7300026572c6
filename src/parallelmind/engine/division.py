"""How what a token reads is divided: by its place in its text alone, so that nobody beside it changes a bit.

Shapes: P tokens of a page.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from parallelmind.engine.readings import Company, Reading, Span

_BLOCK = 8
"""Pages that are read as one run at most."""
_TILE = 128
"""Tokens that read a run in one row of a call at most."""
WIDE = 256
"""A run that more tokens read is read by a call of its own, for which nothing is copied together."""
_COMPANY = 2**40


class Readings:
    """Collects the runs of pages that texts read; a run that neighbours read, too, is read with them."""

    def __init__(self, page_tokens: int):
        self._size = page_tokens
        self._found: list[Reading] = []
        self._last: dict[tuple[int, int, bool], int] = {}
        """By last page, number of pages and wholeness: the index of the run's last reading."""

    def add_base(self, span: Span, start: int, end: int) -> None:
        """The text that a span's run continues, all of which it sees."""
        base = span.run.base
        assert base is not None
        whole = len(base) // (_BLOCK * self._size) * _BLOCK
        begins = [*range(0, whole, _BLOCK), *range(whole, len(base.pages), _BLOCK // 2)]
        for begin, end_page in itertools.pairwise([*begins, len(base.pages)]):
            if end_page <= base.first_page:
                continue
            pages = base.page_numbers[begin:end_page].tolist()
            count = min(len(base), end_page * self._size) - begin * self._size
            self._add(pages, count, base.place.first_time + begin * self._size, start, end)

    def add_own(self, span: Span, start: int) -> None:
        """What a span sees of its own run: by the page of each token, the runs before it, and the page itself."""
        run, size = span.run, self._size
        for index in range(span.past // size, -(-span.end // size)):
            first = start + max(0, index * size - span.past)
            last = start + min(span.end, (index + 1) * size) - span.past
            for begin, count in _before(index):
                if begin + count <= run.first_page:
                    continue
                pages = run.page_numbers[begin : begin + count].tolist()
                self._add(pages, count * size, run.place.first_time + begin * size, first, last)
            keys = min(size, span.end - index * size)
            time = run.place.first_time + index * size
            self._add([run.pages[index].number], keys, time, first, last, is_whole=False)

    def add_company(self, company: Company, start: int, end: int) -> None:
        """The pages of branches that see each other, for all of them."""
        for number, (run, branch_id, length) in enumerate(company.members):
            for index in range(run.first_page, -(-length // self._size)):
                self._found.append(
                    Reading(
                        pages=(run.pages[index].number,),
                        count=min(self._size, length - index * self._size),
                        first_time=run.place.first_time + index * self._size,
                        start=start,
                        end=end,
                        is_whole=False,
                        order=_COMPANY + number * _COMPANY + index,
                        branch_id=branch_id,
                        company=company,
                    )
                )

    def tiles(self) -> Iterator[Reading]:
        """All readings, those without a call of their own cut to as many tokens as a row of a joint call takes."""
        for one in self._found:
            if one.is_whole and one.end - one.start > WIDE:
                yield one
                continue
            for start in range(one.start, one.end, _TILE):
                yield one if one.end - one.start <= _TILE else one.of(start, min(start + _TILE, one.end))

    def _add(
        self, pages: Sequence[int], count: int, first_time: int, start: int, end: int, *, is_whole: bool = True
    ) -> None:
        key = (pages[-1], len(pages), is_whole)
        known = self._last.get(key)
        # Texts that share a run may hold different parts of it, where layers have windows or chunks.
        if known is not None and self._found[known].end == start and self._found[known].pages == tuple(pages):
            self._found[known] = self._found[known].of(self._found[known].start, end)
            return
        self._last[key] = len(self._found)
        self._found.append(
            Reading(
                pages=tuple(pages),
                count=count,
                first_time=first_time,
                start=start,
                end=end,
                is_whole=is_whole,
                order=first_time,
            )
        )


def _before(index: int) -> Iterator[tuple[int, int]]:
    """The runs that the pages before a page are read in: (first page, pages) of each, the longest first."""
    begin = index // _BLOCK * _BLOCK
    for block in range(0, begin, _BLOCK):
        yield block, _BLOCK
    count = _BLOCK // 2
    while count:
        if (index - begin) & count:
            yield begin, count
            begin += count
        count //= 2
