"""The three transports, each started as it is in life, with one way to ask for a run."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from parallelmind.errors import JobError
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import JobReport, run_job
from tests.jobs.tasks import Records

RANK = """
import pickle, sys
from pathlib import Path
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.run import run_job
if __name__ == "__main__":
    task, options = pickle.loads(Path(sys.argv[1]).read_bytes())
    try:
        report = run_job(task, RunOptions(rank=current_rank(), **options))
    except Exception as error:
        report = error
    if current_rank().rank == 0:
        Path(sys.argv[2]).write_bytes(pickle.dumps(report))
    sys.exit(isinstance(report, Exception))
"""


class Launcher(Protocol):
    """Runs a job with so many workers."""

    name: str

    def __call__(self, task: Records, workers: int, **options: Any) -> JobReport: ...


class Processes:
    name = "local"

    def __call__(self, task: Records, workers: int, **options: Any) -> JobReport:
        report = run_job(task, RunOptions(workers=workers, **options))
        assert report
        return report


class Ranks:
    """This process launches them, as torchrun does on one machine; the job of rank 0 is that of all."""

    name = "torchrun"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.codes: list[int] = []

    def __call__(self, task: Records, workers: int, **options: Any) -> JobReport:
        script, asked, answer = (self._folder / name for name in ("rank.py", "asked", "answer"))
        script.write_text(RANK)
        asked.write_bytes(pickle.dumps((task, options)))
        ranks = max(workers, 2)
        with contextlib.ExitStack() as stack:
            processes = []
            for rank in range(ranks):
                places = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
                environment = os.environ | {name: str(value) for name, value in places.items()}
                environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
                command = [sys.executable, str(script), str(asked), str(answer)]
                processes.append(stack.enter_context(subprocess.Popen(command, env=environment)))
                stack.callback(processes[-1].kill)
            self.codes = [process.wait(timeout=300) for process in processes]
        report = pickle.loads(answer.read_bytes())
        if isinstance(report, Exception):
            raise report
        assert isinstance(report, JobReport)
        return report


class Actors:
    name = "ray"

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, task: Records, workers: int, **options: Any) -> JobReport:
        report = run_job(task, RunOptions(launcher="ray", ray_address=self._address, workers=workers, **options))
        assert report
        return report


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """Of one node with room for three workers."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


__all__ = ["Actors", "JobError", "Launcher", "Processes", "Ranks", "ray_cluster"]
