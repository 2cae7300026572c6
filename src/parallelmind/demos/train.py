"""The training demo: what 2D RoPE costs an untuned model and LoRA brings back, and branches that cooperate.

Accuracy is always the share of answers that greedy decoding writes exactly, on held-out records, by a model loaded
anew from what training left on disk.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from parallelmind.columnar import Visibility
from parallelmind.data.sources import JsonlSource
from parallelmind.demos.stories import private_facts, recall, write_records
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import Branch, Request
from parallelmind.settings.model import DEFAULT_STRIDE, TINY_MODEL
from parallelmind.settings.sampling import SamplingParams
from parallelmind.training.callbacks import TrainProgress
from parallelmind.training.options import TrainOptions
from parallelmind.training.run import TrainReport, run_training

_TO_ONE_HELD_OUT = 10
_EVALUATED_RECORDS = 25
_LAST_STEPS = 0.25


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """Records of one kind, and how long to train on them."""

    name: str
    make: Callable[[Random], dict[str, Any]]
    branches: int
    """Of a record."""
    steps: int


RECALL = DemoTask(name="recall", make=recall, branches=8, steps=100)
COOPERATION = DemoTask(name="cooperation", make=private_facts, branches=4, steps=200)


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    report: TrainReport
    seconds: float


@dataclass(frozen=True)
class Measured:
    """How many of the held-out answers are exact."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked


def prepare(task: DemoTask, folder: Path, records: int) -> tuple[Path, Path]:
    """Write the training records of a task and a tenth as many that are held out.

    Raises:
        SettingsError: they cannot be written.
    """
    training, held_out = folder / f"{task.name}.jsonl", folder / f"{task.name}_held_out.jsonl"
    write_records(training, task.make, records, seed=0)
    write_records(held_out, task.make, max(1, records // _TO_ONE_HELD_OUT), seed=1)
    return training, held_out


def train_options(task: DemoTask, folder: Path, visibility: Visibility, steps: int | None = None) -> TrainOptions:
    """What `parallelmind train` is told for a task: LoRA of rank 8 on the bundled model."""
    steps = steps or task.steps
    training, held_out = folder / f"{task.name}.jsonl", folder / f"{task.name}_held_out.jsonl"
    return TrainOptions(
        base_model=TINY_MODEL,
        lora_rank=8,
        lora_name=f"{task.name}_{visibility}",
        rope_2d_mode="split",
        stride=DEFAULT_STRIDE,
        visibility=visibility,
        data_path=training,
        eval_data_path=held_out,
        eval_samples=_EVALUATED_RECORDS,
        eval_interval=max(1, steps // 4),
        branches_per_sample=task.branches,
        branch_range=task.branches,  # as few positions as that are learned in a few minutes
        batch_size=128,
        max_steps=steps,
        learning_rate=5e-3,
        dtype="float32",
        device="cpu",
        out_dir=folder,
        log_interval=10,
        save_interval=2 * steps,
        overwrite=True,
        hf={
            "warmup_steps": 10,
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": max(1, round(steps * _LAST_STEPS))},
            "adam_beta2": 0.98,
        },
    )


def command(options: TrainOptions) -> str:
    """The command line that does the same, for a shell."""
    plain = TrainOptions(base_model=options.base_model, data_path=options.data_path)
    flags: dict[str, Any] = {"base_model": options.base_model, "data_path": options.data_path}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if item.name != "hf" and value != getattr(plain, item.name):
            flags[item.name] = value
    words = ["parallelmind", "train"]
    for name, value in (flags | options.hf).items():
        values = value if isinstance(value, tuple) else (json.dumps(value) if isinstance(value, dict) else value,)
        words += [f"--{name}"] if value is True else [f"--{name}", *map(str, values)]
    return shlex.join(words)


def train(options: TrainOptions, progress: TrainProgress) -> Trained:
    """Run the training. Raises ParallelMindError."""
    began = time.monotonic()
    with _one_thread():
        report = run_training(options, progress=progress)
    gc.collect()  # Trainer holds itself in cycles, and with it the model
    return Trained(report, time.monotonic() - began)


def measure(held_out: Path, *, adapter: Path | None = None, **settings: Any) -> Measured:
    """Answer the held-out records; with an adapter its own settings hold, else `settings` of the loader."""
    engine = Engine.from_pretrained(TINY_MODEL, lora_path=adapter, dtype="float32", device="cpu", **settings)
    questions = list(_questions(held_out))
    with _one_thread():
        results = engine.generate([request for request, _ in questions])
    hits = [
        answer.finish_reason == "stop" and answer.text.strip() == expected
        for result, (_, answers) in zip(results, questions, strict=True)
        for answer, expected in zip(result.branches, answers, strict=True)
    ]
    return Measured(sum(hits), len(hits))


@contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small gains nothing from a second thread, and is much slower with one where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _questions(held_out: Path) -> Iterator[tuple[Request, list[str]]]:
    sampling = SamplingParams(max_new_tokens=12, temperature=0)
    for row in JsonlSource(held_out).read():
        branches = row.fields["branches"]
        yield (
            Request(
                main=row.fields["main"],
                branches=[Branch(prompt=branch["prompt"], sampling=sampling) for branch in branches],
            ),
            [branch["completion"].strip() for branch in branches],
        )
