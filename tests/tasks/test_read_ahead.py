import threading
import time
from collections.abc import Iterator

import pytest

from parallelmind.tasks.batch_worker import map_ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_keep_the_order(workers: int) -> None:
    def slow_when_even(n: int) -> int:
        time.sleep(0.002 * (n % 2 == 0))
        return n * n

    results = map_ahead(slow_when_even, range(40), workers=workers, size=lambda n: 1)
    assert list(results) == [n * n for n in range(40)]


@pytest.mark.parametrize(
    ("workers", "size", "ahead"), [(0, 1, 1), (1, 1, 8), (2, 1, 16), (2, 16 * 2**20, 2), (2, 100 * 2**20, 1)]
)
def test_no_more_is_read_than_the_bounds_allow(workers: int, size: int, ahead: int) -> None:
    taken = []

    def source() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    results = map_ahead(lambda n: n, source(), workers=workers, size=lambda n: size)
    next(results)
    assert len(taken) == ahead
    results.close()
    assert len(taken) == ahead


def test_work_is_done_in_as_many_threads_as_asked_for() -> None:
    at_once = threading.Barrier(3, timeout=60)
    list(map_ahead(lambda n: at_once.wait(), range(3), workers=3, size=lambda n: 1))
    here = threading.current_thread()
    assert set(map_ahead(lambda n: threading.current_thread(), range(3), workers=0, size=lambda n: 1)) == {here}


def test_an_error_comes_out_at_its_place() -> None:
    results = map_ahead(lambda n: 10 // n, [5, 2, 0, 1], workers=2, size=lambda n: 1)
    assert [next(results), next(results)] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        next(results)
