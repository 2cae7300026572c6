"""Runs that are killed, run out of disk or are told to stop: what is on disk is whole, the same command goes on."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind.errors import AdapterError, TrainingError
from parallelmind.training.files import RunFiles
from parallelmind.training.options import TrainOptions
from tests.training.runs import (
    Killed,
    RecordedProgress,
    assert_equal,
    options,
    raises_killed,
    train,
    weights,
)

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "trainer" / "train_hf_parallel_lora.py")
FINAL = "lora/hf_parallel_lora_final.pth"


class Process:
    """The documented script as a process, with its log read line by line."""

    def __init__(self, model: Path, data: Path, out: Path, *flags: object, launcher: tuple[str, ...] = ()):
        given = ["--base_model", model, "--data_path", data, "--out_dir", out, "--device", "cpu", "--dtype", "float32"]
        given += ["--branches_per_sample", 3, "--batch_size", 6, "--learning_rate", 0.01, "--log_interval", 1, *flags]
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, *launcher, SCRIPT, *map(str, given)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, text: str, times: int = 1) -> bool:
        """Whether that many lines with the text come before the end."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            times -= text in line
            if not times:
                return True
        return False

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        self.wait_for("\0")
        return self._process.wait(timeout=300)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error: out of memory\nSearch")]
)
def test_out_of_memory_names_the_flags_that_help(error: Exception, model: Path, data: Path, tmp_path: Path) -> None:
    def fill_memory(step: int) -> None:
        raise error

    with pytest.raises(TrainingError, match=r"^out of memory with --batch_size 6; lower it .*out of memory\)$"):
        train(options(model, data, tmp_path / "out"), RecordedProgress(fill_memory))


def killed_again_and_again(model: Path, data: Path, out: Path, flags: list[object], *, kills: int, seed: int) -> int:
    """SIGKILL in the midst of steps and saves; how often it came to that before the end."""
    rng = random.Random(seed)
    done = 0
    while done < kills:
        process = Process(model, data, out, *flags)
        if not process.wait_for("loss", times=rng.randint(2, 4)):
            process.end()
            break
        time.sleep(rng.random() * 0.05)  # so that it also falls into the writing of a checkpoint
        process.send(signal.SIGKILL)
        assert process.end() == -signal.SIGKILL
        done += 1
    return done


CHANGING = ["--lora_dropout", 0.2, "--accumulation_steps", 2, "--save_interval", 2, "--warmup_steps", 3]


def changing(model: Path, data: Path, out: Path, **more: Any) -> TrainOptions:
    """The same in Python."""
    same: dict[str, Any] = {"lora_dropout": 0.2, "accumulation_steps": 2, "save_interval": 2}
    return options(model, data, out, hf={"warmup_steps": 3}, **same, **more)


def test_a_killed_process_goes_on_to_the_same_bytes(model: Path, data: Path, tmp_path: Path) -> None:
    whole = train(changing(model, data, tmp_path / "whole", epochs=4)).written
    flags = [*CHANGING, "--epochs", 4]
    assert killed_again_and_again(model, data, tmp_path / "cut", flags, kills=1, seed=0) == 1
    assert not (tmp_path / "cut" / FINAL).exists()
    assert train(changing(model, data, tmp_path / "cut", epochs=4)).resumed_from > 0
    assert (tmp_path / "cut" / FINAL).read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_many_kills_change_nothing(streaming: bool, model: Path, data: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"use_streaming": True, "shuffle_buffer": 7} if streaming else {}
    whole = train(changing(model, data, tmp_path / "whole", epochs=6, **more)).written
    flags = [*CHANGING, "--epochs", 6, *(["--use_streaming", "--shuffle_buffer", 7] if streaming else [])]
    assert killed_again_and_again(model, data, tmp_path / "cut", flags, kills=8, seed=1 + streaming) >= 5
    process = Process(model, data, tmp_path / "cut", *flags)
    assert process.end() == 0, "".join(process.lines[-20:])
    assert (tmp_path / "cut" / FINAL).read_bytes() == whole.read_bytes()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write more to any file of this process, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_that_cannot_be_written_to_their_end(model: Path, data: Path, tmp_path: Path) -> None:
    """While a checkpoint is written, while the adapter of a step is, and while the last adapter is."""
    out = tmp_path / "full"
    chosen = options(model, data, out, save_interval=2, epochs=2, lora_dropout=0.2)
    whole = train(options(model, data, tmp_path / "whole", save_interval=2, epochs=2, lora_dropout=0.2)).written

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    with raises_killed():
        train(chosen, RecordedProgress(kill))
    files = RunFiles(out, "hf_parallel_lora")
    with files_of_at_most(60_000), pytest.raises(TrainingError, match=r"checkpoint-4: the checkpoint could not .*make"):
        train(chosen)
    last = files.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-2"
    assert not (last.parent / "checkpoint-4").exists()
    assert train(chosen).resumed_from == 2
    assert files.adapter(None).read_bytes() == whole.read_bytes()
    with (
        files_of_at_most(10_000),
        pytest.raises(AdapterError, match=r"could not be written.*a former one is unchanged"),
    ):
        train(chosen)  # nothing is left to train, so it writes the adapter again
    assert files.adapter(None).read_bytes() == whole.read_bytes()
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_sigterm_under_torchrun_saves_and_resumes(model: Path, data: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    flags = ["--ddp", "--epochs", 4, "--lora_dropout", 0.2]
    whole = Process(model, data, tmp_path / "whole", *flags, launcher=launcher)
    assert whole.end() == 0, "".join(whole.lines[-20:])
    process = Process(model, data, tmp_path / "cut", *flags, launcher=launcher)
    assert process.wait_for("loss", times=3)
    process.send(signal.SIGTERM)
    assert process.end() != 0
    last = RunFiles(tmp_path / "cut", "hf_parallel_lora").last_checkpoint()
    assert last is not None, "".join(process.lines[-40:])
    assert not (tmp_path / "cut" / FINAL).exists()
    process = Process(model, data, tmp_path / "cut", *flags, launcher=launcher)
    assert process.end() == 0, "".join(process.lines[-20:])
    assert any(f"continuing from {last}" in line for line in process.lines)
    assert_equal(weights(tmp_path / "cut" / FINAL), weights(tmp_path / "whole" / FINAL))
