"""What the engines of workers have in common, whatever the job."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from parallelmind.jobs.task import WorkerInfo
from parallelmind.settings.model import ModelOptions

PREFIX_CACHE_BYTES = 2**29
"""Enough for mains that come again within some thousand records; more would make the job grow with the file."""

Options = TypeVar("Options", bound=ModelOptions)


def spread_over(options: Options, worker: WorkerInfo | None) -> Options:
    """The options with the model spread over the worker's GPUs, if it has several and nothing else was asked for."""
    several = worker is not None and worker.gpus is not None and len(worker.gpus.devices) > 1
    if several and options.device in (None, "cuda") and options.device_map is None:
        return dataclasses.replace(options, device_map="auto")
    return options
