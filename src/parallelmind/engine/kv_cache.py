"""Keys and values: one copy per main, one slot per running branch, and how much memory they may take.

H is the number of key/value heads, D the head size, L the tokens of a main, C the tokens a slot can hold.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

_CAPACITY_STEP = 64
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and its parts, in the second and the first version of control groups."""

MainKey = tuple[str, tuple[int, ...]]
"""Adapter and token ids: what the keys and values of a main depend on."""


class MainCache:
    """Keys and values of one main, filled chunk by chunk, then read by all of its branches.

    Per layer: keys and values [H, L, D], allocated on the device of the layer at its first write.
    """

    def __init__(self, token_ids: tuple[int, ...], adapter: str = ""):
        self.token_ids = token_ids
        self.adapter = adapter
        self.num_cached_tokens = 0
        self.users = 0
        self.last_logits: Tensor | None = None
        """Logits [V] behind the last token; the first token of branches with an empty prompt is drawn from them."""
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def key(self) -> MainKey:
        return self.adapter, self.token_ids

    @property
    def complete(self) -> bool:
        return self.num_cached_tokens == len(self.token_ids)

    def write(self, layer: int, start: int, keys_HTD: Tensor, values_HTD: Tensor) -> None:
        if layer not in self.keys:
            heads, _, _ = keys_HTD.shape
            self.keys[layer] = keys_HTD.new_empty(heads, len(self), keys_HTD.shape[-1])
            self.values[layer] = values_HTD.new_empty(heads, len(self), values_HTD.shape[-1])
        end = start + keys_HTD.shape[1]
        self.keys[layer][:, start:end] = keys_HTD
        self.values[layer][:, start:end] = values_HTD

    def copy_prefix(self, other: MainCache) -> None:
        """Take over the keys and values of a complete main that this one begins with."""
        for layer, keys_HLD in other.keys.items():
            self.write(layer, 0, keys_HLD, other.values[layer])
        self.num_cached_tokens = len(other)

    def nbytes(self) -> int:
        tensors = (*self.keys.values(), *self.values.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PrefixCache:
    """Mains by adapter and tokens. Those no longer used are kept for the next request, at most `max_tokens` of them.

    All operations but `find_prefix` take constant time, however many mains are held.
    """

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.num_used_tokens = 0
        """Tokens of mains that running or waiting branches read."""
        self.num_unused_tokens = 0
        self._mains: dict[MainKey, MainCache] = {}
        self._unused: OrderedDict[MainKey, MainCache] = OrderedDict()
        """The least recently used first."""
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._mains)

    @property
    def num_tokens(self) -> int:
        return self.num_used_tokens + self.num_unused_tokens

    def find(self, token_ids: tuple[int, ...], adapter: str = "") -> MainCache | None:
        return self._mains.get((adapter, token_ids))

    def find_prefix(self, token_ids: tuple[int, ...], adapter: str = "") -> MainCache | None:
        """The longest complete main that these tokens begin with; one look-up per length held."""
        for length in sorted((n for n in self._lengths if n < len(token_ids)), reverse=True):
            main = self._mains.get((adapter, token_ids[:length]))
            if main is not None and main.complete:
                return main
        return None

    def add(self, token_ids: tuple[int, ...], adapter: str = "") -> MainCache:
        """A new main, not used by anybody yet."""
        main = MainCache(token_ids, adapter)
        self._mains[main.key] = self._unused[main.key] = main
        self.num_unused_tokens += len(main)
        self._lengths[len(main)] += 1
        return main

    def acquire(self, main: MainCache) -> None:
        """Count one more user; a used main is never dropped."""
        if main.users == 0:
            del self._unused[main.key]
            self.num_unused_tokens -= len(main)
            self.num_used_tokens += len(main)
        main.users += 1

    def release(self, main: MainCache) -> None:
        """Count one user less; a complete main without users is kept for reuse, and others may be dropped for it."""
        main.users -= 1
        if main.users > 0:
            return
        self._unused[main.key] = main
        self.num_used_tokens -= len(main)
        self.num_unused_tokens += len(main)
        if main.complete:
            self.evict()
        else:
            self._drop(main)

    def evict(self, max_unused_tokens: int | None = None) -> None:
        """Drop unused mains, oldest first, until at most this many of their tokens (the limit) are kept."""
        limit = self.max_tokens if max_unused_tokens is None else min(max_unused_tokens, self.max_tokens)
        while self.num_unused_tokens > limit:
            self._drop(next(iter(self._unused.values())))

    def nbytes(self) -> int:
        return sum(main.nbytes() for main in self._mains.values())

    def _drop(self, main: MainCache) -> None:
        del self._mains[main.key], self._unused[main.key]
        self.num_unused_tokens -= len(main)
        self._lengths[len(main)] -= 1
        if not self._lengths[len(main)]:
            del self._lengths[len(main)]


