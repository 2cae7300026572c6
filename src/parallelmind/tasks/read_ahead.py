"""Do work on the next items in threads while the current one is used, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_ITEMS_PER_WORKER = 8
_BYTES_AHEAD = 32 * 2**20


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, size: Callable[[Item], int]
) -> Generator[Result, None, None]:
    """Yield `function(item)` of each item in order.

    `workers` threads work ahead, on at most 8 items each, and 32 MiB of items by `size` in all (a single one
    may be larger). With 0 workers nothing is done before it is asked for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    source = iter(items)
    ahead: deque[tuple[Future[Result], int]] = deque()
    bytes_ahead = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    try:
        exhausted = False
        while True:
            while not exhausted and len(ahead) < workers * _ITEMS_PER_WORKER and bytes_ahead < _BYTES_AHEAD:
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                else:
                    ahead.append((pool.submit(function, item), size(item)))
                    bytes_ahead += ahead[-1][1]
            if not ahead:
                return
            future, item_size = ahead.popleft()
            result = future.result()
            bytes_ahead -= item_size
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
