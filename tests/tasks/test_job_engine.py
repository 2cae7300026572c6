"""Which device a worker's model goes to."""

from __future__ import annotations

import pytest

from parallelmind.jobs.gpus import GpuShare
from parallelmind.jobs.task import WorkerInfo
from parallelmind.settings.model import ModelOptions
from parallelmind.tasks.job_engine import spread_over


@pytest.mark.parametrize(
    ("gpus", "given", "expected"),
    [
        (("0", "1"), {}, "auto"),
        (("0", "1"), {"device": "cuda"}, "auto"),
        (("0", "1"), {"device": "cpu"}, None),
        (("0", "1"), {"device": "cuda:1"}, None),
        (("0", "1"), {"device_map": "balanced"}, "balanced"),
        (("3",), {}, None),
        ((), {}, None),
    ],
)
def test_a_worker_with_several_gpus_spreads_the_model(
    gpus: tuple[str, ...], given: dict[str, str], expected: str | None
) -> None:
    worker = WorkerInfo(gpus=GpuShare(devices=gpus, shared=False))
    assert spread_over(ModelOptions(base_model="m", **given), worker).device_map == expected  # type: ignore[arg-type]


def test_without_workers_nothing_is_spread() -> None:
    assert spread_over(ModelOptions(base_model="m"), None).device_map is None
