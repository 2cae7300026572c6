"""One process at a time trains under a name."""

from __future__ import annotations

import errno
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from parallelmind.errors import DataError, TrainingError
from parallelmind.io import locks
from parallelmind.training import naming
from parallelmind.training.files import RunFiles
from parallelmind.training.options import TrainOptions
from tests.training.runs import (
    Killed,
    RecordedProgress,
    options,
    raises_killed,
    train,
)


@pytest.mark.parametrize("overwrite", [False, True])
def test_while_a_run_goes_on(
    overwrite: bool, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings are refused with the remedy; others get the next name, and both end as if alone."""
    monkeypatch.setattr(naming, "_LEAVING_SECONDS", 0.05)
    first = options(model, data, tmp_path, max_steps=2, save_interval=1, overwrite=overwrite)
    others: list[Any] = []

    def meanwhile(step: int) -> None:
        if step == 1:
            with pytest.raises(TrainingError, match=r"another run is writing .*hf_parallel_lora; wait .*--lora_name"):
                train(first)
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
    with naming.taken_run(chosen, {"seed": seed}) as run:
        pipe.send(run.files.name)
        pipe.recv()


def test_the_lock_of_a_run_that_is_ending_is_waited_for(model: Path, data: Path, tmp_path: Path) -> None:
    """And what it wrote meanwhile counts."""
    chosen = options(model, data, tmp_path, max_steps=1)
    train(chosen)
    files = RunFiles(tmp_path, "hf_parallel_lora")
    written = files.settings.read_text()
    lock = FileLock(files.checkpoints.with_name(".hf_parallel_lora.lock"))
    seen: list[str] = []
    real = naming.choose_run

    def choose(*args: Any) -> Any:
        run = real(*args)
        if not seen:  # between the choice and the lock another run takes the name and ends
            with lock:
                files.settings.write_text(written.replace('"seed": 42', '"seed": 43'))
        seen.append(run.files.name)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naming, "choose_run", choose)
        assert train(chosen).name == "hf_parallel_lora_2"
    assert seen[:2] == ["hf_parallel_lora", "hf_parallel_lora_2"]


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


@pytest.mark.parametrize("kind", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_disk_without_locks(
    kind: Exception, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def acquire(*_: Any, **__: Any) -> None:
        raise kind

    monkeypatch.setattr(locks.FileLock, "acquire", acquire)
    with naming.taken_run(options(model, data, tmp_path), {"seed": 1}) as run:
        assert run.files.former_settings() == {"seed": 1}
    assert "cannot lock" in caplog.text


def test_a_folder_that_cannot_be_written(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    chosen = options(model, data, tmp_path / "out")
    with (
        pytest.raises(TrainingError, match=r"could not be written .* give another --out_dir"),
        naming.taken_run(chosen, {}),
    ):
        pass
