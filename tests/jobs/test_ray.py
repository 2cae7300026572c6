"""Jobs on a Ray cluster of several nodes on this machine; a node is lost while it works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.tasks import Records, read_rows, write_input

ray = pytest.importorskip("ray")

from parallelmind.errors import JobError  # noqa: E402
from parallelmind.jobs.job import Job  # noqa: E402
from parallelmind.jobs.run import JobReport, RunOptions, run_job  # noqa: E402


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(data: Path, out: Path, task: Any, workers: int, address: str, **options: Any) -> JobReport:
    job = Job(kind="test", input_path=data, out_path=out, settings={})
    report = run_job(job, task, options=RunOptions(ray=address, workers=workers, **options))
    assert report is not None
    return report


@pytest.mark.slow
def test_a_lost_node_loses_no_record(tmp_path: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    data = write_input(tmp_path / "in.jsonl", ({"n": n, "text": "字"} for n in range(400)))
    out = tmp_path / "out.jsonl"
    removed = []

    class RemovesNode:
        """Progress that takes a node away after the first hundred records."""

        def start(self, *, total: int, done: int) -> None: ...
        def stop(self) -> None: ...

        def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: object) -> None:
            if done > 100 and not removed:
                removed.append(done)
                cluster.remove_node(node, allow_graceful=False)

    job = Job(kind="test", input_path=data, out_path=out, settings={})
    run_job(job, Records(seconds=0.02), options=RunOptions(ray=cluster.address, workers=2), progress=RemovesNode())
    assert removed
    assert read_rows(out) == [{"n": n, "twice": 2 * n, "text": "字"} for n in range(400)]


@pytest.mark.slow
def test_a_record_that_kills_actors_fails_and_the_rest_goes_on(tmp_path: Path, cluster: Any) -> None:
    rows = [{"n": n, "do": "die" if n == 5 else None} for n in range(30)]
    data, out = write_input(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    report = run(data, out, Records(), 1, cluster.address)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(30))
    assert [row["n"] for row in answers if "error" in row] == [5]
    assert report.statistics.errors_by_class == {"WorkerDied": 1}
    assert json.loads((out.with_name("out.jsonl.job") / "stats.json").read_text())["processed"] == 30


@pytest.mark.slow
def test_actors_that_die_as_they_start_fail_the_run_and_no_record(tmp_path: Path, cluster: Any) -> None:
    data, out = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(4))), tmp_path / "out.jsonl"
    with pytest.raises(JobError, match=r"worker 0 was lost 3 times before it could begin\. 4 records have no result"):
        run(data, out, Records(crash_after=1.5), 1, cluster.address)
    run(data, out, Records(), 1, cluster.address)
    assert [row["twice"] for row in read_rows(out)] == [0, 2, 4, 6]
