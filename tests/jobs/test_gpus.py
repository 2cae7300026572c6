"""Which worker owns which GPUs: the rules of the documentation, case by case."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import SettingsError
from parallelmind.jobs.gpus import GpuShare, assign_gpus, count_gpus, gpus_of_actor, visible_gpus
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import Rank
from parallelmind.jobs.transports.local import gpu_share

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
        (4, ["0", "1"], 2, [("0", "1")] * 4),
        (4, EIGHT, 3, [("0", "1", "2"), ("3", "4", "5"), ("6", "7", "0"), ("1", "2", "3")]),
        (2, ["5"], 4, [("5",), ("5",)]),
        (2, [], 3, [(), ()]),
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
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None, ["0", "1"]),  # they cannot be counted
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, []),  # there are none, whatever the variable says
        ({}, None, []),
        ({"CUDA_VISIBLE_DEVICES": ",".join(UUIDS)}, 1, UUIDS),
    ],
)
def test_what_is_visible(environ: dict[str, str], count: int | None, expected: list[str]) -> None:
    assert visible_gpus(environ, count) == expected


def test_what_a_worker_is_told_and_what_the_log_says() -> None:
    own, shared, none = (assign_gpus(1, 2, gpus) for gpus in (["2", "5", "7"], ["5"], []))
    assert (own.environment, str(own)) == ({"CUDA_VISIBLE_DEVICES": "5"}, "GPU 5")
    assert (shared.environment, str(shared)) == ({"CUDA_VISIBLE_DEVICES": "5"}, "GPU 5 (shared)")
    assert (none.environment, str(none)) == ({"CUDA_VISIBLE_DEVICES": ""}, "CPU")
    assert none == GpuShare(devices=(), shared=False)


def test_only_workers_that_exist_have_a_share() -> None:
    with pytest.raises(SettingsError, match="worker 2 of 2 does not exist"):
        assign_gpus(2, 2, EIGHT)


@pytest.mark.parametrize(
    ("environ", "count", "total", "expected"),
    [
        ({}, 8, 4, ["0", "1", "2", "3"]),
        ({}, 2, 8, ["0", "1"]),
        ({}, 0, 4, []),
        ({}, 8, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 8, 2, ["4", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 8, 8, ["0", "1"]),
    ],
)
def test_the_first_of_the_visible_ones(environ: dict[str, str], count: int, total: int, expected: list[str]) -> None:
    assert visible_gpus(environ, count, total=total) == expected


@pytest.mark.parametrize(
    ("gpus", "asked", "said"),
    [
        ([], {}, []),
        ([], {"total_gpus": 0}, ["worker 0: CPU"]),
        (
            [],
            {"total_gpus": 4, "gpus_per_worker": 2},
            [
                "no GPU is visible: the workers run on the CPU in spite of --gpus_per_worker 2 and --total_gpus 4",
                "worker 0: CPU",
            ],
        ),
        (
            ["0", "1"],
            {"total_gpus": 8, "gpus_per_worker": 2},
            [
                "4 workers with --gpus_per_worker 2 need 8 GPUs, 2 are there: they share them",
                "worker 0: GPU 0, 1 (shared)",
            ],
        ),
        (
            ["0", "1", "2", "3"],
            {"total_gpus": 8},
            ["--total_gpus 8 is more than the 4 that are visible: those are used", "worker 0: GPU 0"],
        ),
        (EIGHT, {"total_gpus": 8, "gpus_per_worker": 2}, ["worker 0: GPU 0, 1"]),
    ],
)  # fmt: skip
def test_what_the_log_tells_of_a_run(
    gpus: list[str], asked: dict[str, Any], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        gpu_share(Rank(0, 4), RunOptions(workers=4, **asked), gpus)
    assert caplog.messages == said


@pytest.mark.parametrize(
    ("workers", "gpus", "each", "asked"),
    [
        (4, 0, None, 0),
        (4, 8, None, 1),
        (4, 8, 2, 2),
        (4, 2, 2, 0.5),  # two workers on each GPU
        (3, 2, 1, 0.5),
        (3, 8, 4, 2),
        (4, 0, 2, 0),  # Ray would wait for them without end
    ],
)
def test_what_actors_ask_of_a_cluster_that_does_not_grow(
    workers: int, gpus: float, each: int | None, asked: float
) -> None:
    assert gpus_of_actor(workers, gpus, gpus_per_worker=each) == asked


@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("echo 'GPU 0: H100 (UUID: GPU-1)'; echo '  MIG 1g.10gb Device 0: (UUID: MIG-2)'; echo 'GPU 1: H100'", 2),
        ("echo 'NVIDIA-SMI has failed'; exit 9", 0),
    ],
)
def test_gpus_are_counted_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, count: int
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert count_gpus() == count


def test_without_nvidia_smi_the_device_files_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / "null").touch()
    assert count_gpus(tmp_path) == 0
    (tmp_path / "nvidia0").touch()
    assert count_gpus(tmp_path) is None
    monkeypatch.setattr("sys.platform", "win32")
    assert count_gpus(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_gpus": -1}, "--total_gpus is -1; it must be 0"),
        ({"total_gpus": 1, "launcher": "ray"}, "--total_gpus is not for --launcher ray"),
        ({"gpus_per_worker": 0}, "--gpus_per_worker is 0; it must be 1 or more"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RunOptions(workers=2, **options)
