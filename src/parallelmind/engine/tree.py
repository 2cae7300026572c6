"""Texts whose keys and values are held: a tree of pages in which texts that begin alike share what they have in common.

A text (`Run`) is a number of tokens that follow one another at one branch position: a main, or a branch that continues
one. It lies in pages of P tokens, counted from its beginning. Two texts share the pages in which they are equal; the
page in which they part is copied as far as they are equal, so that nothing is computed twice, at any length.

Where every layer of the model has a window or chunks, a text lets the pages go that none of its tokens to come sees.
They are kept like those of unused texts, and what is behind them stays where it is in the tree: a page without keys and
values, whose number is `NOWHERE`, remains as long as another one follows it. A text that begins like that is found
again as far as the pages that its next tokens see are held.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator, Sequence

from parallelmind.columnar import FULL, Reach
from parallelmind.engine.pages import PageStore
from parallelmind.engine.request import JoinedBranch
from parallelmind.engine.texts import NOWHERE, Page, Place, Run, joined_alike, joined_before


class PageTree:
    """All texts that are held. Those that nobody uses any more are kept for the next that begins like them.

    Args:
        max_unused_pages: so many pages of unused texts are kept at most; the least recently used go first.
        reaches: how far back the layers of the model see.
    """

    def __init__(self, store: PageStore, max_unused_pages: int, reaches: Collection[Reach] = (FULL,)):
        self.store = store
        self._reaches = () if any(reach.is_full for reach in reaches) else tuple(reaches)
        """Where no layer sees everything: those of all layers."""
        self.max_unused_pages = max_unused_pages
        self.num_unused = 0
        """Pages that no text in use holds."""
        self._roots: dict[tuple[Place, int], list[Page]] = {}
        self._unused: list[tuple[int, int, Page]] = []
        """A heap by their last use of unused pages that nothing in the tree needs; may hold outdated entries."""
        self._clock = itertools.count(1)
        self._serials = itertools.count()
        self._claims: dict[Run, tuple[int, int]] = {}
        """(tokens, pages) of texts that may hold so many pages at a time until so many of their tokens are computed."""

    @property
    def num_used(self) -> int:
        """Pages that texts in use hold."""
        return self.store.num_taken - self.num_unused

    @property
    def num_available(self) -> int:
        """Pages that can be had, by dropping unused ones too, and that no text has been promised."""
        return self.store.num_free + self.num_unused - sum(map(self._num_claimed, self._claims))

    @property
    def lets_go(self) -> bool:
        """Whether texts let pages go that no layer sees any more."""
        return bool(self._reaches)

    def open(
        self,
        base: Run | None,
        place: Place,
        tokens: list[int],
        *,
        is_private: bool = False,
        at_most: int | None = None,
        kept_from: int | None = None,
    ) -> Run:
        """Hold a text, sharing what is there of it.

        Args:
            base: the text that it continues at another branch position.
            at_most: so many of its tokens are taken from what is there; None: all.
            kept_from: from this token on its keys are needed as long as it is open.
        """
        run = Run(base, place, tokens, is_private=is_private, kept_from=kept_from)
        limit = len(tokens) if at_most is None else min(at_most, len(tokens))
        if is_private or not limit:
            return run
        size = self.store.page_tokens
        last: tuple[Page, int] | None = None
        for start in range(0, limit, size):
            found, equal = self._find(run, start, limit - start)
            if found is None:
                break
            if equal < size:
                last = found, equal
                break
            run.pages.append(found)
        if self._reaches:
            last = self._cut_to_what_is_held(run, last)
        for page in run.pages[run.first_page :]:
            self._hold(page)
        if last is not None:
            found, equal = last
            is_idle = not found.users
            self._hold(found)
            # A page that is not full has one text alone: what others wrote there, were it no numbers, would spread.
            # Nor does a text go on in one behind which branches begin, which would not be found any more.
            goes_on = len(run.pages) * size + equal < len(tokens)
            if is_idle and equal == len(found.tokens) == found.computed and not (goes_on and found.children):
                run.pages.append(found)
                self._fill(run, found)
            else:
                run.source = found, equal
        self.advance(run)
        run.num_reused = run.num_cached + (run.source[1] if run.source else 0)
        return run

    def advance(self, run: Run, coming: Run | None = None) -> bool:
        """Take over what others computed of the text; False while another text computes what comes next.

        Args:
            coming: a text that the next forward completes: what it has in common with this one counts as computed.
        """
        size = self.store.page_tokens
        self._let_unseen_go(run)
        while run.num_cached < len(run.tokens):
            index, offset = divmod(run.num_cached, size)
            page = run.pages[index] if index < len(run.pages) else None
            computed = 0 if page is None else page.computed
            if coming is not None and page is not None and index < len(coming.pages) and page is coming.pages[index]:
                computed = max(computed, min(size, len(coming) - index * size))
            if computed > offset:
                run.num_cached = min(index * size + computed, len(run.tokens))
            elif run.source is not None:
                if not self._take_source(run, coming):
                    return False
            else:
                if page is not None and page.filler is None:
                    self._fill(run, page)
                return page is None or page.filler is run
        return True

    def reserve(self, run: Run, length: int) -> bool:
        """Have pages for the first `length` tokens of a text; False if there are not enough."""
        size = self.store.page_tokens
        missing = -(-length // size) - len(run.pages)
        if missing <= 0:
            return True
        if not self._make_room(run, missing):
            return False
        for number in self.store.take(missing):
            start = len(run.pages) * size
            parent = self._page_before(run, len(run.pages))
            joined = joined_before(run.place.joined, start + size)
            tokens = run.tokens[start : start + size]
            page = self._emptied(run, parent, tokens, joined) if self._reaches else None
            if page is None:
                page = Page(number, next(self._serials), parent, run.plain_place, tokens, joined)
                if not run.is_private:
                    self._children(parent).setdefault(page.key, []).append(page)
                    page.is_listed = True
            page.number, page.users, page.filler = number, 1, run
            run.pages.append(page)
        return True

    def claim(self, run: Run, length: int, at_a_time: int) -> bool:
        """Be sure of the memory that it takes to compute the first tokens of a text; False if there is not enough.

        Where layers see everything, this is `reserve`. Where a text lets pages go, it is sure of as many as it holds at
        a time, and asks for them by `reserve` as it comes to them.

        Args:
            length: so many tokens.
            at_a_time: so many are computed in one forward at most.
        """
        if not self._reaches:
            return self.reserve(run, length)
        # What it holds of others' pages may be what texts have been promised that let pages go.
        if run.kept_from is not None or self._awaits_joined(run, run.num_cached):
            return self.reserve(run, length) and self.num_available >= 0
        if run.num_cached >= length:
            return self.num_available >= 0
        self._claims[run] = length, self.most_pages(length, min(at_a_time, max(1, run.num_pending)))
        if self.num_available >= 0:
            return True
        del self._claims[run]
        return False

    def most_pages(self, length: int, at_a_time: int) -> int:
        """Pages that a text holds at one time at most until so many tokens of it are computed.

        Args:
            at_a_time: so many are computed in one forward at most; 0: all are there.
        """
        size = self.store.page_tokens
        whole = -(-length // size)
        seen = [reach.furthest for reach in self._reaches]
        if not seen:
            return whole
        # What is computed, the token before it, and what that sees; all of it may begin in the middle of a page.
        count = at_a_time + 1 + max(furthest for furthest in seen if furthest is not None)
        return min(whole, (count + size - 2) // size + 1)

    def append(self, run: Run, token: int) -> None:
        """Add a token to the end of a text that nobody else fills."""
        run.tokens.append(token)
        index = (len(run.tokens) - 1) // self.store.page_tokens
        if index < len(run.pages):
            run.pages[index].tokens.append(token)

    def note_computed(self, run: Run, count: int) -> None:
        """The next tokens of the text were computed into its pages."""
        size = self.store.page_tokens
        first, run.num_cached = run.num_cached, run.num_cached + count
        if run.first_own is None:
            run.first_own = first
        for index in range(first // size, -(-run.num_cached // size)):
            page = run.pages[index]
            page.computed = max(page.computed, min(size, run.num_cached - index * size))
            if page.computed == size:
                page.filler = None
        self._let_unseen_go(run)

    def close(self, run: Run) -> None:
        """The text is not in use any more."""
        if run.source is not None:
            self._let_go(run.source[0])
            run.source = None
        self._claims.pop(run, None)
        own = len(run.tokens) if run.first_own is None else run.first_own
        for index, page in reversed(list(enumerate(run.pages))):
            if page.filler is run:
                page.filler = None
                if not (page.children and self._reaches):  # else the texts behind it go on from all of its tokens
                    del page.tokens[page.computed :]
            if run.is_spoilt and (index + 1) * self.store.page_tokens > own:
                self._forget(page)
                if index < run.first_page and not page.users and page.number != NOWHERE:
                    self._drop(page)
            if index >= run.first_page:
                self._let_go(page)
        run.pages.clear()
        run.first_page = 0
        run.num_cached = 0
        self.trim()

    def _make_room(self, run: Run, count: int) -> bool:
        """Have so many free pages for a text, by dropping unused texts; False if there are not enough."""
        # What a text was promised it gets in any case.
        available = self.store.num_free + self.num_unused if run in self._claims else self.num_available
        if available < count:
            return False
        while self.store.num_free < count:
            self._drop_oldest()
        return True

    def trim(self, max_unused_pages: int | None = None) -> None:
        """Drop unused texts, the least recently used first, until at most so many of their pages are kept."""
        limit = self.max_unused_pages if max_unused_pages is None else min(max_unused_pages, self.max_unused_pages)
        while self.num_unused > limit:
            self._drop_oldest()

    def num_tokens(self) -> int:
        """Tokens whose keys and values are held in pages that others may find."""
        return sum(page.computed for page in self._listed(self._roots))

    def _find(self, run: Run, start: int, limit: int, *, only_computed: bool = False) -> tuple[Page | None, int]:
        """The page of others that begins most like that of a text from `start` on, and how many tokens are equal.

        Of pages that begin alike, it is one that is computed as far as possible.

        Args:
            limit: so many tokens at most.
            only_computed: those that are to be computed do not count, as their text may wait for this one.
        """
        index = start // self.store.page_tokens
        wanted = run.tokens[start : start + self.store.page_tokens]
        best: Page | None = None
        most = (0, False, 0)
        # A page that is better than the best so far has this token of the text, and most of thousands have not.
        better = 0
        for page in self._children(self._page_before(run, index)).get((run.plain_place, wanted[0]), ()):
            if len(page.tokens) <= better or page.tokens[better] != wanted[better]:
                continue
            if index < len(run.pages) and page is run.pages[index]:
                continue
            equal = len(wanted) if page.tokens == wanted else _equal(page.tokens, wanted)
            if page.joined or run.place.joined:
                equal = min(equal, joined_alike(page.joined, run.place.joined) - start)
            equal = min(equal, limit, page.computed if only_computed else limit)
            is_held = page.number != NOWHERE
            found = (equal, is_held, min(equal, page.computed))
            if equal and (is_held or not only_computed) and found > most:
                best, most = page, found
                is_whole = found == (equal, True, equal)
                if is_whole and equal >= min(limit, len(wanted)):
                    break
                better = equal if is_whole else equal - 1
        return best, most[0]

    def _first_seen(self, run: Run, count: int) -> int:
        """Index of the first page of a text that is needed when so many of its tokens are there.

        The last one of them counts as to come: a text that ends there computes it again for the logits behind it.
        """
        if not self._reaches or not count or self._awaits_joined(run, count):
            return 0
        first_time = run.place.first_time
        time = first_time + count - 1
        seen = min(reach.earliest_at(time) for reach in self._reaches) - first_time
        if run.kept_from is not None:
            seen = min(seen, run.kept_from)
        return max(0, seen) // self.store.page_tokens

    def _awaits_joined(self, run: Run, count: int) -> bool:
        """Whether joined branches are still to come into a text, which are computed behind beginnings of it."""
        return bool(run.place.joined) and count < run.place.joined[-1].end

    def _cut_to_what_is_held(self, run: Run, last: tuple[Page, int] | None) -> tuple[Page, int] | None:
        """Cut the pages that were found of a text so that all that its next token sees is held, or is being computed.

        Args:
            last: the page behind them that has the next tokens, and how many.
        Returns:
            The same, or None if it is of no use.
        """
        size, pages = self.store.page_tokens, run.pages
        if last is not None and last[0].number == NOWHERE:
            last = None
        while True:
            count = len(pages) * size + (min(last[1], last[0].computed) if last is not None else 0)
            first, coming = len(pages) + 1, len(pages)
            while (needed := self._first_seen(run, count)) < first:
                first = needed
                coming = next((i for i in range(first, len(pages)) if pages[i].computed < size), len(pages))
                count = count if coming == len(pages) else coming * size  # it goes on there, should nobody else
            end = next((i for i in reversed(range(first, len(pages))) if pages[i].number == NOWHERE), len(pages))
            if end == len(pages):  # what is still to come is computed in order
                end = next((i for i in range(coming + 1, len(pages)) if pages[i].computed), len(pages))
            if end < len(pages) or (coming < len(pages) and last is not None and last[0].computed):
                last = None
                del pages[end:]
                continue
            run.first_page, run.num_cached = first, first * size
            return last

    def _let_unseen_go(self, run: Run) -> None:
        """A text does not hold what none of its tokens to come sees, nor a promise that has been kept."""
        if not self._reaches:
            return
        if run in self._claims and run.num_cached >= self._claims[run][0]:
            del self._claims[run]
        first = self._first_seen(run, run.num_cached)
        if first > run.first_page:
            gone = run.pages[run.first_page : first]
            run.first_page = first
            for page in gone:
                self._let_go(page)
            self.trim()

    def _num_claimed(self, run: Run) -> int:
        """Pages that a text has been promised and does not have yet."""
        length, pages = self._claims[run]
        # Of those that others hold, too, it may need others while they still hold these.
        own = sum(page.users == 1 for page in run.pages[run.first_page :])
        return max(0, min(-(-length // self.store.page_tokens) - len(run.pages), pages - own))

    def _emptied(
        self, run: Run, parent: Page | None, tokens: list[int], joined: tuple[JoinedBranch, ...]
    ) -> Page | None:
        """The page of the tree that had these tokens, and has others behind it."""
        if run.is_private or len(tokens) < self.store.page_tokens:
            return None
        for page in self._children(parent).get((run.plain_place, tokens[0]), ()):
            if page.number == NOWHERE and page.tokens == tokens and page.joined == joined:
                return page
        return None

    def _take_source(self, run: Run, coming: Run | None) -> bool:
        """Have the tokens that another text's page has of the run's next one; False while they are being computed."""
        assert run.source is not None
        source: Page | None
        source, count = run.source
        index = run.num_cached // self.store.page_tokens
        is_coming = coming is not None and index < len(coming.pages) and source is coming.pages[index]
        if source.computed < count and source.filler is not None and not is_coming:
            return False
        run.source = None
        is_there = source.computed >= count
        if not (is_there or is_coming):  # the text that computed it was given up; another one may have as much
            self._let_go(source)
            source, count = self._find(run, run.num_cached, count, only_computed=True)
            if source is None:
                return True
            self._hold(source)
            is_there = True
        has_page = self.reserve(run, run.num_cached + count)
        if not has_page and source.users == 1 and source.is_listed and not source.children:
            # There is no page to copy it to but the one that it is in, whose end nobody needs more than this text.
            run.pages.append(source)
            self._fill(run, source)
            source.computed = count
            run.num_cached += count
            return True
        if has_page:
            page = run.pages[index]
            if is_there:
                self.store.copy_before(source.number, page.number, count)
                page.computed = count
            else:
                self.store.copy_during(source.number, page.number, count)
            run.num_cached += count
        self._let_go(source)
        return True

    def _fill(self, run: Run, page: Page) -> None:
        """From now on the run's tokens are computed into the page."""
        page.filler = run
        start = run.pages.index(page) * self.store.page_tokens
        page.tokens[:] = run.tokens[start : start + self.store.page_tokens]
        page.joined = joined_before(run.place.joined, start + self.store.page_tokens)

    def _children(self, parent: Page | None) -> dict[tuple[Place, int], list[Page]]:
        return self._roots if parent is None else parent.children

    def _page_before(self, run: Run, index: int) -> Page | None:
        if index:
            return run.pages[index - 1]
        return None if run.base is None or not run.base.pages else run.base.pages[-1]

    def _hold(self, page: Page) -> None:
        if page.users == 0:
            self.num_unused -= 1
        page.users += 1

    def _let_go(self, page: Page) -> None:
        page.users -= 1
        if page.users:
            return
        self.num_unused += 1
        page.last_use = next(self._clock)
        if page.children and self._reaches:  # what follows it is found without its keys and values
            if page.is_listed:
                self._push(page)
            else:
                self._empty(page)
        self._keep_or_drop(page)

    def _keep_or_drop(self, page: Page) -> None:
        """A page that nobody uses and that nothing continues is kept if others may find something in it."""
        if page.users or page.children:
            return
        if page.is_listed and page.computed and not self._repeats_another(page):
            self._push(page)
        else:
            self._drop(page)

    def _push(self, page: Page) -> None:
        heapq.heappush(self._unused, (page.last_use, next(self._clock), page))

    def _empty(self, page: Page) -> None:
        """Give the keys and values of an unused page up; it stays for what follows it."""
        self.num_unused -= 1
        self.store.give_back([page.number])
        page.number, page.computed = NOWHERE, 0

    def _repeats_another(self, page: Page) -> bool:
        """Whether all of an unused page stands in another one; if it is the other way round, that one is dropped."""
        count = len(page.tokens)
        for other in list(self._children(page.parent)[page.key]):
            both = min(count, len(other.tokens))
            if both and other.tokens[both - 1] != page.tokens[both - 1]:
                continue
            if other is page or other.joined != page.joined:
                continue
            if count <= other.computed and other.tokens[:count] == page.tokens:
                return True
            if not (other.users or other.children) and page.tokens[: len(other.tokens)] == other.tokens:
                self._drop(other)
        return False

    def _drop_oldest(self) -> None:
        while True:
            last_use, _, page = heapq.heappop(self._unused)
            if not page.is_listed or page.users or page.number == NOWHERE or page.last_use != last_use:
                continue
            if not page.children:
                self._drop(page)
                return
            if self._reaches:
                self._empty(page)
                return

    def _drop(self, page: Page) -> None:
        """Take an unused page without children out of the tree, and those before it that were there for it alone."""
        while True:
            if page.number != NOWHERE:
                self._empty(page)
            parent = page.parent
            self._unlist(page)
            page.parent = None
            if parent is None or parent.users or parent.children or parent.number != NOWHERE:
                break
            page = parent
        if parent is not None:
            self._keep_or_drop(parent)

    def _forget(self, page: Page) -> None:
        """Nobody finds the page any more, nor what follows it."""
        for child in [*itertools.chain.from_iterable(page.children.values())]:
            self._forget(child)
            if not child.users:
                self._drop(child)
        self._unlist(page)

    def _unlist(self, page: Page) -> None:
        """Others do not find the page any more."""
        if page.is_listed:
            siblings = self._children(page.parent)
            siblings[page.key].remove(page)
            if not siblings[page.key]:
                del siblings[page.key]
            page.is_listed = False
            page.parent = None

    def _listed(self, pages: dict[tuple[Place, int], list[Page]]) -> Iterator[Page]:
        waiting = [pages]
        while waiting:
            for page in itertools.chain.from_iterable(waiting.pop().values()):
                yield page
                waiting.append(page.children)


def _equal(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens are equal from the beginning on."""
    shorter = min(len(tokens), len(others))
    if tokens[:shorter] == others[:shorter]:
        return shorter
    for index, (one, other) in enumerate(zip(tokens, others, strict=False)):
        if one != other:
            return index
    return shorter
