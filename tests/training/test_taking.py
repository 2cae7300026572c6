"""One process at a time trains under a name."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from parallelmind.errors import DataError, TrainingError
from parallelmind.io.locks import is_locked
from parallelmind.training.files import RunFiles
from parallelmind.training.naming import taken_run
from parallelmind.training.options import TrainOptions
from tests.training.runs import (
    Killed,
    RecordedProgress,
    options,
    raises_killed,
    train,
)


@pytest.mark.parametrize("overwrite", [False, True])
def test_while_a_run_goes_on(overwrite: bool, model: Path, data: Path, tmp_path: Path) -> None:
    """The same settings are refused with the remedy; others get the next name, and both end as if alone."""
    first = options(model, data, tmp_path, max_steps=2, save_interval=1, overwrite=overwrite)
    others: list[Any] = []

    def meanwhile(step: int) -> None:
        if step == 1:
            same = RunFiles(tmp_path, "hf_parallel_lora").former_settings()
            assert same
            with (
                pytest.raises(TrainingError, match=r"another run is writing .*hf_parallel_lora; wait .*--lora_name"),
                taken_run(first, same, patience=0.05),
            ):
                pass
            others.append(train(options(model, data, tmp_path, max_steps=1, seed=7)))

    report = train(first, RecordedProgress(meanwhile))
    assert (report.name, report.steps, report.resumed_from) == ("hf_parallel_lora", 2, 0)
    assert [other.name for other in others] == ["hf_parallel_lora_2"]
    again = train(options(model, data, tmp_path, max_steps=2, save_interval=1))
    assert (again.name, again.resumed_from) == ("hf_parallel_lora", 2)


def test_two_processes_that_start_at_once(model: Path, data: Path, tmp_path: Path) -> None:
    """With other settings each has its own name, whatever the moment."""
    fork = multiprocessing.get_context("fork")  # all is imported already
    started = []
    for seed in (1, 2):
        ours, theirs = fork.Pipe()
        chosen = options(model, data, tmp_path / "out", seed=seed)
        started.append((fork.Process(target=take, args=(chosen, seed, theirs), daemon=True), ours))
        started[-1][0].start()
    said: list[list[str]] = []
    for _ in ("ready", "name"):
        for _, pipe in started:
            assert pipe.poll(60), said
        said.append([pipe.recv() for _, pipe in started])
        for _, pipe in started:
            pipe.send("go on")
    assert said[0] == ["ready", "ready"]
    assert sorted(said[1]) == ["hf_parallel_lora", "hf_parallel_lora_2"]
    for process, _ in started:
        process.join(60)
        assert process.exitcode == 0


def take(chosen: TrainOptions, seed: int, pipe: Connection) -> None:
    pipe.send("ready")
    pipe.recv()
    with taken_run(chosen, {"seed": seed}) as run:
        pipe.send(run.files.name)
        pipe.recv()


def wait_until_locked(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not is_locked(path):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_lock_of_a_run_that_is_ending_is_waited_for(model: Path, data: Path, tmp_path: Path) -> None:
    """And what it wrote meanwhile counts."""
    chosen = options(model, data, tmp_path, max_steps=1)
    train(chosen)
    files = RunFiles(tmp_path, "hf_parallel_lora")
    written = files.settings.read_text()
    has_lock = threading.Event()

    def other_run() -> None:
        with FileLock(files.checkpoints.with_name(".hf_parallel_lora.lock")):
            has_lock.set()
            wait_until_locked(files.checkpoints.with_name(".choosing.lock"))
            time.sleep(0.3)  # the run below has chosen the name by now, and waits for its lock
            files.settings.write_text(written.replace('"seed": 42', '"seed": 43'))

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(other_run)
        assert has_lock.wait(60)
        assert train(chosen).name == "hf_parallel_lora_2"
        ended.result()


def test_a_run_that_fails_and_leaves_nothing_frees_its_name(model: Path, data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"x": 1}\n')
    out = tmp_path / "out"
    with pytest.raises(DataError):
        train(options(model, bad, out))

    def kill(step: int) -> None:
        raise Killed

    with raises_killed():
        train(options(model, data, out, max_steps=1, seed=3), RecordedProgress(kill))
    assert not RunFiles(out, "hf_parallel_lora").checkpoints.exists()
    assert train(options(model, data, out, max_steps=1)).name == "hf_parallel_lora"


@pytest.mark.filterwarnings("ignore:flock not supported")  # filelock's own, for ENOSYS
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks(
    code: int, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with taken_run(options(model, data, tmp_path), {"seed": 1}) as run:
        assert run.files.former_settings() == {"seed": 1}
    if code != errno.ENOSYS:  # for which filelock takes a lock of its own
        assert "cannot lock" in caplog.text


def test_a_folder_that_cannot_be_written(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    chosen = options(model, data, tmp_path / "out")
    with (
        pytest.raises(TrainingError, match=r"could not be written .* give another --out_dir"),
        taken_run(chosen, {}),
    ):
        pass
