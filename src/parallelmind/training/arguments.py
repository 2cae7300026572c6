"""From our options to transformers' TrainingArguments."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import Any

from transformers import TrainingArguments

from parallelmind.errors import SettingsError
from parallelmind.training import compiling
from parallelmind.training.explaining import NO_SHARDS, check_reporters, check_values, make_arguments
from parallelmind.training.files import RunFiles
from parallelmind.training.options import TrainOptions
from parallelmind.training.publishing import without_hub

RENAMED = {
    "num_train_epochs": "epochs",
    "gradient_accumulation_steps": "accumulation_steps",
    "max_grad_norm": "grad_clip",
    "logging_steps": "log_interval",
    "save_steps": "save_interval",
    "eval_steps": "eval_interval",
    "output_dir": "out_dir",
}
"""Fields that have a flag of another name, which the field's own name spells as well."""
FIXED = {
    "per_device_train_batch_size": "use --batch_size (and --batch_by_samples)",
    "per_device_eval_batch_size": "evaluation uses --batch_size",
    "auto_find_batch_size": "use --batch_size",
    "bf16": "use --dtype bfloat16",
    "fp16": "use --dtype float16",
    "bf16_full_eval": "use --dtype bfloat16",
    "fp16_full_eval": "use --dtype float16",
    "use_cpu": "use --device cpu",
    "remove_unused_columns": "packed rows need all of their columns",
    "ignore_data_skip": "a resumed run goes on in the data by itself",
    "dataloader_drop_last": "no row is dropped",
    "train_sampling_strategy": "rows are shuffled, and batched by length, by themselves",
    "length_column_name": "rows are batched by length by themselves",
    "label_names": "packed rows have labels of their own",
    "use_liger_kernel": "the loss is computed in chunks by itself, and its other kernels, which need a GPU, were not "
    "tested on packed rows",
    "fsdp": NO_SHARDS,
    "fsdp_config": NO_SHARDS,
    "use_cache": "training needs no cache",
    "data_seed": "use --seed",
    "do_train": "this command trains",
    "do_eval": "use --eval_data_path or --eval_ratio",
    "do_predict": "use parallelmind batch",
    "eval_strategy": "use --eval_interval with --eval_data_path or --eval_ratio",
    "save_strategy": "use --save_interval",
    "logging_strategy": "use --log_interval",
    "disable_tqdm": "this command shows its own progress",
    "include_num_input_tokens_seen": "tokens are counted by themselves",
    "logging_nan_inf_filter": "a loss that is not a number ends the run",
    "average_tokens_across_devices": "the loss is always the mean over the tokens of all processes",
}
"""Fields that cannot be set, and what to use instead."""

_OBJECTS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
"""Fields that are JSON objects."""
_REPORTERS = ("wandb", "tensorboard", "trackio")
"""Packages that are optional extras, by their name there and in `--report_to`."""
_NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Fields that newer versions of transformers renamed; they warn about the old names."""


def training_arguments(
    options: TrainOptions,
    files: RunFiles,
    *,
    device: str,
    accumulation: int,
    total_steps: int | None,
    evaluates: bool,
) -> TrainingArguments:
    """The arguments of a run.

    Args:
        accumulation: micro-batches of a step of this process.
        total_steps: None: unknown until the data has ended.
    Raises:
        SettingsError: a field that is ours to set, or a value that transformers refuses.
    """
    given = {name: value for name, value in without_hub(options.hf).items() if name not in compiling.FIELDS}
    if fixed := [name for name in given if name in FIXED]:
        raise SettingsError(f"--{fixed[0]} cannot be set here: {FIXED[fixed[0]]}.")
    check_values(given)
    if options.use_streaming and int(given.get("dataloader_num_workers") or 0) > 1:
        raise SettingsError(
            "--dataloader_num_workers is above 1 with --use_streaming, where every further process would read and "
            "encode all of the data again: give 1, which reads ahead in a process of its own, or leave --use_streaming "
            "out."
        )
    for name in _OBJECTS:
        if name in given:
            given[name] = _object(name, given[name])
    for former, name in _NEW_NAMES.items():
        if former in given and hasattr(TrainingArguments, name):
            given[name] = given.pop(former)
    if total_steps is None:
        scheduler = given.setdefault("lr_scheduler_type", "constant_with_warmup")
        if str(scheduler) not in ("constant", "constant_with_warmup"):
            raise SettingsError(
                f"--lr_scheduler_type {scheduler} needs to know where it ends; with --use_streaming give --max_steps."
            )
    on_cpu = device == "cpu"
    reporters = _reporters(given.pop("report_to", None), use_wandb=options.use_wandb)
    # Not by transformers' own check: it would want every evaluation to be one of the saved steps, and whenever an
    # evaluation is the best yet the step is saved here.
    keeps_best = bool(given.pop("load_best_model_at_end", False))
    if keeps_best or options.early_stopping_patience is not None:
        given.setdefault("metric_for_best_model", "loss")
    values: dict[str, Any] = {
        "report_to": reporters or "none",
        "run_name": files.name,
        "project": "parallelmind",
        "save_total_limit": 2,
        "ddp_find_unused_parameters": False,
        "ddp_backend": "gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        "dataloader_pin_memory": not on_cpu,
    }
    values |= given
    values |= {
        "output_dir": str(files.checkpoints),
        "max_steps": UNKNOWN_STEPS if total_steps is None else total_steps,
        "per_device_train_batch_size": 1,
        "learning_rate": options.learning_rate,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": options.grad_clip,
        "logging_strategy": "steps",
        "logging_steps": options.log_interval,
        "save_strategy": "steps",
        "save_steps": options.save_interval,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": options.eval_interval or options.save_interval,
        "seed": options.seed,
        "bf16": options.dtype == "bfloat16",
        "fp16": options.dtype == "float16",
        "use_cpu": on_cpu,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "average_tokens_across_devices": True,
        "log_level": given.get("log_level", "error"),
    }
    arguments = make_arguments(values, {name: value for name, value in given.items() if name in values})
    arguments.load_best_model_at_end = keeps_best
    # One process, one GPU: transformers would otherwise split every batch over all GPUs it sees.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _object(name: str, given: Any) -> Any:
    """A field that is a JSON object, which transformers leaves a text in several of its spellings."""
    content = given
    if isinstance(given, str):
        try:
            content = json.loads(given)
        except ValueError:
            content = None
    if not isinstance(content, dict):
        raise SettingsError(f'--{name} is {given!r}; it must be a JSON object such as {{"name": 1}}.')
    return content


def _reporters(given: str | list[str] | None, *, use_wandb: bool) -> list[str]:
    """Where the run is reported to. Raises SettingsError for what is not installed."""
    names = [given] if isinstance(given, str) else list(given or ())
    if use_wandb and "wandb" not in names:
        names.append("wandb")
    names = [name for name in names if name != "none"]
    check_reporters(names)
    for name in names:
        if name in _REPORTERS and find_spec(name) is None:
            flag = "--use_wandb" if use_wandb and name == "wandb" else f"--report_to {name}"
            raise SettingsError(
                f"{flag} needs the package {name}, which is not installed; run: pip install 'parallelmind[{name}]', "
                "or leave the flag out."
            )
    return names


UNKNOWN_STEPS = 2**31
"""Stands for the number of steps of a stream whose end is not known."""
