"""The training path, on the bundled model in a temporary folder: a step of LoRA, its adapter, and a whole run."""

from __future__ import annotations

import json
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallelmind.data.collator import ParallelPretrainCollator
from parallelmind.demos.batch import read_demo_records
from parallelmind.doctor.check import Check, CheckFailedError, DoctorOptions, Once
from parallelmind.models.loader import load_model_with_lora
from parallelmind.settings.model import TINY_MODEL
from parallelmind.training.data import batching, load_data
from parallelmind.training.files import RunFiles
from parallelmind.training.forward import PackedForward
from parallelmind.training.model import load_trainee, training_device
from parallelmind.training.options import TrainOptions
from parallelmind.training.run import run_training
from parallelmind.training.saving import save_adapter

_RECORDS = 2
_STEPS = 2
_ROUNDING = 1e-4


def checks(options: DoctorOptions) -> list[Check]:
    trial = Once(lambda: _Trial(options), "the step")
    versions = (
        "Install the versions of torch, transformers and peft that `parallelmind doctor --only versions` asks for"
    )
    return [
        Check(group="training", name="one step of LoRA", run=lambda: trial().step(), remedy=versions),
        Check(group="training", name="save and load the adapter", run=lambda: trial().save_and_load(), remedy=versions),
        Check(group="training", name="a run of the trainer", run=partial(_run, options), remedy=versions),
    ]


class _Trial:
    """A model with LoRA, and one batch."""

    def __init__(self, options: DoctorOptions):
        self._folder = tempfile.TemporaryDirectory(prefix="parallelmind-doctor-")
        self._options = _train_options(options, Path(self._folder.name))
        self._device, _ = training_device(self._options)
        self._trainee = load_trainee(self._options, device=self._device)
        self._trainee.model.to(self._device)
        batches = batching(self._options, self._trainee.settings.visibility)
        dataset, _, _ = load_data(self._options, self._trainee, batches)
        collator = ParallelPretrainCollator(
            self._trainee.pad_token_id,
            stride=self._trainee.settings.branch_stride,
            visibility=self._trainee.settings.visibility,
        )
        batch: dict[str, Any] = collator(next(iter(dataset)))
        self._supervised_tokens = batch["info"].supervised_tokens
        self._batch = {name: value.to(self._device) for name, value in batch.items() if isinstance(value, Tensor)}
        self._loss_after: float | None = None

    def step(self) -> str:
        """A step of AdamW moves the B of every layer, nothing but the adapter, and lowers the loss."""
        model = self._trainee.model
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        forward = self._forward(model)
        with forward.installed(model):
            loss = forward.loss(model, self._batch) / self._supervised_tokens
            loss.backward()
            at_first = float(loss.detach())
            torch.optim.AdamW(trained, lr=1e-3).step()
            with torch.no_grad():
                after = float(forward.loss(model, self._batch)) / self._supervised_tokens
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        if wrong := [name for name in moved if ".lora_" not in name]:
            raise CheckFailedError(f"{len(wrong)} frozen weights of the base model moved, such as {wrong[0]}")
        if still := [name for name in before if ".lora_B." in name and name not in moved]:
            raise CheckFailedError(f"{len(still)} layers of the adapter did not move, such as {still[0]}")
        if not moved:
            raise CheckFailedError("the model has no adapter")
        if not after < at_first:
            raise CheckFailedError(f"the loss went from {at_first:.4f} to {after:.4f}")
        self._loss_after = after
        layers = sum(".lora_B." in name for name in moved)
        return f"loss {at_first:.4f} to {after:.4f}; {layers} adapted layers moved, the base did not"

    def save_and_load(self) -> str:
        """The `.pth` and the PEFT folder give the loss that the trained model has."""
        if self._loss_after is None:
            raise CheckFailedError("there is no trained adapter, since the step failed")
        files = RunFiles(self._options.out_dir, "step")
        pth = save_adapter(self._trainee, files, TINY_MODEL, None)
        for path in (pth, pth.with_suffix("")):
            loaded = load_model_with_lora(
                TINY_MODEL, str(path), self._options.lora_rank, device=self._device, dtype="float32"
            )
            forward = self._forward(loaded.model)
            with forward.installed(loaded.model), torch.no_grad():
                found = float(forward.loss(loaded.model, self._batch)) / self._supervised_tokens
            if not abs(found - self._loss_after) <= _ROUNDING * max(1.0, abs(self._loss_after)):
                raise CheckFailedError(
                    f"{path.name} has a loss of {found:.6f}, the trained model {self._loss_after:.6f}"
                )
        return f"as .pth and as PEFT folder: the loss is the trained model's, {self._loss_after:.4f}"

    def _forward(self, model: Any) -> PackedForward:
        settings = self._trainee.settings
        return PackedForward(model, visibility=settings.visibility, stride=settings.branch_stride)


class _Entries:
    """Keeps the log entries of a run."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def start(self, *, total: int | None, done: int) -> None: ...
    def step(self, done: int) -> None: ...
    def stop(self) -> None: ...

    def log(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            self.losses.append(float(entry["loss"]))


def _run(options: DoctorOptions) -> str:
    """What `parallelmind train` does, for two steps."""
    entries = _Entries()
    with tempfile.TemporaryDirectory(prefix="parallelmind-doctor-") as folder:
        settings = _train_options(options, Path(folder))
        report = run_training(settings, progress=entries)
        if report.steps != _STEPS or len(entries.losses) != _STEPS or not all(map(math.isfinite, entries.losses)):
            raise CheckFailedError(f"{report.steps} steps with the losses {entries.losses}, instead of {_STEPS}")
        load_model_with_lora(
            TINY_MODEL, str(report.written), settings.lora_rank, device=settings.device, dtype="float32"
        )
    return f"{_STEPS} steps, losses {', '.join(f'{loss:.4f}' for loss in entries.losses)}; its adapter loads"


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
