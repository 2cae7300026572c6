"""The training path, on the bundled model in a temporary folder: a step of LoRA, its adapter, and a whole run."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallelmind.data.collator import ParallelPretrainCollator
from parallelmind.demos.batch import read_demo_records
from parallelmind.doctor.check import Check, CheckFailedError, DoctorOptions, Once, Subject
from parallelmind.models.loader import load_model_with_lora
from parallelmind.settings.model import TINY_MODEL
from parallelmind.training.callbacks import SilentTraining
from parallelmind.training.data import batching, load_data
from parallelmind.training.files import RunFiles
from parallelmind.training.forward import PackedForward
from parallelmind.training.model import Trainee, load_trainee, training_device
from parallelmind.training.options import TrainOptions
from parallelmind.training.run import run_training
from parallelmind.training.saving import save_adapter

_RECORDS = 2
_STEPS = 2
_ROUNDING = 1e-4
_PREFIX = "parallelmind-doctor-"
_VERSIONS = "Install the versions of torch, transformers and peft that `parallelmind doctor --only versions` asks for"


def checks(subject: Subject) -> list[Check]:
    return [
        *trial_checks(Once(partial(load_trial, subject.options), "the step")),
        Check("a run of the trainer", partial(_run, subject.options), _VERSIONS),
    ]


def trial_checks(trial: Callable[[], Trial]) -> list[Check]:
    """The checks of a trial that is loaded when the first one runs; they are run in this order."""
    return [
        Check("one step of LoRA", lambda: trial().step(), _VERSIONS),
        Check("save and load the adapter", lambda: trial().save_and_load(), _VERSIONS),
    ]


def load_trial(options: DoctorOptions) -> Trial:
    """Raises as `load_trainee` and `load_data` do."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        settings = _train_options(options, Path(folder))
        device, _ = training_device(settings)
        trainee = load_trainee(settings, device=device)
        trainee.model.to(device)
        rope = trainee.settings
        dataset, _, _ = load_data(settings, trainee, batching(settings, rope.visibility))
        collator = ParallelPretrainCollator(trainee.pad_token_id, stride=rope.branch_stride, visibility=rope.visibility)
        batch = collator(next(iter(dataset)))
    return Trial(
        trainee=trainee,
        device=device,
        inputs={name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)},
        supervised_tokens=batch["info"].supervised_tokens,
    )


@dataclass(kw_only=True)
class Trial:
    """A model with LoRA, and one batch."""

    trainee: Trainee
    device: str
    inputs: dict[str, Tensor]
    """Of a forward, as the collator made them."""
    supervised_tokens: int
    loss_after: float | None = None
    """Per supervised token, after the step."""

    def step(self) -> str:
        """A step of AdamW moves the B of every layer, nothing but the adapter, and lowers the loss."""
        model = self.trainee.model
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        forward = self._forward(model)
        with forward.installed(model):
            loss = self._loss(forward, model)
            loss.backward()
            at_first = float(loss.detach())
            torch.optim.AdamW(trained, lr=1e-3).step()
            with torch.no_grad():
                after = float(self._loss(forward, model))
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        if wrong := [name for name in moved if ".lora_" not in name]:
            raise CheckFailedError(f"{len(wrong)} frozen weights of the base model moved, such as {wrong[0]}")
        if still := [name for name in before if ".lora_B." in name and name not in moved]:
            raise CheckFailedError(f"{len(still)} layers of the adapter did not move, such as {still[0]}")
        if not moved:
            raise CheckFailedError("the model has no adapter")
        if not after < at_first:
            raise CheckFailedError(f"the loss went from {at_first:.4f} to {after:.4f}")
        self.loss_after = after
        layers = sum(".lora_B." in name for name in moved)
        return f"loss {at_first:.4f} to {after:.4f}; {layers} adapted layers moved, the base did not"

    def save_and_load(self) -> str:
        """The `.pth` and the PEFT folder give the loss that the trained model has."""
        if self.loss_after is None:
            raise CheckFailedError("there is no trained adapter, since the step failed")
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
            pth = save_adapter(self.trainee, RunFiles(Path(folder), "step"), TINY_MODEL, None)
            for path in (pth, pth.with_suffix("")):
                model, _, _ = load_model_with_lora(
                    TINY_MODEL, str(path), self.trainee.rank, device=self.device, dtype="float32"
                )
                forward = self._forward(model)
                with forward.installed(model), torch.no_grad():
                    found = float(self._loss(forward, model))
                if not abs(found - self.loss_after) <= _ROUNDING * max(1.0, abs(self.loss_after)):
                    raise CheckFailedError(
                        f"{path.name} has a loss of {found:.6f}, the trained model {self.loss_after:.6f}"
                    )
        return f"as .pth and as PEFT folder: the loss is the trained model's, {self.loss_after:.4f}"

    def _forward(self, model: Any) -> PackedForward:
        settings = self.trainee.settings
        return PackedForward(model, visibility=settings.visibility, stride=settings.branch_stride)

    def _loss(self, forward: PackedForward, model: Any) -> Tensor:
        """Per supervised token."""
        return forward.loss(model, self.inputs) / self.supervised_tokens


class _Losses(SilentTraining):
    """Keeps the losses of a run."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def log(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            self.seen.append(float(entry["loss"]))


def _run(options: DoctorOptions) -> str:
    """What `parallelmind train` does, for two steps."""
    losses = _Losses()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        settings = _train_options(options, Path(folder))
        report = run_training(settings, progress=losses)
        if report.steps != _STEPS or len(losses.seen) != _STEPS or not all(map(math.isfinite, losses.seen)):
            raise CheckFailedError(f"{report.steps} steps with the losses {losses.seen}, instead of {_STEPS}")
        load_model_with_lora(
            TINY_MODEL, str(report.written), settings.lora_rank, device=settings.device, dtype="float32"
        )
    return f"{_STEPS} steps, losses {', '.join(f'{loss:.4f}' for loss in losses.seen)}; its adapter loads"


def _train_options(options: DoctorOptions, folder: Path) -> TrainOptions:
    data = folder / "train.jsonl"
    rows = [
        {
            "main": record.main,
            "branches": [
                {"prompt": prompt, "completion": f" {answer}"}
                for prompt, answer in zip(record.branches, record.answers, strict=True)
            ],
        }
        for record in read_demo_records()[:_RECORDS]
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TrainOptions(
        base_model=TINY_MODEL,
        data_path=data,
        out_dir=folder,
        lora_rank=options.lora_rank or 8,
        device=options.device and options.device.partition(":")[0],  # training takes the first GPU
        dtype="float32",
        max_steps=_STEPS,
        log_interval=1,
    )
