"""Which GPUs there are, and which of them each worker of a machine has."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallelmind.errors import SettingsError

_DEVICE_FILES = ("nvidia[0-9]*", "nvgpu", "nvhost-gpu", "kfd", "dxg")
"""Below /dev: NVIDIA's, those of its small boards, AMD's, and those of a Linux under Windows."""


@dataclass(frozen=True, slots=True)
class GpuShare:
    """The GPUs of one worker."""

    devices: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; empty: the CPU."""
    shared: bool
    """Other workers may have them too."""

    @property
    def environment(self) -> dict[str, str]:
        """What to set for the worker."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)}

    def __str__(self) -> str:
        if not self.devices:
            return "CPU"
        return f"GPU {', '.join(self.devices)}" + (" (shared)" if self.shared else "")


def assign_gpus(worker: int, num_workers: int, gpus: Sequence[str], *, gpus_per_worker: int | None = None) -> GpuShare:
    """The share of one worker: `len(gpus) // num_workers` each, or `gpus_per_worker`; worker 0 has the first ones.

    Where there are too few, workers share: each takes its number (one, if nothing else is said) in turn. No GPU: the
    CPU.

    Raises:
        SettingsError: there is no such worker.
    """
    if not 0 <= worker < num_workers:
        raise SettingsError(f"worker {worker} of {num_workers} does not exist; they are numbered from 0.")
    if not gpus:
        return GpuShare(devices=(), shared=False)
    wanted = gpus_per_worker or max(1, len(gpus) // num_workers)
    size = min(wanted, len(gpus))
    devices = tuple(gpus[(worker * size + place) % len(gpus)] for place in range(size))
    return GpuShare(devices=devices, shared=wanted * num_workers > len(gpus))


def shortage(num_workers: int, gpus: int, *, gpus_per_worker: int | None, total_gpus: int | None) -> str:
    """What to tell a user who asked for more GPUs than there are; "" if nobody did."""
    asked = [
        f"{flag} {value}"
        for flag, value in (("--gpus_per_worker", gpus_per_worker), ("--total_gpus", total_gpus))
        if value
    ]
    if not asked:
        return ""
    if not gpus:
        return f"no GPU is visible: the workers run on the CPU in spite of {' and '.join(asked)}"
    if gpus_per_worker and gpus_per_worker * num_workers > gpus:
        needed = gpus_per_worker * num_workers
        return (
            f"{num_workers} workers with --gpus_per_worker {gpus_per_worker} need {needed} GPUs, "
            f"{gpus} are there: they share them"
        )
    if total_gpus and total_gpus > gpus:
        return f"--total_gpus {total_gpus} is more than the {gpus} that are visible: those are used"
    return ""


def gpus_of_actor(num_workers: int, gpus: float, *, gpus_per_worker: float | None) -> float:
    """What each of several workers asks Ray for, where nothing can come to the `gpus` of its cluster.

    Ray gives whole GPUs, or parts of one; more than there are it would wait for without end.
    """
    wanted = gpus_per_worker or min(1.0, gpus)
    if wanted * num_workers <= gpus:
        return wanted
    if gpus >= num_workers:
        return gpus // num_workers
    return 1 / math.ceil(num_workers / gpus) if gpus else 0.0


def visible_gpus(environ: Mapping[str, str], count: int | None, *, total: int | None = None) -> list[str]:
    """The names of the GPUs this process may use, the first `total` of them.

    They are those of CUDA_VISIBLE_DEVICES if it is set, else 0 to `count` - 1. `count` None is unknown, and then the
    variable is believed.
    """
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is None or count == 0:
        return [str(number) for number in range(count or 0)][:total]
    names = []
    for name in (part.strip() for part in given.split(",")):
        beyond = name.isdecimal() and count is not None and count <= int(name)
        if not name or name == "-1" or beyond:  # CUDA ignores what follows an invalid entry
            break
        names.append(name)
    return names[:total]


def count_gpus(devices: Path = Path("/dev")) -> int | None:
    """NVIDIA GPUs of this machine, None if it may have some and they cannot be counted; torch is not imported."""
    command = shutil.which("nvidia-smi")
    if command is None:
        on_linux = sys.platform.startswith("linux")
        return 0 if on_linux and not any(True for name in _DEVICE_FILES for _ in devices.glob(name)) else None
    try:
        listed = subprocess.run([command, "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
