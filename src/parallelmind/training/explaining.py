"""Errors of transformers and torch about the user's flags, in words that name the flag."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from parallelmind.errors import ParallelMindError, SettingsError, first_line, is_out_of_memory

_NOT_CHOSEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
"""Arguments of a schedule that `--lr_scheduler_kwargs` does not give."""


NO_SHARDS = (
    "it parts the weights among the processes, and an adapter is evaluated and saved from whole ones. Leave it out: "
    "torchrun alone has a whole model on every GPU; for large models take --load_in_4bit or --gradient_checkpointing "
    "true, and stage 2 of DeepSpeed parts gradients and the optimizer"
)
"""Why neither FSDP nor the third stage of DeepSpeed is taken."""


def check_values(given: Mapping[str, Any]) -> None:
    """Raises SettingsError for values of TrainingArguments that transformers would take, and fail with later."""
    for name, least in (("dataloader_num_workers", 0), ("neftune_noise_alpha", 0)):
        if (value := given.get(name)) is not None and value < least:
            raise SettingsError(f"--{name} is {value}; it must be {least} or more.")
    if given.get("deepspeed") and find_spec("deepspeed") is None:
        raise SettingsError(
            "--deepspeed needs the package deepspeed, which is not installed; run: pip install deepspeed."
        )
    for name in ("ddp_backend", "deepspeed"):
        if given.get(name) and "WORLD_SIZE" not in os.environ:
            raise SettingsError(
                f"--{name} needs a launcher: torchrun --nproc_per_node N … --{name} {given[name]}; else leave it out."
            )


def check_reporters(names: list[str]) -> None:
    """Raises SettingsError if transformers reports to no such program."""
    if unknown := [name for name in names if name not in (*INTEGRATION_TO_CALLBACK, "all")]:
        raise SettingsError(
            f"--report_to {unknown[0]}: not known; it must be none, all, or of {', '.join(INTEGRATION_TO_CALLBACK)}."
        )


def make_arguments(values: Mapping[str, Any], given: Mapping[str, Any]) -> TrainingArguments:
    """TrainingArguments of all values. Raises SettingsError, naming the flags of those given that it refuses."""
    try:
        return TrainingArguments(**values)
    except Exception as error:  # of files and JSON as well, which some fields may be
        reason = first_line(error)
        plain = {name: value for name, value in values.items() if name not in given}
        flags = [name for name, value in given.items() if _fails(plain | {name: value}) == reason] or list(given)
        if not flags:
            raise
        raise SettingsError(
            f"{shown_flags({name: given[name] for name in flags})}: transformers refuses: {reason}"
        ) from error


def refuse_shards(trainer: Any) -> None:
    """Raises SettingsError where a process would not hold all of every weight, which evaluating and saving need."""
    asked = bool(trainer.args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    deepspeed = trainer.args.deepspeed_plugin
    shards = getattr(deepspeed, "zero_stage", 0) == 3
    if asked or shards:
        what = "FSDP (accelerate's configuration)" if asked else "stage 3 of DeepSpeed (--deepspeed)"
        raise SettingsError(f"{what} cannot be used here: {NO_SHARDS}.")


def shown_flags(given: Mapping[str, Any]) -> str:
    """As they are written: "--fsdp full_shard"."""
    return " ".join(f"--{name} {getattr(value, 'value', value)}" for name, value in given.items())


def _fails(values: Mapping[str, Any]) -> str | None:
    try:
        TrainingArguments(**values)
    except Exception as error:
        return first_line(error)
    return None


def is_of_optimizer(error: BaseException) -> bool:
    """Whether an error came out of a step of the optimizer."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        inside = frame.tb_frame
        if inside.f_code.co_name == "step" and isinstance(inside.f_locals.get("self"), torch.optim.Optimizer):
            return True
        frame = frame.tb_next
    return False


@contextmanager
def explained_optimizer(arguments: TrainingArguments) -> Iterator[None]:
    """The block in which the optimizer of `--optim` is made. Raises SettingsError if that fails."""
    name = getattr(arguments.optim, "value", arguments.optim)
    try:
        yield
    except ParallelMindError:
        raise
    except Exception as error:  # packages of optimizers, and their extensions, have errors of their own
        if is_out_of_memory(error):
            raise
        given = f" with --optim_args {arguments.optim_args}" if arguments.optim_args else ""
        if "beta parameter" in str(error) or "epsilon" in str(error):
            given = f" with --adam_beta1 {arguments.adam_beta1} --adam_beta2 {arguments.adam_beta2} --adam_epsilon "
            given += f"{arguments.adam_epsilon}"
        reason = first_line(error).rstrip(".").replace("`optim_target_modules`", "--optim_target_modules")
        raise SettingsError(
            f"--optim {name}{given} cannot be used: {reason}. Change that, or leave --optim out."
        ) from error


@contextmanager
def explained_scheduler(arguments: TrainingArguments) -> Iterator[None]:
    """The block in which the schedule of the learning rate is made. Raises SettingsError if that fails."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = arguments.lr_scheduler_type
        known = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters.keys() - _NOT_CHOSEN
        raise SettingsError(
            f"--lr_scheduler_type {getattr(kind, 'value', kind)} cannot be used with --lr_scheduler_kwargs "
            f"{arguments.lr_scheduler_kwargs or '{}'}: {first_line(error).rstrip('.')}. It takes "
            f"{', '.join(sorted(known)) or 'none'}, as JSON."
        ) from error
