"""Errors of transformers and torch about the user's flags, in words that name the flag."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from parallelmind.errors import ParallelMindError, SettingsError, first_line, is_out_of_memory

_NOT_CHOSEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
"""Arguments of a schedule that `--lr_scheduler_kwargs` does not give."""


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
        raise SettingsError(
            f"--optim {name}{given} cannot be used: {first_line(error).rstrip('.')}. Change that, or leave --optim out "
            "(adamw_torch)."
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
