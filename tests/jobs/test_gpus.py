"""Which worker owns which GPUs: the rules of the documentation, case by case."""

from __future__ import annotations

import pytest

from parallelmind.errors import SettingsError
from parallelmind.jobs.gpus import GpuShare, assign_gpus, visible_gpus

EIGHT = [str(number) for number in range(8)]
UUIDS = ["GPU-0aa1", "GPU-1bb2", "MIG-2cc3/1/0"]


def shares(workers: int, gpus: list[str], gpus_per_worker: int | None = None) -> list[tuple[str, ...]]:
    return [assign_gpus(worker, workers, gpus, gpus_per_worker=gpus_per_worker).devices for worker in range(workers)]


@pytest.mark.parametrize(
    ("workers", "gpus", "each", "expected"),
    [
        (4, EIGHT, None, [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7")]),
        (1, EIGHT, None, [tuple(EIGHT)]),
        (8, EIGHT, None, [(name,) for name in EIGHT]),
        (3, EIGHT, None, [("0", "1"), ("2", "3"), ("4", "5")]),  # 8 // 3 = 2, and two are left over
        (2, ["3"], None, [("3",), ("3",)]),
        (5, ["0", "1"], None, [("0",), ("1",), ("0",), ("1",), ("0",)]),
        (3, [], None, [(), (), ()]),
        (2, ["4", "6", "7"], None, [("4",), ("6",)]),
        (3, UUIDS, None, [(name,) for name in UUIDS]),
        (2, EIGHT, 1, [("0",), ("1",)]),
        (2, EIGHT, 4, [("0", "1", "2", "3"), ("4", "5", "6", "7")]),
    ],
)
def test_shares(workers: int, gpus: list[str], each: int | None, expected: list[tuple[str, ...]]) -> None:
    assert shares(workers, gpus, each) == expected


@pytest.mark.parametrize(
    ("environ", "count", "expected"),
    [
        ({}, 3, ["0", "1", "2"]),
        ({}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 8, []),
        ({"CUDA_VISIBLE_DEVICES": "2,5, 7"}, 8, ["2", "5", "7"]),
        ({"CUDA_VISIBLE_DEVICES": "2,-1,7"}, 8, ["2"]),
        ({"CUDA_VISIBLE_DEVICES": "1,2,0"}, 2, ["1"]),  # there is no 2, and CUDA stops there
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, ["0", "1"]),  # they cannot be counted
        ({"CUDA_VISIBLE_DEVICES": ",".join(UUIDS)}, 1, UUIDS),
    ],
)
def test_what_is_visible(environ: dict[str, str], count: int, expected: list[str]) -> None:
    assert visible_gpus(environ, count) == expected


def test_what_a_worker_is_told_and_what_the_log_says() -> None:
    own, shared, none = (assign_gpus(1, 2, gpus) for gpus in (["2", "5", "7"], ["5"], []))
    assert (own.environment, str(own)) == ({"CUDA_VISIBLE_DEVICES": "5"}, "GPU 5")
    assert (shared.environment, str(shared)) == ({"CUDA_VISIBLE_DEVICES": "5"}, "GPU 5 (shared)")
    assert (none.environment, str(none)) == ({"CUDA_VISIBLE_DEVICES": ""}, "CPU")
    assert none == GpuShare(devices=(), shared=False)


@pytest.mark.parametrize(
    ("worker", "workers", "gpus", "each", "message"),
    [
        (0, 4, EIGHT, 3, "4 workers with --gpus_per_worker 3 need 12 GPUs, 8 are visible; start fewer workers"),
        (0, 1, [], 1, "--gpus_per_worker is 1, but no GPU is visible; leave it out"),
        (2, 2, EIGHT, None, "worker 2 of 2 does not exist"),
    ],
)
def test_what_cannot_be(worker: int, workers: int, gpus: list[str], each: int | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        assign_gpus(worker, workers, gpus, gpus_per_worker=each)
