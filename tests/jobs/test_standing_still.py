"""Processes that are stopped, interrupted, or lose who started them: nothing hangs, nothing is blamed that is not."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallelmind.errors import JobError
from parallelmind.jobs.worker_state import WorkerState
from tests.jobs.launching import RANK
from tests.jobs.ledgers import stored_results
from tests.jobs.tasks import Records, doubled, read_rows, run, write_input


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def start(task: Records, folder: Path, *, launcher: list[str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """A run as a process of its own, with its own group."""
    script, asked = folder / "run.py", folder / "asked"
    script.write_text("import logging; logging.basicConfig(level=logging.INFO)\n" + RANK)
    asked.write_bytes(pickle.dumps((task, options)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    command = [*(launcher or [sys.executable]), str(script), str(asked), str(folder / "answer")]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)
    return found


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("do", ["hang", "stop"])
@pytest.mark.parametrize("stopped", [False, True])
def test_ctrl_c_ends_a_run_whose_worker_hears_nothing(tmp_path: Path, out: Path, do: str, stopped: bool) -> None:
    log = tmp_path / "log"
    log.touch()
    data = write_input(tmp_path / "in.jsonl", [{"n": 0}, {"n": 1, "do": do}, {"n": 2}])
    process = start(Records(data, out, log=log), tmp_path, workers=1)
    wait_for(lambda: len(log.read_text().splitlines()) == 2)
    workers = workers_of(process)
    if stopped:
        for worker in workers:
            worker.suspend()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 10  # a second where nothing else runs
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_worker_that_is_stopped_while_it_loads_is_replaced_and_given_up(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", [{"n": 0}])
    with pytest.raises(JobError, match=r"worker 0 stood still for \d+ seconds .* 3 times before it could begin"):
        run(Records(data, out, stop_loading=(0,)), 1, record_timeout=0.5)


def test_a_coordinator_that_was_stopped_blames_no_worker(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(120)))
    process = start(Records(data, out, seconds=0.02), tmp_path, workers=2, record_timeout=2.0)
    for _ in range(2):
        before = stored_results(out)
        wait_for(lambda before=before: stored_results(out) > before)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "a new one takes its place" not in said
    assert read_rows(out) == doubled(120)


def test_a_message_that_waited_to_be_heard_sets_no_clock_back() -> None:
    worker = WorkerState(state="working")
    worker.hears(10.0, progress=True)
    worker.forgive(30.0)
    worker.hears(10.5, progress=True)  # it came before the pause, and was heard after it
    assert not worker.hang(41.0, timeout=2.0)
    assert worker.hang(42.5, timeout=2.0)


def test_a_result_that_comes_late_from_a_stopped_worker_does_not_count(tmp_path: Path, out: Path) -> None:
    """Its records were given to others when it was taken for hung; then it goes on."""
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(60)))
    process = start(Records(data, out, seconds=0.05), tmp_path, workers=2, record_timeout=1.0)
    wait_for(lambda: stored_results(out) > 4)
    workers = workers_of(process)
    workers[0].suspend()
    time.sleep(1.3)
    with_luck = threading.Thread(target=lambda: workers[0].is_running() and os.kill(workers[0].pid, signal.SIGCONT))
    with_luck.start()
    _, said = process.communicate(timeout=120)
    with_luck.join()
    assert process.returncode == 0, said
    assert read_rows(out) == doubled(60)


def test_files_that_are_edited_while_the_job_runs_end_up_in_no_answer(tmp_path: Path, out: Path) -> None:
    """A worker that takes the place of a lost one would load other weights than the one before."""
    weights = tmp_path / "weights"
    weights.write_text("1")
    data = write_input(tmp_path / "in.jsonl", [{"n": 0}, {"n": 1, "do": "edit"}, {"n": 2, "do": "die"}, {"n": 3}])
    task = Records(data, out, weights=weights)
    with pytest.raises(JobError, match=r"the files of weights were edited while the job ran.* records have no result"):
        run(task, 1)
    weights.write_text("1")
    more = Records(data, tmp_path / "more.jsonl", weights=weights, edit_as_it_loads=True)
    with pytest.raises(JobError, match=r"the files of weights were edited while the job ran"):
        run(more, 0)


def test_who_writes_is_named(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", [{"n": 0, "do": "hang"}])
    process = start(Records(data, out), tmp_path, workers=1)
    [worker] = wait_for(lambda: workers_of(process))
    wait_for((Path(f"{out}.job") / "writer.json").exists)
    with pytest.raises(JobError) as caught:
        run(Records(data, out), 1)
    said = str(caught.value)
    assert re.search(rf"another run is writing .*out\.jsonl \(process {process.pid} on \S+ with .*{worker.pid}", said)
    assert "run.py" in said
    process.kill()
    process.communicate()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


@pytest.mark.parametrize(
    "at",
    ["work", pytest.param("loading", marks=pytest.mark.slow), pytest.param("a system call", marks=pytest.mark.slow)],
)
def test_ranks_end_with_a_torchrun_that_was_killed(tmp_path: Path, out: Path, at: str) -> None:
    pytest.importorskip("torch")
    log = tmp_path / "log"
    log.touch()
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(10_000)))
    if at == "a system call":
        data = tmp_path / "pipe"  # nobody writes into it, so that reading it does not end
        os.mkfifo(data)
    task = Records(data, out, seconds=0.02, log=log, slow_loading=3600.0 if at == "loading" else 0.0)
    process = start(task, tmp_path, launcher=TORCHRUN)
    if at == "work":
        wait_for(lambda: log.read_text())
    ranks = wait_for(lambda: len(found := psutil.Process(process.pid).children(recursive=True)) >= 2 and found)
    if at != "work":
        time.sleep(4)
        ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
