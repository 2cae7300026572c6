"""One process at a time trains under a name."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from parallelmind.errors import DataError, TrainingError
from parallelmind.io.locks import is_locked
from parallelmind.training.files import RunFiles
from parallelmind.training.naming import taken_run
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
    out = tmp_path / "out"
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.training.runs import options\n"
        "from parallelmind.training.naming import taken_run\n"
        "model, data, out, seed = sys.argv[1:]\n"
        "chosen = options(Path(model), Path(data), Path(out), seed=int(seed))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "with taken_run(chosen, {'seed': int(seed)}) as run:\n"
        "    print(run.files.name, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(model), str(data), str(out), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for seed in (1, 2)
    ]  # fmt: skip
    lines: dict[str, list[str]] = {}
    for wanted in ("ready", "name"):
        for process in started:
            assert process.stdout is not None
            lines.setdefault(wanted, []).append(process.stdout.readline().strip())
            if wanted == "ready":
                continue
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    assert lines["ready"] == ["ready", "ready"]
    assert sorted(lines["name"]) == ["hf_parallel_lora", "hf_parallel_lora_2"]
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode == 0


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
