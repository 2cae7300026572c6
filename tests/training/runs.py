"""Small training runs in this process, on a random model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from parallelmind.training.options import TrainOptions
from parallelmind.training.run import TrainReport, run_training
from tests.families import char_tokenizer, tiny_model


class RecordedProgress:
    """Keeps what it is told; `on_step` may raise."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None):
        self.entries: list[dict[str, Any]] = []
        self.total: int | None = None
        self.done_before = 0
        self.stopped = 0
        self._on_step = on_step

    def start(self, *, total: int | None, done: int) -> None:
        self.total, self.done_before = total, done

    def step(self, done: int) -> None:
        self._on_step(done)

    def log(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def stop(self) -> None:
        self.stopped += 1


def save_model(folder: Path, family: str = "qwen2", **overrides: Any) -> Path:
    tiny_model(family, **overrides).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return folder


def write_records(path: Path, count: int = 24, branches: int = 3) -> Path:
    """Records of different lengths, prompts and completions; every third branch is a text without a prompt."""

    def branch(number: int, place: int) -> str | dict[str, str]:
        completion = f"a{place}" * (1 + (number + place) % 4)
        if (number + place) % 3 == 2:
            return f"{number % 7}{completion}"
        return {"prompt": f"q{place}?" * (1 + number % 2), "completion": completion}

    rows = [
        {
            "main": "m" * (3 + number % 5) + str(number),
            "branches": [branch(number, place) for place in range(branches)],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(model: Path, data: Path, out: Path, **more: Any) -> TrainOptions:
    values: dict[str, Any] = {
        "base_model": str(model),
        "data_path": data,
        "out_dir": out,
        "branches_per_sample": 3,
        "batch_size": 6,
        "learning_rate": 1e-2,
        "log_interval": 1,
        "save_interval": 1000,
        "dtype": "float32",
        "device": "cpu",
    }
    return TrainOptions(**(values | more))


def train(chosen: TrainOptions, progress: RecordedProgress | None = None) -> TrainReport:
    return run_training(chosen, progress=progress or RecordedProgress())


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    """`tolerance` is a share of the largest weight."""
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    for name, value in one.items():
        difference = float((value - other[name]).abs().max())
        assert difference <= tolerance * scale, f"{name} differs by {difference}"


@contextmanager
def raises_killed() -> Iterator[None]:
    try:
        yield
    except Killed:
        return
    raise AssertionError("the run was not killed")


class Killed(BaseException):
    """Ends a run without a chance to save, as a kill does."""
