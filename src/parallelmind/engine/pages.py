"""Where keys and values are: one array of pages per layer, which grows with what is in use and is given back when idle.

P is the number of tokens of a page, N the number of pages, H the number of key/value heads, D the head size of keys
and E that of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GROWTH = 4
"""The arrays grow by this part more than is needed at the moment."""
_MOST_UNUSED = 4
"""They shrink when they could hold so many times what is in use."""


class PageStore:
    """Pages by number, the same number in all layers. Per layer: keys [H, N, P, D] and values [H, N, P, E].

    Pages that follow each other in number lie one after the other, so that a text in such pages is read as one array.

    Args:
        page_tokens: P.
        max_pages: no more are given out.
    """

    def __init__(self, page_tokens: int, max_pages: int):
        self.page_tokens = page_tokens
        self.max_pages = max_pages
        self._taken = bytearray()
        """For each page whether it is in use."""
        self._num_taken = 0
        self._used_before: set[int] = set()
        """Pages that hold what another text left there."""
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._copies: list[tuple[int, int, int]] = []
        """(page, page, tokens) to be copied before the next forward."""
        self._copies_during: list[tuple[int, int, int]] = []
        self._capacity = 0
        self.generation = 0
        """Rises when the arrays move."""

    @property
    def is_copying(self) -> bool:
        """Whether the next forward has copies to carry out."""
        return bool(self._copies_during)

    @property
    def num_free(self) -> int:
        """Pages that may still be given out."""
        return self.max_pages - self._num_taken

    @property
    def num_taken(self) -> int:
        return self._num_taken

    @property
    def num_places(self) -> int:
        """Tokens that the arrays have room for."""
        return self._capacity * self.page_tokens

    @property
    def num_layers(self) -> int:
        """Layers that have written keys and values so far."""
        return len(self._keys)

    def take(self, count: int) -> list[int]:
        """Numbers of free pages, as far as possible one after the other; at most `num_free`."""
        pages: list[int] = []
        size = count
        while len(pages) < count:
            size = min(size, count - len(pages))
            start = self._taken.find(bytes(size))
            if start < 0 and size == count and len(self._taken) + size <= self.max_pages:
                free_at_end = len(self._taken) - len(self._taken.rstrip(b"\0"))
                start = len(self._taken) - free_at_end
                self._taken.extend(bytes(size - free_at_end))
            if start < 0:
                if size == 1:
                    self._taken.append(0)
                    start = len(self._taken) - 1
                else:
                    size = -(-size // 2)
                    continue
            self._taken[start : start + size] = b"\1" * size
            pages += range(start, start + size)
        self._num_taken += count
        return pages

    def give_back(self, pages: Sequence[int]) -> None:
        """Free pages."""
        for page in pages:
            self._taken[page] = 0
        self._num_taken -= len(pages)
        self._used_before.update(pages)
        self._copies = [copy for copy in self._copies if copy[1] not in pages]
        self._copies_during = [copy for copy in self._copies_during if copy[1] not in pages]
        if not self._num_taken:
            self._taken.clear()
            self._used_before.clear()
            self._capacity = 0
            self._keys.clear()
            self._values.clear()
            self.generation += 1

    def copy_before(self, source: int, target: int, count: int) -> None:
        """Copy the first tokens of a page into another one before the next forward."""
        # All are read before one is written: what comes into the source first is taken from where it comes from.
        origin = next((first for first, into, _ in self._copies if into == source), source)
        self._copies.append((origin, target, count))

    def copy_during(self, source: int, target: int, count: int) -> None:
        """The same in each layer of the next forward, which computes them, as soon as they are there."""
        self._copies_during.append((source, target, count))

    def begin(self) -> None:
        """Another forward is being planned."""
        self._copies_during.clear()

    def settle(self) -> None:
        """Make room for all pages that are in use and carry copies out, before anything is read or written."""
        del self._taken[len(self._taken.rstrip(b"\0")) :]
        needed = len(self._taken)
        # A quarter on top: a step of decoding must not copy everything each time a page is needed.
        wanted = max(needed, min(needed + needed // _GROWTH, self.max_pages))
        if needed > self._capacity:
            self._resize(wanted)
        # What is left of others in a page is masked, but were it no numbers, it would still spread.
        left = sorted(page for page in self._used_before if page < needed and self._taken[page])
        self._used_before.difference_update(left)
        if self._copies or left:
            sources, targets = self._places(self._copies)
            self._copies.clear()
            for array in (*self._keys.values(), *self._values.values()):
                flat = array.flatten(1, 2)
                copied = flat[:, sources.to(array.device)]  # before a source that was freed is cleared for another text
                array[:, left] = 0
                flat[:, targets.to(array.device)] = copied
        if needed < self._capacity // _MOST_UNUSED:  # now that nothing is copied from what goes
            self._resize(wanted)

    def write(self, layer: int, places_T: Tensor, keys_HTD: Tensor, values_HTE: Tensor) -> None:
        """Store the keys and values of tokens; a place is the page's number × P + the index in the page."""
        keys, values = self.arrays_like(layer, keys_HTD, values_HTE)
        keys.flatten(1, 2).index_copy_(1, places_T, keys_HTD)
        values.flatten(1, 2).index_copy_(1, places_T, values_HTE)
        self.copy_within(layer)

    def arrays_like(self, layer: int, keys_HTD: Tensor, values_HTE: Tensor) -> tuple[Tensor, Tensor]:
        """`layer`, made for keys and values like these if it is not there yet."""
        if layer not in self._keys:
            for store, new in ((self._keys, keys_HTD), (self._values, values_HTE)):
                store[layer] = self._resized(new.new_empty(new.shape[0], 0, self.page_tokens, new.shape[-1]))
        return self.layer(layer)

    def copy_within(self, layer: int) -> None:
        """Carry out what `copy_during` asked for, in a layer that has been written."""
        if self._copies_during:
            places = self._places(self._copies_during)
            for array in self.layer(layer):
                sources, targets = (one.to(array.device) for one in places)
                flat = array.flatten(1, 2)
                flat[:, targets] = flat[:, sources]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys [H, N, P, D] and values [H, N, P, E] of all pages."""
        return self._keys[layer], self._values[layer]

    def nbytes(self) -> int:
        tensors = (*self._keys.values(), *self._values.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def bytes_per_token(self) -> int:
        """Over all layers, once each of them has written."""
        return self.nbytes() // self.num_places

    def _places(self, copies: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """Where the tokens of copies are, and where they go."""
        places = torch.arange(self.page_tokens)
        sources, targets = (
            torch.cat([places[:0], *(copy[index] * self.page_tokens + places[: copy[2]] for copy in copies)])
            for index in (0, 1)
        )
        return sources, targets

    def _resize(self, capacity: int) -> None:
        self._capacity = capacity
        self.generation += 1
        for store in (self._keys, self._values):
            for layer, array in store.items():
                store[layer] = self._resized(array)

    def _resized(self, array: Tensor) -> Tensor:
        kept = min(self._capacity, array.shape[1])
        resized = array.new_empty(array.shape[0], self._capacity, *array.shape[2:])
        resized[:, :kept] = array[:, :kept]
        resized[:, kept:].zero_()
        return resized