@dataclass
class BranchSlots:
    """Keys and values of the running branches, one slot each, so that all of them are attended to in one call.

    Per layer: keys and values [S, H, C, D]. Running branches hold slots 0…n-1 (`compact` keeps it so).
    """

    num_slots: int = 0
    capacity: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def reserve(self, num_slots: int, capacity: int) -> None:
        """Make room for the branches in the first `num_slots` slots, none longer than `capacity` tokens."""
        if num_slots <= self.num_slots and capacity <= self.capacity:
            return
        # Sized for what runs now: one long branch in a place where many short ones ran must not make all slots long.
        # An eighth on top: a step of decoding must not copy all slots each time a branch joins or grows.
        slots = num_slots + num_slots // 8
        rows = -(-(capacity + capacity // 8) // _CAPACITY_STEP) * _CAPACITY_STEP
        kept_slots, kept_rows = min(num_slots, self.num_slots), min(capacity, self.capacity)
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = old.new_zeros(slots, old.shape[1], rows, old.shape[3])
                new[:kept_slots, :, :kept_rows] = old[:kept_slots, :, :kept_rows]
                store[layer] = new
        self.num_slots, self.capacity = slots, rows

    def write(self, layer: int, slots_T: Tensor, places_T: Tensor, keys_HTD: Tensor, values_HTD: Tensor) -> None:
        if layer not in self.keys:
            for store, new in ((self.keys, keys_HTD), (self.values, values_HTD)):
                # Zeros, not empty: unwritten places are masked, but masked NaN would still spread.
                store[layer] = new.new_zeros(self.num_slots, new.shape[0], self.capacity, new.shape[-1])
        self.keys[layer][slots_T, :, places_T] = keys_HTD.transpose(0, 1)
        self.values[layer][slots_T, :, places_T] = values_HTD.transpose(0, 1)

    def move(self, source: int, target: int, length: int) -> None:
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[target, :, :length] = tensor[source, :, :length]

    def clear(self) -> None:
        """Give the memory back."""
        self.keys.clear()
        self.values.clear()
        self.num_slots = self.capacity = 0

    def nbytes(self) -> int:
        tensors = (*self.keys.values(), *self.values.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kv_bytes(main: MainCache) -> int:
    """Bytes per token over all layers, measured on a filled main."""
    return -(-main.nbytes() // max(1, main.num_cached_tokens))


def default_kv_cache_bytes(device: torch.device, *, group: Path = _CONTROL_GROUP) -> int:
    """Half of the memory that is free now on the device that holds the embeddings.

    Args:
        group: the folder in which the system tells the limits of this container.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch holds for reuse is free for this process, though not for others.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (int(free) + kept) // 2
    return int(min(psutil.virtual_memory().available, free_in_container(group))) // 2


def free_in_container(group: Path = _CONTROL_GROUP) -> float:
    """Bytes that the limit of this container leaves, page cache counted as free; infinity without a limit.

    The system reports what is available on the whole machine, and kills a container that exceeds its own limit.
    """
    found = math.inf
    for limit, used, parts in _LIMITS:
        try:
            room = int((group / limit).read_text()) - int((group / used).read_text())
            cache = re.findall(r"^(?:in)?active_file (\d+)$", (group / parts).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        found = min(found, max(0, room + sum(map(int, cache))))
    return found
